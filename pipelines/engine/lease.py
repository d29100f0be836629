"""One driver a store: records that say who runs it, renewed while that is so.

Each driver's record is a file of its own, `lease/00001.json`, with the number after those that it found. A file of one
number is written once (`Store.commit`), so of several drivers that found the same one runs. And each looks again when
its own is there, before it begins: of two that found different ones, the later sees the earlier.
"""

import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from uuid import uuid4

from pipelines.engine import records
from pipelines.engine.cluster import DamagedError, Stopped
from pipelines.engine.store import Store

FOLDER, NAME = "lease", re.compile(r"lease/\d+\.json")
RENEWED, STALE = 20.0, 90.0  # seconds


@contextmanager
def lease(store: Store) -> Iterator[None]:
    """Hold the store against other drivers.

    A lease that was not renewed for STALE seconds, or whose process is gone from this machine, is taken over with a
    line. Clocks of the machines must agree to a minute.

    Raises: Stopped, saying who runs it, if another driver does.
    """
    own = {"id": uuid4().hex, "host": platform.node(), "process": os.getpid(), "since": time.time()}
    name = _take(store, own)
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(store, name, own, over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join(RENEWED)
        with suppress(OSError):  # it grows stale by itself
            if _is_own(store, name, own):
                store.delete(name)


def _take(store: Store, own: dict) -> str:
    """Returns the name of the lease that is `own`. Raises Stopped if another driver runs."""
    gone = _refuse_beside_others(store)
    number = max((int(name.removeprefix("lease/").removesuffix(".json")) for name in gone), default=0) + 1
    name = f"{FOLDER}/{number:05d}.json"
    store.commit(name, _as_record(own, name))
    if not _is_own(store, name, own):  # not by what the commit returned: it may have written in a call that got lost
        raise Stopped(f"store {store.shown!r} was taken by another driver at the same moment: run again")
    try:
        _refuse_beside_others(store, name)
    except BaseException:
        store.delete(name)
        raise
    for other in gone:
        if lease := gone[other]:
            print(f"taking over from process {lease['process']} on {lease['host']}, which is gone", file=sys.stderr)
        store.delete(other)
    return name


def _refuse_beside_others(store: Store, own: str = "") -> dict[str, dict]:
    """{name: lease} of drivers that are gone. Raises Stopped if there is one that is not, but for `own`."""
    leases = {name: _read(store, name) for name in store.names(FOLDER) if NAME.fullmatch(name) and name != own}
    for lease in leases.values():
        if lease and (reason := _alive(lease)):
            since, who = datetime.fromtimestamp(lease["since"], UTC), f"process {lease['process']} on {lease['host']}"
            raise Stopped(
                f"store {store.shown!r} is run by {who} since {since:%F %R} UTC, {reason}: wait for it, or stop it; "
                "two drivers would do everything twice"
            )
    return leases


def _alive(lease: dict) -> str:
    """Why the holder of a lease is taken to be alive; "" if it is not."""
    if lease["host"] == platform.node():
        try:
            os.kill(lease["process"], 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
    age = time.time() - lease["renewed"]
    return f"renewed {max(0, age):.0f} s ago" if age < STALE else ""


def _renew(store: Store, name: str, own: dict, over: threading.Event) -> None:
    while not over.wait(RENEWED):
        with suppress(Exception):  # a store that is away: the next time, or it grows stale
            if not _is_own(store, name, own):
                print(f"warning: another driver has taken {store.shown}; what both commit is the same", file=sys.stderr)
                return
            store.put(name, _as_record(own, name))


def _as_record(own: dict, name: str) -> bytes:
    return records.to_json({**own, "renewed": time.time()}, name)


def _is_own(store: Store, name: str, own: dict) -> bool:
    """Is the lease `name` there, and not another driver's? One that is damaged is written again when it is renewed."""
    return store.has(name) and _read(store, name).get("id", own["id"]) == own["id"]


def _read(store: Store, name: str) -> dict:
    """The lease that is there; {} where there is none, or none that can be read."""
    try:
        return store.record(name)
    except (FileNotFoundError, DamagedError):
        return {}
