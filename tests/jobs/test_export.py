"""jobs/export.py: each layout is read back as its tool reads it, pixel by pixel, and what cannot be read is refused.

The readers below are written after the tools' own loops, at the commits that `pipelines/data/layouts.py` names.
"""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from PIL import Image

from pipelines import evaluation, export, graph, open_store, results
from pipelines.data import images, prompts
from pipelines.data.layouts import LAYOUTS
from pipelines.engine import records
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store, shard_name
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import METRICS
from pipelines.stages import fidelity, scores
from pipelines.stages.generation import Configuration
from pipelines.stages.worker import Handler
from postdiff import methods

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import coco_sweep
import export as job
import score

PLANS = (methods.dense(8), methods.deepcache(8, k=2))
COLOURS = ("red", "green", "blue", "black", "white", "grey")
BENCHMARK = [
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": c}], "prompt": f"a {c} cup"} for c in COLOURS
]


class Stored:
    """A finished store with random images of `listed` under two plans, as jobs make it, in shards of 4 prompts."""

    def __init__(self, folder, listed, size=(8, 8), scored=True):
        self.listed, self.url = listed, str(folder)
        self.store = Store(folder)
        self.store.put("spec.json", records.to_json({}, "spec.json"))
        told = size[0] if size[0] == size[1] else size
        self.entries = [
            Entry(plan.name, "", Configuration("mini-sd", "w" * 8, plan, 2.0, "ddim", told, 4), 9, 9) for plan in PLANS
        ]
        names = {one.configuration.id: f"scores/{one.configuration.id}-12345678.json" for one in self.entries}
        protocol = Protocol("captions.txt", tuple(listed), 4, (), "mini-clip", "mini-clip", "tried")
        results.announce(self.store, self.entries, protocol, names)
        for name in names.values() if scored else ():
            self.store.commit(name, records.to_json({"seconds": 1.0, "clip": vars(Interval(1, 0, 2, 4))}, name))
        rng = np.random.default_rng(0)
        self.pixels = {id: rng.integers(0, 256, (len(listed), *size, 3), np.uint8) for id in names}
        for id in names:
            self._commit(id)

    def _commit(self, id):
        shards = prompts.shard(self.listed, 4)
        for i, shard in enumerate(shards):
            name = shard_name(f"images/{id}", i, len(shards))
            columns = {
                "prompt_id": [prompt.id for prompt in shard],
                "prompt": [prompt.text for prompt in shard],
                "seed": [prompts.seed(prompt) for prompt in shard],
                "configuration": [id] * len(shard),
                "plan": ["p"] * len(shard),
                "image": [{"bytes": records.encode_image(p), "path": ""} for p in self.pixels[id][4 * i : 4 * i + 4]],
            }
            self.store.commit(name, records.to_parquet(records.IMAGES, columns, name, prompts.fingerprint(shard)))

    def export(self, layout, out, *more):
        job.main([self.url, "--layout", layout, "--out", str(out), *map(str, more)])

    def folders(self):
        """(name of its folder, its pixels) of each configuration."""
        for entry, plan in zip(self.entries, PLANS, strict=True):
            yield f"{plan.name}-T8-{entry.configuration.id}", self.pixels[entry.configuration.id]


@pytest.fixture
def four(tmp_path):
    """A store of four images of each prompt of BENCHMARK, and its metadata: ids tell images of one text apart."""
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in BENCHMARK))
    listed = [Prompt(f"{i}-{j}", row["prompt"]) for i, row in enumerate(BENCHMARK) for j in range(4)]
    return Stored(tmp_path / "store", listed)


@pytest.fixture
def single(tmp_path):
    """A store of an image of each prompt of BENCHMARK but the first, the last one first."""
    return Stored(tmp_path / "store", [Prompt(str(i), BENCHMARK[i]["prompt"]) for i in (5, 1, 2, 3, 4)])


