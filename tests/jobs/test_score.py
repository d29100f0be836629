"""jobs/score.py: folders of images of any program have the sweep's own numbers, and what does not pair is refused."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from PIL import Image

from pipelines import evaluation, graph, scoring, verification
from pipelines.data import images, named_images
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.evaluation import Entry
from pipelines.metrics import pixels
from pipelines.metrics.intervals import mean_interval
from pipelines.metrics.metric import METRICS
from pipelines.stages import features, fidelity, scores
from pipelines.stages.worker import Handler
from postdiff import methods

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import coco_sweep
import score

N = 8
SHAPES = ("--prompts", "shapes", "--limit", str(N), "--n-reference", "30")


def rows_of(file):
    return list(csv.DictReader(file.open()))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of a plan that caches and of as many dense steps: rows, protocol, its images as PNG in `a` and `b`."""
    root = tmp_path_factory.mktemp("swept")
    shards = ("--shard", "4", "--batch-size", "4", "--out", str(root / "sweep"))
    given = coco_sweep.parse([*SHAPES[2:], *shards])
    protocol = evaluation.protocol(given)
    plans = {"deepcache": methods.deepcache(4, k=2), "dense": methods.dense(4)}
    entries = [Entry(name, "", evaluation.configure(given, "mini-sd", plan), 1, 1) for name, plan in plans.items()]
    store = evaluation.claim_store(given.out, protocol)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "STEPS", 4)
        units, tasks = graph.units(store, entries, protocol)
    handle = Handler(store)
    for unit in units:  # in this order each has what it needs
        if not store.has(unit.name):
            handle(unit.task)
    for folder, entry in zip("ab", entries, strict=True):
        (root / folder).mkdir()
        for name in store.shards(f"images/{entry.configuration.id}"):
            for row in store.table(name, ["prompt_id", "image"]).to_pylist():
                Image.fromarray(images.decode(row["image"]["bytes"])).save(root / folder / f"{row['prompt_id']}.png")
    rows = [evaluation.to_row(entry, scores.read(store, tasks[entry.configuration.id].name)) for entry in entries]
    return root, rows, protocol


@pytest.fixture(scope="module")
def scored(swept):
    root, *_ = swept
    score.main([str(root / "a"), "--against", str(root / "b"), *SHAPES, "--out", str(root / "scored")])
    return root / "scored"


def test_two_exported_folders_have_the_sweeps_own_numbers(swept, scored):
    _, rows, protocol = swept
    lines = {(row["metric"], row["of"]): row for row in rows_of(scored / "scores.csv")}
    alone = [metric for metric in METRICS.values() if not metric.is_paired and metric.key in rows[0].scores]
    assert {"fid", "clip", "kid", "cmmd", "precision", "density", "attributes"} <= {metric.key for metric in alone}
    for metric in alone:
        digits = metric.digits + 2  # as in a sweep's results.csv
        for name, row in zip("ab", rows, strict=True):
            expected = {k: f"{v:.{digits}f}" for k, v in row.interval(metric).columns("value").items()}
            line = lines[metric.title, name]
            assert {key: line[key] for key in expected} == expected
            assert int(line["n"]) == row.interval(metric).n
        change = metric.difference(rows[0].interval(metric), [(1.0, rows[1].interval(metric))])
        assert lines[metric.title, "difference"]["value"] == f"{change.value:.{digits}f}"
        wider = [float(lines[metric.title, "difference"][key]) for key in ("value_low", "value_high")]
        assert wider[0] <= change.low + 1e-6
        assert wider[1] >= change.high - 1e-6
    assert {line["protocol"] for line in lines.values()} == {evaluation_protocol(protocol)}


def evaluation_protocol(protocol):
    """The name that numbers of equal protocols share: of the shards that the job has by default."""
    from dataclasses import replace

    return replace(protocol, prompts_per_shard=32).facts()["protocol"]


