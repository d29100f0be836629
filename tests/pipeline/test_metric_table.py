"""A metric is a row of one table: a toy that is registered is everywhere, and nothing else knows a metric by name."""

import ast
import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines import calibration, comparison
from pipelines.data.procedural import SHAPES
from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.metrics import judge
from pipelines.metrics.intervals import Interval, mean_interval
from pipelines.metrics.metric import METRICS, Metric
from pipelines.paper import exhibit_text, exhibits
from pipelines.report import document, plots, real_images, runs, tables
from pipelines.report.pictures import Gallery
from pipelines.report.tables import Row
from pipelines.stages import scores
from postdiff.pricing import Cost, StepCost

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import calibrate  # noqa: E402  (a job is a script, not a package)


def brightness(images: np.ndarray, texts: np.ndarray) -> Interval:
    return mean_interval(images[:, 0])


TOY = Metric(
    "toy", "toy light", "prompts", "clip", "light of {encoder} embeddings", brightness,
    lower_is_better=True, digits=1, least=8, shown=True,
)  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(METRICS, "toy", TOY)
    return TOY


def row(name, method, flops, value):
    left_out = tuple(value + 0.01 * (-1) ** i for i in range(10))
    one = Interval(value, value - 0.05, value + 0.05, 20, left_out)
    return Row(name, method, "", 20, flops, flops, 0.1, dict.fromkeys(("fid", "clip", "toy"), one))


@pytest.fixture
def rows():
    return [row("a", "dense", 10, 3.0), row("b", "dense", 30, 1.0), row("c", "postdiff", 20, 1.5)]


def test_a_toy_is_in_every_table_csv_and_answer(toy, rows):
    assert tables.header(rows)[-2:] == ["toy light", "toy light: gain"]
    assert tables.cells(rows)[2][-2:] == ["1.5 [1.4, 1.6]", "-0.5 [-0.5, -0.5]"]
    assert "| toy light | toy light: gain |" in tables.to_markdown(rows)
    line = list(csv.DictReader(io.StringIO(real_images.to_csv(rows, {}, None))))[2]
    assert [line[f"toy_light{end}"] for end in ("", "_low", "_high")] == ["1.500", "1.450", "1.550"]
    assert "cheaper steps win on toy light (1 of 1" in tables.answer(rows, "a model")
    assert "and toy light by -2.0 [-2.0, -2.0] (paired)" in tables.more_steps(rows)
    assert tables.directions(tables.columns(rows)) == (
        "FID is better when lower, the CLIP score when higher, the toy light when lower."
    )
    page = document.sweep_body(rows, Gallery([], []))
    assert "on the front of FID or of CLIP score or of toy light." in page
    assert 'id="chart-toy"' in page
    found = comparison.compare(["one", "two"], [rows[:2]])
    assert comparison.cells(found)[1][-1] == "-2.0 [-2.0, -2.0]"
    assert "toy light: 1 of 1 changes are clearly better" in comparison.answer(found)
    assert "toy_light_change_low" in comparison.to_csv(found).splitlines()[0]
    exhibit = exhibits.gather(["fig9"], {})[0]
    step = StepCost(1, 1, 1, {})
    results = {(cell.model, cell.plan.id): exhibit_text.Measured(rows[0], Cost((step,))) for cell in exhibit.cells}
    assert {"toy", "toy_low", "toy_change_high"} <= set(
        exhibit_text.to_csv(exhibit, results, "p").splitlines()[0].split(",")
    )


def test_a_toy_is_plotted_tracked_and_calibrated_by(toy, rows):
    assert [metric.key for metric in tables.comparable(rows)] == ["fid", "clip", "toy"]
    (axes,) = plots.front_plot(rows, toy, "a title").axes
    assert axes.get_ylabel() == "toy light (lower is better)"
    assert [r.configuration for r in tables.front(rows, toy)] == ["a", "c", "b"]
    numbers = runs.numbers(rows[2])
    assert [numbers[f"toy_light{end}"] for end in ("", "_low", "_high")] == [1.5, 1.45, 1.55]
    args = calibrate.parse(["--share", "0.5", "--by", "toy"])
    with pytest.raises(ValueError, match=r"calibration by toy light needs at least 8 prompts \(--limit\), got 7"):
        calibration.rounds([records.Prompt(str(i), "") for i in range(7)], 4, METRICS[args.by])
    assert calibration.ranked([one.interval(toy) for one in rows], toy) == [1, 2, 0]