@pytest.fixture
def benchmark(tmp_path):
    """The benchmarks' own files: {layout: path}."""
    files = {"geneval": "evaluation_metadata.jsonl", "oneig": "OneIG-Bench.csv", "dpg": "dpg_bench.csv"}
    (tmp_path / files["geneval"]).write_text("".join(f"{json.dumps(row)}\n" for row in BENCHMARK))
    with (tmp_path / files["oneig"]).open("w", newline="", encoding="utf-8-sig") as file:
        write = csv.writer(file).writerow
        write(["category", "id", "prompt_en", "type"])
        for i, row in enumerate(BENCHMARK):  # ids come again in each category
            write([("Portrait", "Anime_Stylization")[i % 2], f"{i // 2:03}", row["prompt"], "x"])
        write(["Text_Rendering", "000", 'a sign\nthat says "no, never"', "x"])
    with (tmp_path / files["dpg"]).open("w", newline="") as file:
        write = csv.writer(file).writerow
        write(["item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language"])
        for i, row in enumerate(BENCHMARK):
            for question in (1, 2):
                write([f"item{i}", row["prompt"], question, 0, "entity - whole (cup)", "Is there a cup?"])
    (tmp_path / "prompts").mkdir()
    for i, row in enumerate(BENCHMARK):
        (tmp_path / "prompts" / f"item{i}.txt").write_text(row["prompt"] + "\n")
    return {layout: tmp_path / name for layout, name in files.items()} | {"prompts": tmp_path / "prompts"}


def read_pixels(path):
    with Image.open(path) as file:
        assert file.mode == "RGB"
        return np.asarray(file)


def read_geneval(folder):
    """evaluation/evaluate_images.py, `main`: folders whose name is digits; in each metadata.jsonl as one JSON value,
    and of samples/ files whose names begin with digits and .png; `evaluate_image` asks for the row's tag and prompt."""
    images = {}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name.isdigit():
            row = json.loads((entry / "metadata.jsonl").read_text())
            names = sorted(path for path in (entry / "samples").iterdir() if re.match(r"\d+\.png", path.name))
            images[entry.name] = row, [read_pixels(path) for path in names]
            assert {"tag", "prompt"} <= row.keys()
    return images


def cut(grid, columns, lines):
    """scripts/utils/utils.py, `split_mxn_grid`: parts of equal size, row by row."""
    height, width = grid.shape[0] // lines, grid.shape[1] // columns
    return [
        grid[i * height : (i + 1) * height, j * width : (j + 1) * width] for i in range(lines) for j in range(columns)
    ]


def read_oneig(folder, kind, model, id, grid):
    """scripts/alignment/alignment_score.py, `main`: the one file of IMAGES/CLASS/MODEL/ID*, cut by --image_grid
    COLUMNS,ROWS. scripts/reasoning/reasoning_score.py takes the first three characters of each file there for its id.
    """
    (file,) = (folder / kind / model).glob(f"{id}*")
    assert all(re.fullmatch(r"\d{3}\.webp", path.name) for path in (folder / kind / model).iterdir())
    return cut(read_pixels(file), *grid)


def read_dpg(folder, items, pic_num, resolution):
    """dpg_bench/compute_dpg_bench.py, `main` and `compute_dpg_one_sample`: every file of the folder is an image, its
    name up to the first dot the item; of four squares of --resolution, row by row, the first --pic-num are cut out."""
    images = {}
    corners = [(0, 0), (0, resolution), (resolution, 0), (resolution, resolution)]
    for path in folder.iterdir():
        item = path.name.split(".")[0]
        assert item in items
        pixels = read_pixels(path)
        images[item] = [pixels[y : y + resolution, x : x + resolution] for y, x in corners[:pic_num]]
    return images


def equal(images, expected):
    return len(images) == len(expected) and all(np.array_equal(a, b) for a, b in zip(images, expected, strict=True))


