"""`postdiff advise`: the plan for a share of the cost, and nothing claimed that was not measured."""

import json
from pathlib import Path

import pytest

import postdiff
from postdiff import advice
from postdiff.cli import main
from postdiff.models import checkpoints

ROOT = Path(__file__).parents[2]
MINI = checkpoints.resolve("mini-sd")


def told(capsys, *args):
    main(["advise", *args])
    return capsys.readouterr().out


def plan_in(text):
    """The plan that the code to paste makes; `accelerate` itself is not called."""
    names = {}
    code = text[text.index("import postdiff") :]
    exec(code[: code.index("fast = ")], names)
    return names["plan"]


def test_it_is_the_familys_plan_at_the_most_steps_that_the_share_pays_for(capsys):
    text = told(capsys, "mini-sd", "--share", "0.5")
    plan = plan_in(text)
    longer = postdiff.methods.postdiff(**{**MINI.settings, "steps": len(plan) + 1})
    assert plan == postdiff.methods.postdiff(**{**MINI.settings, "steps": len(plan)})
    dense, own, more = (price.flops for price in postdiff.costs([postdiff.methods.dense(20), plan, longer], MINI))
    assert own <= 0.5 * dense < more
    assert f"{own / 1e9:.4g} GFLOPs an image, {own / dense:.1%} of 20 dense steps" in text
    assert "nothing was measured on this model" in text
    assert "not at all: `python jobs/calibrate.py --backbone mini-sd --share 0.5`" in text
    assert "10 dense steps, which cost no more" in text
    assert "fast = postdiff.accelerate(pipe, plan)" in text


def test_mixed_resolution_is_left_out_where_the_low_size_is_too_small(capsys):
    text = told(capsys, "sd15-original", "--share", "0.2")
    words = " ".join(text.split())
    assert not plan_in(text).switches
    assert "with mixed resolution, which is left out here: 256 px are too few" in words
    assert "an FID of 63.64, to 22.28 once fine-tuned (the paper's Table 7)" in words


def test_the_papers_sd15_draws_at_half_its_size_and_lcm_is_distilled():
    sd15, lcm = (advice.advise(checkpoints.resolve(name), 0.3) for name in ("sd15", "lcm"))
    assert sd15.plan.switches
    assert sd15.cautions[-1].startswith("where the model cannot draw at 384 px: ")
    assert not any("distilled" in line for line in sd15.cautions)
    assert any("distilled to few steps" in line for line in lcm.cautions)
    assert (lcm.dense_steps, lcm.rival, sd15.rival) == (8, 2, 6)


@pytest.fixture
def calibration(tmp_path):
    """A function that writes a plan.json as jobs/calibrate.py does, with other notes."""
    plan = postdiff.methods.postdiff(8, beta=0.75, s=0.5, k=2, m=6)

    def write(**changed):
        notes = {"backbone": "mini-sd", "by": "CLIP score", "prompts": 64, "answer": "T=8. 3 cannot be told from it."}
        postdiff.save_plan(plan, tmp_path / "plan.json", **{**notes, "budget": "5 GFLOPs", **changed})
        return tmp_path / "plan.json"

    return plan, write


def test_of_a_calibration_it_says_what_was_measured(calibration, capsys):
    plan, write = calibration
    file = write()
    text = told(capsys, "mini-sd", "--share", "0.5", "--calibration", str(file))
    assert plan_in(text) == plan
    words = " ".join(text.split())
    assert "chosen by CLIP score on 64 prompts, within 5 GFLOPs: T=8. 3 cannot be told from it." in words
    assert "nothing was measured" not in words
    assert "flatters it, since it was chosen by it" in words


@pytest.mark.parametrize(
    ("share", "changed", "line"),
    [
        (0.05, {}, r"costs \d+\.\d% of the FLOPs of 20 dense steps: expected at most the share, 5\.0%"),
        (0.5, {"backbone": "sdxl"}, "was calibrated on sdxl, expected mini-sd"),
        (0.5, {"prompts": "64"}, "must be the plan.json of jobs/calibrate.py, got a plan of no calibration"),
        (0.5, {"answer": None}, "must be the plan.json of jobs/calibrate.py, got a plan of no calibration"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(share, changed, line, calibration):
    with pytest.raises(ValueError, match=line):
        advice.advise(MINI, share, calibration[1](**changed))


def test_a_plan_without_notes_is_no_calibration(calibration):
    file = calibration[1]()
    value = json.loads(file.read_text())
    del value["notes"]
    file.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="got a plan of no calibration"):
        advice.advise(MINI, 0.5, file)


@pytest.mark.parametrize("share", [0.0, -1, 1.5, float("nan")])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got"):
        advice.advise(MINI, share)


def test_a_share_that_two_steps_exceed_is_refused():
    with pytest.raises(ValueError, match=r"share must be at least 0\.\d+, two steps of postdiff on mini-sd, got 0\.01"):
        advice.advise(MINI, 0.01)


def test_what_calibrations_write_has_what_is_read():
    """By name: jobs/calibrate.py writes them in the lines before its plan.json."""
    source = (ROOT / "pipelines" / "calibration_report.py").read_text()
    written = source[source.index("notes = {") : source.index("best = tables.markdown")]
    assert all(f'"{name}"' in written for name in advice.NOTES)
