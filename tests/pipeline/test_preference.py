"""PickScore, HPSv2.1 and ImageReward: scores equal the originals' arithmetic; files that are not theirs are refused.

The published weights cannot be had here: these are networks of the same classes, with random weights.
"""

import argparse
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import open_clip
import preferences
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from pipelines import graph
from pipelines.data import prompts
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.metrics import encoders, preference, preference_models
from pipelines.metrics.intervals import mean_interval
from pipelines.metrics.metric import METRICS
from pipelines.pooling import Pool
from pipelines.stages import features, scores
from pipelines.stages.features import Extractor, Pictures

MAKE = {"pickscore": preferences.pickscore, "hps": preferences.hps, "imagereward": preferences.imagereward}
TEXTS = ["a big red star on snow", "small rings above a blue star", "a", "stars " * 60]
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, shape, np.uint8) for shape in ((40, 40, 3), (64, 64, 3), (50, 70, 3), (33, 32, 3))]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """{kind: name}"""
    root = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        preferences.shrink(patch, root)
        yield {kind: make(root / kind) for kind, make in MAKE.items()}


def made(name):
    return preference_models.make_encoder(name, "cpu")


def prepared(encoder, images=IMAGES):
    return [encoder.prepare(image) for image in images]


def test_pickscore_is_the_models_own_logit_of_image_and_prompt(networks):
    encoder, folder = made(networks["pickscore"]), preference.parse(networks["pickscore"]).folder
    images, texts = encoder.encode(prepared(encoder)), encoder.texts(TEXTS)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pixels = torch.stack([preferences.cropped(image) for image in IMAGES])
    words = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixels, input_ids=words["input_ids"], attention_mask=words["attention_mask"])
    expected = logits.logits_per_image.diagonal().double()
    assert expected.std() > 1
    np.testing.assert_allclose((images.astype(float) * texts).sum(1), expected, atol=2e-4)
    assert preference.agreement(images, texts).value == pytest.approx(float(expected.mean()), abs=1e-4)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)


def test_hps_is_the_diagonal_of_what_its_package_multiplies(networks):
    encoder, file = made(networks["hps"]), preference.parse(networks["hps"]).weights
    model = open_clip.create_model("tiny-hps", load_weights=False, output_dict=True).eval()
    model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    pixels = torch.stack([preferences.padded(image) for image in IMAGES])
    np.testing.assert_allclose(torch.stack(prepared(encoder)), pixels, atol=1e-5)
    with torch.no_grad():
        found = model(pixels, open_clip.get_tokenizer("ViT-H-14")(TEXTS))
    expected = torch.diagonal(found["image_features"] @ found["text_features"].T)
    assert expected.std() > 0.01
    images, texts = encoder.encode(prepared(encoder)), encoder.texts(TEXTS)
    np.testing.assert_allclose((images * texts).sum(1), expected, atol=1e-5)
    assert preference.agreement(images, texts).value == pytest.approx(float(expected.mean()), abs=1e-5)


def test_imagereward_is_the_originals_arithmetic_on_its_own_weights(networks):
    encoder = made(networks["imagereward"])
    original = preferences.Original(preferences.reward_weights())
    ids = [[2, *map(preferences.WORDS.index, text), 3] for text in (
        ["a", "big", "red", "star", "on", "snow"], ["small", "ring", "##s", "above", "a", "blue", "star"], ["a"],
        ["star", "##s"] * 60,
    )]  # fmt: skip
    expected = [original.reward(preferences.cropped(image), words) for image, words in zip(IMAGES, ids, strict=True)]
    assert np.std(expected) > 0.1
    rewards = encoder.encode(prepared(encoder), TEXTS)
    assert rewards.shape == (4, 1)
    np.testing.assert_allclose(rewards[:, 0], expected, rtol=1e-4, atol=1e-4)
    swapped = encoder.encode(prepared(encoder), TEXTS[::-1])
    assert np.abs(swapped - rewards).min() > 1e-3  # the prompt counts
    assert preference.reward(rewards, np.empty(0)) == mean_interval(rewards[:, 0].astype(float))
    assert encoder.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [
        len(preferences.WORDS),
        len(preferences.WORDS) + 1,
    ]


