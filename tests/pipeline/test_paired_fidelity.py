"""Paired fidelity: closed forms, its baselines, the units that it adds, and that it judges no other image."""

from dataclasses import replace
from math import log10

import numpy as np
import pytest

import postdiff
from pipelines import calibration, graph
from pipelines.candidates import Candidate
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics import pixels
from pipelines.metrics.intervals import mean_interval
from pipelines.metrics.metric import METRICS
from pipelines.report import tables
from pipelines.report.tables import Row
from pipelines.stages import features, fidelity, generation
from pipelines.stages.features import Pictures
from postdiff import methods

PSNR = METRICS["psnr"]
GREY = np.full((3, 16, 16, 3), 100, np.uint8)


@pytest.mark.parametrize("change", [1, 5, 100])
def test_psnr_of_a_constant_change_is_its_closed_form(change):
    compared = pixels.compare(GREY, GREY + np.uint8(change))
    assert compared[:, 0] == pytest.approx(20 * log10(255 / change), abs=1e-5)
    mean, other = 100 / 255, (100 + change) / 255  # without spread, SSIM is its term of luminance
    assert compared[:, 1] == pytest.approx((2 * mean * other + 1e-4) / (mean**2 + other**2 + 1e-4), abs=1e-5)


def test_equal_images_are_sixty_decibels_and_nothing_is_more():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    nearly = images.copy()
    nearly[1, 0, 0, 0] ^= 1
    nearly[2] //= 2
    psnr, ssim = pixels.compare(images, nearly).T
    assert psnr[[0, 1, 3]].tolist() == [pixels.EQUAL] * 3
    assert psnr[2] < 15
    assert ssim[[0, 3]].tolist() == [1, 1]
    assert ssim[2] < ssim[1] <= 1


def test_images_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"images of one shape, got \[3, 16, 16, 3\] and \[3, 8, 16, 3\]"):
        pixels.compare(GREY, GREY[:, :8])


def configuration(backbone="mini-sd", plan=None):
    return generation.configure(backbone, plan or methods.deepcache(20, 2))


def test_baselines_are_as_many_steps_and_sixty():
    of = configuration()
    assert fidelity.baseline("dense", of).id == configuration(plan=methods.dense(20)).id
    few = configuration(plan=methods.deepcache(8, 2))
    assert fidelity.baseline("dense", few).id == configuration(plan=methods.dense(8)).id
    assert fidelity.baseline("solution", of).id == configuration(plan=methods.dense(60)).id
    lcm = configuration("mini-lcm", methods.dense(4))
    assert fidelity.baseline("dense", lcm).id == lcm.id  # the same draws at every step
    assert fidelity.baseline("solution", lcm) is None


def graph_of(tmp_path, plans, n=100, per_shard=32):
    listed = tuple(Prompt(str(i), "a big red star on snow") for i in range(n))
    protocol = Protocol("x", listed, per_shard, (), "mini-clip", "mini-clip")
    entries = [Entry(plan.name, "", configuration(plan=plan), 1, 10**9) for plan in plans]
    units, tasks = graph.units(Store(str(tmp_path)), entries, protocol)
    return {unit.name: unit for unit in units}, tasks


def test_only_the_first_prompts_of_a_baseline_are_made(tmp_path):
    plan = methods.deepcache(20, 2)
    units, tasks = graph_of(tmp_path, [methods.dense(20), plan])
    solution = fidelity.baseline("solution", configuration())
    made = sorted(name for name in units if name.startswith(f"images/{solution.id}"))
    assert made == [f"images/{solution.id}-first2/0000{i}-of-00002.parquet" for i in (0, 1)]  # 64 of 100 prompts
    assert all(units[name].on_demand for name in made)  # comparisons that are there need no images
    assert [units[name].needs for name in made] == [
        units[f"images/{own}/0000{i}-of-00004.parquet"].needs for i in (0, 1) for own in [configuration(plan=plan).id]
    ]
    own = configuration(plan=plan)
    task = tasks[own.id]
    inputs = {one.metric: one for one in task.inputs}
    assert (inputs["psnr"].first, inputs["psnr"].against, inputs["clip"].first) == (64, "", 0)
    compared = [name for name in task.features if name.startswith(inputs["psnr"].images + "/")]
    assert [units[name].needs for name in compared] == [
        (f"images/{own.id}/0000{i}-of-00004.parquet", f"images/{solution.id}-first2/0000{i}-of-00002.parquet")
        for i in (0, 1)
    ]
    dense = [name for name in task.features if name.startswith(inputs["psnr_dense"].images + "/")]
    first = configuration(plan=methods.dense(20)).id
    assert units[dense[0]].needs[1] == f"images/{first}/00000-of-00004.parquet"  # which are there already
    assert set(task.features) <= set(units)


def test_a_baseline_that_is_asked_for_itself_is_made_once(tmp_path):
    units, _ = graph_of(tmp_path, [methods.dense(60), methods.deepcache(20, 2)])
    solution = configuration(plan=methods.dense(60)).id
    assert len([name for name in units if name.startswith(f"images/{solution}/")]) == 4
    assert len(units) == len(set(units))