def test_a_folder_is_named_by_ids_and_says_what_it_is(tmp_path, capsys):
    """Ids as prompt files have them: numbers, names of image files, dots and spaces; texts in any script."""
    ids = ["00012", "cat.jpg", "v1.5", "two words", "sub/dog.png", "ü"]
    names = ["00012.png", "cat.png", "v1.5.png", "two words.png", "dog.png", "ü.png"]
    stored = Stored(tmp_path / "store", [Prompt(id, f"«{id}»\u2028, ünï") for id in ids])
    stored.export("folder", tmp_path / "out")
    assert "read by: python jobs/score.py OUT/CONFIGURATION" in capsys.readouterr().out
    for folder, pixels in stored.folders():
        out = tmp_path / "out" / folder
        assert {path.name for path in out.iterdir()} == {*names, "metadata.jsonl"}
        assert equal([read_pixels(out / name) for name in names], pixels)
        assert prompts.load_prompts(str(out / "metadata.jsonl")) == stored.listed
        rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
        assert [row["file_name"] for row in rows] == names
    about = json.loads((tmp_path / "out" / "configurations.json").read_text())
    assert [about["layout"], about["store"]] == ["folder", stored.url]
    dense, cached = (about["configurations"][name] for name, _ in stored.folders())
    assert [dense["method"], dense["steps"], dense["size"], cached["method"]] == ["dense", 8, "8", "deepcache"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(name for name, _ in stored.folders()),
        "configurations.json",
    }


def test_an_exported_folder_has_the_sweeps_own_numbers(tmp_path):
    """jobs/score.py pairs it by name, and its scores are those that the store has."""
    asked = ("--prompts", "shapes", "--limit", "4", "--n-reference", "8")
    given = coco_sweep.parse([*asked[2:], "--shard", "4", "--out", str(tmp_path / "sweep")])
    protocol = evaluation.protocol(given)
    entries = [Entry("dense", "", evaluation.configure(given, "mini-sd", methods.dense(2)), 1, 1)]
    store = evaluation.claim_store(given.out, protocol)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "STEPS", 2)
        units, tasks = graph.units(store, entries, protocol)
    id = entries[0].configuration.id
    results.announce(store, entries, protocol, {id: tasks[id].name})
    handle = Handler(store)
    for unit in units:  # in this order each has what it needs
        if not store.has(unit.name):
            handle(unit.task)
    out = tmp_path / "out"
    job.main([given.out, "--layout", "folder", "--out", str(out)])
    folder = str(out / f"dense-T2-{id}")
    score.main([folder, *asked, "--out", str(tmp_path / "scored")])
    rows = list(csv.DictReader((tmp_path / "scored" / "scores.csv").open()))
    lines = {row["metric"]: row for row in rows}
    scored = scores.read(store, tasks[id].name).intervals
    compared = [metric for metric in METRICS.values() if metric.key in scored and not metric.is_paired]
    assert {"fid", "clip", "kid", "attributes"} <= {metric.key for metric in compared}
    for metric in compared:
        expected = {key: f"{v:.{metric.digits + 2}f}" for key, v in scored[metric.key].columns("value").items()}
        assert {key: lines[metric.title][key] for key in expected} == expected


@pytest.mark.parametrize("n", [1, 4])
def test_geneval_finds_every_sample_beside_its_own_row(n, request, benchmark, tmp_path, capsys):
    stored = request.getfixturevalue("single" if n == 1 else "four")
    stored.export("geneval", tmp_path / "out", "--metadata", benchmark["geneval"])
    assert f"{len(stored.listed) // n} of the benchmark's 6 prompts, {n} image" in capsys.readouterr().err
    for folder, pixels in stored.folders():
        there = read_geneval(tmp_path / "out" / folder)
        assert len(there) == len(stored.listed) // n
        for index, (row, samples) in there.items():
            assert row == BENCHMARK[int(index)]  # the row's number, whatever the store's order
            assert equal(samples, [pixels[i] for i, p in enumerate(stored.listed) if p.text == row["prompt"]])
        assert (tmp_path / "out" / folder / "00003" / "samples" / "0000.png").exists()
        assert (tmp_path / "out" / folder / "00003" / "samples" / "0003.png").exists() == (n == 4)