def test_the_published_sizes_are_those_of_the_networks(monkeypatch):
    """On the meta device: 1.8 GB of weights are not made."""
    for name, value in preferences.PUBLISHED.items():
        monkeypatch.setattr(preference_models, name, value)
    with torch.device("meta"):
        of = preference_models._Reward()
    sizes = {key: tuple(value.shape) for key, value in of.state_dict().items()}
    assert sizes["vision.embeddings.position_embedding"] == (1, 197, 1024)
    assert sizes["text.embeddings.word_embeddings.weight"] == (30524, 768)
    assert sizes["text.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert [sizes[f"mlp.{i}.weight"] for i in (0, 2, 4, 6, 7)] == [
        (1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16)
    ]  # fmt: skip
    assert sum(torch.Size(size).numel() for size in sizes.values()) == 446_206_689  # counted by hand
    assert of.text.config.num_attention_heads == 12
    assert (of.vision.post_layernorm.eps, of.text.embeddings.LayerNorm.eps) == (1e-6, 1e-12)
    assert preference_models.HPS_MODEL == "ViT-H-14"


CHANGES = {
    "lacks 1 of": lambda weights, key: weights.pop(key),
    "has 1 weights more than the network, the first extra": lambda weights, key: weights.update(extra=torch.ones(1)),
    "must be ": lambda weights, key: weights.update({key: weights[key][:1]}),
    "is not finite": lambda weights, key: weights[key].fill_(float("nan")),
}
ONE = {
    "pickscore": "text_model.encoder.layers.1.mlp.fc1.bias",
    "hps": "visual.transformer.resblocks.1.ln_1.weight",
    "imagereward": "blip.visual_encoder.blocks.1.attn.qkv.bias",
}


@pytest.mark.parametrize("message", CHANGES)
@pytest.mark.parametrize("kind", ONE)
def test_weights_that_are_not_the_networks_are_refused(networks, tmp_path, kind, message):
    network = copied(networks[kind], tmp_path)
    if kind == "pickscore":
        weights = load_file(network.weights)
        CHANGES[message](weights, ONE[kind])
        save_file(weights, network.weights)
    else:
        held = torch.load(network.weights, weights_only=True)
        CHANGES[message](held["state_dict"] if kind == "hps" else held, ONE[kind])
        torch.save(held, network.weights)
    with pytest.raises(ValueError, match=message) as error:
        made(preferences.name_of(kind, network.folder, network.weights.name))
    assert len(str(error.value).splitlines()) == 1
    assert network.weights.name in str(error.value)


def copied(name, tmp_path):
    network = preference.parse(name)
    for file in network.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return replace(network, folder=tmp_path)


@pytest.mark.parametrize("key", ["visual_encoder.cls_token", "blip.visual_encoder.blocks.1.drop.weight",
                                 "blip.itm_head.bias", "text_encoder.embeddings.LayerNorm.bias",
                                 "blip.vision_proj.scale"])  # fmt: skip
def test_a_name_that_the_original_has_not_is_left_over(networks, tmp_path, key):
    network = copied(networks["imagereward"], tmp_path)
    torch.save(preferences.reward_weights() | {key: torch.ones(1)}, network.weights)
    with pytest.raises(ValueError, match=f"has 1 weights more than the network, the first {key}"):
        made(preferences.name_of("imagereward", tmp_path, "ImageReward.pt"))


def test_projections_may_lack_and_positions_must_be_positions(networks, tmp_path):
    network, weights = copied(networks["imagereward"], tmp_path), preferences.reward_weights()
    positions = weights.pop("blip.text_encoder.embeddings.position_ids")
    torch.save({key: value for key, value in weights.items() if "_proj." not in key}, network.weights)
    encoder, other = made(preferences.name_of("imagereward", tmp_path, "ImageReward.pt")), made(networks["imagereward"])
    one = prepared(encoder)
    np.testing.assert_array_equal(encoder.encode(one, TEXTS), other.encode(one, TEXTS))
    torch.save(weights | {"blip.text_encoder.embeddings.position_ids": positions + 1}, network.weights)
    with pytest.raises(ValueError, match="position_ids must be 0, 1, 2"):
        made(preferences.name_of("imagereward", tmp_path, "ImageReward.pt"))


class Unpickled:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("kind", ["hps", "imagereward"])
def test_a_pickle_of_more_than_tensors_is_refused_and_does_nothing(networks, tmp_path, monkeypatch, kind):
    network = copied(networks[kind], tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Unpickled()}, network.weights)
    with pytest.raises(ValueError, match="must hold tensors alone, and torch cannot read it"):
        made(preferences.name_of(kind, tmp_path, network.weights.name))
    assert not (tmp_path / "unpickled").exists()
    for held in ([1], {"state_dict": {"a": 1}}):
        torch.save(held, network.weights)
        with pytest.raises(ValueError, match="must hold a dictionary of tensors, got something else"):
            made(preferences.name_of(kind, tmp_path, network.weights.name))
    network.weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="must hold tensors alone"):
        made(preferences.name_of(kind, tmp_path, network.weights.name))


