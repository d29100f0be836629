"""Units of work on Ray actors: the only file that imports ray.

Plain actors and a `ray.wait` loop of our own. Ray restarts and retries nothing (`max_restarts=0`,
`max_task_retries=0`): the loop owns the retries, and asks the store whether a unit was committed before it gives it
again. `queue` decides what is next and what a failure means. Execution is at least once; the commit is one atomic write
under a fixed name, where the first stays. Only a worker that has answered is given work, and one unit at a time; a
worker that failed is replaced, since a GPU or a disk that failed one unit would fail the next.
"""

import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from tqdm import tqdm

from pipelines.engine import cluster
from pipelines.engine.cluster import Resources, Unit, WorkersError, in_a_cluster
from pipelines.engine.loop import UNFINISHED, Failed, Loop
from pipelines.engine.queue import Queue
from postdiff.terminal import one_line

BAR = "{{desc}}: {{percentage:3.0f}}% |{{bar:30}}| {{elapsed}} elapsed{}{{postfix}}"


class Worker:
    """An actor: a handler, and a thread that finishes what it leaves. `run`, `finish` and `ahead` run beside each
    other."""

    def __init__(self, gpus: float):
        if not gpus:  # Ray leaves a machine's GPUs visible to a worker that has none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def where(self) -> tuple[str, int]:
        """Node and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def start(self, make_handler: Callable[[], Callable]) -> bool:
        """Whether its handler reads ahead."""
        self.handle: Any = make_handler()
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self.unfinished: deque[Future] = deque()
        return hasattr(self.handle, "ahead")

    def run(self, task, riders: tuple) -> tuple[str, ...] | str:
        """Names of the riders that were committed with `task`, or UNFINISHED: `finish` tells. Where the one before is
        not finished yet it waits for that: no more than two are in memory."""
        answer = self.handle(task, riders) if riders else self.handle(task)
        if not callable(answer):
            return tuple(answer or ())
        wait(list(self.unfinished))
        self.unfinished.append(self.writer.submit(answer))
        return UNFINISHED

    @ray.method(concurrency_group="finish")  # beside `run`
    def finish(self) -> tuple[str, ...]:
        """What `run` would have answered of the first unit that is not finished, once it is."""
        try:
            return tuple(self.unfinished[0].result() or ())
        finally:
            self.unfinished.popleft()

    @ray.method(concurrency_group="ahead")
    def ahead(self, task) -> None:
        self.handle.ahead(task)


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (`ray job submit` sets it), or start Ray on this machine.

    Raises: WorkersError, within 20 s, if nothing answers there.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            cluster.probe(address)
            ray.init(**quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise WorkersError(f"no Ray cluster at RAY_ADDRESS {one_line(address)!r}: {one_line(error)}") from None
    else:  # our own, even beside a running head; only receipts travel through the object store, images go to disk
        ray.init(address="local", include_dashboard=False, object_store_memory=100 * 2**20, **quiet)


def default_resources(workers: int | None = None, gpus: float | None = None) -> Resources:
    """One worker a GPU where there are GPUs, with its share of its node's cores, else a single-threaded one a core.

    Args:
        workers: their number, or None for as many as the cluster has room for now. A cluster that starts its nodes
            on demand has none yet: it must be told.
        gpus: GPUs of each (a share of one is allowed), or None: 1 if the cluster has any, else 0.

    Raises: ValueError if there is room for none and `workers` does not say how many to ask for, or there is no cluster
    that could bring more.
    """
    nodes = _nodes()
    gpus = float(any(node.get("GPU") for node in nodes)) if gpus is None else gpus
    room = int(sum(node.get("GPU", 0) // gpus if gpus else node.get("CPU", 0) for node in nodes))
    if workers is None and room < 1:
        raise ValueError(f"no node with {gpus:g} GPUs is up: --workers says how many workers to ask the cluster for")
    if gpus and room < 1 and not in_a_cluster():
        raise ValueError(f"this machine has no {gpus:g} GPUs, and RAY_ADDRESS names no cluster that could bring them")
    shares = [int(node.get("CPU", 0) // (node["GPU"] // gpus)) for node in nodes if gpus and node.get("GPU", 0) >= gpus]
    return Resources(room if workers is None else workers, max(1, min(shares, default=1)), gpus)


def _nodes() -> list[dict[str, float]]:
    """What each node that is up has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class _Crew:
    """`loop.Crew`, of Ray actors."""

    def __init__(self, resources: Resources):
        self.resources = resources
        self.kind = ray.remote(concurrency_groups={"ahead": 1, "finish": 1})(Worker)

    def start(self, without: Collection[str]) -> Any:
        return self.kind.options(
            num_cpus=self.resources.threads,  # Ray sets OMP_NUM_THREADS to it
            num_gpus=self.resources.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            label_selector={"ray.io/node-id": f"!in({','.join(without)})"} if without else None,
        ).remote(self.resources.gpus)

    def call(self, worker: Any, method: str, *args: Any) -> Any:
        return getattr(worker, method).remote(*args)

    def wait(self, references: Collection[Any], seconds: float) -> list[Any]:
        ready, others = ray.wait([*references], num_returns=1, timeout=seconds)
        if ready and others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return ready

    def answer(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=0)
        except GetTimeoutError:
            return None
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Failed(f"{type(cause).__name__}: {cause}", cause)
        except RayError as error:
            preempted = isinstance(error, RayActorError) and error.preempted
            lost = preempted or isinstance(error, OutOfMemoryError)
            return Failed(f"worker died: {error}", died=True, lost=lost)

    def kill(self, worker: Any) -> None:
        ray.kill(worker)

    def nodes(self) -> dict[str, tuple[str, bool]]:
        needed, up = self.resources, [node for node in ray.nodes() if node["Alive"]]
        if ray.get_runtime_context().get_node_id() not in {node["NodeID"] for node in up}:  # nothing is answered now
            raise WorkersError("the node of this job's driver is lost to its cluster: run the job again")
        return {
            node["NodeID"]: (
                node["NodeManagerAddress"],
                node["Resources"].get("GPU", 0) >= needed.gpus and node["Resources"].get("CPU", 0) >= needed.threads,
            )
            for node in up
        }


