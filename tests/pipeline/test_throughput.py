"""A worker compresses, embeds, reads and commits while it samples: the bytes are the same, and sampling waits for
none of it."""

import threading
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipelines.data import prompts
from pipelines.engine import records
from pipelines.engine.cluster import DamagedError, Resources, Unit
from pipelines.engine.loop import UNFINISHED, Loop
from pipelines.engine.queue import Queue
from pipelines.engine.store import Store
from pipelines.engine.workers import Worker
from pipelines.stages import beside, features, generation, worker
from pipelines.stages.beside import Ahead, Threads
from postdiff import drawing, methods

LISTED = tuple(prompts.load_prompts("shapes", 6))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


def finished(answer):
    """What a handler answers, once it is finished."""
    return answer() if callable(answer) else answer


def units(store):
    """Of one shard: its text, its images, and their features, which need the images alone."""
    of = generation.configure("mini-sd", methods.dense(2), batch_size=2)
    text, images = generation.units([of], [LISTED], [1.0])
    generator = generation.Generator(store)
    generator(text.task)
    return generator, images, features.image_units("mini-clip", [images.name])


@pytest.mark.parametrize("count", [0, 3])
def test_features_of_pixels_in_memory_are_those_of_the_stored_images(tmp_path, monkeypatch, count):
    monkeypatch.setenv("OMP_NUM_THREADS", str(count + 1))
    there, later = Store(tmp_path / "riding"), Store(tmp_path / "later")
    generator, images, riders = units(there)
    before = there.names()
    answer = generator(images.task, [rider.task for rider in riders])
    assert callable(answer) == (count > 0)
    if count:
        assert there.names() == before  # nothing is committed by the thread that samples
    assert finished(answer) == (riders[0].name,)
    generator, images, riders = units(later)
    assert finished(generator(images.task)) == ()
    finished(features.Extractor(later)(riders[0].task))
    assert there.names() == later.names()
    assert len(there.record(generation.timings_name(images.name))["seconds"]) == len(LISTED)
    for name in (images.name, riders[0].name):
        assert there.get(name) == later.get(name)