def test_another_vocabulary_is_refused(networks, tmp_path):
    copied(networks["imagereward"], tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(ValueError, match=r"vocab.txt must hold bert-base-uncased's \d+ words, got 1"):
        made(preferences.name_of("imagereward", tmp_path, "ImageReward.pt"))


def test_a_hash_must_be_the_files(networks):
    for kind, name in networks.items():
        preference.check([name])
        with pytest.raises(ValueError, match=f"must have the SHA-256 {'0' * 64}, got [0-9a-f]{{64}}$"):
            preference.check([f"{kind}={preference.parse(name).folder}@sha256:{'0' * 64}"])
    told = sha256(preference.parse(networks["hps"]).weights.read_bytes()).hexdigest()
    preference.check([networks["hps"].replace(told, told.upper())])
    assert preference.parse(networks["hps"].replace(told, told.upper())).sha256 == told


def test_what_is_unpickled_must_be_named_with_its_hash_and_safetensors_may_be(networks):
    preference.check([networks["pickscore"].partition("@")[0]])
    for kind in ("hps", "imagereward"):
        bare, _, told = networks[kind].partition("@sha256:")
        with pytest.raises(
            ValueError, match=f"must say the SHA-256 of .* https://huggingface.co/.*; that of .* {told}$"
        ):
            preference.check([bare])


def test_files_that_lack_are_named_with_where_to_fetch_them(networks, tmp_path):
    with pytest.raises(ValueError, match="pickscore needs") as error:
        preference.check([f"pickscore={tmp_path}/none"])
    assert str(error.value) == (
        "pickscore needs config.json, model.safetensors, preprocessor_config.json, tokenizer.json in "
        f"'{tmp_path}/none': hf download yuvalkirstain/PickScore_v1 config.json model.safetensors --local-dir "
        f"{tmp_path}/none && hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K preprocessor_config.json tokenizer.json "
        f"--local-dir {tmp_path}/none"
    )
    copied(networks["imagereward"], tmp_path)
    (tmp_path / "vocab.txt").unlink()
    expected = "imagereward needs vocab.txt in .*: hf download google-bert/bert-base-uncased vocab.txt --local-dir"
    with pytest.raises(ValueError, match=expected):
        preference.fingerprint(f"imagereward={tmp_path}")
    (tmp_path / "vocab.txt").mkdir()
    with pytest.raises(ValueError, match=expected):
        preference.check([f"imagereward={tmp_path}"])


@pytest.mark.parametrize("text", ["pickscore", "pickscore=", "blip=x", "hps=x@sha256:12", "=x",
                                  f"hps=x@sha256:{'g' * 64}", f"hps=x@sha256:{'0' * 64}x", " hps=x"])  # fmt: skip
def test_what_names_no_network_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"^must be pickscore=FOLDER\[@sha256:64 digits\], hps="):
        preference.argument(text)


def test_two_of_a_kind_are_refused(networks):
    with pytest.raises(ValueError, match="--preference must name one network of a kind, got 2 of hps"):
        preference.check([networks["hps"], networks["pickscore"], networks["hps"]])


def test_a_network_is_named_by_all_that_it_reads_and_nothing_else(networks, tmp_path):
    copied(networks["pickscore"], tmp_path)
    before = encoders.fingerprint(networks["pickscore"])
    assert before.startswith("pickscore-")
    (tmp_path / "README.md").write_text("x")
    assert encoders.fingerprint(f"pickscore={tmp_path}") == before
    for file in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
        after = encoders.fingerprint(f"pickscore={tmp_path}")
        assert after != before
        before = after


def test_it_is_no_encoder_of_clip_or_fid(networks):
    with pytest.raises(ValueError, match="is of human preference: expected a CLIP model or an Inception"):
        features.check_encoder(networks["hps"])


