"""jobs/compare.py: the same plans under two models or conditions, differences paired."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation import Point
from pipelines.tables import Row
from postdiff import metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import compare

TINY = ("--limit", "8", "--shard", "4", "--batch-size", "4", "--n-reference", "30", "--workers", "1")


def points(*args):
    return compare.plan_variants(compare.parse(["--backbones", *args]))


def row(point, scores):
    clip = metrics.mean_interval(scores)
    return Row(point.configuration.id, point.method, point.settings, 20, 1, 1, 0.1, clip, clip)


def test_a_plan_at_one_size_has_no_size_condition():
    groups = points("mini-lcm", "--size-conditions", "target", "current", "--methods", "dense", "mixed_resolution")
    assert [[variant for variant, _ in group] for group in groups] == [["target"], ["target", "current"]]


def test_methods_run_at_the_first_backbones_settings():
    groups = points("mini-bk-sdm", "mini-sd", "--methods", "postdiff")
    (_, a), (_, b) = groups[0]
    assert a.configuration.plan == b.configuration.plan
    assert a.settings == "beta=0.5 s=0.2 k=2 m=0.75"
    assert (a.configuration.backbone, b.configuration.backbone) == ("mini-bk-sdm", "mini-sd")


def test_changes_are_paired_and_better_is_down_for_fid_and_up_for_the_clip_score():
    (_, a), (_, b) = points("mini-sd", "mini-bk-sdm", "--methods", "dense")[0]
    rng = np.random.default_rng(0)
    scores = rng.normal(50, 20, 64)
    found = compare.compare([[("one", a), ("two", b)]], [row(a, scores), row(b, scores + 1 + rng.normal(0, 0.1, 64))])
    assert found[0].change == {}
    change = found[1].change["clip"]
    assert change.value == pytest.approx(1, abs=0.1)
    assert change.high - change.low < 0.2  # of one side: 10
    assert "FID: 0 of 1 changes are clearly better, 1 clearly worse" in compare.answer(found)
    assert "CLIP score: 1 of 1 changes are clearly better, 0 clearly worse" in compare.answer(found)
    same = compare.compare([[("one", a), ("two", b)]], [row(a, scores), row(b, scores)])
    assert "0 of 1 changes are clearly better, 0 clearly worse" in compare.answer(same)


def test_intervals_of_more_changes_are_wider():
    (_, a), (_, b) = points("mini-sd", "mini-bk-sdm", "--methods", "dense")[0]
    group = [("one", a), ("two", b)]
    scores = np.random.default_rng(0).normal(50, 20, 64)
    rows = [row(a, scores), row(b, scores[::-1])]
    other = [(v, Point(p.method, p.settings, replace(p.configuration, guidance=3.0), 1, 1)) for v, p in group]
    more = rows + [row(p, s) for (_, p), s in zip(other, (scores, scores), strict=True)]
    one, two = compare.compare([group], rows)[1], compare.compare([group, other], more)[1]
    assert two.change["clip"].low < one.change["clip"].low


@pytest.mark.usefixtures("ray_session")
def test_from_two_models_to_a_report(tmp_path, capsys):
    args = ["--backbones", "mini-bk-sdm", "mini-sd", "--methods", "postdiff", *TINY, "--out", str(tmp_path / "out")]
    compare.main(args)
    said = capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/webp") == 2 * 4
    for part in ("postdiff T=20 beta=0.5 s=0.2 k=2 m=0.75", "clearly better", "mini-bk-sdm (weights "):
        assert part in page
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert lines[2].split(" | ")[4] == ""  # the first has no change
    assert lines[3].split(" | ")[4].startswith(("+", "-"))
    assert lines[3] in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("mini-sd",), "nothing to compare"),
        (("mini-sd", "mini-sd"), "nothing to compare"),
        (("mini-sd", "mini-bk-sdm", "--methods", "warp"), "unknown method 'warp': expected one of dense"),
        (("mini-sd", "mini-xl"), "unknown model 'mini-xl'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, args, message):
    with pytest.raises(SystemExit, match=message):
        compare.main(["--backbones", *args, "--out", str(tmp_path / "out")])
