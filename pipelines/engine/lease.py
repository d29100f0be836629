"""One driver a store: a record that says who runs it, renewed while that is so."""

import os
import platform
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

NAME = "lease.json"
RENEWED, STALE = 20.0, 90.0  # seconds
SETTLED = 1.0  # seconds, in which another driver that found the same gone one has written what it writes


@contextmanager
def lease(store: Store) -> Iterator[None]:
    """Hold the store against other drivers.

    A lease that was not renewed for STALE seconds, or whose process is gone from this machine, is taken over with a
    line. Clocks of the machines must agree to a minute.

    Raises: Stopped, saying who runs it, if another driver does.
    """
    own = {"id": uuid4().hex, "host": platform.node(), "process": os.getpid(), "since": time.time()}
    _take(store, own)
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(store, own, over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join(RENEWED)
        with suppress(OSError, ValueError):  # it grows stale by itself
            if _read(store).get("id") == own["id"]:
                store.delete(NAME)


def _take(store: Store, own: dict) -> None:
    there = _read(store)
    if there:
        if reason := _alive(there):
            since, who = datetime.fromtimestamp(there["since"], UTC), f"process {there['process']} on {there['host']}"
            raise Stopped(
                f"store {store.shown!r} is run by {who} since {since:%F %R} UTC, {reason}: wait for it, or stop it; "
                "two drivers would do everything twice"
            )
        print(f"taking over from process {there['process']} on {there['host']}, which is gone", file=sys.stderr)
    contested = bool(there) or store.has(NAME) or not store.is_local
    if contested and _read(store).get("id") == there.get("id"):  # not what another has put there since; "" of none
        store.delete(NAME)
    store.commit(NAME, _as_record(own))
    if contested:
        time.sleep(SETTLED)
    if _read(store).get("id") != own["id"]:
        raise Stopped(f"store {store.shown!r} was taken by another driver at the same moment: run again")


def _alive(there: dict) -> str:
    """Why the holder of a lease is taken to be alive; "" if it is not."""
    if there["host"] == platform.node():
        try:
            os.kill(there["process"], 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
    age = time.time() - there["renewed"]
    return f"renewed {max(0, age):.0f} s ago" if age < STALE else ""


def _renew(store: Store, own: dict, over: threading.Event) -> None:
    while not over.wait(RENEWED):
        with suppress(Exception):  # a store that is away: the next time, or it grows stale
            if _read(store).get("id", own["id"]) != own["id"]:
                print(f"warning: another driver has taken {store.shown}; what both commit is the same", file=sys.stderr)
                return
            store.put(NAME, _as_record(own))


def _as_record(own: dict) -> bytes:
    return records.to_json({**own, "renewed": time.time()}, NAME)


def _read(store: Store) -> dict:
    """The lease that is there; {} where there is none, or none that can be read."""
    try:
        return store.record(NAME)
    except (FileNotFoundError, DamagedError):
        return {}
