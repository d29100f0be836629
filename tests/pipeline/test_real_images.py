"""The row of real images: which images they are, that it stands in every table, and that nothing is held against it."""

import csv
import io

import logbooks
import numpy as np
import pages
import pytest
from PIL import Image

from pipelines import graph
from pipelines.data import prompts, shapes
from pipelines.engine import records
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.metrics.metric import METRICS
from pipelines.report import document, real_images, tables
from pipelines.report.pictures import examples
from pipelines.stages import features, scores
from pipelines.stages.features import Encoding, Extractor

ROWS = pages.sweep()
REAL = {"fid": pages.interval(1.0), "clip": pages.interval(90.0)}


@pytest.mark.parametrize("source", prompts.DRAWN)
@pytest.mark.parametrize("draw", [0, 2])
def test_a_prompts_real_image_is_the_scene_that_it_is_the_caption_of(source, draw):
    for prompt in prompts.load_prompts(source, 5, draw=draw):
        data, split = prompts.DRAWN[source]
        *name, own, index = prompts.scene(prompt).split("/")
        scene = data.scene(split, int(index))
        assert (name, own) == ([] if data.name == "shapes" else [data.name], split)
        assert scene.caption == prompt.text
        np.testing.assert_array_equal(features.real_image(prompts.scene(prompt)), data.render(scene))


def test_references_are_what_they_were():
    np.testing.assert_array_equal(features.real_image("reference/7"), shapes.render(shapes.scene("reference", 7)))


def shapes_protocol(n=8, reference=8):
    listed = tuple(prompts.load_prompts("shapes", n))
    return Protocol("shapes", listed, 4, tuple(f"reference/{i}" for i in range(reference)), "mini-clip", "mini-clip")


def test_what_is_made_of_them_is_their_features_and_a_score(tmp_path):
    protocol = shapes_protocol()
    units, task = graph.real_images(Store(str(tmp_path)), protocol)
    assert [unit.task.source for unit in units[:2]] == [
        tuple(f"prompts/{i}" for i in part) for part in (range(4), range(4, 8))
    ]
    assert {one.metric for one in task.inputs} == {metric.key for metric in protocol.alone}
    assert not any(METRICS[one.metric].is_paired for one in task.inputs)
    assert task.shards == ()
    assert "/reference-" not in units[0].name
    folder = units[0].name.partition("/0")[0].rpartition("/")[2]
    other = graph.real_images(Store(str(tmp_path)), shapes_protocol(12))[0]
    assert folder not in other[0].name  # other scenes


def test_of_a_file_there_are_none_but_those_that_the_captions_are_of(tmp_path):
    listed = tuple(Prompt(str(i), f"caption {i}") for i in range(4))
    file = tmp_path / "p.png"
    Image.fromarray(shapes.render(shapes.scene("val", 1))).save(file)
    store, given = (
        Store(str(tmp_path / "store")),
        ("captions.json", listed, 4, (str(file),) * 4, "mini-clip", "mini-clip"),
    )
    assert graph.real_images(store, Protocol(*given)) == ([], None)
    pictures = {str(i): str(file) for i in range(4)}
    units, task = graph.real_images(store, Protocol(*given, pictures=pictures))
    assert units[0].task.source == (str(file),) * 4
    assert [one.metric for one in task.inputs] == ["clip"]  # of the reference they are a part themselves


def test_features_of_them_are_of_the_prompts_and_scored_as_theirs(tmp_path):
    protocol = shapes_protocol()
    store = Store(str(tmp_path))
    units, task = graph.real_images(store, protocol)
    work = Extractor(store)
    for unit in [*units, *graph.shared_features(protocol)]:
        if isinstance(unit.task, Encoding):
            done = work(unit.task)
            if callable(done):
                done()
    for unit, shard in zip(units, protocol.shards, strict=False):
        table = store.table(unit.name)
        assert table["prompt_id"].to_pylist() == [prompt.id for prompt in shard]
        assert records.made_of(table) == prompts.fingerprint(shard)
    told = scores.score(task)
    assert np.isnan(told.seconds)
    assert told.intervals["content"].value == 100  # the judges are right on these
    assert told.intervals["clip"].value > 90
    again = scores.read(store, task.name)
    assert again.intervals == told.intervals


def test_the_tables_have_a_last_line_of_them():
    (line,) = real_images.cells(ROWS, REAL)
    header = tables.header(ROWS)
    assert len(line) == len(header)
    told = dict(zip(header, line, strict=True))
    assert (told["configuration"], told["GFLOPs"], told["FID: gain"]) == ("real images", "not drawn", "not drawn")
    assert (told["FID"], told["CLIP score"]) == ("1.00 [0.90, 1.10]", "90.00 [89.90, 90.10]")
    assert real_images.cells(ROWS, None) == []
    assert real_images.to_markdown(ROWS, REAL).splitlines()[-1].startswith("| real images | not drawn |")
    assert real_images.to_markdown(ROWS, None) == tables.to_markdown(ROWS)
    lines = list(csv.DictReader(io.StringIO(real_images.to_csv(ROWS, {"protocol": ["p"] * len(ROWS)}, REAL))))
    assert len(lines) == len(ROWS) + 1
    last = lines[-1]
    assert (last["configuration"], last["method"], last["flops"], last["protocol"]) == ("", "real images", "", "p")
    assert (float(last["fid"]), float(last["clip_score_high"]), last["n"]) == (1.0, 90.1, "200")


def test_the_page_shows_them_and_no_plan_can_be_chosen_there(tmp_path):
    shown = examples(pages.store_of(tmp_path, ROWS, pages.small), ROWS)
    body, without = document.sweep_body(ROWS, shown, REAL), document.sweep_body(ROWS, shown)
    (line,) = [part for part in body.split("<tr") if ">real images<" in part]
    assert "data-select" not in line.partition("</tr>")[0]
    assert "data-family" not in line.partition("</tr>")[0]
    assert "what can be reached with so many images" in body
    assert "real images" not in without
    for part in ('id="sweep-data">', 'class="point'):  # fronts, gains and choices are as they were
        assert body.count(part) == without.count(part)
    assert body.partition('id="sweep-data">')[2] == without.partition('id="sweep-data">')[2]


def test_the_table_of_wandb_has_them_and_they_are_no_run(tmp_path):
    store = Store(str(tmp_path))
    book = logbooks.book(store)
    beside = logbooks.book(store, real=REAL)
    columns, lines = beside.table()
    last = dict(zip(columns, lines[-1], strict=True))
    assert (last["configuration"], last["fid"], last["flops"]) == ("real images", 1.0, None)
    assert len(lines) == len(book.table()[1]) + 1
    assert [run.state for run in beside.runs()] == [run.state for run in book.runs()]
    assert "| real images |" in beside.record()["parts"][0]["markdown"]
