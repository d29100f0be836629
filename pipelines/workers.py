"""Units of work on Ray actors, and tasks: the only file that imports ray.

Plain actors and a `ray.wait` loop of our own. Ray restarts and retries nothing (`max_restarts=0`,
`max_task_retries=0`): the loop owns the retries, asks the store whether a dead worker had committed before it died,
and sets a unit aside after `ATTEMPTS`. Execution is at least once; the commit, one atomic write under a fixed name, is
what happens exactly once. Only a worker that has answered is given work, and one unit at a time.
"""

import os
import platform
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import ray
from ray.exceptions import RayActorError, RayTaskError
from tqdm import tqdm

ATTEMPTS = 3


@dataclass(frozen=True)
class Unit:
    """A piece of work that commits one file.

    name: that file; group: what a worker keeps loaded between units (a backbone); cost: relative, for the order and
    the progress bar; task: what the handler is called with.
    """

    name: str
    group: str
    cost: float
    task: object


@dataclass(frozen=True)
class Resources:
    """workers: actors; threads: CPU threads of each; gpus: GPUs of each, and Ray pins it to them."""

    workers: int
    threads: int = 1
    gpus: float = 0


@dataclass
class _Run:
    queue: deque
    attempts: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    started_in_vain: int = 0


class _Worker:
    def __init__(self, make_handler: Callable[[], Callable]):
        self.handle = make_handler()

    def ready(self) -> int:
        return os.getpid()

    def run(self, task) -> None:
        self.handle(task)


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (`ray job submit` sets it), or start Ray on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:  # only receipts travel through the object store; images go to disk
        ray.init(include_dashboard=False, object_store_memory=100 * 2**20, **quiet)


def default_resources() -> Resources:
    """One worker a GPU where there are GPUs, else one single-threaded worker a core."""
    total = ray.cluster_resources()
    if total.get("GPU"):
        return Resources(int(total["GPU"]), gpus=1)
    return Resources(max(1, int(total.get("CPU", 1))))


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

    Raises: RuntimeError if workers cannot be started at all; nothing that is committed is lost.
    """
    # By group, so that weights stay loaded; the longest first, so that none is left alone at the end.
    state = _Run(deque(sorted(units, key=lambda u: (u.group, -u.cost, u.name))))
    actor_class = ray.remote(_Worker).options(
        num_cpus=resources.threads,  # Ray sets OMP_NUM_THREADS to it
        num_gpus=resources.gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )
    starting: dict = {}
    busy: dict = {}
    idle: list = []
    bar = tqdm(
        total=sum(u.cost for u in units) or 1,
        desc=description,
        bar_format="{desc}: {percentage:3.0f}% |{bar:30}| {elapsed} elapsed, {remaining} to go{postfix}",
        mininterval=1,
    )
    done = 0
    try:
        while state.queue or busy:
            wanted = min(resources.workers, len(state.queue) + len(busy))
            for _ in range(wanted - len(starting) - len(busy) - len(idle)):
                actor = actor_class.remote(make_handler)
                starting[actor.ready.remote()] = actor
            while idle and state.queue:
                actor, unit = idle.pop(), state.queue.popleft()
                busy[actor.run.remote(unit.task)] = (actor, unit)
            finished, _ = ray.wait([*busy, *starting], num_returns=1, timeout=5)
            for ref in finished:
                if ref in starting:
                    idle += _started(ref, starting.pop(ref), state, on_worker)
                    continue
                actor, unit = busy.pop(ref)
                survives = _finished(ref, unit, state, is_committed)
                if survives:
                    idle.append(actor)
                if unit.name not in state.failed and unit not in state.queue:
                    done += 1
                    bar.update(unit.cost)
                    bar.set_postfix_str(f"{done}/{len(units)} units")
    finally:
        bar.close()
        for actor in [*idle, *starting.values(), *(actor for actor, _ in busy.values())]:
            ray.kill(actor)
    return state.failed


def _started(ref, actor, state: _Run, on_worker) -> list:
    """The worker, if it came up. One that never does (a broken import, no memory) must not be replaced for ever."""
    try:
        pid = ray.get(ref)
    except RayActorError as error:
        state.started_in_vain += 1
        if state.started_in_vain >= ATTEMPTS:
            raise RuntimeError(f"workers do not start ({ATTEMPTS} tries): {error}") from error
        return []
    state.started_in_vain = 0
    if on_worker:
        on_worker(pid)
    return [actor]


def _finished(ref, unit: Unit, state: _Run, is_committed: Callable[[str], bool]) -> bool:
    """Settle one unit: committed, queued again, or set aside. Returns whether its worker is still alive."""
    try:
        ray.get(ref)
        return True
    except RayTaskError as error:
        reason, alive = str(error.cause), True
    except RayActorError as error:
        if is_committed(unit.name):  # it died between its commit and its answer
            return False
        reason, alive = f"worker died: {error}", False
    state.attempts[unit.name] = state.attempts.get(unit.name, 0) + 1
    if state.attempts[unit.name] >= ATTEMPTS:
        state.failed[unit.name] = reason
    else:
        state.queue.append(unit)
    return alive


def map_tasks(function: Callable, items: Sequence, threads: int = 1) -> Iterator:
    """`function(item)` for every item, each a Ray task that may be retried; results in the items' order."""
    task = ray.remote(function).options(num_cpus=threads, max_retries=ATTEMPTS)
    yield from map(ray.get, [task.remote(item) for item in items])


def machine() -> str:
    """What the connected cluster is, in words, for reports."""
    total = ray.cluster_resources()
    kinds = [name.removeprefix("accelerator_type:") for name in total if name.startswith("accelerator_type:")]
    cores, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    return f"{platform.machine()}, {cores} CPU cores, {gpus} GPUs {' '.join(kinds)}, torch {version('torch')}"
