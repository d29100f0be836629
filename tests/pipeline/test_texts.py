"""What teaches the denoisers' text encoders to read, the latents that denoisers learn, and crops of an autoencoder."""

import numpy as np
import pytest
import torch

from pipelines.data.procedural import PROCEDURAL, SCENES, SHAPES
from pipelines.training import latents, mini, texts
from pipelines.training.encoders import around_objects
from pipelines.training.loop import tokenise

BOTH = pytest.mark.parametrize("data", PROCEDURAL.values(), ids=PROCEDURAL)


@BOTH
def test_every_word_of_a_caption_is_one_token_and_the_longest_fits(data):
    captions = [data.scene("train", i).caption for i in range(2000)]
    longest = max(captions, key=lambda caption: len(caption.split()))
    words, pieces = mini.tokenizer(data), mini.t5_tokenizer(data)
    assert len(words(longest).input_ids) == len(longest.split()) + 2 <= words.model_max_length == data.tokens
    assert len(pieces(longest).input_ids) == len(longest.split()) + 1 <= pieces.model_max_length == data.tokens
    assert pieces.unk_token_id not in pieces(longest).input_ids
    encoder = mini.text_encoder(words, layers=mini.TEXT_LAYERS[data.name])
    assert encoder(tokenise(words, [longest])).last_hidden_state.shape == (1, data.tokens, mini.TEXT_WIDTH)


def test_a_reader_that_says_what_the_caption_asks_is_right():
    captions = [SCENES.scene("val", i).caption for i in range(20)]
    right = torch.tensor([SCENES.answers(caption) for caption in captions])
    reader = texts.Reader(torch.nn.Identity(), sum(SCENES.questions.values()), SCENES.questions)
    with torch.no_grad():
        reader.head.weight.copy_(torch.eye(reader.head.in_features))
        reader.head.bias.zero_()
    logits = torch.zeros(20, reader.head.in_features)
    starts = np.cumsum([0, *list(SCENES.questions.values())[:-1]])
    for row, answers in zip(logits, right.tolist(), strict=True):
        row[[start + answer for start, answer in zip(starts, answers, strict=True) if answer >= 0]] = 50
    assert reader.right(logits, right) == 1
    assert float(reader.loss(logits, right)) == pytest.approx(0, abs=1e-4)
    assert reader.right(-logits, right) == 0


def test_t5_reads_by_the_mean_of_words_and_not_of_what_fills_the_row():
    pieces = mini.t5_tokenizer(SCENES)
    encoder, pooled = mini.t5_encoder(pieces).eval(), texts.mean_of_tokens(pieces)
    caption = SCENES.scene("val", 0).caption
    padded, alone = tokenise(pieces, [caption]), pieces(caption, return_tensors="pt").input_ids
    assert padded.shape[1] > alone.shape[1]
    torch.testing.assert_close(pooled(encoder, padded), pooled(encoder, alone), rtol=0, atol=1e-5)


@BOTH
def test_latents_are_of_the_first_training_images_at_three_sizes(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    vae = mini.autoencoder(data).eval()
    torch.save({"ema": vae.state_dict()}, tmp_path / "autoencoder.pt")
    monkeypatch.setattr(latents, "N_LATENTS", 4)
    monkeypatch.setattr(latents, "CHUNK", 2)
    stored = latents.latents(tmp_path, data)
    assert {side: values.shape for side, values in stored.items()} == {
        side: (4, mini.LATENT_CHANNELS, side, side) for side in (16, 12, 8)
    }
    pixels = torch.from_numpy(data.drawn([data.scene("train", 3)])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        full = vae.encode(pixels).latent_dist.mean[0]
        half = torch.nn.functional.interpolate(pixels, data.size // 2, mode="bilinear", antialias=True)
        low = vae.encode(half).latent_dist.mean[0]
    np.testing.assert_allclose(stored[16][3], full, rtol=0, atol=2e-2)
    np.testing.assert_allclose(stored[8][3], low, rtol=0, atol=2e-2)
    monkeypatch.setattr(latents, "encoded", None)  # nothing is encoded again
    assert np.array_equal(latents.latents(tmp_path, data)[12], stored[12])


def test_sizes_and_crops_are_told_in_pixels_of_the_data_set(tmp_path):
    torch.save({"ema": mini.autoencoder(SCENES).state_dict()}, tmp_path / "autoencoder.pt")
    stored, ids = latents.conditioned_latents(tmp_path, SCENES, n=4)
    assert stored.shape == (4, mini.LATENT_CHANNELS, 16, 16)
    assert (ids[:, 4:] == 128).all()
    assert (ids[1::2, :2] == 128).all()
    assert ((ids[1::2, 2:4] >= 0) & (ids[1::2, 2:4] <= 32)).all()
    assert ((ids[::2, :2] >= 40) & (ids[::2, :2] <= 96)).all()


@BOTH
def test_crops_hold_the_middle_of_an_object(data):
    """Of images of one red pixel in the middle of each object, every crop has one."""
    scenes = [data.scene("train", i) for i in range(100)]
    images = np.zeros((100, data.size, data.size, 3), np.uint8)
    for image, scene in zip(images, scenes, strict=True):
        for thing in scene.objects:
            image[int(thing.y * data.size), int(thing.x * data.size), 0] = 255
    crops = around_objects(images, scenes, np.random.default_rng(0))
    assert crops.shape == (100, data.size // 2, data.size // 2, 3)
    assert crops.any((1, 2, 3)).all()
    assert SHAPES.size // 2 == 32
