"""What workers do, one handler for all types of task, and the run that makes what a store lacks."""

import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

from pipelines.engine import records
from pipelines.engine.cluster import DamagedError, Resources, Stopped, Unit, WorkersError
from pipelines.engine.lease import lease
from pipelines.engine.store import Store
from pipelines.stages import beside
from pipelines.stages.embeddings import TextEncoding
from pipelines.stages.features import Encoding, Extractor
from pipelines.stages.generation import Generation, Generator
from pipelines.stages.scores import Scoring, score
from pipelines.stages.trajectories import Recording, Watcher
from postdiff.terminal import doing, one_line

MENDS = 50  # of one report
T = TypeVar("T")
HANDLERS: dict[type, Callable[[Store], Callable[..., Any]]] = {
    TextEncoding: Generator,
    Generation: Generator,
    Encoding: Extractor,
    Scoring: lambda store: score,
    Recording: Watcher,
}


class Handler:
    """A worker's handler: that of the task's type, made when the first such task comes, and kept.

    Raises: OSError if this machine does not see the store that the driver opened: a folder is each machine's own.
    """

    def __init__(self, store: Store):
        if not store.has("spec.json"):
            raise OSError(
                f"store {store.shown!r} is not seen on {platform.node()}: expected a folder that all machines share, "
                "or a URL such as s3://BUCKET/PATH"
            )
        self.store = store
        self.made: dict[object, Callable[..., Any]] = {}
        if beside.count():
            import torch

            torch.set_num_threads(beside.own() - beside.count())

    def __call__(self, task: Any, riders: tuple = ()) -> tuple[str, ...] | Callable[[], tuple[str, ...]]:
        """Names of the riders that were committed with the task, or what does the rest and tells them."""
        make = HANDLERS[type(task)]
        if make not in self.made:
            self.made[make] = make(self.store)
        handle = self.made[make]
        answer = handle(task, riders) if riders else handle(task)
        return answer if riders or callable(answer) else ()

    def ahead(self, task: Any) -> None:
        """`task` is likely the next: a handler that is there reads what it needs. Called beside the current one."""
        read = getattr(self.made.get(HANDLERS[type(task)]), "ahead", None)
        if read:
            read(task)


def run(units: Sequence[Unit], store: Store, resources: Resources, what: str) -> dict[str, str]:
    """Make what the store lacks of `units`; returns {name: reason} of those set aside, which are in `failed/` too.

    Raises: WorkersError as `workers.run`.
    """
    from pipelines.engine import workers

    kinds = {unit.name.partition("/")[0] for unit in units} | {"failed"}
    names = set().union(*map(store.names, kinds))
    if all(unit.on_demand or unit.name in names for unit in units):
        return {}
    for unit in units:
        if f"failed/{unit.name}.json" in names:  # of an earlier run: it is tried again now
            store.delete(f"failed/{unit.name}.json")
    failed: dict[str, str] = {}
    try:
        with lease(store), doing(f"making {what}"):
            make = partial(Handler, store)
            failed = workers.run(units, make, store.has, resources, what, done=names, set_aside=store.set_aside)
    except WorkersError as error:
        failed = error.failed
        raise
    finally:
        for name, reason in failed.items():
            file = f"failed/{name}.json"
            store.put(file, records.to_json({"unit": name, "reason": reason}, file))
    return failed


def run_all(units: Sequence[Unit], store: Store, resources: Resources, what: str) -> None:
    """As `run`. Raises Stopped if a unit was set aside."""
    if failed := run(units, store, resources, what):
        raise Stopped(summary(failed, store))


def mending(store: Store, work: Callable[[], T]) -> T:
    """What `work` returns, which makes what the store lacks and then reads it: a damaged file that it meets is set
    aside, and `work` is done again. Raises DamagedError after MENDS of them: such a disk is nothing to work on; and for
    a file of another store, where one of that name may be whole in this one."""
    for _ in range(MENDS):
        try:
            return work()
        except DamagedError as error:
            if error.store not in ("", store.url):
                raise
            store.set_aside(error.name)
            tqdm.write(one_line(f"{error.name} was damaged: set aside as .bad, and made again"), file=sys.stderr)
    return work()


def summary(failed: dict[str, str], store: Store) -> str:
    """Units that were set aside, in a line."""
    own = {name: reason for name, reason in failed.items() if not reason.startswith("needs ")}
    name, reason = next(iter((own or failed).items()))
    others = f", and {len(failed) - len(own)} that need them" if len(own) < len(failed) else ""
    return (
        f"{len(own)} units failed{others}; they are set aside in {store.shown}/failed; the first, {name}: {reason}; "
        "all others are committed: run again to retry"
    )
