"""The store: whole files or none, refused when it is another sweep's, images that Hugging Face datasets shows."""

import os

import numpy as np
import pytest

from pipelines import records
from pipelines.store import Store


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


@pytest.mark.parametrize("url", ["file://{}", "{}"])
def test_urls_and_paths(tmp_path, url):
    store = Store(url.format(tmp_path))
    store.put("x/y.bin", b"1")
    assert store.names("x") == {"x/y.bin"}
    assert Store(tmp_path).get("x/y.bin") == b"1"


def test_an_fsspec_url_works():
    store = Store("memory://bucket/sweep")
    store.put("x/y.bin", b"1")
    assert store.names() == {"x/y.bin"}
    assert store.get("x/y.bin") == b"1"


def test_unknown_scheme_is_told():
    with pytest.raises(ValueError, match="cannot open store 'nosuch://"):
        Store("nosuch://bucket/x")


def test_another_spec_is_refused_and_nothing_is_lost(tmp_path):
    store = Store(tmp_path)
    store.claim({"prompts": "abc", "prompts_per_shard": 8})
    store.claim({"prompts": "abc", "prompts_per_shard": 8})
    with pytest.raises(ValueError, match="prompts_per_shard: the store has 8, this run 20"):
        store.claim({"prompts": "abc", "prompts_per_shard": 20})
    assert b'"prompts_per_shard": 8' in store.get("spec.json")


def test_unwritable_store_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="not writable"):
        Store(tmp_path / "file" / "below").check_writable()


def test_images_survive_bit_for_bit_and_features_too():
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(records.decode_image(records.encode_image(image)), image)
    features = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    table = records.from_parquet(records.feature_rows(list("abcde"), features))
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
        "seconds": [0.5],
    }
    Store(tmp_path).put("images/c/00000-of-00001.parquet", records.to_parquet(records.IMAGES, columns))
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "images/c/*.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    np.testing.assert_array_equal(np.asarray(loaded[0]["image"]), image)
