"""How far a run is, from its store alone: what is done, set aside and missing, how fast it goes, and if a driver lives.

A driver leaves in `runs/<id>.json` what it is going to make, each time that it starts. All else is one listing.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.engine import records
from pipelines.engine.cluster import DamagedError
from pipelines.engine.identity import digest
from pipelines.engine.lease import NAME, STALE
from pipelines.engine.store import SHARD, Store
from postdiff.terminal import one_line

WINDOW, FEWEST = 1800.0, 10  # seconds and units that a pace is of: the longer stretch of the two
ASIDE = re.compile(r"failed/.+\.json")
MOST_ROWS, MOST_REASONS, WIDTH = 20, 3, 80


@dataclass(frozen=True, slots=True)
class File:
    """size: bytes. time: seconds since 1970 of its last change, None where the file system does not tell."""

    size: int
    time: float | None


@dataclass
class Progress:
    """Of one configuration. shards: of its images. cost: of an image, relative. times: of its committed images."""

    label: str
    shards: int
    cost: float = 1.0
    encoders: int = 0
    images: int = 0
    features: int = 0
    scored: bool = False
    failed: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.scored and self.images == self.shards

    @property
    def begun(self) -> bool:
        return bool(self.images or self.features or self.failed)


@dataclass(frozen=True)
class State:
    """What a store says at `now`, in seconds since 1970, as are `lease`, when a driver last gave a sign, and `started`,
    when the last one started. reasons: {unit that is set aside: why}, of the first ones. failed: how many there are."""

    where: str
    now: float
    files: int
    size: int
    progress: dict[str, Progress]
    failed: int
    reasons: dict[str, str]
    started: float | None
    lease: float | None

    @property
    def complete(self) -> bool:
        return bool(self.progress) and all(one.complete for one in self.progress.values())


def announce(
    store: Store,
    labels: Mapping[str, str],
    costs: Mapping[str, float],
    shards: int,
    encoders: Sequence[str],
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    protocol: Mapping[str, str] | None = None,
) -> None:
    """Leave in `store` what a run is going to make, for `read` and `results`. Called by the driver when it starts.

    Args:
        labels, costs: {configuration id: its name in the tables; what an image costs, relative}.
        shards: of each configuration's images. encoders: that see all of them.
        facts: {configuration id: what `results` makes a row of, as JSON has it}; protocol: what is measured on what.
    """
    configurations = {
        id: {"label": label, "cost": costs[id], **(facts or {}).get(id, {})} for id, label in labels.items()
    }
    run: dict[str, Any] = {"configurations": configurations, "shards": shards, "encoders": sorted(set(encoders))}
    if protocol:
        run["protocol"] = dict(protocol)
    name = f"runs/{digest(run)}.json"
    store.put(name, records.to_json(run, name))


def read(store: Store, now: float | None = None) -> State:
    """The state of `store`. Raises ValueError if it is no store of a run; DamagedError if a record of a run is."""
    files = _files(store)
    if "spec.json" not in files:
        raise ValueError(f"{store.shown!r} must be the store of a run, got a folder without spec.json")
    runs = [name for name in files if re.fullmatch(r"runs/[^/]+\.json", name)]
    progress: dict[str, Progress] = {}
    for name in runs:
        try:
            run = store.record(name)
            for id, facts in run["configurations"].items():
                progress[id] = Progress(facts["label"], run["shards"], facts["cost"], len(run["encoders"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{store.shown}/{name} must hold what a run makes, got {one_line(repr(error))}") from None
    _count(files, progress)
    failed = sorted(filter(ASIDE.fullmatch, files))
    started, signs = (
        max((time for name in names if (time := files[name].time) is not None), default=None)
        for names in (runs, filter(NAME.fullmatch, files))
    )
    return State(
        store.shown,
        datetime.now(UTC).timestamp() if now is None else now,
        len(files),
        sum(file.size for file in files.values()),
        progress,
        len(failed),
        _why(store, failed[:MOST_REASONS]),
        started,
        signs,
    )


def _why(store: Store, names: Sequence[str]) -> dict[str, str]:
    """The reasons of the units set aside under `names`; those that a driver has taken up again since have none."""
    reasons = {}
    for name in names:
        with suppress(FileNotFoundError):
            reasons[name] = _reason(store, name)
    return reasons


def _reason(store: Store, name: str) -> str:
    try:
        return one_line(store.record(name).get("reason", ""))
    except DamagedError as error:
        return f"not known: {error.why}"


def _files(store: Store) -> dict[str, File]:
    """Every file of the store by its name: one listing."""
    return {
        name: File(info.size, info.mtime.timestamp() if info.mtime else None)
        for name, info in store.listing()
        if not info.base_name.startswith(".tmp-")
    }


def _count(files: Mapping[str, File], progress: dict[str, Progress]) -> None:
    """Count what is there into `progress`; configurations of images that no run announced come under their ids."""
    for name, file in sorted(files.items(), key=lambda item: item[0]):
        shard = SHARD.fullmatch(name)
        if shard and name.startswith("images/"):
            id = shard[1].removeprefix("images/")
            one = progress.setdefault(id, Progress(id, int(shard[3])))
            one.images += 1
            if file.time is not None:
                one.times.append(file.time)
    for name in files:
        shard = SHARD.fullmatch(name)
        if shard and name.startswith("features/") and (id := shard[1].rpartition("/")[2]) in progress:
            progress[id].features += 1
        elif (scored := re.match(r"scores/([^/]+)-[^-/]+\.json", name)) and scored[1] in progress:
            progress[scored[1]].scored = True
        elif ASIDE.fullmatch(name):
            for id in (id for id in progress if id in name):  # of images, features or the score
                progress[id].failed += 1


@dataclass(frozen=True)
class Pace:
    """units: of images committed in the last `seconds`. left: seconds for the rest at that pace, by cost; None if no
    unit was committed."""

    units: int
    seconds: float
    left: float | None


def pace(state: State) -> Pace | None:
    """How fast images come; None where the file system does not tell times. Counted to now, so that a run that hangs
    gets slower, over the last half hour or as far back as `FEWEST` units, but never from before the driver's start."""
    times = sorted((time, one.cost) for one in state.progress.values() for time in one.times)
    if sum(one.images for one in state.progress.values()) > len(times) or not state.progress:
        return None
    begin = state.now - WINDOW
    if len(times) > FEWEST:
        begin = min(begin, times[-FEWEST - 1][0])
    elif times:
        begin = min(begin, times[0][0])
    if state.started is not None:
        begin = max(begin, state.started)
    done = [cost for time, cost in times if time > begin]
    seconds = max(state.now - begin, 1.0)
    rest = sum((one.shards - one.images) * one.cost for one in state.progress.values())
    return Pace(len(done), seconds, rest / sum(done) * seconds if sum(done) else None)