def test_psnr_of_one_folder_to_the_other_is_the_sweeps_fidelity_to_dense(swept, scored):
    root, rows, _ = swept
    lines = {row["metric"]: row for row in rows_of(scored / "scores.csv")}
    for key in ("psnr", "ssim"):
        expected = rows[0].scores[f"{key}_dense"]
        line, digits = lines[f"{METRICS[key].title} to b"], METRICS[key].digits + 2
        assert [line["value"], line["n"]] == [f"{expected.value:.{digits}f}", str(N)]
    assert 10 < float(lines["PSNR to b"]["value"]) < pixels.EQUAL
    x, y = (np.stack([np.asarray(Image.open(file)) for file in sorted((root / name).iterdir())]) for name in ("a", "b"))
    assert float(lines["PSNR to b"]["value"]) == pytest.approx(mean_interval(pixels.compare(x, y)[:, 0]).value, 1e-4)


def test_what_is_written_says_what_it_is(scored):
    notes = json.loads((scored / "scores.json").read_text())
    assert set(notes["facts"]) >= {"a", "b", "protocol", "prompts", "machine", "commit", "FID", "PSNR", "LPIPS"}
    assert notes["facts"]["LPIPS"].startswith("not computed: ")
    fid = notes["scores"]["fid"]
    assert fid["difference"]["value_low"] < fid["difference"]["value"] < fid["difference"]["value_high"]
    assert fid["a"]["n"] == N
    text = (scored / "scores.md").read_text()
    assert "| metric | a | b | difference | clearly better |" in text
    page = (scored / "scores.html").read_text()
    assert page.count("data:image/webp") == 2 * N
    assert verification.verify(Store(str(scored))).is_whole


def test_a_second_run_computes_nothing_and_says_the_same(swept, scored, monkeypatch, capsys):
    root, *_ = swept
    before = (scored / "scores.csv").read_bytes()
    monkeypatch.setattr(features.Extractor, "__call__", None)
    monkeypatch.setattr(scores, "score", None)
    score.main([str(root / "a"), "--against", str(root / "b"), *SHAPES, "--out", str(scored)])
    assert (scored / "scores.csv").read_bytes() == before
    assert "report: " in capsys.readouterr().out


def test_a_folder_alone_is_held_against_real_images(swept, tmp_path, capsys):
    """Other names, prompts from a file, a folder of references: numbers of the same images are the same."""
    root, rows, protocol = swept
    reference = tmp_path / "real"
    reference.mkdir()
    for i, key in enumerate(protocol.reference):
        Image.fromarray(features.real_image(key)).save(reference / f"{i}.png")
    for i, prompt in enumerate(protocol.prompts):
        (tmp_path / "own").mkdir(exist_ok=True)
        shutil.copy(root / "a" / f"{prompt.id}.png", tmp_path / "own" / f"{i:05}.png")
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"{prompt.text}\n" for prompt in protocol.prompts))
    mini = ("--clip", "mini-clip", "--fid", "mini-clip", "--out", str(tmp_path / "out"))
    score.main([str(tmp_path / "own"), "--prompts", str(captions), "--reference", str(reference), *mini])
    lines = {line["metric"]: line for line in rows_of(tmp_path / "out" / "scores.csv")}
    keys = {"fid", "clip", "kid", "cmmd", "precision", "recall", "density", "coverage"}
    assert set(lines) == {METRICS[key].title for key in keys}
    for key in keys:
        assert lines[METRICS[key].title]["value"] == f"{rows[0].scores[key].value:.{METRICS[key].digits + 2}f}"
    assert "difference" not in capsys.readouterr().out


@pytest.fixture
def eight(tmp_path):
    """Two folders of eight images each and their captions, as arguments, and what is broken in them: `a`, `b`."""
    rng = np.random.default_rng(0)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for i in range(N):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "captions.tsv").write_text("id\tcaption\n" + "".join(f"{i}\tpicture {i}\n" for i in range(N)))
    return tmp_path


def broken(eight, *more):
    captions = ("--prompts", str(eight / "captions.tsv"), "--clip", "mini-clip", "--out", str(eight / "out"))
    return [str(eight / "a"), "--against", str(eight / "b"), *captions, *more]


def lacks(root):
    (root / "b" / "3.png").unlink()


def has_more(root):
    shutil.copy(root / "a" / "3.png", root / "a" / "33.png")


