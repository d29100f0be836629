"""Tables 3 and 4 as settings."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import PROMPTS, SEEDS

import postdiff
from pipelines import verification
from pipelines.engine.store import Store
from pipelines.paper import presets, searched_plans
from pipelines.stages import generation, latency
from postdiff import methods
from postdiff.mechanisms import TokenMerging


def test_every_row_of_the_tables_runs_on_its_model(backbone, backbones):
    for name in presets.PRESETS:
        under_test = backbone if name.startswith("table3") else backbones("pixart")
        plan = presets.find(name, under_test, PROMPTS[:1], SEEDS[:1], steps=2)
        assert len(plan) == 2
        assert postdiff.sample(under_test, PROMPTS[:1], SEEDS[:1], plan).shape == (1, 64, 64, 3)


def test_presets_are_the_papers_settings():
    assert presets.plan("table3.postdiff").id == methods.postdiff().id
    assert presets.plan("table3.deepcache").id == methods.deepcache(20, k=2, branch=1).id
    assert presets.plan("table4.postdiff").id == methods.postdiff(20, 0.75, 0.5, 1, 15).id
    assert sum(step.guided for step in presets.plan("table3.tgate").steps) == 5
    assert sum(step.guided for step in presets.plan("table4.tgate", 10).steps) == 4
    assert presets.plan("table3.tome").get(TokenMerging).ratio == 0.3


def test_a_preset_that_is_not_there_or_needs_the_model_is_told():
    with pytest.raises(ValueError, match=r"unknown preset 'table9.x': expected one of table3\.dense"):
        presets.plan("table9.x")
    with pytest.raises(ValueError, match="is found by a search"):
        presets.plan("table4.ditfastattn")


def test_seconds_are_the_first_plans_times_the_medians_of_rounds():
    seconds = np.array([[1.0, 0.5], [3.0, 1.0], [2.0, 0.5]])
    stages = np.stack([0.75 * seconds, 0.25 * seconds], axis=2)  # denoising, decoding
    dense, fast = latency.summarise(stages, 0.1, [None, 2.0], "here")
    assert (dense.p50, dense.speedup, dense.n) == (2.0, 1.0, 3)
    assert fast.speedup == pytest.approx(3.0)  # of 2, 3 and 4
    assert fast.p50 == pytest.approx(2 / 3)
    assert fast.p90 == pytest.approx(2 * (1 / 3 + 0.8 * (1 / 2 - 1 / 3)))
    assert dense.p90 == pytest.approx(2.8)
    assert (dense.denoise, dense.decode, dense.encode) == (1.5, 0.5, 0.1)
    assert fast.denoise + fast.decode == pytest.approx(fast.p50)
    assert (dense.memory, fast.memory, fast.machine) == (None, 2.0, "here")


def test_no_table_of_seconds_contradicts_its_speedups_though_the_pace_changes():
    """A machine that slows down, a plan of every share: seconds fall as speed-ups rise."""
    rng = np.random.default_rng(0)
    pace = np.repeat([1.0, 1.0, 1.5, 1.0, 2.0, 1.2, 1.0], 1)[:, None]
    seconds = pace * np.array([1.0, 0.8, 0.82, 0.4, 0.41]) * rng.uniform(0.97, 1.03, (7, 5))
    times = latency.summarise(np.stack([0.9 * seconds, 0.1 * seconds], 2), 0.1, [None] * 5, "here")
    for took in times:
        assert took.p50 * took.speedup == pytest.approx(times[0].p50)
        assert took.p90 >= took.p50
    assert not times[0].steady
    assert all(took.steady for took in times[1:])


def test_what_is_not_steady_is_timed_again_and_the_steadiest_is_told():
    def block(first, other):
        return [latency.Latency(1.0, first, 1.0, 7, 0.9, 0.1, 0.1, None, "here"),
                latency.Latency(0.5, other / 2, 2.0, 7, 0.4, 0.1, 0.1, None, "here")]  # fmt: skip

    def told(*blocks):
        left = [block(*of) for of in blocks]
        times = latency.steadiest(lambda: left.pop(0))
        return times[0].p90, times[0].blocks, len(left)

    assert told((1.1, 1.2), (1.0, 1.0)) == (1.1, 1, 1)
    assert told((1.1, 1.3), (1.05, 1.0), (1.0, 1.0)) == (1.05, 2, 1)
    assert told((1.9, 1.0), (1.3, 1.25), (1.1, 1.5), (1.0, 1.0)) == (1.3, 3, 1)


def test_steps_of_the_tables_scale_with_t_as_everywhere_else():
    assert presets.plan("table3.tgate", 10).id == methods.tgate(10, 0.25).id
    assert presets.plan("table4.postdiff", 10).id == methods.postdiff(10, 0.75, 0.5, 1, 0.75).id


def test_a_searched_plan_is_kept_under_all_that_it_depends_on(tmp_path, monkeypatch, capsys):
    of = generation.configure("mini-pixart", methods.dense(4))
    searches = []

    def found(name, *_, **settings):
        searches.append(name)
        return methods.dense(4)

    monkeypatch.setattr(searched_plans.presets, "find", found)
    monkeypatch.setattr(generation.Configuration, "load", lambda of: None)

    def find(captions=("a red star",)):
        searched_plans.find(["table4.ditfastattn"], of, Store(tmp_path), captions, steps=4)
        return len(searches)

    assert (find(), find(), find(("another",))) == (1, 1, 2)
    store = Store(tmp_path)
    (kept,) = (name for name in store.names("plans") if b"a red star" in store.get(name))
    store.put(kept, store.get(kept).replace(b"a red star", b"a bad star"))
    assert list(verification.verify(store).damaged) == [kept]
    assert (find(("another",)), find(), find()) == (2, 3, 3)
    assert f"{kept} was damaged: set aside as .bad, and searched again" in capsys.readouterr().err
    assert store.has(f"{kept}.bad")
    searches.pop()
    preset = presets.PRESETS["table4.ditfastattn"]
    changed = replace(preset, settings={**preset.settings, "threshold": 0.5})
    monkeypatch.setitem(presets.PRESETS, "table4.ditfastattn", changed)
    assert find() == 3
    monkeypatch.setattr(searched_plans, "FORMAT", searched_plans.FORMAT + 1)
    assert find() == 4
