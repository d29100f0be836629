"""Workers: whatever dies, the store ends as if nothing had; a unit that cannot be done is set aside, and why."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import ray

from pipelines.engine import cluster, workers
from pipelines.engine.cluster import Limits, Resources, Unit
from pipelines.engine.store import Store
from pipelines.stages import worker

pytestmark = pytest.mark.usefixtures("ray_session")


def make_units(n, group="g"):
    return [Unit(f"out/{i:03d}.bin", group, cost=1 + i % 3, task=i) for i in range(n)]


def handler_factory(root, before=(), after=(), poison=(), seconds=0.0):
    """A handler that commits f(task); dies by SIGKILL before or after its first commit of the tasks named."""

    def make():
        store = Store(root)

        def once(kind, task):
            mark = f"{root}/faults/{kind}-{task}"
            if os.path.exists(mark):
                return False
            os.makedirs(os.path.dirname(mark), exist_ok=True)
            open(mark, "w").close()
            return True

        def handle(task):
            if task in poison:
                raise ValueError(f"task {task} is poison")
            time.sleep(seconds)
            if task in before and once("before", task):
                os.kill(os.getpid(), signal.SIGKILL)
            store.put(f"out/{task:03d}.bin", f"content of {task}".encode() * 100)
            if task in after and once("after", task):
                os.kill(os.getpid(), signal.SIGKILL)

        return handle

    return make


def run(root, units, resources, **faults):
    store = Store(root)
    watch = faults.pop("on_worker", None)
    failed = workers.run(units, handler_factory(str(root), **faults), store.has, resources, on_worker=watch)
    return failed, {name: store.get(name) for name in store.names("out")}


def test_deaths_before_and_after_the_commit_leave_the_same_store(tmp_path):
    units = make_units(12)
    _, undisturbed = run(tmp_path / "a", units, Resources(2))
    failed, disturbed = run(tmp_path / "b", units, Resources(2), before={1, 5, 8}, after={2, 9})
    assert failed == {}
    assert disturbed == undisturbed
    assert len(disturbed) == 12
    assert len(os.listdir(tmp_path / "b" / "faults")) == 5  # every fault fired


def test_ten_random_kills_leave_the_same_store(tmp_path):
    units = make_units(60)
    _, undisturbed = run(tmp_path / "a", units, Resources(2))
    alive, killed, stop = [], [], threading.Event()
    rng = random.Random(0)

    def killer():
        while len(killed) < 10 and not stop.wait(rng.uniform(0.3, 1.0)):
            if alive:
                pid = alive.pop(rng.randrange(len(alive)))
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                except ProcessLookupError:
                    pass

    thread = threading.Thread(target=killer)
    thread.start()
    failed, disturbed = run(tmp_path / "b", units, Resources(2), seconds=0.6, on_worker=alive.append)
    stop.set()
    thread.join()
    assert failed == {}
    assert disturbed == undisturbed
    assert len(killed) == 10


def test_a_poison_unit_is_set_aside_and_the_rest_goes_on(tmp_path):
    failed, done = run(tmp_path, make_units(6), Resources(2), poison={3})
    assert failed == {"out/003.bin": "ValueError: task 3 is poison"}
    assert len(done) == 5


def test_many_poison_units_are_set_aside_too(tmp_path):
    """Their retries come last, all in a row: that must not be taken for a sick machine."""
    failed, done = run(tmp_path, make_units(40), Resources(2), poison=set(range(0, 40, 5)))
    assert len(failed) == 8
    assert len(done) == 32


def test_a_machine_on_which_every_unit_fails_stops_the_run(tmp_path):
    with pytest.raises(workers.WorkersError, match=r"5 units failed in a row; the last.*is poison"):
        run(tmp_path, make_units(40), Resources(2), poison=set(range(40)))


def test_a_worker_that_failed_is_replaced(tmp_path):
    def make():
        broken = []

        def handle(task):
            if task == 0 and not (tmp_path / "failed").exists():
                (tmp_path / "failed").touch()
                broken.append(True)  # as a CUDA error does to its process
            if broken:
                raise RuntimeError("CUDA error: device-side assert triggered")
            (tmp_path / str(task)).touch()

        return handle

    assert workers.run(make_units(6), make, lambda name: False, Resources(1)) == {}
    assert len(list(tmp_path.iterdir())) == 7


def test_a_unit_that_hangs_is_tried_again(tmp_path):
    def make():
        def handle(task):
            if task == 2 and not (tmp_path / "hung").exists():
                (tmp_path / "hung").touch()
                time.sleep(600)

        return handle

    began = time.monotonic()
    limits = Limits(longest=4.0, shortest=4.0)
    assert workers.run(make_units(4), make, lambda name: False, Resources(2, limits=limits)) == {}
    assert (tmp_path / "hung").exists()
    assert time.monotonic() - began < 120


def test_workers_that_cannot_start_are_told(tmp_path):
    def make():
        raise ImportError("no module named torch")

    with pytest.raises(workers.WorkersError, match=r"^workers do not start \(3 tries\): .*no module named torch$"):
        workers.run(make_units(2), make, lambda name: False, Resources(1))


def test_units_are_ordered_by_group_then_longest_first(tmp_path):
    order = tmp_path / "order"

    def make():
        def handle(task):
            with open(order, "a") as file:
                file.write(f"{task}\n")

        return handle

    units = [Unit(f"{g}{c}", g, c, f"{g}{c}") for g, c in (("b", 1), ("a", 1), ("b", 3), ("a", 2))]
    assert workers.run(units, make, lambda name: False, Resources(1)) == {}
    assert order.read_text().split() == ["a2", "a1", "b3", "b1"]


@pytest.mark.usefixtures("ray_session")
def test_a_unit_waits_for_what_it_needs(tmp_path):
    """Two first units, one slow; what needs the quick one starts before the slow one ends."""
    log = tmp_path / "log"

    def make():
        def handle(task):
            name, seconds = task
            time.sleep(seconds)
            with open(log, "a") as file:
                file.write(f"{name}\n")

        return handle

    units = [
        Unit("slow", "a", 1, ("slow", 4)),
        Unit("quick", "a", 1, ("quick", 0)),
        Unit("of quick", "b", 9, ("of quick", 0), ("quick",)),
        Unit("of both", "b", 5, ("of both", 0), ("quick", "slow")),
        Unit("of what is there", "b", 1, ("of what is there", 0), ("committed before",)),
    ]
    assert workers.run(units, make, lambda name: False, Resources(2)) == {}
    order = log.read_text().splitlines()
    assert len(order) == 5
    assert order.index("quick") < order.index("of quick") < order.index("slow") < order.index("of both")


@pytest.mark.usefixtures("ray_session")
def test_what_needs_a_failed_unit_is_set_aside_with_it(tmp_path):
    units = [
        Unit("out/000.bin", "a", 1, 0),
        *[Unit(f"out/{i:03d}.bin", "b", 1, i, ("out/000.bin",)) for i in (1, 2)],
        Unit("out/003.bin", "b", 1, 3),
    ]
    failed, stored = run(tmp_path, units, Resources(2), poison=(0,))
    assert set(stored) == {"out/003.bin"}
    assert "task 0 is poison" in failed["out/000.bin"]
    because = "needs out/000.bin, which failed: ValueError: task 0 is poison"
    assert failed["out/001.bin"] == failed["out/002.bin"] == because


def test_units_that_need_each_other_are_an_error(ray_session):
    units = [Unit("a", "g", 1, 0, ("b",)), Unit("b", "g", 1, 1, ("a",))]
    with pytest.raises(workers.WorkersError, match="need each other"):
        workers.run(units, lambda: print, lambda name: False, Resources(1))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "[Errno 111] Connection refused"),
        ("ray://127.0.0.1:1", "[Errno 111] Connection refused"),
        ("no-such-host.invalid:6379", "Name or service not known"),
        ("http://127.0.0.1:8265", "expected HOST:PORT, ray://HOST:PORT or auto"),
        ("nonsense", "expected HOST:PORT, ray://HOST:PORT or auto"),
        ("127.0.0.1:99999", "Port out of range"),
        ("LISTENING", "something answers there, but it is not Ray"),
    ],
)
def test_a_dead_cluster_is_told_at_once(monkeypatch, address, message):
    """Not after minutes, and not by ending the process, as Ray does."""
    monkeypatch.setattr(cluster, "PROBE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = address.replace("LISTENING", f"127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(workers.ray, "is_initialized", lambda: False)
        monkeypatch.setattr(workers.ray, "init", lambda **_: pytest.fail("Ray was asked"))
        began = time.monotonic()
        with pytest.raises(workers.WorkersError) as refused:
            workers.connect()
    told = str(refused.value)
    assert told.startswith(f"no Ray cluster at RAY_ADDRESS '{address}': ")
    assert message in told
    assert "\n" not in told
    assert time.monotonic() - began < 10


def test_the_cluster_that_runs_is_found():
    cluster.probe(ray.get_runtime_context().gcs_address)
    cluster.probe("auto")


def test_what_runs_alone_and_fails_is_one_line():
    def fail(x):
        return {}[x]

    with pytest.raises(workers.WorkersError) as failed:
        workers._get(ray.remote(fail).remote("a key"))
    assert str(failed.value) == "a task failed: KeyError: 'a key'"


def test_each_worker_is_pinned_to_its_gpu(tmp_path):
    script = f"""
