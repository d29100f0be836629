"""The sequential rule of the claims: its looks, who goes on, and that its intervals hold as often as they say."""

import numpy as np
import pytest

from pipelines.metrics import fid
from pipelines.metrics.intervals import critical, mean_interval, student_t, together
from pipelines.paper import claims, sequential
from pipelines.paper.claim_list import Claim
from pipelines.report.tables import Row
from postdiff import methods

LOOKS = [64, 128, 256]
PLANS = [methods.dense(steps) for steps in range(2, 15)]
SMALL = tuple(Claim("1", f"claim {i}", "sd15", PLANS[i], PLANS[-1], "clip", "better") for i in range(12))


def test_looks_are_about_twice_as_many_each_and_end_at_the_most():
    assert sequential.sizes(512, 2048) == [512, 1024, 2048]
    assert sequential.sizes(512, 2000) == [512, 1024, 2000]
    assert sequential.sizes(512, 1100) == [512, 1100]
    assert sequential.sizes(8, 16) == [8, 16]
    with pytest.raises(ValueError, match="--up-to must be at least twice the 512 prompts of the first look, got 1000"):
        sequential.sizes(512, 1000)


def test_the_whole_error_is_spent_in_step_with_the_prompts():
    assert sequential.spent([512, 1024, 2048]) == pytest.approx([0.0125, 0.0125, 0.025])
    assert sum(sequential.spent([512, 1024, 2000])) == pytest.approx(0.05)


class Sweep:
    """What every plan scores on every prompt: `effects` beside noise, of which a prompt does the same to all plans."""

    def __init__(self, rng, effects, noise):
        self.values = rng.normal(size=(LOOKS[-1], 1)) + noise * rng.normal(size=(LOOKS[-1], len(PLANS)))
        self.values += np.append(effects, 0)
        self.looked: list[tuple[int, set]] = []

    def rows(self, look, keys=None):
        if keys is not None:
            self.looked.append((look, keys))
        scored = {("sd15", plan.id): self.row(plan, i, LOOKS[look]) for i, plan in enumerate(PLANS)}
        return {key: row for key, row in scored.items() if keys is None or key in keys}

    def row(self, plan, i, n):
        return Row(plan.id, plan.name, "", len(plan), 1, 1, 0.1, {"clip": mean_interval(self.values[:n, i])})

    def judge(self):
        return sequential.judge(self.rows(0), LOOKS, self.rows)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", SMALL)


def test_what_is_decided_keeps_its_verdict_and_the_others_go_on(small):
    effects = [9.0, 0.0] + [0.5] * 10  # clear at once; within the margin soon; clear later, or not at all
    sweep = Sweep(np.random.default_rng(0), effects, noise=2.0)
    first, same, *others = sweep.judge()
    assert (first.verdict, first.measured.n) == ("agrees", 64)
    assert (same.verdict, same.measured.n) == ("equivalent", 128)
    assert {one.measured.n for one in others if one.verdict == "not resolved"} == {256}
    assert any(one.measured.n == 128 for one in others)
    assert [look for look, _ in sweep.looked] == [1, 2]
    asked = [{plan for plan in PLANS if ("sd15", plan.id) in keys} for _, keys in sweep.looked]
    assert PLANS[0] not in asked[0] | asked[1]
    assert asked[1] <= asked[0]
    assert PLANS[-1] in asked[1]  # all claims are against it


def test_nothing_more_is_made_where_all_is_decided(small):
    sweep = Sweep(np.random.default_rng(1), [9.0] * 12, noise=1.0)
    assert {one.verdict for one in sweep.judge()} == {"agrees"}
    assert sweep.looked == []


def test_a_plan_that_was_lost_at_a_later_look_leaves_its_claims_as_they_were(small):
    sweep = Sweep(np.random.default_rng(2), [0.0] * 12, noise=9.0)
    lost = ("sd15", PLANS[3].id)
    judged = sequential.judge(
        sweep.rows(0), LOOKS, lambda look, keys: {k: row for k, row in sweep.rows(look, keys).items() if k != lost}
    )
    assert [one.measured.n for one in judged] == [64 if i == 3 else 256 for i in range(12)]
    assert judged[3].verdict == "not resolved"


def test_limits_are_those_of_the_whole_table_and_of_what_a_look_spends(small):
    """Of one claim that is left the interval is as wide as if all were: it was chosen."""
    sweep = Sweep(np.random.default_rng(3), [9.0] * 11 + [0.0], noise=3.0)
    *_, last = sweep.judge()
    first = claims.differences(sweep.rows(0))
    limits = critical(list(first.values()), 0.025)
    alone = claims.differences(sweep.rows(2))[SMALL[-1], "clip"]
    assert last.measured.n == 256
    assert last.measured.high - last.measured.low == pytest.approx(
        limits[-1] / student_t(len(alone.left_out) - 1) * (alone.high - alone.low)
    )
    assert limits[-1] > 1.1 * student_t(len(alone.left_out) - 1)


