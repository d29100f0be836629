"""A worker compresses and embeds while it samples: the bytes are the same, and nothing is left behind."""

import threading
import time

import numpy as np
import pytest

from pipelines.data import prompts
from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.stages import compression, features, generation
from pipelines.stages.compression import Compressor
from postdiff import methods

LISTED = tuple(prompts.load_prompts("shapes", 6))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


def units(store):
    """Of one shard: its text, its images, and their features, which need the images alone."""
    of = generation.configure("mini-sd", methods.dense(2), batch_size=2)
    text, images = generation.units([of], [LISTED], [1.0])
    generator = generation.Generator(store)
    generator(text.task)
    return generator, images, features.image_units("mini-clip", [images.name])


def test_features_of_pixels_in_memory_are_those_of_the_stored_images(tmp_path):
    there, later = Store(tmp_path / "riding"), Store(tmp_path / "later")
    generator, images, riders = units(there)
    assert generator(images.task, [rider.task for rider in riders]) == (riders[0].name,)
    generator, images, riders = units(later)
    assert generator(images.task) == ()
    features.Extractor(later)(riders[0].task)
    assert there.names() == later.names()
    assert len(there.record(generation.timings_name(images.name))["seconds"]) == len(LISTED)
    for name in (images.name, riders[0].name):
        assert there.get(name) == later.get(name)


@pytest.mark.parametrize("threads", [1, 4])
def test_bytes_do_not_depend_on_threads(threads, monkeypatch, tmp_path):
    with Compressor(0) as alone, Compressor(threads) as beside:
        for at in range(0, len(PIXELS), 5):
            alone.add(PIXELS[at : at + 5])
            beside.add(PIXELS[at : at + 5])
        assert beside.result() == alone.result() == [records.encode_image(image) for image in PIXELS]
    store, other = Store(tmp_path / "a"), Store(tmp_path / "b")
    for one, count in ((store, 1), (other, threads + 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(count))
        assert generation.encoding_threads() == count - 1
        generator, images, _ = units(one)
        generator(images.task)
    assert store.get(images.name) == other.get(images.name)


def test_threads_that_nested_loops_are_given_are_the_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert generation.encoding_threads() == 3


def running():
    return [thread for thread in threading.enumerate() if thread.name.startswith("compress")]


def test_images_are_compressed_while_the_next_are_sampled(monkeypatch):
    """Sampling waits for none of it: all but the last batch is done when the last has been sampled."""
    done, batches = [], 4

    def slow(image):
        time.sleep(0.02)
        done.append(time.monotonic())
        return b""

    monkeypatch.setattr(compression.records, "encode_image", slow)
    with Compressor(4) as compressor:
        waited = 0.0
        for batch in range(batches):
            time.sleep(0.3)  # a denoiser, for three images
            began = time.monotonic()
            compressor.add(PIXELS[3 * batch : 3 * batch + 3])
            waited += time.monotonic() - began
        last = time.monotonic()
        assert len(compressor.result()) == len(PIXELS)
    assert waited < 0.05 * batches * 0.3
    assert sum(at < last for at in done) >= 3 * (batches - 1)
    assert not running()


def test_an_error_of_a_thread_or_of_sampling_leaves_nothing_behind(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise OSError("no memory for a picture")

    store = Store(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    generator, images, riders = units(store)
    before = store.names()
    for module, name in ((compression.records, "encode_image"), (generation.postdiff, "sample")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            with pytest.raises(OSError, match="no memory for a picture"):
                generator(images.task, [rider.task for rider in riders])
        assert store.names() == before
        assert not running()
