"""Which unit is next, and what a failure means: the decisions of `workers.run`, without Ray.

The whole graph is known, with what the store holds of it: a unit that was done long ago is made again when its file
turns out to be damaged. Each decision takes O(log n): units that can start are in one heap a group, and the others
count the needs that they still wait for.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush

from pipelines.engine.cluster import Limits, Unit, WorkersError
from pipelines.engine.nodes import Nodes

ATTEMPTS = 3
LOSSES = 20  # nodes that may be lost under one unit
DAMAGES = 3  # times that one file is made again in one run


class Queue:
    """Every unit that is to be made is in `open`: ready in a heap, `busy`, resting, or waiting for its needs.

    failed: {name: reason} of units set aside. damaged: how often each file was set aside.

    Raises: WorkersError if units need each other.
    """

    def __init__(self, units: Sequence[Unit], done: Collection[str] = (), limits: Limits = Limits()):  # noqa: B008
        self.units = {unit.name: unit for unit in units}
        self.limits = limits
        self.needed_by: dict[str, list[str]] = {}
        for unit in self.units.values():
            for need in unit.needs:
                self.needed_by.setdefault(need, []).append(unit.name)
        self.level = self._levels()
        self.done = {name for name in self.units if name in done}
        self.open: dict[str, int] = {}  # name -> needs that it waits for
        self.ready: set[str] = set()
        self.heaps: dict[str, list[tuple[int, int, float, str]]] = {}  # entries whose name is not ready are void
        self.busy: dict[str, int] = {}  # name -> when, in units given
        self.hinted: dict[object, str] = {}  # worker -> what it reads ahead: taken by others only if nothing else is
        self.riding: dict[str, tuple[str, ...]] = {}  # busy -> units of the same need that were given with it
        self.resting: list[str] = []
        self.attempts: dict[str, list[str]] = {}  # name -> nodes on which it failed
        self.losses: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.damaged: Counter[str] = Counter()
        self.remade: dict[str, int] = {}
        self.nodes = Nodes(self.failed)
        self.given = 0
        self.slowest: dict[str, float] = {}  # seconds a unit of cost, by group
        for unit in self.units.values():
            if not unit.on_demand and unit.name not in self.done:
                self._open(unit.name)

    def _levels(self) -> dict[str, int]:
        """How long the chain of units is that need each: those of the longest chains go first."""
        level = dict.fromkeys(self.units, 0)
        waiting = {name: len(others) for name, others in self.needed_by.items()}
        seen = [name for name in self.units if name not in waiting]
        for name in seen:  # it grows
            for need in self.units[name].needs:
                if need in level:
                    level[need] = max(level[need], level[name] + 1)
                    waiting[need] -= 1
                    if not waiting[need]:
                        seen.append(need)
        if len(seen) < len(level):
            first = next(name for name in self.units if waiting.get(name))
            raise WorkersError(f"{first} and others need each other")
        return level

    def _open(self, name: str) -> None:
        """`name` is to be made, and before it those of its needs that are not there."""
        stack = [name]
        while stack:
            name = stack.pop()
            if name in self.open or name in self.failed:
                continue
            self.done.discard(name)
            lacking = [need for need in self.units[name].needs if need in self.units and need not in self.done]
            self.open[name] = len(lacking)
            stack += lacking
            if not lacking:
                self._push(name)
            elif any(need in self.failed for need in lacking):
                self._requeue(name)

    def _push(self, name: str) -> None:
        unit = self.units[name]
        self.ready.add(name)
        entry = len(self.attempts.get(name, ())), -self.level[name], -unit.cost, name
        heappush(self.heaps.setdefault(unit.group, []), entry)

    def take(self, worker: object = None, node: str = "", group: str = "", elsewhere: bool = False) -> Unit | None:
        """The next unit for a `worker` on `node` that has `group` loaded, or None.

        What loads nothing goes first, then what the longest chain needs, then the group that is loaded; in a group the
        longest first, so that none is left alone at the end. elsewhere: there are workers on other nodes, so that a
        unit that failed on this one waits for them.
        """
        shunned = node if elsewhere else None
        name = self.hinted.pop(worker, None)
        if name in self.ready and self._fails_on(name, shunned):
            self._push(name)
            name = None
        if name not in self.ready:
            name = self._pop(group, shunned) or self._steal(shunned)
        if name is None:
            return None
        self.ready.discard(name)
        self.busy[name] = self.given = self.given + 1
        if self.units[name].rides and name not in self.attempts:
            self.riding[name] = self._siblings(name)
            self.ready.difference_update(self.riding[name])
        return self.units[name]

    def _siblings(self, name: str) -> tuple[str, ...]:
        """Units that are ready, and can be made from what `name` reads. One that failed goes alone."""
        others = (other for need in self.units[name].needs for other in self.needed_by[need])
        return tuple(o for o in others if o in self.ready and self.units[o].rides and o not in self.attempts)

    def hint(self, worker: object, node: str, group: str, elsewhere: bool) -> Unit | None:
        """What `worker` will likely be given next: it is left to it as long as others find something else."""
        name = self._pop(group, node if elsewhere else None)
        if name is None:
            return None
        self.hinted[worker] = name
        return self.units[name]

    def release(self, worker: object) -> None:
        """`worker` is gone."""
        name = self.hinted.pop(worker, None)
        if name in self.ready:
            self._push(name)

    def shunned(self) -> set[str]:
        """Nodes on which all that is ready has failed."""
        nodes: set[str] | None = None
        for name in self.ready:
            on = set(self.attempts.get(name, ()))
            nodes = on if nodes is None else nodes & on
            if not nodes:
                break
        return nodes or set()

    def _fails_on(self, name: str, node: str | None) -> bool:
        return node is not None and node in self.attempts.get(name, ())

    def _pop(self, group: str, shunned: str | None) -> str | None:
        tops = []
        for key, heap in self.heaps.items():
            while heap and heap[0][-1] not in self.ready:
                heappop(heap)
            if heap:
                tops.append((key != "", heap[0][1], key != group, key))
        for *_, key in sorted(tops):
            heap, passed, name = self.heaps[key], [], None
            while heap and name is None:
                entry = heappop(heap)
                if entry[-1] in self.ready:
                    if self._fails_on(entry[-1], shunned):
                        passed.append(entry)
                    else:
                        name = entry[-1]
            for entry in passed:
                heappush(heap, entry)
            if name:
                return name
        return None

    def _steal(self, shunned: str | None) -> str | None:
        for worker, name in self.hinted.items():
            if name in self.ready and not self._fails_on(name, shunned):
                del self.hinted[worker]
                return name
        return None

    def riders(self, name: str) -> tuple[Unit, ...]:
        """Units that can be made from what the worker of `name` has in memory: they wait for it alone, or were ready
        and need the same."""
        others = (self.units[other] for other in self.needed_by.get(name, ()))
        waiting = [u for u in others if u.rides and self.open.get(u.name) == 1 and u.name not in self.busy]
        return *waiting, *(self.units[other] for other in self.riding.get(name, ()) if other in self.open)

    def overdue(self, name: str, seconds: float) -> bool:
        """Does `name` take so much longer than any before that it must hang?"""
        limits, unit = self.limits, self.units[name]
        pace = self.slowest.get(unit.group)
        return seconds > (max(limits.shortest, limits.overdue * pace * unit.cost) if pace else limits.longest)

    def finished(self, names: Sequence[str], node: str = "", seconds: float = 0.0) -> None:
        """The first of `names` is done, by a worker on `node` in so many `seconds`, and with it its riders."""
        unit = self.units[names[0]]
        if seconds:
            pace = seconds / unit.cost
            self.slowest[unit.group] = max(self.slowest.get(unit.group, 0.0), pace)
            self.nodes.worked(node)
        for name in names:
            self._close(name)
            self.done.add(name)
            if name in self.damaged:
                self.remade[name] = self.given
        for name in names:
            for other in self.needed_by.get(name, ()):
                if other in self.open:
                    self.open[other] -= 1
                    if not self.open[other] and other not in self.busy:
                        self._push(other)

    def _close(self, name: str) -> None:
        self.open.pop(name, None)
        self._free(name)
        self.ready.discard(name)

    def _free(self, name: str) -> None:
        """`name` is no longer busy, and what rode with it can be given to others."""
        self.busy.pop(name, None)
        for other in self.riding.pop(name, ()):
            if self.open.get(other) == 0 and other not in self.busy:
                self._push(other)

    def failure(self, name: str, reason: str, node: str, died: bool = False) -> None:
        """`name` failed on `node`, by itself or (`died`) by its worker's death. Raises WorkersError as `Nodes`."""
        first = name not in self.attempts
        self.attempts.setdefault(name, []).append(node)
        if len(self.attempts[name]) >= ATTEMPTS:
            self._set_aside(name, reason)
        else:
            self._requeue(name)
        if self.nodes.failure(node, f"{name}: {reason}", first, died):
            self.forgive(node)

    def lost(self, name: str, reason: str) -> None:
        """The node of `name` was lost, or had no memory left: that says nothing about the unit."""
        self.losses[name] += 1
        if self.losses[name] >= LOSSES:
            self._set_aside(name, f"its node was lost {LOSSES} times; the last: {reason}")
        else:
            self._requeue(name)

    def rest(self, name: str) -> None:
        """The store did not answer to `name`: it waits for `wake`."""
        self._free(name)
        self.resting.append(name)

    def wake(self) -> None:
        resting, self.resting = self.resting, []
        for name in resting:
            self._requeue(name)

    def is_new(self, name: str, file: str) -> bool:
        """Is the `file` that `name` could not read still there, and not one that was made again since?"""
        return file == name or (file not in self.open and self.remade.get(file, 0) < self.busy[name])

    def damage(self, name: str, file: str, is_new: bool) -> None:
        """`name` could not read `file`, which is set aside by now: it is made again, and then `name`."""
        if is_new:
            self.damaged[file] += 1
            for other in self.needed_by.get(file, ()):
                if file in self.done and other in self.open:
                    self.open[other] += 1
                    self.ready.discard(other)
            if file in self.done:
                self._open(file)
        self._requeue(name)

    def _requeue(self, name: str) -> None:
        self._free(name)
        lost = next((need for need in self.units[name].needs if need in self.failed), None)
        if lost:
            self._set_aside(name, self._because(lost))
        elif not self.open[name]:
            self._push(name)

    def _set_aside(self, name: str, reason: str) -> None:
        """With all that needs it."""
        stack = [(name, reason)]
        while stack:
            name, reason = stack.pop()
            self._close(name)
            self.failed[name] = reason
            others = (other for other in self.needed_by.get(name, ()) if other in self.open and other not in self.busy)
            stack += [(other, self._because(name)) for other in others]

    def _because(self, need: str) -> str:
        reason = self.failed[need]
        return reason if reason.startswith("needs ") else f"needs {need}, which failed: {reason}"

    def not_started(self, node: str, reason: str) -> None:
        """A worker on `node` did not start. Raises WorkersError as `Nodes`."""
        if self.nodes.not_started(node, reason):
            self.forgive(node)

    def gone(self, nodes: Iterable[str]) -> None:
        """These nodes are no longer there: what failed on them may have failed with them."""
        for node in nodes:
            self.nodes.gone(node)
            self.forgive(node)

    def forgive(self, node: str) -> None:
        """Failures on `node` were its own: units set aside for them are tried again, and what needs them."""
        for name in [name for name, where in self.attempts.items() if node in where]:
            self.attempts[name] = [other for other in self.attempts[name] if other != node]
            stack = [name] if name in self.failed else []
            while stack:
                again = stack.pop()
                if self.failed.pop(again, None) is None:
                    continue
                self._open(again)
                others = self.needed_by.get(again, ())
                stack += [o for o in others if o in self.failed and len(self.attempts.get(o, ())) < ATTEMPTS]
