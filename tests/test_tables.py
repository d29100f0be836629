"""Fronts and the answer, on rows whose answer is known; the report escapes what prompts say."""

import pytest

from pipelines import report, tables
from pipelines.tables import Row
from postdiff.metrics import Interval


def row(method, flops, fid, clip, steps=20, half=0.1):
    return Row(
        f"{method}{flops}", method, "", steps, flops, flops, 0.1,
        Interval(fid, fid - half, fid + half, 100), Interval(clip, clip - half, clip + half, 100),
    )  # fmt: skip


FEW = [row("dense", 10, 30.0, 25.0, 8), row("dense", 20, 20.0, 30.0, 16), row("dense", 30, 10.0, 35.0, 20)]


def test_the_front_is_what_nothing_cheaper_betters():
    rows = [*FEW, row("postdiff", 15, 15.0, 20.0), row("deepcache", 25, 16.0, 40.0)]
    assert [r.flops for r in tables.front(rows, "fid")] == [10, 15, 30]
    assert [r.flops for r in tables.front(rows, "clip")] == [10, 20, 25]


def test_verdict_compares_at_equal_flops():
    cheaper = [row("postdiff", 15, 24.0, 20.0), row("postdiff", 25, 15.1, 31.0), row("postdiff", 5, 0.0, 99.0)]
    # The fewer-step curve at 15 and 25 FLOPs: FID 25 and 15, CLIP score 27.5 and 32.5. 5 FLOPs is off the curve.
    assert tables.verdict([*FEW, *cheaper], "fid") == tables.Verdict(2, 1, 1, 0)
    assert tables.verdict([*FEW, *cheaper], "clip") == tables.Verdict(2, 0, 0, 2)


def test_the_answer_names_the_winner_of_each_metric():
    sentence = tables.answer([*FEW, row("postdiff", 15, 20.0, 20.0)], "a model")
    assert "by cheaper steps on FID (1 of 1" in sentence
    assert "by fewer steps on CLIP score (0 of 1" in sentence
    assert "n = 100" in sentence
    assert "nothing to compare" in tables.answer(FEW, "a model")
    assert "nothing can be compared" in tables.answer([*FEW, row("postdiff", 5, 1.0, 1.0)], "a model")


def test_tables_hold_every_row():
    lines = tables.to_csv(FEW).splitlines()
    assert len(lines) == 4
    assert lines[1] == "dense10,dense,,8,10,10,0.1000,30.0000,29.9000,30.1000,25.0000,24.9000,25.1000,100"
    assert tables.to_markdown(FEW).count("\n") == 5


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_prompts_are_escaped_in_the_report(text):
    page = report.image_table([text], [(text, [b"webp"])])
    assert text not in page
    assert "<script>" not in page
    assert "<img src=x" not in page
