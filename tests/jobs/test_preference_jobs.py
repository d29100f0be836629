"""--preference: jobs measure human preference where they are told to, and refuse what cannot be before any work."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import preferences
import pytest
from conftest import refusal
from PIL import Image

from pipelines import evaluation, graph, scoring
from pipelines.data import prompts, shapes
from pipelines.engine import records
from pipelines.evaluation import Entry
from pipelines.metrics import preference
from pipelines.metrics.metric import METRICS
from pipelines.stages import features, generation
from pipelines.stages.worker import Handler
from postdiff import methods

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import analyse
import calibrate
import coco_sweep
import score

N = 6
SHAPES = ("--prompts", "shapes", "--limit", str(N), "--n-reference", "8")
TITLES = ["PickScore", "HPSv2.1", "ImageReward"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Names of all three."""
    root = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        preferences.shrink(patch, root)
        kinds = ("pickscore", "hps", "imagereward")
        yield [getattr(preferences, kind)(root / kind) for kind in kinds]


@pytest.fixture(scope="module")
def scored(networks, tmp_path_factory):
    """Real scenes in `a`, others in `b`, their scores in `out`."""
    root = tmp_path_factory.mktemp("scored")
    for folder, split in (("a", "prompts"), ("b", "val")):
        (root / folder).mkdir()
        for i, prompt in enumerate(prompts.load_prompts("shapes", N)):
            Image.fromarray(shapes.render(shapes.scene(split, i))).save(root / folder / f"{prompt.id}.png")
    given = [str(root / "a"), "--against", str(root / "b"), *SHAPES, "--out", str(root / "out")]
    whole = dict(METRICS)
    for key, metric in whole.items():
        if not (metric.is_of_preference or metric.is_paired or key == "clip"):
            del METRICS[key]  # they take seconds
    try:
        score.main([*given, "--preference", *networks])
    finally:
        METRICS.clear()
        METRICS.update(whole)  # in their order
    return root


def test_folders_are_scored_and_compared_by_them(networks, scored):
    lines = {
        (row["metric"], row["of"]): float(row["value"]) for row in csv.DictReader((scored / "out/scores.csv").open())
    }
    listed = prompts.load_prompts("shapes", N)
    of = {folder: [np.asarray(Image.open(scored / folder / f"{p.id}.png")) for p in listed] for folder in "ab"}
    texts = [prompt.text for prompt in listed]
    for title, name in zip(TITLES, networks, strict=True):
        encoder, expected = features.make_encoder(name), {}
        for folder, images in of.items():
            prepared = [encoder.prepare(image) for image in images]
            if title == "ImageReward":
                expected[folder] = encoder.encode(prepared, texts)[:, 0]
            else:
                expected[folder] = (encoder.encode(prepared) * encoder.texts(texts)).sum(1)
            assert lines[title, folder] == pytest.approx(expected[folder].mean(), abs=1e-4)
        assert lines[title, "difference"] == pytest.approx((expected["a"] - expected["b"]).mean(), abs=1e-4)


def test_what_was_measured_is_told_without_the_folder(networks, scored):
    told = json.loads((scored / "out/scores.json").read_text())
    for title, name in zip(TITLES, networks, strict=True):
        assert preference.fingerprint(name) in told["facts"][title]
        assert str(preference.parse(name).folder) not in json.dumps(told)
    assert told["facts"]["LPIPS"].startswith("not computed: ")


def test_without_the_option_it_says_that_they_are_not_measured(scored):
    given = scoring.parse(None, [str(scored / "a"), *SHAPES])
    facts = scoring.facts(scoring.folders(given), ["a"], evaluation.protocol(given))
    assert {facts[title] for title in TITLES} == {"not computed: --preference names none"}


def test_a_worker_makes_them_as_it_draws(networks, tmp_path):
    """Riders of an image unit have the features of the stored images."""
    given = coco_sweep.parse([*SHAPES[2:], "--shard", "3", "--batch-size", "3", "--preference", *networks,
                              "--out", str(tmp_path)])  # fmt: skip
    protocol = evaluation.protocol(given)
    configuration = evaluation.configure(given, "mini-sd", methods.dense(1))
    store = evaluation.claim_store(given.out, protocol)
    units, _ = graph.units(store, [Entry("dense", "", configuration, 1, 1)], protocol)
    handle = Handler(store)
    for unit in generation.units([configuration], protocol.shards, [1.0]):
        if not unit.name.startswith("images/"):
            handle(unit.task)
    image = next(unit for unit in units if unit.name.startswith(f"images/{configuration.id}/"))
    riders = tuple(u.task for u in units if u.needs == (image.name,) and u.rides and u.task.encoder in networks)
    assert len(riders) == 3
    done = handle(image.task, riders)
    assert len(done() if callable(done) else done) == 3
    rode = {rider.name: records.feature_matrix(store.table(rider.name)) for rider in riders}
    for rider in riders:
        store.delete(rider.name)
        done = handle(rider)
        if callable(done):
            done()
        np.testing.assert_array_equal(records.feature_matrix(store.table(rider.name)), rode[rider.name])


def test_a_sweep_refuses_a_folder_that_lacks_files(networks, tmp_path):
    with pytest.raises(ValueError, match=r"pickscore needs config\.json"):
        coco_sweep.parse(["--limit", "8", "--preference", f"pickscore={tmp_path}"])
    wrong = f"{networks[1].partition('@')[0]}@sha256:{'0' * 64}"
    with pytest.raises(ValueError, match="must have the SHA-256 0"):
        evaluation.protocol(coco_sweep.parse(["--limit", "8", "--preference", wrong]))
    given = coco_sweep.parse(["--limit", "8", "--preference", *networks])
    assert evaluation.protocol(given).preference == tuple(networks)
    assert {str(preference.parse(name).folder) for name in networks} <= set(given.names)


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        (coco_sweep, ["--preference", "blip=x"], "--preference must be pickscore=FOLDER"),
        (analyse, ["--clip", "hps=x"], "is of human preference: expected a CLIP model"),
        (calibrate, ["--share", "0.5", "--by", "fid", "--fid", "hps=x"], "is of human preference: expected a CLIP"),
        (analyse, ["--preference", "hps=HERE"], "--preference has no effect here: steps are scored by the CLIP score"),
        (calibrate, ["--share", "0.5", "--preference", "hps=x"], "--preference has no effect with --by clip"),
        (calibrate, ["--share", "0.5", "--by", "pickscore", "--preference", "hps=x"], "no effect with --by pickscore"),
        (calibrate, ["--share", "0.5", "--by", "hps"], "--by hps cannot be measured: --preference names none"),
        (calibrate, ["--share", "0.5", "--by", "hps", "--preference", "hps=x"], "hps needs HPS_v2.1_compressed.pt in"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(networks, run, words, message, capsys):
    words = [networks[1] if word == "hps=HERE" else word for word in words]
    assert message in refusal(run.main, words, capsys)


def test_a_calibration_by_them_is_possible(networks):
    for name, key in zip(networks, ("pickscore", "hps", "imagereward"), strict=True):
        given = calibrate.parse(["--share", "0.5", "--by", key, "--preference", name])
        assert not evaluation.protocol(given).lacks(METRICS[given.by])
