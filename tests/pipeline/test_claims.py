"""The claims table: what is claimed, what a verdict says of an interval, and that noise is seldom called anything."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from pipelines.data.procedural import SHAPES
from pipelines.metrics import judge as judging
from pipelines.metrics.intervals import Interval, mean_interval
from pipelines.metrics.metric import METRICS
from pipelines.paper import claims, exhibits
from pipelines.paper.claim_list import CLAIMS, NAMES, Claim, name
from pipelines.report.tables import Row
from postdiff import methods


def test_there_are_at_least_24_claims_each_told_once_and_judged_by_what_can_judge_it():
    assert len(CLAIMS) >= 24
    assert len({(c.model, c.plan.id, c.against.id, c.metric) for c in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.metric in claims.MARGINS
        if METRICS[claim.metric].is_paired:
            assert not any(plan.switches for plan in claim.plans), claim


def test_every_plan_has_a_name_of_its_own():
    assert len(set(NAMES.values())) == len(NAMES)
    assert all(plan.id in NAMES for claim in CLAIMS for plan in claim.plans)


def claim(metric, expected):
    return Claim("1", "a sentence", "sd15", methods.deepcache(20, 2), methods.dense(20), metric, expected)


def verdict(metric, expected, low, high):
    one = Interval((low + high) / 2, low, high, 64)
    alone = (one,) * len(METRICS[metric].judges)
    return claims.Judged(claim(metric, expected), one, None, alone).verdict


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdicts"),
    [  # of better, worse, alike; FID's margin is 1 and lower is better, that of attributes is 2
        ("fid", -3.0, -2.0, ("agrees", "contradicts", "contradicts")),
        ("fid", 2.0, 3.0, ("contradicts", "agrees", "contradicts")),
        ("fid", -0.9, 0.5, ("equivalent", "equivalent", "agrees")),
        ("fid", -0.9, -0.1, ("agrees", "contradicts", "agrees")),  # clear, and within the margin
        ("fid", -9.0, -0.1, ("agrees", "contradicts", "not resolved")),  # clear, maybe within the margin
        ("fid", -1.5, -0.1, ("agrees", "contradicts", "not resolved")),  # clear, maybe within it
        ("fid", -2.0, 2.0, ("not resolved",) * 3),
        ("attributes", 0.1, 1.9, ("agrees", "contradicts", "agrees")),
        ("attributes", -5.0, -3.0, ("contradicts", "agrees", "contradicts")),
    ],
)
def test_a_verdict_is_of_the_interval_alone(metric, low, high, verdicts):
    assert tuple(verdict(metric, way, low, high) for way in ("better", "worse", "alike")) == verdicts


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ((1.0, 5.0), (0.1, 4.0), "agrees"),
        ((1.0, 5.0), (-0.1, 4.0), "not resolved"),
        ((1.0, 5.0), (-5.0, -1.0), "not resolved"),
        ((-1.0, 1.0), (-1.5, 1.5), "equivalent"),
        ((-1.0, 1.0), (-2.5, 1.5), "not resolved"),
        ((-9.0, 9.0), (-8.0, 9.0), "not resolved"),
    ],
)
def test_judges_give_a_verdict_only_together(first, second, told):
    alone = tuple(Interval(sum(ends) / 2, *ends, 64) for ends in (first, second))
    clear = Interval(3.0, 2.0, 4.0, 64)  # their mean is seen with less noise than either: it decides nothing
    one = claims.Judged(claim("attributes", "better"), clear, None, alone)
    assert one.verdict == told
    differ = told == "not resolved" and first != (-9.0, 9.0)
    assert one.differ == differ
    last = claims.lines([one], {"sd15": "mini-sd"})[0][-1]
    assert ("the judges differ" in last) == differ
    (line,) = csv.DictReader(io.StringIO(claims.to_csv([one], {"sd15": "mini-sd"}, "p", 0)))
    assert line["judges"] == ("differ" if differ else "as one")


def test_what_the_legend_says_of_half_widths_is_so():
    """A true difference of the half-width is told from none half of the time by one interval; by two judges, each of
    whose own must leave out 0, less often."""
    rng, half = np.random.default_rng(0), 1.0
    seen = half + half / 1.96 * rng.normal(size=(4000, 2))
    one, both = (seen[:, 0] > half).mean(), (seen > half).all(axis=1).mean()
    assert abs(one - 0.5) < 0.03
    assert both < 0.3
    said = claims.LEGEND
    assert "where it alone decides between better and worse, a true difference as large is told from none half" in said
    assert "half of the time (of what judges say less often: each one's own interval must leave out 0)" in said


def test_each_judge_is_scored_alone_and_the_mean_is_theirs():
    wanted = np.tile(judging.one_hot(["a big red star on snow", "a small blue ring on sand"] * 4, SHAPES), (1, 2))
    images = wanted.copy()
    width = judging.width(SHAPES)
    images[0, :width] = wanted[1, :width]  # the first judge takes the first image for the second
    mean, (one, other) = METRICS["content"], METRICS["content"].judges
    assert [of.score(images, wanted).value for of in (mean, one, other)] == [93.75, 87.5, 100.0]
    assert [of.key for of in (one, other)] == ["content_convolutional", "content_transformer"]
    assert not any(of.ranks or of.shown for of in (one, other))


def test_a_claim_needs_each_judges_own_scores():
    some = rows(np.random.default_rng(4), effect=1.0)
    asked = next(one for one in CLAIMS if METRICS[one.metric].judges and len(one.plan) != len(one.against))
    measured = {one.claim: one for one in claims.judge(some)}[asked]
    assert len(measured.alone) == 2
    assert measured.verdict in ("agrees", "contradicts")
    key, blind = METRICS[asked.metric].judges[1].key, some[asked.model, asked.plan.id].scores["fid"]
    other = {of: replace(row, scores={**row.scores, key: blind}) for of, row in some.items()}  # to it all are alike
    again = {one.claim: one for one in claims.judge(other)}[asked]
    assert (again.verdict, again.differ) == ("not resolved", True)


def test_what_was_not_measured_has_no_verdict():
    assert claims.Judged(claim("relation", "alike"), None, None).verdict == "not measured"


def test_the_papers_own_differences_are_of_its_tables():
    papers = {(c.model, tuple(map(name, c.plans)), c.metric): claims._paper(c) for c in CLAIMS}
    assert papers["sd15", ("+Mix T=20 beta=0.5 s=0.5", "T=20"), "fid"] == -2.73
    assert papers["sd15", ("no CFG", "T=20"), "clip"] == -5.28
    assert papers["sdxl", ("+Mix T=20 beta=0.75 s=0.2", "T=20"), "fid"] == 0.27
    assert papers["sd15", ("PostDiff T=20 beta=0.5 s=0.5 k=2 m=15", "T-GATE (5)"), "fid"] == -2.86
    assert papers["sd15", ("+Mix T=20 beta=0.5 s=0.6", "+Mix T=20 beta=0.5 s=0.5"), "fid"] is None


def rows(rng, effect=0.0, n=64):
    """Every plan of the claims with scores of nothing but noise, but that more steps have `effect` more."""
    shared, found = rng.normal(size=n), {}
    for claim in CLAIMS:
        for plan in claim.plans:
            values = shared + 0.3 * rng.normal(size=n) + effect * len(plan)
            keys = [*claims.MARGINS, *(one.key for key in claims.MARGINS for one in METRICS[key].judges)]
            scores = dict.fromkeys(keys, mean_interval(values))
            found[claim.model, plan.id] = Row(plan.id, plan.name, "", len(plan), 1, 1, 0.1, scores)
    return found


def test_of_nothing_but_noise_seldom_anything_is_said():
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(60):
        verdicts = {(one.claim.expected == "alike", one.verdict) for one in claims.judge(rows(rng))}
        assert verdicts <= {(True, "agrees"), (False, "equivalent"), (False, "agrees"), (False, "contradicts")}
        wrong += bool(verdicts & {(False, "agrees"), (False, "contradicts")})
    assert wrong <= 8  # 3 on average; 11 of 240 in a longer trial


def test_an_effect_is_seen_with_its_sign():
    judged = claims.judge(rows(np.random.default_rng(1), effect=1.0))
    by = {(tuple(map(name, one.claim.plans)), one.claim.metric): one for one in judged}
    assert by[("T=8", "T=20"), "psnr"].verdict == "agrees"  # worse
    assert by[("T=8", "T=20"), "psnr"].measured.value == pytest.approx(-12, abs=0.3)
    assert by[("DC k=2 T=8", "DC k=2"), "psnr_dense"].verdict == "agrees"


def test_a_plan_that_could_not_be_run_costs_its_claims_alone():
    some = rows(np.random.default_rng(3))
    lost = next(key for key in some if key[0] == "sdxl")
    del some[lost]
    judged = claims.judge(some)
    hit = [one for one in judged if lost in {(one.claim.model, plan.id) for plan in one.claim.plans}]
    assert {one.verdict for one in hit} == {"not measured"}
    assert all(one.measured for one in judged if one.claim.model != "sdxl")


def test_the_table_and_its_csv_hold_every_claim_with_its_interval():
    judged = claims.judge(rows(np.random.default_rng(2)))
    names = dict.fromkeys(("sd15", "lcm", "sdxl", "pixart"), "a model")
    lines = claims.lines(judged, names)
    assert [len(line) for line in lines] == [len(claims.HEADER)] * len(CLAIMS)
    table = list(csv.DictReader(io.StringIO(claims.to_csv(judged, names, "p-1", 2))))
    assert len(table) == len(CLAIMS)
    first, one = table[0], judged[0]
    assert float(first["measured_low"]) == pytest.approx(one.measured.low, abs=1e-5)
    assert (first["verdict"], first["protocol"], first["n"]) == (one.verdict, "p-1", "64")
    assert {line["draw"] for line in table} == {"2"}
    assert claims.answer(judged).startswith(f"Of {len(CLAIMS)} claims of the paper, ")


def test_the_claims_are_an_exhibit_whose_runs_others_share():
    exhibit = exhibits.gather(["claims"], {})[0]
    keys = {cell.key for cell in exhibit.cells}
    assert keys == {(c.model, plan.id) for c in CLAIMS for plan in c.plans}
    others = {cell.key for other in exhibits.gather(["all"], {}) if other is not exhibit for cell in other.cells}
    assert len(keys & others) > len(keys) / 2
