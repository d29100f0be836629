"""Images of a shard of prompts: what their file says of them."""

import time

import pytest
import torch
from conftest import PROMPTS

import postdiff
from pipelines.engine import records
from pipelines.engine.records import Prompt
from pipelines.stages import generation
from postdiff import methods


def test_seconds_are_of_sampling_alone(backbone, monkeypatch):
    """Not of compressing the images, which another machine or format does in another time."""
    began = time.perf_counter()
    postdiff.sample(backbone, PROMPTS[:2], [1, 2], methods.dense(1))
    longest = 10 * (time.perf_counter() - began) / 2 + 1

    def slow(image, encode=records.encode_image):
        time.sleep(longest)
        return encode(image)

    monkeypatch.setattr(records, "encode_image", slow)
    configuration = generation.configure("mini-sd", methods.dense(1), batch_size=2)
    listed = [Prompt(str(i), text) for i, text in enumerate(PROMPTS[:2])]
    made = generation.generate(backbone, configuration, listed)
    assert len(records.from_parquet(made.file(), "")) == len(made.seconds) == 2
    assert all(0 < seconds < longest for seconds in made.seconds)


def test_how_a_model_is_run_is_part_of_what_a_configuration_is():
    """But where it is run as ever: ids of stores that are there still hold."""
    plain = generation.configure("mini-sd", methods.dense(20))
    assert plain.id == "c0bcb26a54d5"
    assert plain.arithmetic == "float32"
    fast = generation.configure("mini-sd", methods.dense(20), channels_last=True, compiled=True)
    others = [
        generation.configure("mini-sd", methods.dense(20), **{how: True}) for how in ("channels_last", "compiled")
    ]
    assert len({plain.id, fast.id, *(one.id for one in others)}) == 4
    assert fast.arithmetic == "float32, channels last, compiled"


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_configuration_is_loaded_as_it_says(channels_last):
    made = generation.configure("mini-sd", methods.dense(1), channels_last=channels_last).load("denoiser")
    for model in (made.denoiser, made.decoder):
        wide = max((p for p in model.parameters() if p.ndim == 4 and p.shape[2] > 1), key=lambda p: p.shape[1])
        assert wide.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert not made.compiled
    assert generation.configure("mini-sd", methods.dense(1), compiled=True).load("denoiser").compiled