def run(
    units: Sequence[Unit],
    make_handler: Callable[[], Callable],
    is_committed: Callable[[str], bool],
    resources: Resources,
    description: str = "units",
    on_worker: Callable[[int], None] | None = None,
    done: Collection[str] = (),
    set_aside: Callable[[str], object] | None = None,
) -> dict[str, str]:
    """Run every unit that is not `done`, in the order of their needs; returns {name: reason} of those set aside.

    Nodes that are left out, and files that were damaged and made again, are told in a line each.

    Args:
        make_handler: called once in each worker, in its own process; the handler that it returns is called with a task,
            and with the tasks of its riders where it has any: it returns the names of those that it committed as well,
            or a function that does the rest and returns them, which is called in a thread beside its next unit.
            Where it has a method `ahead`, that is told, beside, which task likely comes next.
        is_committed: whether a name is in the store, asked after a unit failed.
        on_worker: told the process id of every worker that comes up.
        set_aside: takes a file that a handler could not read (an error with its `name` in the store) out of the store.

    Raises: WorkersError if workers cannot be started at all, unit after unit fails on more than half of the nodes, or
        the store is away for too long.
    """
    queue = Queue(units, done, resources.limits)
    whole = {name: queue.units[name].cost for name in queue.open}
    loop = Loop(queue, _Crew(resources), resources, make_handler, is_committed, set_aside, on_worker)
    bar = tqdm(total=sum(whole.values()) or 1, desc=description, bar_format=BAR.format(""), mininterval=1)
    try:
        while queue.open:
            for name in loop.turn():
                bar.update(min(whole.pop(name, 0.0), bar.total - bar.n))  # sums of floats depend on the order
            if bar.n >= 0.02 * bar.total:  # before, starting workers and encoding text would be taken for the pace
                bar.bar_format = BAR.format(", {remaining} to go")
            waiting = f", {loop.starting} workers starting" if loop.starting else ""
            bar.set_postfix_str(f"{loop.made}/{loop.made + len(queue.open)} units{waiting}", refresh=False)
    finally:
        bar.close()
        loop.stop()
        for name, count in queue.damaged.items():
            again = f", {count} times" if count > 1 else ""
            print(f"{name} was damaged: set aside as .bad{again}, and made again", file=sys.stderr)
    return queue.failed


def _get(ref) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise WorkersError(f"a task failed: {type(error.cause).__name__}: {one_line(error.cause)}") from error
    except RayError as error:
        raise WorkersError(f"a task's process was lost: {one_line(error)}") from error


def cluster_has_gpus(asked: float | None = None) -> bool:
    """Whether this job runs on a cluster (RAY_ADDRESS) that has a GPU up, or can be asked for one: `asked`, GPUs a
    worker, is above 0. With `asked` 0 it is to run without."""
    if not in_a_cluster():
        return False
    connect()
    return any(node.get("GPU") for node in _nodes()) if asked is None else asked > 0


def alone(function: Callable, *args):
    """`function(*args)` in a process that has a GPU for itself, and ends with it."""
    task = ray.remote(num_cpus=1, num_gpus=1, max_calls=1, max_retries=0)(function)
    return _get(task.remote(*args))


def machine() -> str:
    """What the connected cluster is, in words, for reports."""
    total = ray.cluster_resources()
    kinds = [name.removeprefix("accelerator_type:") for name in total if name.startswith("accelerator_type:")]
    cores, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    cards = " ".join([f"{gpus} GPUs", *kinds])
    return f"{platform.machine()}, {cores} CPU cores, {cards}, torch {version('torch')}"