import os, time, ray
from pipelines.engine import workers
from pipelines.engine.cluster import Resources, Unit
ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
assert workers.default_resources() == Resources(2, threads=2, gpus=1)
assert not workers.cluster_has_gpus()  # a machine of our own: its process needs no Ray
os.environ["RAY_ADDRESS"] = "the cluster that is joined"
assert workers.cluster_has_gpus()
of = workers.alone(lambda x: (x, os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()), 7)
assert of[0] == 7 and of[1] in ("0", "1")
until = time.time() + 30
while os.path.exists(f"/proc/{{of[2]}}"):  # it ends, and its memory with it
    assert time.time() < until
    time.sleep(0.1)
assert workers.default_resources(gpus=0) == Resources(4)
assert workers.default_resources(workers=8, gpus=1) == Resources(8, threads=2, gpus=1)  # asked of an autoscaler
try:
    workers.default_resources(gpus=4)
except ValueError as error:
    assert "no node with 4 GPUs is up" in str(error)
else:
    raise AssertionError("4 GPUs of 2")
workers._nodes = lambda: [{{"CPU": 8.0, "GPU": 1.0}}] * 8
assert workers.default_resources() == Resources(8, threads=8, gpus=1)
assert workers.default_resources(gpus=0.5) == Resources(16, threads=4, gpus=0.5)
assert workers.default_resources(gpus=0) == Resources(64, threads=1)
try:
    workers.default_resources(gpus=4)  # 8 GPUs, but not 4 of them on one node