def has_both(root):
    (root / "b" / "3.png").rename(root / "b" / "three.png")


def doubled(root):
    (root / "b" / "more").mkdir()
    shutil.copy(root / "b" / "3.png", root / "b" / "more" / "3.jpg")


def doubled_number(root):
    shutil.copy(root / "b" / "3.png", root / "b" / "0003.png")


def unreadable(root):
    (root / "b" / "3.png").write_bytes((root / "b" / "3.png").read_bytes()[:100])


def grey(root):
    Image.open(root / "b" / "3.png").convert("L").save(root / "b" / "3.png")


def transparent(root):
    Image.open(root / "b" / "3.png").convert("RGBA").save(root / "b" / "3.png")


def turned(root):
    file = Image.open(root / "b" / "3.png")
    exif = file.getexif()
    exif[274] = 6
    file.save(root / "b" / "3.png", exif=exif)


def resized(root):
    Image.open(root / "b" / "3.png").resize((16, 20)).save(root / "b" / "3.png")


def same(root):
    shutil.rmtree(root / "b")
    shutil.copytree(root / "a", root / "b")


def no_folder(root):
    shutil.rmtree(root / "b")


def same_ids(root):
    (root / "captions.tsv").write_text("id\tcaption\n3\ta\n03\tb\n")


def few(root):
    for folder in "ab":
        for i in range(3, N):
            (root / folder / f"{i}.png").unlink()
    (root / "captions.tsv").write_text("id\tcaption\n0\ta\n1\tb\n2\tc\n")


