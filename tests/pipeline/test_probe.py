"""`--batch-size auto`: what is found on a GPU's memory, pretended here, is kept by the store."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import refusal

from pipelines import evaluation
from pipelines.engine.cluster import Resources
from pipelines.engine.store import Store
from pipelines.stages import generation, probe
from postdiff import drawing, methods

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import coco_sweep
import compare

OF = [generation.configure("mini-sd", plan, batch_size=1) for plan in (methods.dense(2), methods.postdiff(4, m=2))]


@pytest.mark.parametrize(("an_image", "most", "found"), [(0.1, 64, 8), (0.1, 4, 4), (0.1, 7, 4), (0.8, 64, 1)])
def test_batches_are_doubled_as_long_as_they_fit(an_image, most, found):
    asked = []
    assert probe.double(lambda n: asked.append(n) or n * an_image, most, 0.8) == found
    assert asked == sorted(set(asked))
    assert max(asked) <= most


def test_one_image_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"^--batch-size auto: one image takes more than 80% of the GPU's free"):
        probe.double(lambda n: 0.9, 8, 0.8)


@pytest.mark.parametrize(("limit", "found"), [(1000, 8), (30, 2)])
def test_the_heaviest_plan_is_probed_until_memory_is_short(monkeypatch, limit, found):
    """PostDiff takes 10 of 100 an image here, dense 5. limit: where the GPU has no more."""
    memory, drawn = {"peak": 0}, []

    def batches(backbone, prompts, seeds, plan, n, text, **_):
        assert len(text.uncond["text"]) == len(text) == n == len(prompts) == len(seeds)
        drawn.append((plan.name, n))
        memory["peak"] = n * (10 if plan.name == "postdiff" else 5)
        if memory["peak"] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(drawing, "batches", batches)
    pretended = {
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (100, 200),
        "memory_reserved": lambda: 0,
        "max_memory_reserved": lambda: memory["peak"],
        "reset_peak_memory_stats": lambda: None,
    }
    for name, function in pretended.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert probe.largest(OF, ["mini-clip"], 64) == found
    assert drawn[:2] == [("dense", 1), ("postdiff", 1)]
    assert {name for name, _ in drawn[2:]} == {"postdiff"}


def test_a_store_keeps_what_was_found_and_refuses_what_was_begun_with_a_number(tmp_path):
    kept, other = Store(tmp_path / "kept"), Store(tmp_path / "other")
    kept.claim({"prompts": "x", "batch_size": 32})
    other.claim({"prompts": "x"})
    assert probe.find(kept, OF, [], 64, Resources(1)) == 32  # with no GPU here: nothing is probed again
    with pytest.raises(ValueError, match="was begun with a number: expected that --batch-size, got auto"):
        probe.find(other, OF, [], 64, Resources(1, gpus=1))
    with pytest.raises(ValueError, match=r"^--batch-size auto needs GPUs: on CPUs expected a number \(8 is"):
        probe.find(Store(tmp_path / "new"), OF, [], 64, Resources(1))


def test_a_sweep_fixes_it_before_its_first_unit(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "connect", lambda *_: Resources(1, gpus=1))
    monkeypatch.setattr("pipelines.low_resolution.warnings", lambda *_: [])
    seen = []

    def evaluate(store, entries, *_, **__):
        seen.append((store.record("spec.json")["batch_size"], {e.configuration.batch_size for e in entries}))
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    command = ["--grid", "small", "--limit", "8", "--batch-size", "auto", "--n-reference", "4", "--out", str(tmp_path)]
    for found in (4, 2):  # a resume: another GPU would find 2
        monkeypatch.setattr("pipelines.engine.workers.alone", lambda function, *args, found=found: found)
        with pytest.raises(KeyboardInterrupt):
            coco_sweep.run(coco_sweep.parse(command))
    assert seen == [(4, {4})] * 2


def test_where_it_is_not_found_it_is_refused(capsys):
    told = refusal(compare.main, ["--backbones", "mini-sd", "mini-sdxl", "--batch-size", "auto"], capsys)
    assert "--batch-size auto is for jobs/coco_sweep.py alone" in told
