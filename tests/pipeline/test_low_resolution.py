"""The probe of low resolutions: what it draws, when it warns, and that a warning reaches the report."""

from types import SimpleNamespace

import numpy as np
import pytest

import postdiff
from pipelines import low_resolution, sweeps
from pipelines.data.prompts import load_prompts, seed
from pipelines.metrics.encoders import ClipEncoder
from pipelines.metrics.intervals import mean_interval
from pipelines.report.tables import Row
from postdiff import methods


def row(size, scores):
    return Row(size, "dense", size, 20, 1, 1, 0.1, {"clip": mean_interval(np.asarray(scores, float))})


PROMPTS = np.random.default_rng(0).normal(0, 5, 16)


@pytest.mark.parametrize(
    ("there", "warned"),
    [
        (80 + PROMPTS, False),
        (75 + PROMPTS, False),
        (50 + PROMPTS, True),
        (95 + PROMPTS, False),
        (72 + 9 * PROMPTS, False),
    ],
)  # as at full size; a little below; far below; above; below, but too few images to be sure
def test_it_warns_where_the_loss_is_clear_and_large(there, warned):
    lines = low_resolution.losses("a-model", [row("64x64 px", 80 + PROMPTS), row("32x32 px", there)])
    assert len(lines) == warned
    if warned:
        assert lines[0].startswith("a-model cannot begin at 32x32 px: CLIP score ")
        assert "n = 16" in lines[0]


def options(backbone):
    return sweeps.Options(backbone=backbone)


def test_it_asks_what_a_plan_does_at_each_low_resolution_once():
    plans = [methods.dense(8), methods.mixed_resolution(20, 0.5, 0.3), methods.postdiff(20, 0.5, 0.1),
             methods.mixed_resolution(20, 0.75, 0.3)]  # fmt: skip
    entries = low_resolution.beginnings(options("mini-sd"), plans)
    assert [entry.settings for entry in entries] == ["64x64 px", "48x48 px", "32x32 px"]
    assert [entry.configuration.size for entry in entries] == [64, 64, 64]
    assert [entry.configuration.plan.id for entry in entries] == [
        methods.dense(20).id, methods.mixed_resolution(20, 0.75, 0.5).id, methods.mixed_resolution(20, 0.5, 0.5).id,
    ]  # fmt: skip
    wide = sweeps.Options(backbone="mini-sd", batch_size=64)
    assert {entry.configuration.batch_size for entry in low_resolution.beginnings(wide, plans)} == {
        16
    }  # no batch is padded
    assert entries[0].flops > entries[1].flops > entries[2].flops
    assert (
        low_resolution.beginnings(options("sdxl"), [methods.mixed_resolution(20, 0.75, 0.2)])[1].settings
        == "768x768 px"
    )


def test_plans_of_one_resolution_need_no_probe():
    plans = [methods.dense(8), methods.deepcache(20, 2)]
    assert low_resolution.warnings(options("mini-sd"), plans, SimpleNamespace(), None) == []


@pytest.mark.parametrize(("prompts", "asked"), [(63, False), (64, True)])
def test_a_run_that_is_no_longer_than_the_question_is_not_asked_before(prompts, asked, capsys):
    plans = [methods.dense(8), methods.mixed_resolution(20, 0.5, 0.5)]
    entries = low_resolution.beginnings(options("mini-sd"), plans)
    protocol = SimpleNamespace(prompts=[None] * prompts)
    assert low_resolution.asked(entries, protocol) is asked
    if not asked:
        assert low_resolution.warnings(options("mini-sd"), plans, protocol, None) == []
        assert "not tried beforehand: 63 prompts are fewer than 64" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "warned"), [("mini-sd-scenes", 0), ("mini-sd-full-scenes", 1)])
def test_a_model_that_saw_full_size_alone_is_warned_of(name, warned):
    """As Table 7 has stock SD1.5: the probe's own prompts, seeds and plans."""
    listed = load_prompts("scenes", low_resolution.PROMPTS)
    texts, seeds = [prompt.text for prompt in listed], [seed(prompt) for prompt in listed]
    backbone, encoder = postdiff.load(name, device="cpu"), ClipEncoder("mini-clip-scenes")
    rows = []
    for entry in low_resolution.beginnings(options(name), [methods.postdiff(20, 0.5, 0.5)]):
        images = postdiff.sample(backbone, texts, seeds, entry.configuration.plan, batch_size=16)
        score = low_resolution.CLIP_SCORE.score(encoder.images(images), encoder.texts(texts))
        rows.append(Row(entry.settings, "dense", entry.settings, 20, 1, 1, 0.1, {"clip": score}))
    lines = low_resolution.losses(name, rows)
    assert len(lines) == warned
    assert all(line.startswith(f"{name} cannot begin at 64x64 px: CLIP score ") for line in lines)
