"""Offline runs that a store keeps, on their way to W&B: by W&B's own command, from any store."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.engine.store import Store
from pipelines.report.tracking import OFFLINE, RUN_FOLDER
from postdiff.terminal import one_line

SYNCED = ".synced"  # a file of W&B's, beside a run that is uploaded


def waiting(store: Store) -> dict[str, set[str]]:
    """{folder of an offline run: names of its files} of those that are not uploaded."""
    folders: dict[str, set[str]] = {}
    for name in store.names(OFFLINE):
        if folder := RUN_FOLDER.match(name):
            folders.setdefault(folder[0].rstrip("/"), set()).add(name)
    return {folder: names for folder, names in folders.items() if not any(name.endswith(SYNCED) for name in names)}


def sync(store: Store, entity: str, project: str) -> int:
    """Upload the store's offline runs that are not in W&B yet; returns their number.

    Raises: OSError, with the last line of W&B's, if not all are uploaded: what is, is not uploaded again.
    """
    runs = waiting(store)
    if not runs:
        return 0
    with here(store, runs) as top:
        command = [sys.executable, "-m", "wandb", "sync", "--entity", entity, "--project", project]
        environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SILENT")}
        with TemporaryDirectory(prefix="wandb-") as scratch:  # of its own log
            done = subprocess.run(
                [*command, *(str(top / folder) for folder in sorted(runs))],
                cwd=scratch, env=environment | {"WANDB_DIR": scratch}, capture_output=True, text=True,
            )  # fmt: skip
        marks = {folder: sorted((top / folder).glob(f"*{SYNCED}")) for folder in runs}
        if not store.is_local:
            for mark in (mark for files in marks.values() for mark in files):
                store.put(str(mark.relative_to(top)), mark.read_bytes())
    left = [folder for folder, files in marks.items() if not files]
    if left or done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["nothing was said"]
        raise OSError(
            f"{len(left)} of {len(runs)} offline runs of {store.shown} are not uploaded (wandb sync: exit "
            f"{done.returncode}, {one_line(lines[-1])}); what is uploaded is not uploaded again"
        )
    return len(runs)


@contextmanager
def here(store: Store, runs: dict[str, set[str]]) -> Iterator[Path]:
    """A folder of this machine that holds the runs: the store itself, or a copy."""
    if store.is_local:
        yield Path(store.root)
        return
    with TemporaryDirectory(prefix="offline-runs-") as scratch:
        for name in (name for names in runs.values() for name in names):
            file = Path(scratch) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(store.get(name))
        yield Path(scratch)


def warning(stores: Sequence[Store]) -> str:
    """A warning about what is not uploaded; "" if all is."""
    count = sum(len(waiting(store)) for store in stores)
    return f"warning: {count} runs are offline: --sync uploads them first, or plots lack them" if count else ""