@pytest.mark.parametrize(
    ("breaks", "line"),
    [
        (lacks, "/b' does not pair with the prompts: 1 of 8 prompts have no image, the first has the id '3' ("),
        (has_more, "/a' does not pair with the prompts: 1 images are of no prompt, the first '33.png' ("),
        (has_both, "1 of 8 prompts have no image, the first has the id '3' and 1 images are of no prompt, the first"),
        (doubled, "/b' has two images of one name, '3.png' and 'more/3.jpg': expected one a prompt"),
        (doubled_number, "/b' has two images of one name, '0003.png' and '3.png': expected one a prompt"),
        (unreadable, "1 of 8 images of "),
        (grey, "/b' are not plain RGB, the first '3.png' (mode L): expected RGB of 8 bits without transparency"),
        (transparent, "/b' are not plain RGB, the first '3.png' (mode RGBA)"),
        (turned, "/b' are not plain RGB, the first '3.png' (turned (EXIF), mode RGB)"),
        (resized, "1 of 8 pairs differ in size, the first of the prompt '3': 16x16 in "),
        (same, "hold the same images: there is nothing to compare"),
        (no_folder, "/b', which is no folder"),
        (same_ids, "two prompts are of one name, '3' and '03': expected one an image"),
        (few, "intervals need at least 4 prompts, got 3"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_pair_is_refused_in_a_line_before_anything_is_made(breaks, line, eight, capsys):
    breaks(eight)
    message = refusal(score.main, broken(eight), capsys)
    assert line in message
    assert not (eight / "out").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--fid", "mini-clip"), "--fid has no effect without --reference"),
        (("--limit", "9"), "--limit must be at most the 8 prompts"),
        (("--limit", "7", "--n-reference", "9"), "--n-reference has no effect"),
        (("--reference", "none", "--fid", "mini-clip"), "--reference must be a folder of at least 2 images"),
        (("--guidance", "2"), "unrecognized arguments: --guidance 2"),
        (("--workers", "2"), "unrecognized arguments: --workers 2"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_options_without_effect_are_refused(more, line, eight, capsys):
    assert line in refusal(score.main, broken(eight, *more), capsys)


def test_prompts_are_not_guessed(eight, capsys):
    assert "--prompts" in refusal(score.main, [str(eight / "a")], capsys)


def test_with_a_limit_images_of_later_prompts_are_left_out_and_counted(eight):
    given = score.parse(broken(eight, "--limit", "5"))
    first, second = scoring.folders(given)
    assert [file.name for file in first.files] == [f"{i}.png" for i in range(5)]
    assert str(second).endswith("left out: 3 images of prompts beyond --limit")
    shutil.copy(eight / "a" / "3.png", eight / "a" / "other.png")
    with pytest.raises(ValueError, match=r"1 images are of no prompt, the first 'other\.png'"):
        scoring.folders(given)


def test_a_name_is_paired_as_a_number_or_as_it_stands():
    pairs = {
        "00012.png": "12",
        "12": "12",
        "000": "0",
        "v1.5": "v1.5",
        "v1.5.PNG": "v1.5",
        "cat.jpg": "cat",
        "1a": "1a",
    }
    assert {name: named_images.paired_by(name) for name in pairs} == pairs


def test_a_text_chunk_in_a_png_pairs_nothing(eight):
    """The images of two prompts are swapped, and each says whose it is: names count."""
    from PIL.PngImagePlugin import PngInfo

    swapped = {"0.png": "picture 1", "1.png": "picture 0"}
    for name, text in swapped.items():
        chunk = PngInfo()
        chunk.add_text("prompt", text)
        Image.open(eight / "a" / name).save(eight / "a" / name, pnginfo=chunk)
    first, _ = scoring.folders(score.parse(broken(eight)))
    assert [(prompt.text, file.name) for prompt, file in zip(first.prompts, first.files, strict=True)][:2] == [
        ("picture 0", "0.png"),
        ("picture 1", "1.png"),
    ]


def test_an_image_that_changes_while_it_is_scored_is_told(eight):
    first, _ = scoring.folders(score.parse(broken(eight)))
    Image.new("RGB", (16, 16)).save(eight / "a" / "2.png")
    first.pixels(1)
    with pytest.raises(ValueError, match="was changed while this ran"):
        first.pixels(2)


def test_the_id_is_of_pixels_and_prompts_wherever_they_are(eight, tmp_path):
    listed = [Prompt(str(i), f"picture {i}") for i in range(N)]
    one = named_images.read(eight / "a", listed)
    shutil.copytree(eight / "a", eight / "moved")
    assert named_images.read(eight / "moved", listed).id == one.id
    assert named_images.read(eight / "a", [Prompt("0", "another"), *listed[1:]]).id != one.id
    assert named_images.read(eight / "b", listed).id != one.id


def test_the_better_folder_is_named_by_the_metrics_direction():
    rng = np.random.default_rng(0)
    values = rng.normal(50, 20, 64)
    from pipelines.report.tables import Row

    def row(name, shift):
        interval = mean_interval(values + shift + rng.normal(0, 0.1, 64))
        return Row(name, name, "", 0, 0, 0, 0.0, {"fid": interval, "clip": interval})

    lines = {line.metric.key: line for line in scoring.table([row("x", 1), row("y", 0)], ["x", "y"])}
    assert {key: line.better for key, line in lines.items()} == {"fid": "y", "clip": "x"}
    assert lines["clip"].difference.value == pytest.approx(1, abs=0.1)
    told = scoring.answer(list(lines.values()), ["x", "y"])
    assert told.startswith("x is clearly better by CLIP score; y is clearly better by FID (paired 95 % intervals")


def test_folders_of_one_name_are_told_apart(eight):
    (eight / "c").mkdir()
    shutil.move(eight / "b", eight / "c" / "a")
    arguments = broken(eight)
    arguments[2] = str(eight / "c" / "a")
    assert scoring.names(scoring.folders(score.parse(arguments))) == [str(eight / "a"), str(eight / "c" / "a")]


def test_shards_hold_the_images_of_their_own_prompts(swept, tmp_path):
    root, _, protocol = swept
    of = named_images.read(root / "a", protocol.prompts)
    store = Store(str(tmp_path))
    scoring.keep(store, of, protocol)
    names = store.shards(f"images/{of.id}")
    assert len(names) == len(protocol.shards) == 2
    stored = [row for name in names for row in store.table(name, ["prompt_id", "image"]).to_pylist()]
    assert [row["prompt_id"] for row in stored] == [prompt.id for prompt in protocol.prompts]
    for i, row in enumerate(stored):
        assert np.array_equal(images.decode(row["image"]["bytes"]), np.asarray(Image.open(of.files[i])))
