"""Units of work on Ray actors, and tasks: the only file that imports ray.

Plain actors and a `ray.wait` loop of our own. Ray restarts and retries nothing (`max_restarts=0`,
`max_task_retries=0`): the loop owns the retries, asks the store whether a dead worker had committed before it died,
and sets a unit aside after `ATTEMPTS`. Execution is at least once; the commit, one atomic write under a fixed name, is
what happens exactly once. Only a worker that has answered is given work, and one unit at a time; a worker that failed
is replaced, since a GPU or a disk that failed one unit would fail the next.
"""

import os
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from tqdm import tqdm

from pipelines.engine import cluster
from pipelines.engine.cluster import Resources, Unit, WorkersError, in_a_cluster
from postdiff.terminal import one_line

BAR = "{{desc}}: {{percentage:3.0f}}% |{{bar:30}}| {{elapsed}} elapsed{}{{postfix}}"
ATTEMPTS = 3
# Units that fail for the first time with none done between them: then it is not the units that are wrong. Deaths are
# given more room, since a cluster of spot machines can lose all of its workers at once.
ERRORS_IN_A_ROW, DEATHS_IN_A_ROW_A_WORKER = 5, 10
# A unit hangs after so many times the slowest pace seen, within these seconds; before any pace is seen, the longest.
OVERDUE, SHORTEST, LONGEST = 20, 600.0, 7200.0


class _Worker:
    def __init__(self, make_handler: Callable[[], Callable], gpus: float):
        if not gpus:  # Ray leaves a machine's GPUs visible to a worker that has none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.handle = make_handler()

    def ready(self) -> int:
        return os.getpid()

    def run(self, task) -> None:
        self.handle(task)


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
    """One worker a GPU where there are GPUs, else one single-threaded worker a core.

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
    return Resources(room if workers is None else workers, gpus=gpus)


def _nodes() -> list[dict[str, float]]:
    """What each node that is up has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass
class _Run:
    """What the loop knows. Every unit is in `queue`, with an actor in `busy`, in `failed`, or done."""

    workers: int
    queue: deque[Unit]
    open: set[str]  # names of units in `queue` or `busy`
    starting: dict[Any, Any] = field(default_factory=dict)  # ray reference -> actor
    busy: dict[Any, tuple[Any, Unit, float]] = field(default_factory=dict)  # reference -> actor, its unit, since when
    idle: list[Any] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    errors: int = 0  # units that failed for the first time since one was done, by an exception or a hang
    deaths: int = 0  # the same, by the death of their worker
    in_vain: int = 0  # workers that did not start since one did
    slowest: dict[str, float] = field(default_factory=dict)  # seconds a unit of cost, by group


