"""Images of a shard of prompts: what their file says of them."""

import time

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