def test_scores_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"one text an image: got features of shape \(4, 3\) and \(1, 3\)"):
        preference.agreement(np.ones((4, 3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"expected one reward an image, \[N, 1\], got features of shape \(4, 2\)"):
        preference.reward(np.ones((4, 2)), np.empty(0))
    for score, more in ((preference.agreement, np.ones((4, 1))), (preference.reward, np.empty(0))):
        with pytest.raises(ValueError, match="expected finite numbers, got 4 of 4"):
            score(np.full((4, 1), np.nan), more)


def protocol_of(names, n=6):
    listed = tuple(prompts.load_prompts("shapes", n))
    return Protocol("shapes", listed, 4, (), "mini-clip", "mini-clip", preference=tuple(names))


def test_they_are_measured_where_they_are_named_and_change_no_protocol_where_they_are_not(networks):
    none, all_of_them = protocol_of([]), protocol_of(networks.values())
    of_preference = [metric for metric in METRICS.values() if metric.is_of_preference]
    assert [metric.encoder for metric in of_preference] == list(preference.KINDS)
    assert not any(metric.lower_is_better for metric in of_preference)
    assert not set(of_preference) & set(none.alone)
    assert set(of_preference) <= set(all_of_them.alone)
    assert {none.definition(metric) for metric in of_preference} == {"not computed: --preference names none"}
    assert none.facts().keys() < all_of_them.facts().keys()
    assert all_of_them.facts()["HPSv2.1"].startswith("HPSv2.1 of hps-")
    one = protocol_of([networks["imagereward"]])
    assert [metric.key for metric in of_preference if not one.lacks(metric)] == ["imagereward"]
    assert [metric.column for metric in of_preference] == ["pickscore", "hpsv2_1", "imagereward"]


def test_real_images_are_scored_with_their_own_prompts(networks, tmp_path):
    protocol, store = protocol_of(networks.values(), 4), Store(str(tmp_path))
    units, task = graph.real_images(store, protocol)
    shared = graph.shared_features(protocol)
    assert {kind for kind in networks if any(f"/{kind}-" in unit.name for unit in shared)} == {"pickscore", "hps"}
    own = [unit for unit in [*units, *shared] if getattr(unit.task, "encoder", "") in networks.values()]
    assert len(own) == 5
    work = Extractor(store)
    for unit in own:
        done = work(unit.task)
        if callable(done):
            done()
    inputs = tuple(one for one in task.inputs if METRICS[one.metric].is_of_preference)
    scored = scores.score(replace(task, inputs=inputs)).intervals
    assert list(scored) == ["pickscore", "hps", "imagereward"]
    shown = [features.real_image(prompts.scene(prompt)) for prompt in protocol.prompts]
    encoder = made(networks["imagereward"])
    rewards = encoder.encode(prepared(encoder, shown), [prompt.text for prompt in protocol.prompts])
    assert scored["imagereward"].value == pytest.approx(rewards.mean(), rel=1e-4)


def test_scores_of_several_stores_are_pooled(networks, tmp_path, monkeypatch):
    protocol, metric = protocol_of(networks.values()), METRICS["imagereward"]
    assert protocol.against(metric) == ""
    pool, folders = Pool([], protocol), []

    class Configured:
        id = "c"

    def features_of(folder):
        folders.append(folder)
        return [(["p"], np.full((2, 1), 1.0)), (["q"], np.arange(4.0)[:, None])]

    monkeypatch.setattr(pool, "_features", features_of)
    assert pool.score(Configured(), metric) == preference.reward(np.array([1, 1, 0, 1, 2, 3.0])[:, None], np.empty(0))
    assert folders == [f"features/{encoders.fingerprint(networks['imagereward'])}/c"]


def test_rewards_need_a_prompt_of_each_image(networks, tmp_path):
    work = Extractor(Store(str(tmp_path)))
    pictures = Pictures(IMAGES, [*"abcd"], "made of", texts=TEXTS)
    rewards = work.features(networks["imagereward"], pictures)
    encoder = features.loaded_encoder(networks["imagereward"])
    np.testing.assert_array_equal(rewards, encoder.encode(prepared(encoder), TEXTS))
    with pytest.raises(ValueError, match="needs the prompt of each of 4 images, got 0"):
        work.features(networks["imagereward"], replace(pictures, texts=()))
    with pytest.raises(ValueError, match="encodes images only, not prompts"):
        work(graph.features.prompt_units(networks["imagereward"], [protocol_of([]).prompts])[0].task)


def test_many_prompts_go_to_their_own_images(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 3)
    work = Extractor(Store(str(tmp_path)))
    encoder = features.loaded_encoder(networks["imagereward"])
    found = work.features(networks["imagereward"], Pictures(IMAGES, [*"abcd"], "made of", texts=TEXTS))
    alone = [encoder.encode(prepared(encoder, [image]), [text])[0] for image, text in zip(IMAGES, TEXTS, strict=True)]
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