except ValueError:
    pass
else:
    raise AssertionError("4 GPUs of 1")
workers._nodes = lambda: [{{"CPU": 4.0, "GPU": 2.0}}]
def make():
    def handle(task):
        open({str(tmp_path)!r} + f"/{{task}}", "w").write(os.environ["CUDA_VISIBLE_DEVICES"])
        time.sleep(1)
    return handle
units = [Unit(str(i), "g", 1, i) for i in range(4)]
assert workers.run(units, make, lambda name: False, workers.default_resources()) == {{}}
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=180)
    assert {file.read_text() for file in tmp_path.iterdir()} == {"0", "1"}


def test_a_worker_that_does_not_see_the_store_is_told(tmp_path):
    """As on another machine, where the folder of the driver is another folder."""
    store = Store(tmp_path / "elsewhere")
    with pytest.raises(
        OSError, match=r"elsewhere' is not seen on .*: expected a folder that all machines share, or a URL"
    ):
        worker.Handler(store)
    store.claim({"prompts": "x"})
    worker.Handler(store)


def test_a_damaged_file_of_an_earlier_run_is_made_again(tmp_path, capsys):
    """And then what could not read it: neither has failed."""

    class DamagedError(ValueError):
        def __init__(self, name):
            super().__init__(name)
            self.name = name

    def make():
        store = Store(tmp_path)

        def handle(task):
            if task == "feature" and store.get("image") == b"damaged":
                raise DamagedError("image")
            store.put(task, f"content of {task}".encode())

        return handle

    store, aside = Store(tmp_path), []
    store.put("image", b"damaged")
    store.put("other", b"as it was")

    def set_aside(name):
        aside.append(name)
        os.rename(tmp_path / name, tmp_path / f"{name}.bad")

    units = [
        Unit("text", "t", 1, "text", on_demand=True),
        Unit("image", "g", 1, "image", ("text",)),
        Unit("other", "g", 1, "other", ("image",)),
        Unit("feature", "e", 1, "feature", ("image",)),
    ]
    failed = workers.run(units, make, store.has, Resources(2), done=store.names(), set_aside=set_aside)
    assert failed == {}
    assert aside == ["image"]
    contents = {name: store.get(name) for name in ("text", "image", "feature", "image.bad", "other")}
    assert contents == {
        **{name: f"content of {name}".encode() for name in ("text", "image", "feature")},
        "image.bad": b"damaged",
        "other": b"as it was",
    }
    assert "\nimage was damaged: set aside as .bad, and made again\n" in capsys.readouterr().err


def test_a_run_holds_the_lease_of_its_store_while_it_works(tmp_path, monkeypatch):
    log = []

    @contextmanager
    def lease(store):
        log.append("held")
        yield
        log.append("given back")

    def run(*args, **more):
        log.append("works")
        return {}

    monkeypatch.setattr(worker, "lease", lease)
    monkeypatch.setattr(workers, "run", run)
    store = Store(tmp_path)
    assert worker.run([Unit("text/a", "g", 1, 0)], store, Resources(1), "units") == {}
    assert log == ["held", "works", "given back"]
    store.put("text/a", b"")
    assert worker.run([Unit("text/a", "g", 1, 0)], store, Resources(1), "units") == {}
    assert len(log) == 3  # there is nothing to do


def test_a_driver_whose_own_node_is_lost_does_not_wait_for_ever(monkeypatch, ray_session):
    """Its workers would never be placed, and nobody would say so."""
    others = [{**node, "NodeID": f"not {node['NodeID']}"} for node in ray.nodes()]
    monkeypatch.setattr(workers.ray, "nodes", lambda: others)
    with pytest.raises(workers.WorkersError, match="the node of this job's driver is lost to its cluster"):
        workers.run(make_units(1), lambda: print, lambda name: False, Resources(1))
