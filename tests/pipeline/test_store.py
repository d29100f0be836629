"""The store: whole files or none, refused when it is another sweep's, images that Hugging Face datasets shows."""

import os
import pickle
import time
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.data import images
from pipelines.engine import cluster, records
from pipelines.engine import store as stores
from pipelines.engine.store import Store
from pipelines.engine.urls import below, clean, local_path
from pipelines.metrics.intervals import Interval
from pipelines.stages import latency, scores


def test_put_is_all_or_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.put("a/one.bin", b"first")
    store.put("a/one.bin", b"second")
    assert store.get("a/one.bin") == b"second"

    def full_disk(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        store.put("a/two.bin", b"x")
    assert store.names() == {"a/one.bin"}
    assert sorted(os.listdir(tmp_path / "a")) == ["one.bin"]


def test_half_written_files_are_not_listed(tmp_path):
    store = Store(tmp_path)
    (tmp_path / ".tmp-abc").write_bytes(b"half")
    assert store.names() == set()
    assert Store(tmp_path / "not-yet").names() == set()


@pytest.mark.parametrize("url", ["file://{}", "file://localhost{}", "{}", "~"])
def test_urls_and_paths(tmp_path, monkeypatch, url):
    monkeypatch.setenv("HOME", str(tmp_path))
    store = Store(url.format(tmp_path))
    assert (store.is_local, store.root, store.shown) == (True, str(tmp_path), str(tmp_path))
    store.put("x/y.bin", b"1")
    assert store.names("x") == {"x/y.bin"}
    assert Store(tmp_path).get("x/y.bin") == b"1"


def test_an_fsspec_url_works():
    store = Store("memory://bucket/sweep")
    store.put("x/y.bin", b"1")
    assert store.names() == {"x/y.bin"}
    assert store.get("x/y.bin") == b"1"


def test_s3_holds_what_a_folder_holds(s3, tmp_path):
    features = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    name = "features/e/c/00000-of-00001.parquet"
    data = records.feature_rows([str(i) for i in range(300)], features, name, "m")
    local, remote = Store(tmp_path), pickle.loads(pickle.dumps(Store(s3("sweep"))))
    for store in (local, remote):
        store.check_writable()
        store.claim({"prompts": "abc"})
        store.put("features/e/c/00000-of-00001.parquet", data)
        store.put("failed/x.json", b"{}")
        store.delete("failed/x.json")
        store.delete("failed/never.json")
    assert remote.names() == local.names() == {"spec.json", "features/e/c/00000-of-00001.parquet"}
    assert remote.names("features/e") == {"features/e/c/00000-of-00001.parquet"}
    assert remote.get("features/e/c/00000-of-00001.parquet") == data
    assert remote.table("features/e/c/00000-of-00001.parquet", ["prompt_id"]).column_names == ["prompt_id"]
    with pytest.raises(ValueError, match="this run 'xyz'"):
        Store(s3("sweep")).claim({"prompts": "xyz"})
    with pytest.raises(ValueError, match="is not writable"):
        Store(s3("sweep").replace("//bucket", "//no-such-bucket")).check_writable()


def test_all_names_are_listed_wherever_they_are(s3, tmp_path, monkeypatch):
    there = {f"{folder}/{i}.bin" for folder in ("a", "a/b", "a/b/c", *(f"d/{n}" for n in range(40))) for i in range(2)}
    for store in (Store(tmp_path), Store(s3("names")), Store("memory://bucket/names")):
        for name in there:
            store.commit(name, b"1")
        store.put("a/.tmp-x", b"half")
        assert store.names() == there
        assert store.names("a/b") == {name for name in there if name.startswith("a/b/")}
        assert store.names("a/none") == set()
        assert {(name, info.size) for name, info in store.listing("a/b")} == {(name, 1) for name in store.names("a/b")}
        assert {name for name, _ in store.listing()} == there | {"a/.tmp-x"}
    calls, inside = [], Store._in_folder
    monkeypatch.setattr(Store, "_in_folder", lambda of, path: calls.append(path) or inside(of, path))
    assert len(Store(s3("names")).names("d")) == 80
    assert len(calls) == 41  # a folder each


class Faulty(LocalFileSystem):
    """A file system over fsspec that breaks in the middle of a file, where the name says so."""

    protocol = ("faulty",)
    breaks = True

    def _open(self, path, mode="rb", **kwargs):
        file = super()._open(path, mode, **kwargs)
        if "w" in mode and self.breaks:
            write = file.write

            def half(data):
                write(bytes(data)[: len(data) // 2])
                raise OSError("connection reset")

            file.write = half
        return file


def test_a_write_that_breaks_leaves_nothing_where_files_are_written_in_place(tmp_path, monkeypatch):
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    store = Store(f"faulty://{tmp_path}/store")
    store.patience = 0
    os.makedirs(tmp_path / "store" / "a")
    assert not store.appears_whole
    with pytest.raises(OSError, match="connection reset"):
        store.put("a/x.bin", b"0123456789")
    assert store.names() == set()
    assert list((tmp_path / "store" / "a").iterdir()) == []
    monkeypatch.setattr(Faulty, "breaks", False)
    store.put("a/x.bin", b"0123456789")
    store.put("a/x.bin", b"again")
    assert store.names() == {"a/x.bin"}
    assert store.get("a/x.bin") == b"again"


def test_an_object_shorter_than_what_was_sent_does_not_stay(monkeypatch):
    store = Store("memory://bucket/short")
    store.patience = 0
    assert store.appears_whole
    pipe = MemoryFileSystem.pipe_file
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", lambda self, path, data: pipe(self, path, data[: len(data) // 2]))
        with pytest.raises(OSError, match="wrote 10 bytes, the store holds 5"):
            store.put("x.bin", b"0123456789")
    assert not store.has("x.bin")
    store.put("x.bin", b"0123456789")
    assert store.has("x.bin")


@pytest.mark.parametrize("name", ["a?b#c", "a%20b", "~x", "x:y"])
def test_a_path_is_taken_as_it_stands(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    store = Store(f"{tmp_path}/{name}")
    store.put("x.bin", b"1")
    assert os.listdir(tmp_path) == [name]
    assert store.shown == f"{tmp_path}/{name}"
    assert Store(below(store.url, "round-1")).root == f"{tmp_path}/{name}/round-1"
    assert local_path(f"./{name}") == store.root


def test_a_name_that_is_too_long_is_refused_as_the_store_is_opened(tmp_path):
    for url in (f"{tmp_path}/{'a' * 300}", f"file://{tmp_path}/x/{'a' * 300}/y", f"{tmp_path}/" + "a/" * 2500):
        with pytest.raises(ValueError, match="name must be of 255 bytes at most, and a path of 4095, got "):
            Store(url)
    assert os.listdir(tmp_path) == []


def test_a_folder_below_a_url_is_before_its_query():
    assert below("s3://bucket/x?region=us-east-1", "round-1") == "s3://bucket/x/round-1?region=us-east-1"
    assert below("out/x/", "round-1") == "out/x/round-1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "a store must be a folder or a URL, got ''"),
        ("s3:/x", "a URL must be s3://..., got 's3:/x' (a folder of that name is ./s3:/x)"),
        ("file:x", "a URL must be file://..., got 'file:x' (a folder of that name is ./file:x)"),
        ("file://host/x", "a file URL must be file:///ABSOLUTE/PATH (with %3F for ?, %23 for #), got 'file://host/x'"),
        ("file:///x?y", "a file URL must be file:///ABSOLUTE/PATH (with %3F for ?, %23 for #), got 'file:///x?y'"),
        ("nosuch://bucket/x", "cannot open store 'nosuch://bucket/x': Protocol not known: nosuch"),
        ("s3://", "cannot open store 's3://': expected a bucket or a folder after ://"),
        (
            "s3://KEY:SEC/RET@bucket/x",
            "a store's URL must not hold credentials, got a s3:// URL with some: give them by",
        ),
        ("ftp://USER@127.0.0.1:9/x", "cannot open store 'ftp://127.0.0.1:9/x': [Errno 111] Connection refused"),
    ],
)
def test_what_cannot_be_opened_says_why_without_credentials(url, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        Store(url)
    assert str(refused.value).startswith(message)
    assert "SEC" not in str(refused.value)


def test_the_cause_of_pyarrow_is_told_where_it_knows_the_scheme(monkeypatch):
    def no_region(url):
        raise OSError("When resolving region for bucket 'bucket': no network")

    monkeypatch.setattr(stores, "fs", SimpleNamespace(FileSystem=SimpleNamespace(from_uri=no_region)))
    with pytest.raises(ValueError, match=r"^cannot open store 's3://bucket/x': When resolving region for bucket"):
        Store("s3://bucket/x")


def test_a_store_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr(stores, "ANSWER", 0.2)
    monkeypatch.setattr(Store, "_from_uri", lambda store: time.sleep(30))
    with pytest.raises(ValueError, match=r"cannot open store 'gs://bucket/x': no answer in 0.2 s"):
        Store("gs://bucket/x")


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b"\xff\xfe\x00", b"[1]"])
def test_json_of_another_shape_is_told_with_its_file(tmp_path, data):
    store = Store(tmp_path)
    store.put("spec.json", data)
    with pytest.raises(cluster.DamagedError, match=r"^spec.json must be sealed by its SHA-256, got \d+ bytes without"):
        store.claim({"prompts": "abc"})
    assert store.get("spec.json") == data
    store.put(f"{latency.KEPT}x.json", data)
    with pytest.raises(cluster.DamagedError, match=r"latency/\d+-x.json must be sealed"):
        latency.measured(store)


@pytest.mark.parametrize(
    "told",
    [
        {"clip": {"value": 1}},
        {"seconds": 1.0},
        {"seconds": 1.0, "clip": None},
        {"seconds": 1.0, "clip": {"value": 1, "low": 0, "high": 2, "n": 8, "left_out": ["1"]}},
        {"seconds": "1", "clip": {"value": 1, "low": 0, "high": 2, "n": 8, "left_out": []}},
    ],
)
def test_scores_and_latencies_of_another_shape_are_told(tmp_path, told):
    store = Store(tmp_path)
    store.put("scores/x.json", records.to_json(told, "scores/x.json"))
    with pytest.raises(ValueError, match=r"scores/x.json must hold scores that a job wrote, got .*; deleted, it is"):
        scores.read(store, "scores/x.json")
    name, of = f"{latency.KEPT}x.json", {"plans": ["a"], "backbone": "b", "machine": "c"}
    store.put(name, records.to_json({**of, **told}, name))
    with pytest.raises(ValueError, match=r"latency/\d+-x.json must hold latencies that a job wrote, got "):
        latency.measured(store)
    good = {"seconds": 1.0, "clip": {"value": 1, "low": 0, "high": 2, "n": 8, "left_out": [1, 2]}}
    store.put("scores/y.json", records.to_json(good, "scores/y.json"))
    assert scores.read(store, "scores/y.json") == scores.Scores(1.0, {"clip": Interval(1, 0, 2, 8, (1, 2))})


def test_another_spec_is_refused_and_nothing_is_lost(tmp_path):
    store = Store(tmp_path)
    store.claim({"prompts": "abc", "prompts_per_shard": 8})
    store.claim({"prompts": "abc", "prompts_per_shard": 8})
    with pytest.raises(ValueError, match="prompts_per_shard: the store has 8, this run 20"):
        store.claim({"prompts": "abc", "prompts_per_shard": 20})
    assert b'"prompts_per_shard": 8' in store.get("spec.json")


def test_unwritable_store_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/below' is not writable: .*Not a directory"):
        Store(tmp_path / "file" / "below").check_writable()
    with pytest.raises(ValueError, match=r"file' is not writable: expected a folder, got a file$"):
        Store(tmp_path / "file").check_writable()


def test_a_check_leaves_nothing_behind(tmp_path):
    Store(tmp_path / "a" / "b").check_writable()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    Store(tmp_path / "a").check_writable()
    assert [file.name for file in tmp_path.rglob("*")] == ["a", "mine"]


def test_images_survive_bit_for_bit_and_features_too():
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.decode(records.encode_image(image)), image)
    features = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    table = records.from_parquet(records.feature_rows(list("abcde"), features, "f", "m"), "f", "m")
    np.testing.assert_array_equal(records.feature_matrix(table), features)


def test_hugging_face_datasets_shows_images(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = np.full((8, 8, 3), 7, np.uint8)
    columns = {
        "prompt_id": ["0"],
        "prompt": ["p"],
        "seed": [1],
        "configuration": ["c"],
        "plan": ["d"],
        "image": [{"bytes": records.encode_image(image), "path": "0.webp"}],
    }
    name = "images/c/00000-of-00001.parquet"
    Store(tmp_path).put(name, records.to_parquet(records.IMAGES, columns, name, "m"))
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "images/c/*.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    np.testing.assert_array_equal(np.asarray(loaded[0]["image"]), image)


def test_a_folder_is_the_same_from_wherever_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packed = pickle.dumps(Store("out/x"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(packed).root == str(tmp_path / "out" / "x")


def test_credentials_of_a_url_are_not_shown():
    shown = Store("s3://bucket/path?endpoint_override=localhost:1").shown
    assert shown == "s3://bucket/path"
    assert clean("no answer of s3://KEY:SEC/RET@bucket/path?token=X") == "no answer of s3://bucket/path"
