"""The paper's data sets, drawn from small Parquet files and a small COCO of the tests' own."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import EPS, bomb, refusal
from PIL import Image

from pipelines.data import fetch, pairs, prompts
from pipelines.data.fetch import Source

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import fetch as job


def picture(shade: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (shade, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path):
    """Five files of 8 rows in row groups of 3, as the hub keeps images."""
    (tmp_path / "hub").mkdir()
    for f in range(5):
        images = [{"bytes": picture(10 * f + i, "BMP" if i == 2 else "PNG" if i % 2 else "JPEG"), "path": None}
                  for i in range(8)]  # fmt: skip
        images[5] = {"bytes": b"not an image", "path": None}
        rows = {"id": [f"n{f}_{i}" for i in range(8)], "short": [f"picture {f} {i}" for i in range(8)], "image": images}
        pq.write_table(pa.table(rows), tmp_path / "hub" / f"train-{f}.parquet", row_group_size=3)
    return str(tmp_path / "hub" / "*.parquet")


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / fetch.METADATA).read_text().splitlines()]


def test_a_draw_is_a_folder_that_prompts_references_and_training_read(hub, tmp_path, capsys):
    out = tmp_path / "drawn"
    job.main([hub, "--text", "short", "--n", "10", "--per-file", "4", "--out", str(out)])
    rows = rows_of(out)
    assert len(rows) == 10
    for row in rows:  # each image is its own caption's, decodable, and what its checksum says
        data = (out / row["file_name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        f, i = map(int, row["text"].split()[1:])
        assert row["id"] == f"n{f}_{i}"
        assert i != 5  # broken, and left out
        assert abs(Image.open(io.BytesIO(data)).convert("RGB").getpixel((9, 9))[0] - (10 * f + i)) <= 3
    listed = prompts.load_prompts(str(out / fetch.METADATA))
    assert [(p.id, p.text) for p in listed] == [(row["id"], row["text"]) for row in rows]
    assert f"10 captions, checksum {prompts.fingerprint(listed)}" in capsys.readouterr().out
    assert pairs.open_pairs(str(out)).read(3)[1] == rows[3]["text"]


def test_a_draw_is_the_same_for_everybody_and_goes_on_after_a_failure(hub, tmp_path, monkeypatch):
    source = Source(hub, "short", 9, 3)
    fetch.draw(source, tmp_path / "whole")
    read, real = [], fetch._rows

    def dies(system, name, *others):
        if len(read) == 2:
            raise ConnectionError("the network is gone")
        read.append(name)
        return real(system, name, *others)

    monkeypatch.setattr(fetch, "_rows", dies)
    with pytest.raises(OSError, match="the network is gone"):
        fetch.draw(source, tmp_path / "killed")
    assert not (tmp_path / "killed" / fetch.METADATA).exists()
    first = list(read)
    monkeypatch.setattr(fetch, "_rows", lambda system, name, *others: read.append(name) or real(system, name, *others))
    fetch.draw(source, tmp_path / "killed")
    assert len(set(read)) == len(read)  # what was whole is not read again
    assert read[:2] == first
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert len(read) == 4  # 3 of each of 3 files, one of which lacks a broken image: not all 5 are read


def test_all_of_a_data_set_without_ids(tmp_path):
    rows = {"text": [["a list's first", "second"], [], ["b"]], "image": [{"bytes": picture(i)} for i in range(3)]}
    pq.write_table(pa.table(rows), tmp_path / "one.parquet")
    assert fetch.draw(Source(str(tmp_path / "one.parquet"), "text"), tmp_path / "all") == (
        2,
        {"without a caption": 1},
    )
    assert sorted(row["text"] for row in rows_of(tmp_path / "all")) == ["a list's first", "b"]


def test_a_bomb_and_a_program_are_each_one_row_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", None)  # Ghostscript
    data = [picture(1), bomb(), EPS]
    table = {"id": ["a", "b", "c"], "text": ["one", "two", "three"], "image": [{"bytes": each} for each in data]}
    pq.write_table(pa.table(table), tmp_path / "hub.parquet")
    job.main([str(tmp_path / "hub.parquet"), "--out", str(tmp_path / "out")])
    assert "1 pairs, 2 left out without an image that can be read" in capsys.readouterr().out
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["one"]


def test_no_folder_is_not_the_current_one(hub, capsys):
    assert "--out must be a folder, got ''" in refusal(job.main, [hub, "--out", ""], capsys)


def test_two_files_with_one_id_are_refused(tmp_path):
    for name in "ab":
        rows = {"id": ["same"], "text": ["one"], "image": [{"bytes": picture(1)}]}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"ids must differ, in all files, got 'same' twice"):
        fetch.draw(Source(str(tmp_path / "*.parquet"), "text"), tmp_path / "out")


def test_credentials_of_an_address_are_in_no_message(tmp_path, capsys):
    address = "ftp://user:secret@127.0.0.1:1/x/*.parquet"
    told = refusal(job.main, [address, "--out", tmp_path / "out"], capsys)
    assert "127.0.0.1" in told
    assert "secret" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["laion"], "unknown data set 'laion': expected coco2014, imagenet21k-recaption, laion-art, or a glob"),
        (["none/*.parquet"], "no file matches none/"),
        (["HUB", "--text", "long"], "has no column long: it has id, short, image"),
        (["HUB", "--text", "short", "--n", "99"], "gave 35 pairs at None a file, expected 99"),
        (["HUB", "--n", "0"], "--n must be 1 or more, got 0"),
        (["HUB", "--text", ""], "has no column : it has id, short, image"),
    ],
)
def test_bad_input_is_told_and_claims_no_folder(hub, tmp_path, capsys, arguments, message):
    arguments = [hub if a == "HUB" else a for a in arguments]
    assert message in refusal(job.main, [*arguments, "--out", tmp_path / "out"], capsys)
    assert (tmp_path / "out").exists() == ("99" in arguments)  # that is known only when all is drawn


def test_another_draw_into_the_same_folder_is_refused(hub, tmp_path):
    fetch.draw(Source(hub, "short", 4, 2), tmp_path / "out")
    with pytest.raises(ValueError, match="holds another draw"):
        fetch.draw(Source(hub, "short", 5, 2), tmp_path / "out")


def test_coco_is_unpacked_and_a_wrong_checksum_is_told(tmp_path, monkeypatch):
    (tmp_path / "web").mkdir()
    caption = {"id": 1, "image_id": 9, "caption": "a cat"}
    wanted = {"a.zip": ("annotations/captions_val2014.json", json.dumps({"annotations": [caption], "images": []})),
              "v.zip": ("val2014/COCO_val2014_000000000009.jpg", "an image")}  # fmt: skip
    sums = {}
    for zipped, (name, text) in wanted.items():
        with zipfile.ZipFile(tmp_path / "web" / zipped, "w") as packed:
            packed.writestr(name, text)
            packed.writestr("train2014/not_needed.jpg", "x")
        url = (tmp_path / "web" / zipped).as_uri()
        prefix = "val2014/" if zipped == "v.zip" else name
        sums[url] = (hashlib.md5((tmp_path / "web" / zipped).read_bytes()).hexdigest(), prefix)
    monkeypatch.setattr(fetch, "COCO2014", sums)
    out = tmp_path / "coco"
    job.main(["coco2014", "--out", str(out)])
    assert (out / "val2014/COCO_val2014_000000000009.jpg").read_text() == "an image"
    assert [p.text for p in prompts.load_prompts(str(out / "annotations/captions_val2014.json"))] == ["a cat"]
    assert not (out / "train2014").exists()
    (out / "v.zip").write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"has MD5 .* expected .* remove it"):
        job.main(["coco2014", "--out", str(out)])
