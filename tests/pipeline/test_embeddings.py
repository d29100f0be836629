"""Prompts encoded once give the bytes that prompts encoded every time give, for every family."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES, PROMPTS, SEEDS

import postdiff
from pipelines.data import prompts as prompting
from pipelines.data.prompts import Prompt
from pipelines.engine import cluster, records
from pipelines.engine.store import Store
from pipelines.stages import embeddings, generation
from postdiff import methods
from postdiff.text import Embeddings

LISTED = tuple(Prompt(str(i), text) for i, text in enumerate(PROMPTS))


@pytest.mark.parametrize("kind", FAMILIES)
def test_stored_embeddings_give_the_same_bytes(backbones, kind):
    backbone = backbones(kind)
    made = postdiff.encode(backbone, PROMPTS, 2)
    written = embeddings.to_bytes(made, ["a", "b", "c"], "text", "m")
    read = embeddings.from_table(records.from_parquet(written, "text", "m"))
    assert len(read) == 3
    for plan in (methods.postdiff(**{**backbone.spec.settings, "steps": 4}), methods.no_cfg(2)):
        fresh = postdiff.sample(backbone, PROMPTS, SEEDS, plan, batch_size=2)
        again = postdiff.sample(backbone, PROMPTS, SEEDS, plan, batch_size=2, embeddings=read)
        np.testing.assert_array_equal(fresh, again)


def test_what_pixarts_mask_hides_is_not_stored(backbones):
    backbone = backbones("pixart")
    made = postdiff.encode(backbone, PROMPTS, 3)
    hidden = Embeddings({**made.cond, "mask": torch.ones_like(made.cond["mask"])}, made.uncond)
    ids = ["a", "b", "c"]
    stored, whole = (len(embeddings.to_bytes(of, ids, "text", "m")) for of in (made, hidden))
    assert stored < 0.8 * whole


def test_a_denoiser_loads_without_its_text_encoder_and_the_other_way_round(backbones):
    folder = backbones("pixart").spec.source
    alone = postdiff.load(folder, device="cpu", parts="denoiser")
    assert alone.pipe.text_encoder is None
    words = postdiff.load(folder, device="cpu", parts="text")
    assert words.pipe.transformer is None
    assert words.pipe.vae is None
    whole = backbones("pixart")
    made = postdiff.encode(words, PROMPTS, 3)
    ours = postdiff.sample(alone, PROMPTS, SEEDS, methods.dense(2), size=64, embeddings=made)
    np.testing.assert_array_equal(ours, postdiff.sample(whole, PROMPTS, SEEDS, methods.dense(2)))


def test_a_sweep_encodes_a_prompt_once_and_commits_the_bytes_of_encoding_it_every_time(backbone, tmp_path):
    store = Store(tmp_path)
    first, second = (
        generation.configure("mini-sd", plan, batch_size=2) for plan in (methods.dense(2), methods.dense(3))
    )
    text, *images = generation.units([first, second], [LISTED], [1.0, 1.0])
    assert [unit.needs for unit in images] == [(text.name,)] * 2
    generator = generation.Generator(store)
    generator(text.task)
    assert generator.loaded[1].pipe.unet is None
    for configuration, unit in zip((first, second), images, strict=True):
        generator(unit.task)
        committed = store.table(unit.name, ["image"])["image"].to_pylist()
        fresh = generation.generate(backbone, configuration, LISTED).file(unit.name)
        assert committed == records.from_parquet(fresh, unit.name)["image"].to_pylist()
        assert store.get(unit.name) == fresh  # the same bytes, all of them
    assert generator.loaded[1].pipe.text_encoder is None


def test_embeddings_of_other_prompts_or_batches_are_refused(backbones, tmp_path):
    backbone = backbones("tiny")
    made = postdiff.encode(backbone, PROMPTS, 3)
    listed = [Prompt(id, text) for id, text in zip("abc", PROMPTS, strict=True)]
    store = Store(tmp_path)
    store.put("text/x.parquet", embeddings.to_bytes(made, list("abc"), "text/x.parquet", prompting.fingerprint(listed)))
    assert len(embeddings.read(store, "text/x.parquet", listed)) == 3
    with pytest.raises(cluster.DamagedError, match=r"text/x.parquet must be made of \w+, got one of"):
        embeddings.read(store, "text/x.parquet", listed[::-1])
    with pytest.raises(ValueError, match="batches of 2, got ones for batches of 3"):
        postdiff.sample(backbone, PROMPTS, SEEDS, methods.dense(2), batch_size=2, embeddings=made)
    with pytest.raises(ValueError, match=r"one row of embeddings a prompt \(2\), got 3"):
        postdiff.sample(backbone, PROMPTS[:2], SEEDS[:2], methods.dense(2), batch_size=3, embeddings=made)
