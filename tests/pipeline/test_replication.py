"""A second run of the claims against the first: verdicts that come again or not, and files that are none."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_claims import rows

from pipelines.engine.store import Store
from pipelines.paper import claims, replication, writing
from pipelines.paper.claim_list import CLAIMS
from pipelines.paper.datasets import Options

NAMES = {model: f"mini-{model}" for model in ("sd15", "lcm", "sdxl", "pixart")}


def run(seed, effect=1.0):
    return claims.judge(rows(np.random.default_rng(seed), effect=effect))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "claims.csv"
    path.write_text(claims.to_csv(run(1), NAMES, "first-1", 0))
    return str(path)


def told(file, judged):
    return [
        dict(zip(replication.HEADER, line, strict=True))
        for line in replication.lines(replication.read(file, NAMES), judged, NAMES)
    ]


def test_the_same_verdicts_are_kept_and_the_numbers_of_both_are_told(file):
    again = run(2)
    lines = told(file, again)
    assert len(lines) == len(CLAIMS)
    for line, before, one in zip(lines, run(1), again, strict=True):
        assert (line["first verdict"], line["second verdict"]) == (before.verdict, one.verdict)
        assert line["kept"] == ("yes" if before.verdict == one.verdict else "no")
        assert line["first"] == before.metric.text(before.measured, "+")
        assert line["second"] == one.metric.text(one.measured, "+")
    assert sum(line["kept"] == "yes" for line in lines) > 40


def test_verdicts_by_the_mean_of_the_judges_are_not_held_against(file):
    """So did a version before each judge was asked."""
    table = list(csv.DictReader(Path(file).read_text().splitlines()))
    out = io.StringIO()
    writer = csv.DictWriter(out, [name for name in table[0] if name != "judges"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(table)
    Path(file).write_text(out.getvalue())
    for line, one in zip(told(file, run(1)), run(1), strict=True):
        assert (line["kept"], line["first verdict"]) == (
            ("–", replication.BY_MEAN) if one.metric.judges else ("yes", one.verdict)
        )


def test_what_turned_is_counted_and_named(file):
    lines = replication.lines(first := replication.read(file, NAMES), run(2, effect=-1.0), NAMES)
    turned = [line for line in lines if {line[5], line[6]} == {"agrees", "contradicts"}]
    assert turned
    text = replication.answer(lines, first, "second-2")
    assert f"(second-2), and {len(turned)} turned into their opposites. Not kept: mini-sd15: " in text
    again = list(csv.DictReader(io.StringIO(replication.to_csv(lines, first, "second-2"))))
    assert [line["kept"] for line in again] == [line[replication.HEADER.index("kept")] for line in lines]
    assert {(line["first protocol"], line["second protocol"]) for line in again} == {("first-1", "second-2")}


def test_what_was_not_measured_is_neither_kept_nor_lost(file):
    some = rows(np.random.default_rng(2), effect=1.0)
    lost = {key: row for key, row in some.items() if key[0] != "lcm"}
    lines = told(file, claims.judge(lost))
    assert {line["kept"] for line in lines if line["setting"].startswith("mini-lcm")} == {"–"}
    assert {line["second"] for line in lines if line["setting"].startswith("mini-lcm")} == {"–"}
    n = sum(claim.model != "lcm" for claim in CLAIMS)
    first = replication.read(file, NAMES)
    assert replication.answer([list(line.values()) for line in lines], first, "p").startswith(f"Of {n} verdicts ")


def test_files_beside_the_claims_hold_it(tmp_path, file):
    of_plans = rows(np.random.default_rng(2), effect=1.0)
    judged = claims.judge(of_plans)
    protocol = SimpleNamespace(facts=lambda: {"protocol": "second-2"})
    store = Store(str(tmp_path / "again"))
    second = Options(draw=3, against=file)
    html, markdown = writing.write_claims(store, judged, of_plans, NAMES, protocol, second)
    lines = list(csv.DictReader(store.get("exhibits/claims.csv").decode().splitlines()))
    assert {line["draw"] for line in lines} == {"3"}
    assert "Draw 3, protocol second-2; again: python jobs/reproduce.py claims --draw 3." in markdown
    assert "verdicts of a first run (first-1)" in markdown
    assert "verdicts of a first run (first-1)" in html
    assert b"| kept | first | second |" in store.get("exhibits/claims-replication.md")
    assert store.has("exhibits/claims-replication.csv")
    writing.write_claims(other := Store(str(tmp_path / "alone")), judged, of_plans, NAMES, protocol, Options())
    assert other.has("exhibits/claims.csv")
    assert not other.has("exhibits/claims-replication.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("verdict", "word", 1), "must be a claims.csv, which has a column 'verdict'"),
        (lambda text: text.replace(",verdict,", ",others,", 1), "must be a claims.csv, which has a column 'verdict'"),
        (lambda text: text.rpartition("\n")[0].rpartition("\n")[0], "must hold the 70 claims of this version"),
        (lambda text: text + text.rpartition("\n")[0].rpartition("\n")[2] + "\n", "once each, got 71 lines, 70"),
        (lambda text: text.replace("mini-lcm", "lcm"), "claims of this version, of the same models, once each"),
        (lambda text: text.replace("first-1", "first-2", 1), "must hold the 70 claims"),
        (lambda text: text.replace(",draw,", ",drawn,", 1), "must be a claims.csv, which has a column 'draw'"),
        (lambda text: text.replace(",0,first-1", ",1,first-1", 1), "must hold the 70 claims"),
        (lambda text: text.replace(",0,first-1", ",x,first-1", 1), "must hold a whole number under draw, got 'x'"),
    ],
)
def test_another_file_is_refused(file, change, message):
    Path(file).write_text(change(Path(file).read_text()))
    with pytest.raises(ValueError, match=message):
        replication.read(file, NAMES)


def test_numbers_that_are_none_are_refused(file):
    number = f"{run(1)[0].measured.low:.5f}"
    Path(file).write_text(Path(file).read_text().replace(number, "x", 1))
    with pytest.raises(ValueError, match="must hold numbers under measured, measured_low, measured_high: could not"):
        replication.read(file, NAMES)


def test_a_run_of_the_same_prompts_is_no_second_run(file):
    first = replication.read(file, NAMES)
    replication.check(first, "second-2", Options(draw=1))
    with pytest.raises(ValueError, match="must be a run of other prompts, got one of the same --draw, 0"):
        replication.check(first, "second-2", Options(limit=8))  # of Shapes, more prompts hold fewer
    with pytest.raises(ValueError, match="must be a run of other prompts"):
        replication.check(first, "first-1", Options())


def test_a_draw_of_a_file_among_what_the_first_run_looked_at_is_no_second_run(file):
    first = replication.read(file, NAMES)
    assert first.most == max(one.measured.n for one in run(1))
    half = first.most // 2
    again = Options(prompts="captions.tsv", limit=half, draw=1)
    with pytest.raises(
        ValueError,
        match=f"got one of {first.most}: they are numbers 0 to {first.most - 1}, and those of draw 1 of 'captions.tsv' "
        f"are {half} to {2 * half - 1}; take a --draw of 2 or more",
    ):
        replication.check(first, "second-2", again)
    replication.check(first, "second-2", replace(again, draw=2))
    replication.check(first, "second-2", replace(again, prompts="shapes"))  # whose draws are far from each other
    replication.check(first, "second-2", replace(again, draw=0))  # of another file


@pytest.mark.parametrize(
    ("draw", "more", "fits"),
    [(0, {}, True), (0, {"up_to": 3}, False), (1, {}, True), (2, {}, False), (3, {}, False), (4, {}, True)],
)
def test_a_first_run_of_a_later_draw_of_a_file_is_held_against_by_its_own_stretch(file, draw, more, fits):
    """The first run: draw 1, the second stretch of `most`; this one: stretches of half as many."""
    first = replace(replication.read(file, NAMES), draw=1)
    half = first.most // 2
    more = {name: value * half for name, value in more.items()}
    own = Options(prompts="captions.tsv", limit=half, draw=draw, **more)
    if fits:
        return replication.check(first, "second-2", own)
    with pytest.raises(ValueError, match="take a --draw of 4 or more"):
        replication.check(first, "second-2", own)
    return None


def test_the_file_of_this_repository_is_one():
    names = {model: f"mini-{'sd' if model == 'sd15' else model}" for model in NAMES}
    file = Path(__file__).parents[2] / "jobs/results/paper/claims.csv"
    first = replication.read(str(file), names)
    assert (first.draw, first.most, first.protocol) == (0, 512, "custom-edc93fd8")