def describe(state: State) -> str:
    """`state` in lines of at most 80 columns."""
    done, units = (sum(getattr(one, key) for one in state.progress.values()) for key in ("images", "shards"))
    scored = sum(one.scored for one in state.progress.values())
    share = f" ({done / units:.0%})" if units else ""
    lines = [
        f"store    {state.where}: {_bytes(state.size)} in {state.files:,} files",
        f"driver   {_driver(state)}",
        f"images   {done:,} of {units:,} units{share}",
        f"scores   {scored:,} of {len(state.progress):,} configurations",
        f"pace     {_pace(state)}",
    ]
    if state.failed:
        lines.insert(-1, f"failed   {state.failed:,} set aside")
    return "\n".join([*lines, *_table(state), *_reasons(state)])


def _driver(state: State) -> str:
    if state.lease is None:
        return "none (no lease)"
    ago = max(state.now - state.lease, 0)
    if ago <= STALE:
        return f"alive, its last sign {_time(ago)} ago"
    return f"gone, its last sign {_time(ago)} ago; run the job again to go on"


def _pace(state: State) -> str:
    if state.complete:
        return "all is done"
    current = pace(state)
    if current is None:
        return "not known: no units yet, or a file system that tells no times"
    over = (
        f"{current.units / current.seconds * 60:.3g} units of images a minute, over the last {_time(current.seconds)}"
    )
    if current.left is None:
        return f"none, over the last {_time(current.seconds)}"
    return f"{over}; {_time(current.left)} to go" if current.left else f"images are done; {over}"


def _table(state: State) -> list[str]:
    """One line a configuration; where there are many, of those that are being made, and the others in a sum."""
    rows = list(state.progress.values())
    shown = rows
    if len(rows) > MOST_ROWS:
        shown = sorted((one for one in rows if one.begun and not one.complete), key=lambda one: -one.failed)[:MOST_ROWS]
    width = WIDTH - 34
    lines = [f"\n{'configuration':<{width}}{'images':>11}{'features':>12}  scored"] if shown else []
    for one in shown:
        features = f"{one.features}/{one.shards * one.encoders}" if one.encoders else str(one.features)
        cut = one.label if len(one.label) < width else one.label[: width - 4] + "..."
        mark = "yes" if one.scored else f"{one.failed} failed" if one.failed else "-"
        lines.append(f"{cut:<{width}}{f'{one.images}/{one.shards}':>11}{features:>12}  {mark}")
    others = Counter(
        "complete" if one.complete else "not begun" if not one.begun else "being made"
        for one in rows
        if not any(one is line for line in shown)
    )
    counts = ", ".join(f"{number} {what}" for what, number in sorted(others.items()))
    return [*lines, f"{'and others: ' if shown else ''}{counts}"] if counts else lines


def _reasons(state: State) -> list[str]:
    """Why the first units are set aside."""
    lines = ["\nset aside (run the job again to try them again):"] if state.reasons else []
    for name, reason in state.reasons.items():
        unit = name.removeprefix("failed/").removesuffix(".json")
        lines += [f"  {unit}", f"    {one_line(reason, WIDTH - 4)}"]
    more = state.failed - len(state.reasons)
    return [*lines, f"  and {more} more in {state.where}/failed"] if more else lines


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.4g} TB"


def _time(seconds: float) -> str:
    """A stretch of time in its largest unit that is at least 2."""
    for unit, long in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * long:
            return f"{seconds / long:.3g} {unit}"
    return f"{seconds:.0f} s"