@pytest.mark.parametrize(("n", "grid"), [(1, (1, 1)), (4, (2, 2))])
def test_oneig_cuts_every_grid_into_the_images_of_its_prompt(n, grid, request, benchmark, tmp_path, capsys):
    stored = request.getfixturevalue("single" if n == 1 else "four")
    stored.export("oneig", tmp_path / "out", "--metadata", benchmark["oneig"])
    told = capsys.readouterr()
    assert f"--image_grid {grid[0]},{grid[1]}\n" in told.out
    assert "of the benchmark's 7 prompts" in told.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"anime", "human", "configurations.json"}
    for folder, pixels in stored.folders():
        for text in {prompt.text for prompt in stored.listed}:
            i = [row["prompt"] for row in BENCHMARK].index(text)
            images = read_oneig(tmp_path / "out", ("human", "anime")[i % 2], folder, f"{i // 2:03}", grid)
            assert equal(images, [pixels[at] for at, p in enumerate(stored.listed) if p.text == text])


@pytest.mark.parametrize(("n", "given"), [(1, "dpg"), (2, "dpg"), (3, "prompts"), (4, "dpg")])
def test_dpg_cuts_out_as_many_images_as_it_is_told(n, given, benchmark, tmp_path, capsys):
    """`given`: the csv, or the folder of prompts. Images of one prompt lie in different shards."""
    listed = [Prompt(f"{i}-{j}", BENCHMARK[i]["prompt"]) for j in range(n) for i in range(6)]
    stored = Stored(tmp_path / "store", listed)
    stored.export("dpg", tmp_path / "out", "--metadata", benchmark[given])
    assert f"PIC_NUM={n} bash " in capsys.readouterr().out
    for folder, pixels in stored.folders():
        there = read_dpg(tmp_path / "out" / folder, {f"item{i}" for i in range(6)}, n, 8)
        assert len(there) == 6
        for item, cropped in there.items():
            assert equal(cropped, pixels[int(item[-1]) :: 6])


def test_texts_of_several_lines_and_both_languages_are_matched(benchmark, tmp_path):
    stored = Stored(tmp_path / "store", [Prompt("0", 'a sign\nthat says "no, never"')])
    stored.export("oneig", tmp_path / "out", "--metadata", benchmark["oneig"])
    assert [path.name for path in (tmp_path / "out" / "text").glob("*/*")] == ["000.webp"] * 2
    chinese = tmp_path / "OneIG-Bench-ZH.csv"
    chinese.write_text("category,id,prompt_cn\nMultilingualism,012,一只猫\n")
    stored = Stored(tmp_path / "zh", [Prompt("0", "一只猫")])
    stored.export("oneig", tmp_path / "zh-out", "--metadata", chinese)
    assert [path.name for path in (tmp_path / "zh-out" / "multilingualism").glob("*/*")] == ["012.webp"] * 2


def test_rows_of_one_text_share_its_images(tmp_path):
    file = tmp_path / "OneIG-Bench.csv"
    file.write_text("category,id,prompt_en\nPortrait,000,a cup\nGeneral_Object,007,a cup\n")
    stored = Stored(tmp_path / "store", [Prompt(str(i), "a cup") for i in range(2)])
    stored.export("oneig", tmp_path / "out", "--metadata", file)
    for folder, pixels in stored.folders():
        first = read_oneig(tmp_path / "out", "human", folder, "000", (1, 1))
        second = read_oneig(tmp_path / "out", "object", folder, "007", (1, 1))
        assert equal(first + second, pixels)


def test_configurations_are_chosen_by_id_or_method(single, tmp_path, capsys):
    dense, cached = (name for name, _ in single.folders())
    for i, chosen in enumerate(("deepcache", cached.rpartition("-")[2])):
        single.export("folder", tmp_path / f"out{i}", "--plans", chosen)
        assert {path.name for path in (tmp_path / f"out{i}").iterdir()} == {cached, "configurations.json"}
    single.export("folder", tmp_path / "both", "--plans", "deepcache", dense.rpartition("-")[2])
    assert (tmp_path / "both" / dense).is_dir()
    line = refusal(job.main, [single.url, *folder_to(tmp_path / "no"), "--plans", "dense", "tome"], capsys)
    assert line.endswith("(results.csv has them) or methods (deepcache, dense), got 'tome'")


def folder_to(out):
    return "--layout", "folder", "--out", out