def run(
    units: Sequence[Unit],
    make_handler: Callable[[], Callable],
    is_committed: Callable[[str], bool],
    resources: Resources,
    description: str = "units",
    on_worker: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Run every unit; returns {name: reason} of those set aside after `ATTEMPTS` failures.

    Args:
        make_handler: called once in each worker, in its own process; the handler it returns is called with a task.
        is_committed: whether a name is in the store, asked only after a worker's death.
        on_worker: told the process id of every worker that comes up.

    Raises: WorkersError if workers cannot be started at all, or unit after unit fails.
    """
    # What others need first; by group, so that weights stay loaded; the longest first, so that none is left alone at
    # the end.
    ordered = sorted(units, key=lambda u: (bool(u.needs), u.group, -u.cost, u.name))
    state = _Run(resources.workers, deque(ordered), {unit.name for unit in units})
    actor_class = ray.remote(_Worker).options(
        num_cpus=resources.threads,  # Ray sets OMP_NUM_THREADS to it
        num_gpus=resources.gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )
    bar = tqdm(
        total=sum(u.cost for u in units) or 1,
        desc=description,
        bar_format=BAR.format(""),
        mininterval=1,
    )
    done = 0
    try:
        while state.queue or state.busy:
            _give_work(state, lambda: actor_class.remote(make_handler, resources.gpus))
            if not state.busy and not state.starting:
                if state.queue:
                    raise WorkersError(f"{state.queue[0].name} and others need each other", state.failed)
                break  # all that was left needed what failed
            finished, _ = ray.wait([*state.busy, *state.starting], num_returns=1, timeout=5)
            for ref in dict.fromkeys([*finished, *_overdue(state)]):  # a unit may have finished late
                if ref in state.starting:
                    _started(ref, state, on_worker)
                    continue
                cost = state.busy[ref][1].cost
                if _settle(ref, state, is_committed):
                    done += 1
                    bar.update(min(cost, bar.total - bar.n))  # sums of floats depend on the order
            if bar.n >= 0.02 * bar.total:  # before, starting workers and encoding text would be taken for the pace
                bar.bar_format = BAR.format(", {remaining} to go")
            waiting = f", {len(state.starting)} workers starting" if state.starting else ""
            bar.set_postfix_str(f"{done}/{len(units)} units{waiting}", refresh=False)
    finally:
        bar.close()
        for actor in [*state.idle, *state.starting.values(), *(actor for actor, _, _ in state.busy.values())]:
            ray.kill(actor)
    return state.failed


def _give_work(state: _Run, start: Callable[[], Any]) -> None:
    """Start the workers that are missing, and give those that are idle their next unit, or their leave."""
    wanted = min(state.workers, len(state.queue) + len(state.busy))
    for _ in range(wanted - len(state.starting) - len(state.busy) - len(state.idle)):
        actor = start()
        state.starting[actor.ready.remote()] = actor
    while state.idle and (unit := _next(state)):
        actor = state.idle.pop()
        state.busy[actor.run.remote(unit.task)] = (actor, unit, time.monotonic())
    while state.idle and not state.queue:  # nothing is left; kept, it could die unseen and be given a retry
        ray.kill(state.idle.pop())


def _next(state: _Run) -> Unit | None:
    """Take the first unit of the queue whose needs are done. What needs a unit that was set aside is set aside too."""
    i = 0
    while i < len(state.queue):
        unit = state.queue[i]
        lost = next((name for name in unit.needs if name in state.failed), None)
        if lost:
            state.failed[unit.name] = f"needs {lost}, which failed"
            state.open.discard(unit.name)
            del state.queue[i]
        elif state.open.intersection(unit.needs):
            i += 1
        else:
            del state.queue[i]
            return unit
    return None


def _overdue(state: _Run) -> list:
    """Units that take so much longer than any before that they must hang."""
    late = []
    for ref, (_, unit, since) in state.busy.items():
        pace = state.slowest.get(unit.group)
        allowed = max(SHORTEST, OVERDUE * pace * unit.cost) if pace else LONGEST
        if time.monotonic() - since > allowed:
            late.append(ref)
    return late


def _started(ref, state: _Run, on_worker: Callable[[int], None] | None) -> None:
    """Take in a worker that came up. One that never does (a broken import, no memory) is not replaced for ever."""
    actor = state.starting.pop(ref)
    try:
        pid = ray.get(ref)
    except RayError as error:
        state.in_vain += 1
        if state.in_vain >= ATTEMPTS * state.workers and not state.busy and not state.idle:
            cause = str(error).strip().rpartition("\n")[2]  # the last line of a worker's traceback
            raise WorkersError(f"workers do not start ({state.in_vain} tries): {cause}", state.failed) from error
        return
    state.in_vain = 0
    state.idle.append(actor)
    if on_worker:
        on_worker(pid)


def _settle(ref, state: _Run, is_committed: Callable[[str], bool]) -> bool:
    """Settle one unit: done (True), queued again, or set aside."""
    actor, unit, since = state.busy.pop(ref)
    died = False
    try:
        ray.get(ref, timeout=0)
        state.idle.append(actor)
        pace = (time.monotonic() - since) / unit.cost
        state.slowest[unit.group] = max(state.slowest.get(unit.group, 0.0), pace)
        state.open.discard(unit.name)
        state.errors = state.deaths = 0
        return True
    except GetTimeoutError:
        reason = f"hung: no answer after {time.monotonic() - since:.0f} s"
    except RayTaskError as error:
        reason = f"{type(error.cause).__name__}: {error.cause}"
    except RayError as error:
        with suppress(OSError):  # a store that does not answer: the unit is done again, to the same bytes
            if is_committed(unit.name):  # it died between its commit and its answer
                state.open.discard(unit.name)
                return True
        reason, died = f"worker died: {error}", True
    ray.kill(actor)
    state.attempts[unit.name] += 1
    if state.attempts[unit.name] == 1:  # a second failure says more about the unit than about the machine
        state.errors, state.deaths = state.errors + (not died), state.deaths + died
    if state.errors >= ERRORS_IN_A_ROW or state.deaths >= DEATHS_IN_A_ROW_A_WORKER * state.workers:
        raise WorkersError(
            f"{state.errors + state.deaths} units failed in a row; the last, {unit.name}: {reason}", state.failed
        )
    if state.attempts[unit.name] >= ATTEMPTS:
        state.failed[unit.name] = reason
        state.open.discard(unit.name)
    else:
        state.queue.append(unit)
    return False


def map_tasks(function: Callable, items: Sequence, threads: int = 1) -> Iterator:
    """`function(item)` for every item, each a Ray task that may be retried; results in the items' order.

    Raises: WorkersError if one fails.
    """
    task = ray.remote(function).options(num_cpus=threads, max_retries=ATTEMPTS)
    yield from map(_get, [task.remote(item) for item in items])


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
    return f"{platform.machine()}, {cores} CPU cores, {gpus} GPUs {' '.join(kinds)}, torch {version('torch')}"