@pytest.mark.parametrize("threads", [1, 4])
def test_bytes_do_not_depend_on_threads(threads, monkeypatch, tmp_path):
    expected = [records.encode_image(image) for image in PIXELS]
    assert (
        Threads(0).map(records.encode_image, PIXELS) == Threads(threads).map(records.encode_image, PIXELS) == expected
    )
    store, other = Store(tmp_path / "a"), Store(tmp_path / "b")
    for one, count in ((store, 1), (other, threads + 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(count))
        assert beside.count() == count - 1
        generator, images, _ = units(one)
        finished(generator(images.task))
    assert store.get(images.name) == other.get(images.name)


def test_a_workers_threads_are_its_own_and_those_beside_are_not_torchs(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # of nested loops
    assert (beside.own(), beside.count()) == (4, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert (beside.own(), beside.count()) == (16, beside.MOST)
    store, before = Store(tmp_path), torch.get_num_threads()
    store.claim({})
    try:
        worker.Handler(store)
        assert torch.get_num_threads() == 16 - beside.MOST
    finally:
        torch.set_num_threads(before)


def test_all_encoders_share_one_decoding_of_stored_images(tmp_path, monkeypatch):
    store = Store(tmp_path)
    generator, images, (unit,) = units(store)
    finished(generator(images.task))
    other = features.Encoding("features/other/00000-of-00001.parquet", "mini-clip", images.name)
    decoded, real = [], features.decode
    monkeypatch.setattr(features, "decode", lambda data: decoded.append(1) or real(data))
    extractor = features.Extractor(store)
    assert finished(extractor(unit.task, [other])) == (other.name,)
    assert len(decoded) == len(LISTED)
    one, two = (features.records.feature_matrix(store.table(name)) for name in (unit.name, other.name))
    np.testing.assert_array_equal(one, two)
    extractor.ahead(unit.task)
    assert len(decoded) == 2 * len(LISTED)
    store.delete(unit.name)
    finished(extractor(unit.task))
    assert len(decoded) == 2 * len(LISTED)  # they were there


def test_units_of_one_need_ride_together_unless_one_failed():
    def queue_of(*failed):
        made = [Unit(f"features/{e}", f"encoder {e}", 1, 0, ("image",), rides=True) for e in "abc"]
        queue = Queue([Unit("image", "g", 1, 0), *made], done={"image"})
        for name in failed:
            assert queue.take().name == name
            queue.failure(name, "ValueError: x", "n")
        return queue

    queue = queue_of()
    assert queue.take().name == "features/a"
    assert [rider.name for rider in queue.riders("features/a")] == ["features/b", "features/c"]
    assert queue.take() is None  # they are on their way
    queue.finished(["features/a", "features/b"])
    assert queue.take().name == "features/c"  # it did not ride after all
    queue.finished(["features/c"])
    assert not queue.open
    queue = queue_of("features/a")
    assert queue.take().name == "features/a"
    assert queue.riders("features/a") == ()  # it failed: it goes alone
    assert queue.take().name == "features/b"
    assert [rider.name for rider in queue.riders("features/b")] == ["features/c"]
    queue.rest("features/b")
    assert queue.take().name == "features/c"
    assert queue.riders("features/c") == ()
    queue = queue_of()
    queue.take()
    queue.damage("features/a", "image", True)
    assert queue.take().name == "image"
    assert [rider.name for rider in queue.riders("image")] == ["features/a", "features/b", "features/c"]


def test_what_is_read_ahead_is_read_once_and_what_failed_again():
    read = []

    def slow(name):
        read.append(name)
        if read.count(name) == 1 and name == "away":
            raise OSError("503")
        return name.upper()

    ahead = Ahead(slow)
    ahead.start("a")
    ahead.start("away")
    assert [ahead.take(name) for name in ("a", "away", "b")] == ["A", "AWAY", "B"]
    assert read == ["a", "away", "away", "b"]
    for i in range(20):
        ahead.start(f"of others {i}")
    assert len(ahead.read_ahead) <= beside.READ + 1
    began = threading.Event()
    waiting = Ahead(lambda name: began.set() or time.sleep(0.2) or read.append(name))
    thread = threading.Thread(target=waiting.start, args=("late",))
    thread.start()
    began.wait()
    waiting.take("late")  # on its way: it is waited for
    thread.join()
    assert read.count("late") == 1


def test_text_that_is_read_ahead_is_the_text_and_a_damaged_one_fails_its_own_unit(tmp_path):
    store = Store(tmp_path)
    generator, images, _ = units(store)
    generator.ahead(images.task)
    data = store.get(images.task.text)
    store.delete(images.task.text)
    store.put(images.task.text, data[:-1] + bytes([data[-1] ^ 1]))
    finished(generator(images.task))  # what was read ahead was whole
    assert store.has(images.name)
    generator.ahead(images.task)
    with pytest.raises(DamagedError):
        generator(images.task)


def test_an_error_of_a_thread_or_of_sampling_is_its_units_and_commits_nothing(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise OSError("no memory for a picture")

    store = Store(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    generator, images, riders = units(store)
    before = store.names()
    for module, name in ((generation.records, "encode_image"), (drawing, "batches")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            with pytest.raises(OSError, match="no memory for a picture"):
                finished(generator(images.task, [rider.task for rider in riders]))
        assert {name for name in store.names() if not name.startswith("timings/")} == before
    with monkeypatch.context() as patch:
        patch.setattr(features, "loaded_encoder", broken)
        assert finished(generator(images.task, [rider.task for rider in riders])) == ()  # of the encoder's own unit
    assert store.has(images.name)
    assert not store.has(riders[0].name)


class Crew:
    """`loop.Crew` of this process's threads, as Ray has them: `run`, `ahead` and `finish` beside each other."""

    def start(self, without):
        made = Worker(1)
        made.lanes = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("run", "ahead", "finish")}
        return made

    def call(self, worker, method, *args):
        if method == "where":
            return worker.lanes["run"].submit(lambda: ("node", 0))
        return worker.lanes[method if method in worker.lanes else "run"].submit(getattr(worker, method), *args)

    def wait(self, references, seconds):
        return futures.wait(references, seconds, futures.FIRST_COMPLETED).done

    def answer(self, reference):
        return reference.result() if reference.done() else None

    def kill(self, worker):
        for lane in worker.lanes.values():
            lane.shutdown(wait=False)

    def nodes(self):
        return {"node": ("10.0.0.1", True)}


class SlowStore(Store):
    """0.1 s a commit and a read: three commits and a read a unit."""

    def commit(self, name, data):
        time.sleep(0.1)
        super().commit(name, data)

    def table(self, *args, **more):
        time.sleep(0.1)
        return super().table(*args, **more)


class PretendedEncoder:
    """20 ms to prepare an image, as long as clean-fid's resizer takes."""

    def prepare(self, image):
        time.sleep(0.02)
        return image.mean((0, 1))

    def encode(self, prepared):
        return np.stack(prepared)


@pytest.mark.parametrize("threads", [6, 1])
def test_the_thread_that_samples_waits_less_than_5_percent(tmp_path, monkeypatch, threads):
    """Of a GPU worker: 8 images a unit, 0.1 s each, 25 ms to compress one; the store is slow. With the one thread of a
    CPU's worker all of that is in line, which shows that there is something to wait for."""
    spans, count, images = [], 5, 8
    store = SlowStore(str(tmp_path))
    store.claim({})
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))

    def batches(backbone, texts, *_, **__):
        began = time.monotonic()
        for _ in texts:
            time.sleep(0.1)
            yield PIXELS[:1], 0.1
        spans.append((began, time.monotonic()))

    monkeypatch.setattr(drawing, "batches", batches)
    monkeypatch.setattr(generation.Generator, "_load", lambda *_: None)
    monkeypatch.setattr(generation.records, "encode_image", lambda _: time.sleep(0.025) or b"image")
    monkeypatch.setattr(generation.embeddings, "read", lambda *_: time.sleep(0.1))
    encoder = PretendedEncoder()
    monkeypatch.setattr(features, "loaded_encoder", lambda name: encoder)
    of = generation.configure("mini-sd", methods.dense(2), batch_size=1)
    shards = prompts.shard(prompts.load_prompts("shapes", count * images), images)
    made = [unit for unit in generation.units([of], shards, [1.0]) if unit.group != "text mini-sd float32"]
    made += [
        Unit(unit.name, unit.group, 1, unit.task, (image.name,), rides=True)
        for image in made
        for unit in features.image_units("mini-clip", [image.name])
    ]
    before = torch.get_num_threads()
    queue = Queue(made)
    loop, done = Loop(queue, Crew(), Resources(1), lambda: worker.Handler(store), store.has), []
    try:
        while queue.open:
            for name in loop.turn():
                assert store.has(name)  # done is what is committed
                done.append(name)
    finally:
        loop.stop()
        torch.set_num_threads(before)
    assert sorted(done) == sorted(unit.name for unit in made)
    sampled = sum(end - began for began, end in spans)
    waited = 1 - sampled / (spans[-1][1] - spans[0][0])
    print(f"waited {waited:.4f}")
    assert (waited < 0.05) == (threads > 1), waited


def test_a_unit_waits_for_the_one_before_it_to_be_finished(monkeypatch):
    """No more than two are in memory."""
    order, gate = [], threading.Event()

    def finish(name):
        if name == "a":
            gate.wait()
        order.append(name)
        return (name,)

    made = Worker(1)
    made.start(lambda: lambda task: lambda: finish(task))
    assert made.run("a", ()) == UNFINISHED
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(made.run, "b", ())
        time.sleep(0.1)
        assert not second.done()
        gate.set()
        assert second.result() == UNFINISHED
    assert (made.finish(), made.finish()) == (("a",), ("b",))
    assert order == ["a", "b"]