def test_a_baseline_that_becomes_an_entry_is_not_mixed_up_with_what_was_made_of_it(tmp_path):
    """A run is killed between two shards of a hidden baseline; the next asks for the same plan itself."""
    store, solution = Store(str(tmp_path)), configuration(plan=methods.dense(60)).id
    hidden, _ = graph_of(tmp_path, [methods.deepcache(20, 2)])
    for name in sorted(hidden):
        if name.startswith(f"images/{solution}") and "00000-of-" in name:
            store.put(name, b"killed after this one")
    asked, tasks = graph_of(tmp_path, [methods.dense(60), methods.deepcache(20, 2)])
    own = sorted(name for name in asked if name.startswith(f"images/{solution}"))
    assert own == [f"images/{solution}/0000{i}-of-00004.parquet" for i in range(4)]
    assert tasks[solution].shards == tuple(own)
    assert store.names(f"images/{solution}") == set()
    for name in own:
        store.put(name, b"")
    assert store.shards(f"images/{solution}") == own


def row(method, flops, decibels, redraws=False):
    values = np.random.default_rng(0).normal(decibels, 1, 64)
    scores = {"psnr": mean_interval(values), "clip": mean_interval(values)}
    return Row(f"{method}{flops}", method, "", 20, flops, flops, 0.1, scores, redraws)


def test_what_draws_another_image_is_not_ranked_by_it():
    rows = [row("dense", 10, 20.0), row("dense", 30, 40.0), row("caching", 20, 33.0), row("postdiff", 15, 50.0, True)]
    assert set(tables.gains(rows, PSNR)) == {"caching20"}
    assert set(tables.gains(rows, METRICS["clip"])) == {"caching20", "postdiff15"}
    assert "postdiff15" not in [of.configuration for of in tables.front(rows, PSNR)]
    assert tables.cells(rows)[3][-1] == "another image"
    assert "cheaper steps win on PSNR (1 of 1" in tables.answer(rows, "a model")


def test_calibration_leaves_out_what_it_cannot_judge(capsys):
    cached, mixed = (
        Candidate(plan.name, plan, 1.0) for plan in (methods.deepcache(20, 2), methods.postdiff(20, s=0.3))
    )
    assert calibration.judged([cached, mixed], METRICS["clip"], configuration()) == [cached, mixed]
    assert calibration.judged([cached, mixed], PSNR, configuration()) == [cached]
    assert "left out: 1 plans that change resolution, which PSNR cannot judge" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--by psnr cannot judge plans that change resolution, and all 1 do"):
        calibration.judged([mixed], PSNR, configuration())
    with pytest.raises(ValueError, match="--by psnr needs a solution to compare with, which mini-lcm has not"):
        calibration.judged([cached], PSNR, configuration("mini-lcm", methods.dense(4)))


def test_a_protocol_of_one_metric_measures_no_other():
    listed = tuple(Prompt(str(i), "a big red star on snow") for i in range(9))
    only = replace(Protocol("shapes", listed, 4, (), "mini-clip", "mini-clip"), only="psnr")
    assert [metric.key for metric in METRICS.values() if not only.lacks(metric)] == ["psnr"]
    assert only.lacks(METRICS["clip"]) == "PSNR alone is asked for"


def test_a_calibration_by_it_compares_every_image(tmp_path):
    """What is measured alone is of all prompts: a calibration halves plans by it."""
    listed = tuple(Prompt(str(i), "a big red star on snow") for i in range(100))
    only = Protocol("x", listed, 32, (), "mini-clip", "mini-clip", only="psnr")
    own = Entry("deepcache", "", configuration(), 1, 10**9)
    _, tasks = graph.units(Store(str(tmp_path)), [own], only)
    assert [one.first for one in tasks[own.configuration.id].inputs] == [100]
    assert "100 images" in only.definition(PSNR)
    assert "64 images" in replace(only, only="", prompts=listed[:64]).definition(PSNR)


def test_shards_of_other_prompts_are_not_compared(tmp_path):
    store, names = Store(str(tmp_path)), ["images/a/00000-of-00001.parquet", "images/b/00000-of-00001.parquet"]
    pictures = {name: Pictures(list(GREY[:2]), ids, "made of") for name, ids in zip(names, ("pq", "qp"), strict=True)}
    extractor = features.Extractor(store)
    extractor._stored = extractor.stored.read = pictures.__getitem__
    (unit,) = fidelity.units(names[:1], names[1:], "features/f/a")
    with pytest.raises(ValueError, match="must be of the same prompts, in one order"):
        extractor(unit.task)


def test_the_solution_is_one(backbone):
    """More steps still change it less than the model's own steps are away from it."""
    prompts, seeds = ["a big red star on snow", "a small blue ring left of a big green heart on sand"], [1, 2]
    own, solution, more = (postdiff.sample(backbone, prompts, seeds, methods.dense(t)) for t in (20, 60, 120))
    assert pixels.compare(solution, more)[:, 0].mean() > pixels.compare(own, solution)[:, 0].mean() + 3
