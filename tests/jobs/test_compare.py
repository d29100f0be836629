"""jobs/compare.py: the same plans under two models or conditions, differences paired."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal

from pipelines import comparison, evaluation
from pipelines.engine.cluster import WorkersError
from pipelines.metrics.intervals import mean_interval
from pipelines.report.tables import Row, markdown
from postdiff.models.checkpoints import MINI

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import compare

TINY = ("--limit", "8", "--shard", "4", "--batch-size", "4", "--n-reference", "30", "--workers", "1")


def entries(*args):
    args = compare.parse(["--backbones", *args])
    among = comparison.variants(args.backbones, args.size_conditions)
    return [variant.name for variant in among], comparison.plan_entries(args, among)


def row(name, scores, fid=True):
    clip = mean_interval(scores)
    return Row(name, "dense", "", 20, 1, 1, 0.1, {"fid": clip, "clip": clip} if fid else {"clip": clip})


@pytest.fixture
def renamed(tmp_path):
    """mini-bk-sdm in a folder of another name, with a guidance of its own."""
    folder = tmp_path / "other" / "mini-sd"
    shutil.copytree(MINI / "mini-bk-sdm", folder)
    run = json.loads((folder / "postdiff.json").read_text())
    (folder / "postdiff.json").write_text(json.dumps({**run, "guidance": 4.0}))
    return str(folder)


def test_a_plan_at_one_size_is_told_no_size():
    names, groups = entries("mini-sdxl", "--size-conditions", "--methods", "dense", "mixed_resolution")
    assert names == ["target", "current"]
    assert [[entry.configuration.plan.size_condition for entry in group] for group in groups] == [names]
    assert [entry.method for entry in groups[0]] == ["mixed_resolution"] * 2


def test_all_run_as_the_first_does_and_folders_of_one_name_are_told_apart(renamed):
    names, groups = entries("mini-sd", renamed, "--methods", "postdiff", "dense")
    assert names == ["mini-sd", renamed]
    for a, b in groups:
        assert a.configuration.plan == b.configuration.plan
        assert a.configuration.weights != b.configuration.weights
        assert a.configuration.guidance == b.configuration.guidance == 2.0
    assert groups[0][0].settings == "s=0.5 k=2 m=15"
    assert entries(renamed, "mini-sd", "--methods", "dense")[1][0][1].configuration.guidance == 4.0


def test_two_names_of_one_computation_become_one():
    plans = comparison.plans(["dense", "dense", "postdiff"], {"steps": 8, "beta": 1.0, "s": 0.0, "k": 1, "m": 8})
    assert [(name, text) for name, text, _ in plans] == [("dense", "")]


def test_changes_are_paired_and_better_is_down_for_fid_and_up_for_the_clip_score():
    rng = np.random.default_rng(0)
    scores = rng.normal(50, 20, 64)
    rows = [row("a", scores), row("b", scores + 1 + rng.normal(0, 0.1, 64))]
    found = comparison.compare(["one", "two"], [rows])
    assert found[0].change == {}
    change = found[1].change["clip"]
    assert change.value == pytest.approx(1, abs=0.1)
    assert change.high - change.low < 0.2  # of one side: 10
    assert "FID: 0 of 1 changes are clearly better, 1 clearly worse" in comparison.answer(found)
    assert "CLIP score: 1 of 1 changes are clearly better, 0 clearly worse" in comparison.answer(found)
    same = comparison.compare(["one", "two"], [[rows[0], row("b", scores)]])
    assert "0 of 1 changes are clearly better, 0 clearly worse" in comparison.answer(same)
    assert comparison.verdict(found) == "1 clearly better and 1 clearly worse of 2 changes"
    assert comparison.verdict(same) == "No change is clear"
    fields = list(csv.DictReader(comparison.to_csv(found).splitlines()))
    assert [float(fields[1][f"{name}_change"]) for name in ("fid", "clip_score")] == pytest.approx(
        [change.value] * 2, abs=1e-4
    )
    assert fields[0]["fid_change"] == ""


def test_intervals_of_more_changes_are_wider():
    """But for changes that are one and the same, which go astray together."""
    rng = np.random.default_rng(0)
    group, other = ([row("a", rng.normal(50, 20, 64)), row("b", rng.normal(50, 20, 64))] for _ in range(2))
    one, two = comparison.compare(["x", "y"], [group])[1], comparison.compare(["x", "y"], [group, other])[1]
    assert two.change["clip"].low < one.change["clip"].low
    assert comparison.compare(["x", "y"], [group, group])[1].change["clip"] == one.change["clip"]


def test_what_is_held_against_its_own_model_is_not_compared():
    """Each variant's PSNR is to another image."""
    scores = np.random.default_rng(0).normal(50, 20, 64)
    group = [
        replace(one, scores={**one.scores, "psnr": one.scores["clip"]})
        for one in (row("a", scores), row("b", scores + 1))
    ]
    compared = comparison.compare(["x", "y"], [group])
    assert set(compared[1].change) == {"fid", "clip"}
    assert not any("PSNR" in text for text in (*comparison.header(group), comparison.answer(compared)))
    assert len(comparison.cells(compared)[0]) == len(comparison.header(group))