def test_a_look_at_all_prompts_is_a_little_wider_than_the_only_one(small):
    differences = list(claims.differences(Sweep(np.random.default_rng(4), [0.0] * 12, 3.0).rows(2)).values())
    whole = together(differences)[0]
    level = sequential.spent([512, 1024, 2048])[-1]
    ratio = critical(differences, level)[0] / critical(differences)[0]
    assert 1.02 < ratio < 1.12
    assert whole.low < whole.value < whole.high


def simulate(effects, noise, sweeps, seed):
    """Shares of sweeps in which all intervals hold, and in which a difference that is nothing is called one."""
    rng = np.random.default_rng(seed)
    held = false = 0
    for _ in range(sweeps):
        judged = Sweep(rng, effects, noise).judge()
        pairs = list(zip(judged, effects, strict=True))
        held += all(one.measured.low <= effect <= one.measured.high for one, effect in pairs)
        false += any(one.verdict in ("agrees", "contradicts") for one, effect in pairs if effect == 0)
    return held / sweeps, false / sweeps


def test_intervals_of_all_looks_hold_together_as_often_as_they_say(small):
    """Nothing is anything, and too noisy to lie within the margin: all claims go on unless one is called wrongly."""
    held, false = simulate([0.0] * 12, noise=20.0, sweeps=500, seed=5)
    assert 0.93 <= held <= 0.97
    assert false <= 0.05
    assert held + false == pytest.approx(1)


def test_numbers_of_claims_that_stopped_early_are_biased_and_the_legend_says_so(small, monkeypatch):
    monkeypatch.setitem(claims.MARGINS, "clip", 1e-9)
    rng, effect = np.random.default_rng(7), 2.0
    early = [
        one.measured.value
        for _ in range(40)
        for one in Sweep(rng, [effect] * 12, noise=5.0).judge()
        if one.measured.n == LOOKS[0] and one.verdict == "agrees"
    ]
    assert len(early) > 20
    assert np.mean(early) > 1.2 * effect
    assert "A number at which a claim stopped is biased, away from 0 where it is clear" in claims.legend(LOOKS)
    assert "if --up-to was chosen before the first look was seen" in claims.legend(LOOKS)
    assert claims.legend(LOOKS[:1]) == claims.LEGEND


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1.0, 3.0, 6.0])
def test_they_do_where_claims_stop_for_several_reasons(small, noise):
    effects = [*np.linspace(-2, 2, 6), *[0.0] * 6]
    held, false = simulate(effects, noise, sweeps=500, seed=6)
    assert held >= 0.93  # more than 97 % where most stop at the first look, which spends a quarter of the error
    assert false <= 0.05


@pytest.mark.slow
def test_they_do_where_metrics_are_of_several_kinds(monkeypatch):
    """FID of 20 groups, CLIP scores of up to 128, skewed PSNR of few images, all in one table; nothing is anything."""
    plans, metrics = PLANS[:5], ("fid", "clip", "psnr")
    mixed = tuple(Claim("1", key, "sd15", plan, plans[-1], key, "better") for key in metrics for plan in plans[:-1])
    monkeypatch.setattr(claims, "CLAIMS", mixed)
    monkeypatch.setattr(claims, "MARGINS", {**claims.MARGINS, **dict.fromkeys(metrics, 1e-9)})
    reference = fid.moments(np.random.default_rng(0).normal(size=(4000, 4)))

    def sweep(rng):
        features = rng.normal(size=(LOOKS[-1], 1, 4)) + 0.5 * rng.normal(size=(LOOKS[-1], len(plans), 4)) + 0.2
        cosines = rng.normal(size=(LOOKS[-1], 1)) + rng.normal(size=(LOOKS[-1], len(plans)))
        decibels = rng.gamma(4, 0.5, size=(48, 1)) + rng.gamma(4, 0.5, size=(48, len(plans)))

        def rows(look, keys=None):
            n, few = LOOKS[look], 16 * (look + 1)
            return {
                ("sd15", plan.id): Row(plan.id, plan.name, "", len(plan), 1, 1, 0.1, {
                    "fid": fid.frechet_interval(features[:n, i], reference),
                    "clip": mean_interval(cosines[:n, i]), "psnr": mean_interval(decibels[:few, i]),
                })
                for i, plan in enumerate(plans) if keys is None or ("sd15", plan.id) in keys
            }  # fmt: skip

        return rows

    sweeps, wrong, last = 250, 0, set()
    for number in range(sweeps):
        rows = sweep(np.random.default_rng([number, 7]))
        judged = sequential.judge(rows(0), LOOKS, rows)
        wrong += any(one.verdict in ("agrees", "contradicts") for one in judged)
        last |= {(one.claim.metric, one.measured.n) for one in judged}
    assert {("fid", 256), ("clip", 256), ("psnr", 48)} <= last
    assert 0 < wrong / sweeps <= 0.05
