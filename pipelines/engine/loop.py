"""The workers and what they answer: who is started, given work, replaced. Without Ray, which is behind a `Crew`."""

import errno
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from pipelines.engine.cluster import Resources, Unit, WorkersError
from pipelines.engine.queue import ATTEMPTS, DAMAGES, Queue
from postdiff.terminal import one_line

LOOK, PAUSE = 10.0, 5.0  # seconds: between looks at what nodes there are; of a unit whose store did not answer
PLACE = 60.0  # seconds that another node has to take a worker, where what is left failed on some
UNFINISHED = "unfinished"  # a worker's answer of a unit that it finishes beside the next

NETWORK = (errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
           errno.ENETUNREACH, errno.ESTALE)  # fmt: skip


@dataclass(frozen=True)
class Failed:
    """What came instead of an answer. cause: what the handler raised; died: the worker is gone, and `lost`: not by
    itself, but with its node or for its node's lack of memory; hung: nothing came in time."""

    reason: str
    cause: Exception | None = None
    died: bool = False
    lost: bool = False
    hung: bool = False


class Crew(Protocol):
    """Workers as processes somewhere. A call returns a reference at once, that `wait` and `answer` take."""

    def start(self, without: Collection[str]) -> Any:
        """A new worker, on none of the nodes `without`."""

    def call(self, worker: Any, method: str, *args: Any) -> Any: ...

    def wait(self, references: Collection[Any], seconds: float) -> list[Any]:
        """Those that are answered, as soon as one is."""

    def answer(self, reference: Any) -> Any:
        """What was returned, `Failed`, or None while there is no answer."""

    def kill(self, worker: Any) -> None: ...

    def nodes(self) -> dict[str, tuple[str, bool]]:
        """{node that is up: its address, and whether it has what one worker needs}."""


def is_away(cause: Exception | None) -> bool:
    """Is it an error of a network or of what is behind it? Those of object stores have no number; a full or broken
    disk has, and is its machine's own fault."""
    own = FileNotFoundError | PermissionError
    return isinstance(cause, OSError) and not isinstance(cause, own) and cause.errno in (None, *NETWORK)


@dataclass(eq=False)
class Actor:
    """A worker. elsewhere: it is to be on another node than what is left has failed on. group: of what it has loaded.
    calls: that it has not answered yet. leaves: it is given no more."""

    worker: Any
    elsewhere: bool = False
    node: str = ""
    process: int = 0
    reads_ahead: bool = False
    group: str = ""
    calls: int = 0
    leaves: bool = False


@dataclass(frozen=True)
class Call:
    """What an actor is to answer. method: `where` and `start` of a new one; of a unit `run`, which is answered when the
    actor can take the next, and `finish`, when it is committed. since: of a unit when it was given."""

    actor: Actor
    method: str
    since: float
    unit: Unit | None = None


