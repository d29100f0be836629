"""Weights & Biases: a mirror of committed results, never the record. The only file that imports wandb.

One run a configuration, one group a sweep, and a run with the summary table. A configuration is logged once: its
marker in the store is written after its run is finished. Offline runs are kept in the store: `wandb sync
STORE/wandb-offline/wandb/offline-run-*` uploads them.

W&B is told what is logged here and nothing else: left to itself it keeps the command line, the host, the folder and the
commit of the program, and a command line may hold a secret.
"""

import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

from PIL import Image

from pipelines.engine.identity import digest
from pipelines.engine.store import Store, clean
from pipelines.report import tables
from pipelines.report.tables import Row

NOTHING_OF_THE_HOST = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,  # the command line, the program, the machine
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "host": "",
    "username": "",
    "email": "",
    "symlink": False,  # to the newest run: stores have no links
}


def log(
    store: Store,
    sweep: str,
    protocol: dict[str, str],
    rows: Sequence[Row],
    specs: dict[str, dict],
    pictures: dict[str, bytes],
    project: str = "postdiff",
) -> int:
    """Log what is not logged yet; returns the number of runs made. Offline unless WANDB_MODE says otherwise.

    A failure is printed and goes no further: results are in the store, and the next run of the sweep tries again.

    Args:
        protocol: prompts and scoring networks; with `sweep` it names the group, so that two protocols never share one.
        specs: configuration id -> what it is, the run's config.
        pictures: name -> PNG, logged with the summary.
    """
    mode = os.environ.setdefault("WANDB_MODE", "offline")
    if mode == "disabled":
        return 0
    os.environ.setdefault("WANDB_SILENT", "true")
    group = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', sweep)}-{digest([sweep, protocol], 8)}"
    runs = [(row.configuration, row.label, {**specs[row.configuration], **protocol}) for row in rows]
    by_id = {row.configuration: row for row in rows}
    # The summary's id holds the grid: a larger one gets a summary of its own.
    whole = f"summary-{digest(''.join(sorted(by_id)).encode(), 8)}"
    made = 0
    try:
        import wandb

        done = store.names("wandb")
        _remove_unfinished(store, done)
        with _folder(store) as folder:
            os.environ["WANDB_DATA_DIR"] = str(folder)  # else it is the home folder, and its name is kept
            for id, name, config in [*runs, (whole, "summary", protocol)]:
                marker = f"wandb/{mode}/{group}/{id}.json"  # what is logged offline only may go online later
                if marker in done:
                    continue
                run = wandb.init(
                    project=project,
                    group=group,
                    id=f"{group}-{id}",
                    name=name,
                    job_type="configuration" if id in by_id else "summary",
                    config=config,
                    dir=str(folder),
                    settings=wandb.Settings(**NOTHING_OF_THE_HOST),
                )
                if id in by_id:
                    run.summary.update(_numbers(by_id[id]))
                else:
                    _log_summary(run, rows, pictures)
                run.finish()
                if mode == "offline" and not store.is_local:  # a job's own disk goes away with the job
                    for file in (file for file in folder.rglob("*") if file.is_file()):
                        store.put(f"wandb-offline/{file.relative_to(folder)}", file.read_bytes())
                    rmtree(folder / "wandb")
                store.put(marker, json.dumps({"run": run.id}).encode())
                made += 1
    except Exception as error:  # wandb raises what it likes: no login, no network, a full disk
        print(f"warning: not all is logged to W&B: {clean(repr(error))}", file=sys.stderr)
    return made


@contextmanager
def _folder(store: Store) -> Iterator[Path]:
    """Where W&B keeps its runs: in the store, or on this machine until they are copied to a store that is no folder."""
    if store.is_local:
        folder = Path(store.root) / "wandb-offline"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)


def _remove_unfinished(store: Store, done: set[str]) -> None:
    """Remove what is kept of runs without a marker among the names `done`: a driver died before they were finished."""
    finished = {f"{group}-{id.removesuffix('.json')}" for _, _, group, id in (name.split("/") for name in done)}
    for name in store.names("wandb-offline"):
        folder = re.match(r"wandb-offline/wandb/(?:offline-)?run-\d{8}_\d{6}-([^/]+)/", name)
        if folder and folder[1] not in finished:
            store.delete(name)
            if store.is_local:
                rmtree(Path(store.root) / folder[0], ignore_errors=True)


def _log_summary(run, rows: Sequence[Row], pictures: dict[str, bytes]) -> None:
    import wandb

    lines = [{"configuration": row.label, **_numbers(row)} for row in rows]
    columns = list(lines[0])
    run.log({"configurations": wandb.Table(columns=columns, data=[[line.get(c) for c in columns] for line in lines])})
    for name, png in pictures.items():
        run.log({name: wandb.Image(Image.open(io.BytesIO(png), formats=("PNG",)))})


def _numbers(row: Row) -> dict[str, float]:
    numbers = {"steps": row.steps, "macs_paper": row.macs_paper, "flops": row.flops, "seconds": row.seconds}
    for metric in tables.comparable([row]):
        numbers |= row.interval(metric).columns(metric.column)
    return {**numbers, "n": row.n}