def test_a_toy_is_scored_from_a_store_and_an_old_score_is_not_taken_for_it(toy, tmp_path):
    store, rng = Store(str(tmp_path)), np.random.default_rng(0)
    ids = [f"p{i}" for i in range(8)]
    images = rng.normal(size=(8, 3)).astype(np.float32)
    for folder in ("features/e/c", "features/e/prompts"):
        name = f"{folder}/00000-of-00001.parquet"
        store.put(name, records.feature_rows(ids, images, name, "m"))
    store.put(
        "timings/c/00000-of-00001.json", records.to_json({"seconds": [0.25] * 8}, "timings/c/00000-of-00001.json")
    )

    def task(*keys):
        inputs = tuple(scores.Input(key, "features/e/c", "features/e/prompts") for key in keys)
        return scores.Scoring(
            store,
            "c",
            tuple(ids),
            ("images/c/00000-of-00001.parquet",),
            ("m",),
            inputs,
            tuple(store.names("features")),
        )

    assert task("clip").name != task("clip", "toy").name
    found = scores.score(task("clip", "toy"))
    assert found.intervals["toy"].value == pytest.approx(images[:, 0].mean())
    assert found.intervals["clip"].value == pytest.approx(100)
    assert scores.read(store, task("clip", "toy").name) == found
    assert set(json.loads(store.get(task("clip", "toy").name))) == {"seconds", "clip", "toy", "name", "seal"}


def test_what_can_be_measured_depends_on_prompts_references_and_encoders(toy):
    listed = tuple(records.Prompt(str(i), f"caption {i}") for i in range(5))
    one = Protocol("x", listed, 4, tuple(f"reference/{i}" for i in range(5)), "mini-clip", "mini-clip")
    lacking = {metric.key: one.lacks(metric) for metric in METRICS.values() if one.lacks(metric)}
    assert lacking == {
        "recall": "fewer than 6 images",
        "density": "fewer than 6 reference images",
        "coverage": "fewer than 6 reference images",
        **{
            metric.key: "nothing judges images of x"
            for metric in METRICS.values()
            if metric.only_where_measured and not metric.is_paired
        },
    }
    without = Protocol("x", listed, 4, (), "mini-clip", "mini-clip")
    assert [metric.key for metric in METRICS.values() if not without.lacks(metric)] == [
        "clip", "psnr", "ssim", "psnr_dense", "ssim_dense", "toy"
    ]  # fmt: skip
    facts = without.facts()
    assert list(facts) == ["protocol", "prompts", "FID", "CLIP score", "PSNR", "toy light"]
    assert facts["FID"] == "not computed: no reference images (--reference)"
    assert facts["toy light"].startswith("light of mini-clip-")
    other = Protocol("x", listed, 4, one.reference, "ViT-L-14/openai", "mini-clip")
    assert other.lacks(METRICS["cmmd"]) == "no features of the reference images by ViT-L-14/openai (--fid)"


TWO = "a big red star above a small blue ring on snow"


def test_every_metric_scores_the_fewest_images_that_it_says(toy):
    rng = np.random.default_rng(0)
    for metric in METRICS.values():
        images, references = metric.fewest
        against = rng.normal(size=(references if metric.needs == "reference" else images, 3))
        if metric.encoder == "judge":
            against = np.tile(judge.one_hot([TWO] * images, SHAPES), (1, 2))
        assert metric.score(rng.normal(size=(images, against.shape[1])), against).n == images
        assert metric.least >= images


# The paper's own files, the table, options that are called as a metric is, and models that are.
NAMED = ("paper/", "training/", "metrics/metric.py", "options.py", "protocols.py", "train_mini.py")


def test_nothing_else_knows_a_metric_by_name():
    """But for what a calibration is by, where nothing else is asked for, and what is asked of low resolutions."""
    for file in [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        if not any(part in str(file) for part in NAMED):
            constants = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
            known = [value for value in constants if isinstance(value, str) and value in METRICS]
            assert known == (["clip"] if file.name in ("candidates.py", "low_resolution.py") else []), file