def test_a_store_in_a_bucket_is_read_by_the_same_functions(single):
    """fsspec's memory stands for a bucket: its URL is no path."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in single.store.names():
        memory.pipe(f"/exported/{name}", single.store.get(name))
    prepared = export.prepare(open_store("memory://exported"), "folder", None)
    assert len(prepared.configurations) == 2
    out = Path(single.url).parent / "out"
    export.write(prepared, out)
    for folder, pixels in single.folders():
        names = [f"{prompt.id}.png" for prompt in single.listed]
        assert equal([read_pixels(out / folder / name) for name in names], pixels)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--layout", "coco"), "argument --layout: invalid choice: 'coco'"),
        (("--layout", "folder", "--metadata", "x.csv"), "--metadata has no effect with the layout folder"),
        (("--layout", "geneval"), "the layout geneval needs --metadata, the benchmark's own evaluation_metadata.jsonl"),
        (("--layout", "dpg"), "needs --metadata, the benchmark's own dpg_bench.csv, or the folder dpg_bench/prompts"),
        (("--layout", "geneval", "--metadata", "none.jsonl"), "'none.jsonl' must be a file, got no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_fit_are_refused(more, line, single, tmp_path, capsys):
    assert line.removeprefix("argument ") in refusal(job.main, [single.url, "--out", tmp_path / "out", *more], capsys)
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_not_empty_is_refused_and_an_empty_one_is_filled(single, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    single.export("folder", out)
    before = sorted(out.rglob("*"))
    line = refusal(job.main, [single.url, *folder_to(out)], capsys)
    assert line == f"--out must be a folder that is not there yet, or empty, got {str(out)!r}"
    assert sorted(out.rglob("*")) == before
    (tmp_path / "file").write_text("")
    assert "--out must be" in refusal(job.main, [single.url, *folder_to(tmp_path / "file")], capsys)


def unscored(single, tmp_path):
    return Stored(tmp_path / "unscored", single.listed, scored=False).url


def no_images(single, tmp_path):
    for name in single.store.names("images"):
        single.store.delete(name)
    return single.url


def a_shard_less(single, tmp_path):
    single.store.delete(sorted(single.store.names("images"))[0])
    return single.url


def one_without_images(single, tmp_path):
    for name in single.store.names(f"images/{single.entries[1].configuration.id}"):
        single.store.delete(name)
    return single.url


def damaged(single, tmp_path):
    name = max(single.store.names("images"))
    data = bytearray(single.store.get(name))
    data[100] ^= 1
    single.store.put(name, bytes(data))
    return single.url


def no_store(single, tmp_path):
    return tmp_path / "nowhere"


@pytest.mark.parametrize(
    ("breaks", "line"),
    [
        (unscored, "must be finished, got 2 of 2 configurations without scores: run its job again"),
        (no_images, "must hold the images that it has scored, in as many files of every configuration: expected some"),
        (a_shard_less, "has not all of its 2 shards: "),
        (one_without_images, "got 0"),
        (damaged, "must hold what was written"),
        (no_store, "must be the store of a job, got no spec.json in it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_store_that_is_not_whole_is_refused_and_nothing_is_left(breaks, line, single, tmp_path, capsys):
    url = breaks(single, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert line in refusal(job.main, [url, *folder_to(tmp_path / "out")], capsys)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("ids", "line"),
    [
        (("a/b",), "an image is named by its prompt's id, got 'a/b', which cannot be a file's name"),
        ((".hidden",), "which cannot be a file's name"),
        (("..",), "which cannot be a file's name"),
        (("a\nb",), "which cannot be a file's name"),
        (("x" * 252,), "which cannot be a file's name"),
        (("7", "007"), "two images would be named '7.png' and '007.png': expected one a prompt"),
        (("cat.png", "cat.jpg"), "two images would be named 'cat.png' and 'cat.png'"),
        (("Cat", "cat"), "two images would be named 'Cat.png' and 'cat.png'"),
    ],
    ids=lambda value: "-".join(value)[:9] if isinstance(value, tuple) else "",
)
def test_ids_that_cannot_be_files_are_refused(ids, line, tmp_path, capsys):
    stored = Stored(tmp_path / "store", [Prompt(id, f"a {i}") for i, id in enumerate(ids)])
    assert line in refusal(job.main, [stored.url, *folder_to(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


ROW = json.dumps(BENCHMARK[1])


@pytest.mark.parametrize(
    ("layout", "text", "line"),
    [
        ("geneval", f"{ROW}\n", "4 of 5 prompts are not in '*', the first 'a grey cup': expected the benchmark's own"),
        ("geneval", '{"prompt": "a red cup"}\n', "line 1: no 'tag': expected a row of evaluation_metadata.jsonl"),
        ("geneval", '{"prompt": "a red cup", "tag": "colors"}\n', "line 1: no 'include'"),
        ("geneval", '{"prompt": 5, "tag": "colors", "include": [1]}\n', "line 1: a prompt must be text, got 5"),
        ("geneval", f"{ROW}\n" * 2, "4 of 5 prompts are not in"),
        ("oneig", "id,prompt_en\n000,a red cup\n", "needs a column 'category'; it has id, prompt_en"),
        ("oneig", "category,id,prompt\nPortrait,000,a red cup\n", "needs a column 'prompt_en'"),
        ("oneig", "category,id,prompt_en\nPortrait,0,a red cup\n", "an id of three digits, got 'Portrait' and '0'"),
        ("oneig", "category,id,prompt_en\nStyle,000,a red cup\n", "line 2: expected a category of Anime_Stylization, "),
        ("oneig", "category,id,prompt_en\nPortrait,000\n", "line 2: expected 3 cells as in the header"),
        ("oneig", 'category,id,prompt_en\nPortrait,000,"a\n', "line 2: unexpected end of data"),
        ("dpg", "item,text\n1,a red cup\n", "needs a column 'item_id'; it has item, text"),
        ("dpg", "", "is empty"),
    ],
)
def test_another_file_than_the_benchmarks_own_is_refused(layout, text, line, single, tmp_path, capsys):
    file = tmp_path / "metadata"
    file.write_text(text)
    words = [single.url, "--layout", layout, "--metadata", file, "--out", tmp_path / "out"]
    assert line.replace("*", str(file)) in refusal(job.main, words, capsys)
    assert not (tmp_path / "out").exists()


def items(names):
    return "item_id,text\n" + "".join(f"{name},a {i}\n" for i, name in enumerate(names))


@pytest.mark.parametrize(
    ("layout", "text", "texts", "line"),
    [
        ("dpg", items("xy"), "00001", "expected as many images of each prompt, got from 1 to 4"),
        ("dpg", items("x"), "00000", "dpg looks at up to 4 images of a prompt, got 5"),
        ("dpg", items(["x.1"]), "0", "dpg takes an image's name up to its first dot for the item, got the item 'x.1'"),
        ("dpg", items(["x/1"]), "0", "got 'x/1', which cannot be a file's name"),
        ("dpg", items("xX"), "01", "two images would be named 'x' and 'X'"),
        ("oneig", "category,id,prompt_en\nPortrait,000,a 0\n", "000", "oneig looks at whole grids, of 1, 2, 4, 6 or 9"),
        ("oneig", "category,id,prompt_en\nPortrait,000,a 0\nPortrait,000,a 1\n", "01", "'human/000' and 'human/000'"),
        ("dpg", "item_id,text\nx,a 0\ny,a 0\n", "000", "2 rows of '*' are 'a 0': expected as many images of each, the"),
        ("dpg", "item_id,text\nx,a 0\ny,a 0\n", "0", "the store has 1"),
    ],
)
def test_what_a_tool_would_pass_over_or_count_wrongly_is_refused(layout, text, texts, line, tmp_path, capsys):
    stored = Stored(tmp_path / "store", [Prompt(str(i), f"a {of}") for i, of in enumerate(texts)])
    file = tmp_path / "metadata.csv"
    file.write_text(text)
    words = [stored.url, "--layout", layout, "--metadata", file, "--out", tmp_path / "out"]
    assert line.replace("*", str(file)) in refusal(job.main, words, capsys)
    assert not (tmp_path / "out").exists()


def test_dpg_has_squares_alone_and_a_folder_of_prompts(tmp_path, benchmark, capsys):
    stored = Stored(tmp_path / "store", [Prompt("0", "a red cup")], size=(8, 16))
    words = [stored.url, "--out", tmp_path / "out", "--layout"]
    line = refusal(job.main, [*words, "dpg", "--metadata", benchmark["dpg"]], capsys)
    assert "dpg cuts grids into squares, got images of 8x16 of dense-T8-" in line
    (tmp_path / "none").mkdir()
    square = Stored(tmp_path / "square", [Prompt("0", "a red cup")])
    line = refusal(job.main, [square.url, *words[1:], "dpg", "--metadata", tmp_path / "none"], capsys)
    assert line.endswith("must hold a benchmark's prompts, got a folder without .txt files")
    stored.export("oneig", tmp_path / "wide", "--metadata", benchmark["oneig"])  # cuts any size
    for folder, pixels in stored.folders():
        assert equal(read_oneig(tmp_path / "wide", "human", folder, "000", (1, 1)), pixels)


def test_what_is_broken_off_leaves_nothing(single, tmp_path, monkeypatch):
    calls = []

    def stop(pixels, columns):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return images.decode(records.encode_image(pixels[0]))

    monkeypatch.setattr(export, "grid", stop)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as stopped:
        single.export("folder", tmp_path / "out")
    assert stopped.value.code == 130
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_grid_is_row_by_row_and_black_where_no_image_is_left():
    cells = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2, 3)]
    assert export.grid(cells, 2)[..., 0].tolist() == [[1] * 3 + [2] * 3] * 2 + [[3] * 3 + [0] * 3] * 2
    assert export.grid(cells, 3)[..., 0].tolist() == [[1] * 3 + [2] * 3 + [3] * 3] * 2
    assert np.array_equal(export.grid(cells[:1], 1), cells[0])


def test_the_page_of_the_documentation_says_what_runs(tmp_path, benchmark, monkeypatch):
    """Its table names every layout, its script makes prompt files of the benchmarks' own, its commands are read."""
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| (none|`)", page, re.MULTILINE) == [
        (name, "`" if layout.metadata else "none") for name, layout in LAYOUTS.items()
    ]
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in commands.splitlines():
        _, file, *words = line.split()
        if file == "jobs/export.py":
            assert job.parse(words).layout == "geneval"
        elif file == "jobs/coco_sweep.py":
            assert coco_sweep.parse(words).prompts == "geneval.jsonl"
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for layout, column in (("dpg", "text"), ("oneig", "prompt_en")):
        exec(script.replace('"dpg_bench/dpg_bench.csv", "text"', f'"{benchmark[layout].name}", "{column}"'), {})
        listed = prompts.load_prompts("prompts.jsonl")
        stored = Stored(tmp_path / layout, listed)
        stored.export(layout, tmp_path / f"{layout}-out", "--metadata", benchmark[layout])
        assert len(listed) == 4 * (6 + (layout == "oneig"))
        assert len([*(tmp_path / f"{layout}-out").rglob("*.*")]) == len(listed) // 4 * 2 + 1


def test_images_of_other_prompts_are_refused(single, tmp_path, capsys):
    """A file of the second configuration whose prompts are not the first's, which its seal alone does not tell."""
    name = max(single.store.names(f"images/{single.entries[1].configuration.id}"))
    single.store.put(name, records.to_parquet(records.IMAGES, columns_of(single.store, name), name, "other"))
    line = refusal(job.main, [single.url, *folder_to(tmp_path / "out")], capsys)
    assert f"{name} must be made of " in line
    assert line.endswith("got one of other (jobs/verify.py STORE --repair sets it aside, to be made again)")
    assert not (tmp_path / "out").exists()


def columns_of(store, name):
    return store.table(name).to_pydict()


def test_the_folder_that_one_stands_in_can_be_filled_and_a_link_cannot(single, tmp_path, monkeypatch, capsys):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    single.export("folder", ".")
    assert (tmp_path / "here" / "configurations.json").is_file()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert "--out must be" in refusal(job.main, [single.url, *folder_to(tmp_path / "link")], capsys)