class Loop:
    """The actors, and what they answer. waiting: {reference: what it is the answer to}."""

    def __init__(
        self,
        queue: Queue,
        crew: Crew,
        resources: Resources,
        make_handler: Callable[[], Callable],
        is_committed: Callable[[str], bool],
        set_aside: Callable[[str], object] | None = None,
        on_worker: Callable[[int], None] | None = None,
    ):
        self.queue, self.crew, self.resources, self.make_handler = queue, crew, resources, make_handler
        self.is_committed, self.set_aside, self.on_worker = is_committed, set_aside, on_worker
        self.waiting: dict[Any, Call] = {}
        self.actors: set[Actor] = set()
        self.idle: list[Actor] = []
        self.addresses: dict[str, str] = {}  # of the nodes that are up
        self.announced: set[str] = set()  # nodes that are left out
        self.elsewhere = True  # other nodes have had room, as far as is known
        self.made = 0
        self.in_vain = 0  # workers that were lost before they had a node, since one had or nodes came or went
        self.looked = self.rested = -LOOK
        self.away_since: float | None = None

    def turn(self) -> list[str]:
        """Start workers, give work, and take in answers; returns names of units that are done.

        Raises: WorkersError where `run` does.
        """
        now = time.monotonic()
        if now - self.looked > LOOK:
            self._look()
        if self.queue.resting and now - self.rested > PAUSE:
            self.queue.wake()
        wanted = min(self.resources.workers, len(self.queue.open))
        for _ in range(wanted - sum(not actor.leaves for actor in self.actors)):
            self._start()
        self._give_work()
        if not self.waiting:
            time.sleep(0.1)
            return []
        ready = self.crew.wait(self.waiting.keys(), PAUSE)
        late = [ref for ref, call in self.waiting.items() if self._overdue(call)]
        done = [name for ref in dict.fromkeys([*ready, *late]) for name in self._take_in(ref)]
        for node in self.queue.nodes.out.keys() - self.announced:
            self.announced.add(node)
            where = f"node {self.addresses.get(node, '?')} ({node[:8]})"
            tqdm.write(one_line(f"{where} is left out: {self.queue.nodes.out[node]}"), file=sys.stderr)
        return done

    def _start(self) -> None:
        out = {*self.queue.nodes.out}
        without = out | self.queue.shunned()
        elsewhere = self.elsewhere and without != out and not self.queue.nodes.up <= without
        actor = Actor(self.crew.start(without if elsewhere else out), elsewhere)
        self.actors.add(actor)
        self._call(actor, "where")

    def stop(self) -> None:
        for actor in self.actors:
            self.crew.kill(actor.worker)

    @property
    def starting(self) -> int:
        """Workers that have not started yet."""
        return sum(call.unit is None for call in self.waiting.values())

    def _look(self) -> None:
        """Which nodes are there?"""
        self.looked = time.monotonic()
        nodes = self.crew.nodes()
        if nodes.keys() != self.addresses.keys():  # who was to run on a node that is gone says nothing of the others
            self.in_vain = 0
        self.queue.gone(self.addresses.keys() - nodes.keys())
        self.addresses = {node: address for node, (address, _) in nodes.items()}
        self.queue.nodes.up = {node for node, (_, fits) in nodes.items() if fits}

    def _call(
        self, actor: Actor, method: str, *args: Any, unit: Unit | None = None, since: float | None = None
    ) -> None:
        call = Call(actor, method, time.monotonic() if since is None else since, unit)
        self.waiting[self.crew.call(actor.worker, method, *args)] = call
        actor.calls += 1

    def _give_work(self) -> None:
        """Each idle worker's next unit, or its leave: kept without work, it could die unseen."""
        idle, self.idle = self.idle, []
        up = {actor.node for actor in self.actors if not actor.leaves} - {"", *self.queue.nodes.out}
        for actor in idle:
            more = len(self.queue.open) > len(self.queue.busy)
            if actor.node in self.queue.nodes.out or not (more or actor.calls):
                self._leave(actor)
                continue
            elsewhere = len(up) > 1
            unit = self.queue.take(actor, actor.node, actor.group, elsewhere)
            if unit is None:
                self.idle.append(actor)
                continue
            actor.group = unit.group or actor.group
            riders = tuple(rider.task for rider in self.queue.riders(unit.name))
            self._call(actor, "run", unit.task, riders, unit=unit)
            if actor.reads_ahead and (following := self.queue.hint(actor, actor.node, actor.group, elsewhere)):
                self.crew.call(actor.worker, "ahead", following.task)

    def _leave(self, actor: Actor, at_once: bool = False) -> None:
        """It is given no more, and goes when it has answered what it was given, or at once."""
        actor.leaves = True
        self.queue.release(actor)
        if actor in self.idle:
            self.idle.remove(actor)
        if actor in self.actors and (at_once or not actor.calls):
            self.actors.remove(actor)
            self.crew.kill(actor.worker)

    def _overdue(self, call: Call) -> bool:
        """A worker that is not placed yet waits for room: the cluster may be bringing it."""
        took = time.monotonic() - call.since
        if call.unit:
            return self.queue.overdue(call.unit.name, took)
        if call.method == "where":
            return call.actor.elsewhere and took > PLACE
        return call.method == "start" and took > self.resources.limits.start

    def _take_in(self, reference: Any) -> list[str]:
        """Take in an answer, or that there is none; returns names of units that are done."""
        call = self.waiting.pop(reference)
        call.actor.calls -= 1
        answer = self.crew.answer(reference)
        if answer is None:
            answer = Failed(f"hung: no answer after {time.monotonic() - call.since:.0f} s", hung=True)
        done = self._settle(call, answer)
        if call.actor.leaves:
            self._leave(call.actor)
        return done

    def _settle(self, call: Call, answer: Any) -> list[str]:
        actor, unit = call.actor, call.unit
        if unit and isinstance(answer, Failed):
            return self._not_done(call, unit, answer)
        if isinstance(answer, Failed):
            self._not_started(actor, answer)
        elif unit:
            if call.method == "run":
                self.idle.append(actor)
            if answer == UNFINISHED:
                self._call(actor, "finish", unit=unit, since=call.since)
                return []
            self.away_since = None
            return self._done(actor, unit, time.monotonic() - call.since, lambda name: name in answer)
        elif call.method == "where":
            self.in_vain = 0
            actor.node, actor.process = answer
            self._call(actor, "start", self.make_handler)
        else:
            self.idle.append(actor)
            actor.reads_ahead = answer
            self.queue.nodes.started(actor.node)
            if self.on_worker:
                self.on_worker(actor.process)
        return []

    def _done(self, actor: Actor, unit: Unit, took: float, rode: Callable[[str], bool]) -> list[str]:
        names = [unit.name, *(rider.name for rider in self.queue.riders(unit.name) if rode(rider.name))]
        self.queue.finished(names, actor.node, took)
        self.made += len(names)
        return names

    def _not_done(self, call: Call, unit: Unit, failed: Failed) -> list[str]:
        """Settle a unit that was not answered; returns names of units that are done for all that."""
        actor = call.actor
        was_killed = actor not in self.actors  # for another unit
        file = getattr(failed.cause, "name", "") if isinstance(failed.cause, ValueError) else ""
        damaged = file != "" and self.set_aside is not None and self.queue.damaged[file] < DAMAGES
        if not (damaged or is_away(failed.cause)):
            self._leave(actor, at_once=failed.hung)
        elif call.method == "run" and not actor.leaves:
            self.idle.append(actor)  # there is nothing wrong with it
        try:
            if damaged:
                self._remake(unit, file)
            elif self.is_committed(unit.name):  # it died, or was cut off, between its commit and its answer
                return self._done(actor, unit, 0.0, self.is_committed)
            elif is_away(failed.cause):
                self._rest(unit, failed.cause)
            elif was_killed or (failed.died and call.method == "finish"):  # what runs now is what it died of
                self.queue.lost(unit.name, failed.reason)
            else:
                self._blame(actor, unit, failed)
        except OSError as error:
            self._rest(unit, error)
        return []

    def _remake(self, unit: Unit, file: str) -> None:
        is_new = self.queue.is_new(unit.name, file)
        if is_new and self.set_aside:
            self.set_aside(file)
        self.queue.damage(unit.name, file, is_new)

    def _blame(self, actor: Actor, unit: Unit, failed: Failed) -> None:
        if failed.died:
            self._look()
        if failed.lost or actor.node not in self.addresses:
            self.queue.lost(unit.name, failed.reason)
        else:
            self.queue.failure(unit.name, failed.reason, actor.node, failed.died)

    def _rest(self, unit: Unit, error: Exception | None) -> None:
        """The store is away: that is no failure of the unit, which waits."""
        self.rested = time.monotonic()
        self.away_since = self.away_since or self.rested
        away = self.rested - self.away_since
        if away > self.resources.limits.away:
            raise WorkersError(f"the store has not answered for {away:.0f} s: {one_line(error)}", self.queue.failed)
        self.queue.rest(unit.name)

    def _not_started(self, actor: Actor, failed: Failed) -> None:
        """A worker that never comes up (a broken import, no memory, a hang) is not replaced for ever."""
        self._leave(actor, at_once=True)
        self._look()
        reason = failed.reason.strip().rpartition("\n")[2]  # the last line of a worker's traceback
        if actor.node in self.addresses:
            self.queue.not_started(actor.node, reason)
        elif actor.elsewhere:
            self.elsewhere = False
        elif not actor.node:
            self.in_vain += 1
            if self.in_vain >= ATTEMPTS * self.resources.workers:
                raise WorkersError(f"workers do not start ({self.in_vain} tries): {reason}", self.queue.failed)