def test_without_reference_images_there_is_no_fid():
    scores = np.random.default_rng(0).normal(50, 20, 64)
    found = comparison.compare(["x", "y"], [[row("a", scores, fid=False), row("b", scores + 1, fid=False)]])
    assert set(found[1].change) == {"clip"}
    assert comparison.cells(found)[1][3] == "no reference"


def test_a_bar_in_a_name_does_not_split_a_cell():
    table = markdown(("plan", "variant"), [["dense", "a|b\nc"]], text_columns=2)
    assert table.splitlines()[2] == "| dense | a\\|b c |"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("a](http://x) `b` *c* _d_ e_f", "a\\](http://x) \\`b\\` \\*c\\* \\_d\\_ e_f"),
        ("a\x1b[31m\r\nb & c", "a\\\\x1b[31m b &amp; c"),
        ("+0.10 [-1.20, +1.40]", "+0.10 [-1.20, +1.40]"),
    ],
)
def test_a_name_is_text_in_a_table(name, cell):
    table = markdown(("plan", "variant"), [["dense", name]], text_columns=2)
    assert table.splitlines()[2] == f"| dense | {cell} |"


def test_a_run_that_ray_refuses_claims_no_store(tmp_path, capsys, monkeypatch):
    def dead(*args):
        raise WorkersError("no Ray cluster at RAY_ADDRESS '192.0.2.1:6379'")

    monkeypatch.setattr(evaluation, "connect", dead)
    args = ["--backbones", "mini-bk-sdm", "mini-sd", *TINY, "--out", tmp_path / "out"]
    assert refusal(compare.main, args, capsys) == "no Ray cluster at RAY_ADDRESS '192.0.2.1:6379'"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_session")
def test_from_two_models_to_a_report(tmp_path, capsys):
    args = ["--backbones", "mini-bk-sdm", "mini-sd", "--methods", "postdiff", *TINY, "--out", str(tmp_path / "out")]
    compare.main(args)
    said = capsys.readouterr().out
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("data:image/webp") == 2 * 4
    for part in ("postdiff T=20 s=0.2 k=2 m=15", "clearly better", "mini-bk-sdm (mini-bk-sdm, weights ", "max-t"):
        assert part in page
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    assert lines[2].split(" | ")[4] == "the first"  # has no change
    assert lines[3].split(" | ")[4].startswith(("+", "-"))
    assert lines[3] in said
    fields = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    assert fields.pop()["method"] == "real images"
    assert [line["variant"] for line in fields] == ["mini-bk-sdm", "mini-sd"]
    for line in fields:
        (file,) = (tmp_path / "out" / "scores").glob(f"{line['configuration']}-*.json")
        scores = json.loads(file.read_text())
        assert [float(line["fid"]), float(line["clip_score"])] == pytest.approx(
            [scores["fid"]["value"], scores["clip"]["value"]], abs=1e-4
        )
    assert fields[0]["fid"] != fields[1]["fid"]
    gap = float(fields[1]["clip_score"]) - float(fields[0]["clip_score"])
    assert float(fields[1]["clip_score_change"]) == pytest.approx(gap, abs=2e-4)
    gap = float(fields[1]["fid_infinity"]) - float(fields[0]["fid_infinity"])  # without the bias of few images
    assert float(fields[1]["fid_change"]) == pytest.approx(gap, abs=2e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("mini-sd",), "expected two or more --backbones, or one and --size-conditions"),
        (("mini-sd", "mini-sd"), "expected two or more --backbones"),
        (("mini-sdxl", "mini-sd", "--size-conditions"), "expected two or more --backbones"),
        (("mini-sd", str(MINI / "mini-sd")), "have the same weights: there is nothing to compare"),
        (("mini-sdxl", "--size-conditions", "--methods", "dense"), "expected a method that switches resolution"),
        (("mini-lcm", "--size-conditions", "--methods", "mixed_resolution"), "lcm is told no size"),
        (("mini-sd", "mini-bk-sdm", "--methods", "warp"), "unknown method 'warp': expected one of dense"),
        (("mini-sd", "mini-xl"), "unknown model 'mini-xl'"),
        (("mini-sd", "sd15"), "expected models of one size, got 64 px and 768 px (sd15)"),
        (("mini-sd", "mini-bk-sdm", "--backbones", "mini-sd"), "--backbones is given twice"),
        (("mini-sd", "mini-lcm", "--methods", "dense"), "mini-lcm's solver must be one of lcm, got 'dpm'"),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path, capsys, args, message):
    assert message in refusal(compare.main, ["--backbones", *args, "--out", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()
