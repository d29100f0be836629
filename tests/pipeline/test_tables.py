"""Fronts and the answer, on rows whose answer is known; the report escapes what prompts say."""

import numpy as np
import pytest

from pipelines.engine import provenance
from pipelines.metrics.intervals import Interval, mean_interval, student_t
from pipelines.metrics.metric import METRICS
from pipelines.report import real_images, tables
from pipelines.report.tables import Row

FID, CLIP_SCORE = METRICS["fid"], METRICS["clip"]


def interval(value, half):
    """With jackknife values whose own 95 % interval is value +- half."""
    step = half / (student_t(19) * 19**0.5)
    return Interval(value, value - half, value + half, 200, tuple(value + step * (-1) ** i for i in range(20)))


def row(method, flops, fid, clip, steps=20, half=0.1):
    scores = {"fid": interval(fid, half), "clip": interval(clip, half)}
    return Row(f"{method}{flops}", method, "", steps, flops, flops, 0.1, scores)


FEW = [row("dense", 10, 30.0, 25.0, 8), row("dense", 20, 20.0, 30.0, 16), row("dense", 30, 10.0, 35.0, 20)]


def test_the_front_is_what_nothing_cheaper_betters():
    rows = [*FEW, row("postdiff", 15, 15.0, 20.0), row("deepcache", 25, 16.0, 40.0)]
    assert [r.flops for r in tables.front(rows, FID)] == [10, 15, 30]
    assert [r.flops for r in tables.front(rows, CLIP_SCORE)] == [10, 20, 25]


def test_gains_are_at_equal_flops_and_paired():
    cheaper = [row("postdiff", 12.5, 24.0, 20.0, half=0.5), row("postdiff", 25, 15.1, 31.0), row("postdiff", 5, 0, 99)]
    # The fewer-step curve at 12.5 and 25 FLOPs: FID 27.5 and 15, CLIP score 26.25 and 32.5. 5 FLOPs is off the curve.
    fid, clip = tables.gains([*FEW, *cheaper], FID), tables.gains([*FEW, *cheaper], CLIP_SCORE)
    assert {k: v.value for k, v in fid.items()} == pytest.approx({"postdiff12.5": -3.5, "postdiff25": 0.1})
    assert {k: v.value for k, v in clip.items()} == pytest.approx({"postdiff12.5": -6.25, "postdiff25": -1.5})
    # All rows swing together here, so what they share cancels: 0.5 - 0.1 is left, and 0, which widens nothing.
    assert fid["postdiff12.5"].high - fid["postdiff12.5"].value == pytest.approx(0.4)
    assert fid["postdiff25"].high == pytest.approx(0.1)


def test_noise_is_seldom_called_a_win():
    rng, claims = np.random.default_rng(0), 0
    for _ in range(100):
        few = [Row(f"d{t}", "dense", "", t, t, t, 0.1, {"clip": noise(rng)}) for t in (8, 12, 16, 20)]
        cheap = [Row(f"c{f}", "caching", "", 20, f, f, 0.1, {"clip": noise(rng)}) for f in np.linspace(8.5, 19.5, 17)]
        claims += "neither wins clearly" not in tables.answer([*few, *cheap], "noise")
    assert claims <= 10


def noise(rng):
    return mean_interval(rng.normal(85, 10, 128))


def test_the_answer_names_the_winner_of_each_metric():
    sentence = tables.answer([*FEW, row("postdiff", 15, 20.0, 20.0)], "a model")
    assert (
        "cheaper steps win on FID (1 of 1 cheaper-step configurations are clearly better, 0 clearly worse)" in sentence
    )
    assert "fewer steps win on CLIP score (0 of 1 cheaper-step configurations are clearly better, 1 " in sentence
    assert "n = 200" in sentence
    unsure = tables.answer([*FEW, row("postdiff", 15, 24.9, 27.6, half=2.0)], "a model")
    assert "neither wins clearly on FID (0 of 1" in unsure
    assert tables.answer(FEW, "a model") == f"a model: {tables.more_steps(FEW)}"
    assert "nothing can be compared" in tables.answer([*FEW, row("postdiff", 5, 1.0, 1.0)], "a model")


def test_what_more_steps_change_is_told():
    assert tables.more_steps(FEW) == (
        "From 8 to 20 steps, nothing cached or shrunk, changes FID by -20.00 [-20.00, -20.00] and CLIP score by "
        "+10.00 [+10.00, +10.00] (paired)."
    )
    assert tables.more_steps(FEW[:1]) == ""


def test_tables_hold_every_row():
    lines = real_images.to_csv(FEW, {}, None).splitlines()
    assert len(lines) == 4
    numbers = "30.0000,29.9000,30.1000,25.0000,24.9000,25.1000,200"
    assert (
        lines[1] == f"dense10,dense,,8,10,10,0.1000,{numbers},30.0000,29.9000,30.1000,,,,,,"
    )  # FID extrapolated; no more
    assert tables.to_markdown(FEW).count("\n") == 5


def test_code_without_git_is_named_by_its_sources(monkeypatch):
    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", no_git)
    first = provenance.commit()
    assert first.startswith("sources ")
    monkeypatch.setattr(provenance.Path, "read_bytes", lambda self: b"other")
    assert provenance.commit() != first


def test_rows_of_equal_flops_are_no_span_to_interpolate_in():
    twins = [row("dense", 10, 30.0, 25.0, 8), row("dense", 10, 31.0, 24.0, 9), row("dense", 20, 20.0, 30.0, 16)]
    found = tables.gains([*twins, row("postdiff", 10, 20.0, 30.0), row("postdiff", 15, 20.0, 30.0)], FID)
    assert set(found) == {"postdiff10", "postdiff15"}
