"""Weights & Biases: a mirror of committed results, never the record. The only file that imports wandb.

One run a configuration, one group a sweep, and a run with the summary (`runs.py` says what they hold). A configuration
is logged once: its marker in the store is written after its run is finished, and says what was logged; it is logged
again when it would tell something else, as after an update. Offline runs are kept in the store, each whole in its
folder: images are files of it. A W&B table is not (offline, W&B stages it elsewhere, under the name of this machine's
folder), so offline runs have none, and jobs/dashboard.py logs it when it is online.

W&B is told what is logged here and nothing else: left to itself it keeps the command line, the host, the folder and the
commit of the program, and a command line may hold a secret.
"""

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from pipelines.engine import records
from pipelines.engine.store import Store, clean
from pipelines.report.runs import VERSION, Logbook, Run

NOTHING_OF_THE_HOST = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "program": "postdiff",  # else the path of the job, online
    "x_disable_meta": True,  # the command line, the program, the machine
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "host": "",
    "username": "",
    "email": "",
    "symlink": False,  # to the newest run: stores have no links
}
SAMPLES = 12  # images of every run: of the first prompts, in their order
QUALITY = 92  # of JPEG
READERS = 16  # files of timings that are read at once
OFFLINE = "wandb-offline/wandb"
RUN_FOLDER = re.compile(rf"{OFFLINE}/(?:offline-)?run-\d{{8}}_\d{{6}}-([^/]+)/")
RECORDS = "dashboard"  # folder of what dashboards are made of
PROJECT = "postdiff"
ANSWER = 60  # seconds that W&B has


def log(store: Store, book: Logbook, project: str = PROJECT) -> int:
    """Log what is not logged yet; returns the number of runs made. Offline unless WANDB_MODE says otherwise.

    A failure is printed and goes no further: results are in the store, and the next run of the job tries again.
    """
    mode = os.environ.setdefault("WANDB_MODE", "offline")
    if mode == "disabled":
        return 0
    os.environ.setdefault("WANDB_SILENT", "true")
    made = 0
    try:
        done = store.names("wandb")
        logged = remove_unfinished(store, done)
        name = f"{RECORDS}/{book.group}.json"
        store.put(name, records.to_json({**book.record(), "logged": now()}, name))
        runs = {run.id: run for run in book.runs()}
        stores = list(book.stores) or [store]
        for id, state in [*((id, run.state) for id, run in runs.items()), (f"{book.group}-summary-{book.grid}", "")]:
            marker = f"wandb/{mode}/{book.group}/{id.removeprefix(f'{book.group}-')}.json"
            mark = {"run": id, "version": VERSION, "state": state}
            if marker in done and json.loads(store.get(marker)) == mark:
                continue  # what is logged offline only may go online later
            remove(store, logged, {id})
            with offline_folder(store, keep=mode == "offline") as folder:
                if id in runs:
                    log_run(folder, project, book, runs[id], stores)
                else:
                    log_summary(folder, project, book, id, mode)
            store.put(marker, json.dumps(mark).encode())
            made += 1
    except Exception as error:  # wandb raises what it likes: no login, no network, a full disk
        print(f"warning: not all is logged to W&B: {clean(repr(error))}", file=sys.stderr)
    return made


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def offline_folder(store: Store, keep: bool) -> Iterator[Path]:
    """Where W&B keeps its runs: in the store, or on this machine until they are copied to a store that is no folder."""
    if store.is_local:
        folder = Path(store.root) / "wandb-offline"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)
        if keep:  # a job's own disk goes away with the job
            for file in (file for file in Path(scratch).rglob("*") if file.is_file()):
                store.put(f"wandb-offline/{file.relative_to(scratch)}", file.read_bytes())


@contextmanager
def started(folder: Path, project: str, group: str, id: str, **more: Any) -> Iterator[Any]:
    """A run of W&B, which is finished at the end. One that is there already is updated, online."""
    import wandb

    os.environ["WANDB_DATA_DIR"] = str(folder)  # else it is the home folder, and its name is kept
    if more.get("mode", os.environ.get("WANDB_MODE")) == "online":
        more["resume"] = "allow"
    settings = wandb.Settings(**NOTHING_OF_THE_HOST)
    run = wandb.init(project=project, group=group, id=id, dir=str(folder), settings=settings, **more)
    try:
        yield run
    finally:
        run.finish()


def log_run(folder: Path, project: str, book: Logbook, run: Run, stores: Sequence[Store]) -> None:
    """One configuration: its config, summary and tags, and the images of the first prompts."""
    import wandb

    configuration = run.config["configuration"]
    config = {**run.config, **run.about}
    more = {"name": run.name, "job_type": "configuration", "config": config, "tags": list(run.tags)}
    with TemporaryDirectory(prefix="samples-") as scratch, started(folder, project, book.group, run.id, **more) as live:
        images = []
        for number, (caption, image) in enumerate(samples(stores, configuration)):
            file = Path(scratch) / f"{number:02d}.jpg"
            file.write_bytes(image)
            images.append(wandb.Image(str(file), caption=f"{caption}; {run.name}"))
        if images:
            live.log({"samples": images})
        live.summary.update({**run.summary, **seconds(stores, configuration, run)})


def samples(stores: Sequence[Store], configuration: str) -> Iterator[tuple[str, bytes]]:
    """(caption, JPEG) of a configuration's images of the first prompts, as many as SAMPLES, in their order."""
    left = SAMPLES
    for store in stores:
        for name in store.shards(f"images/{configuration}"):
            for line in store.table(name, ["prompt", "seed", "image"]).slice(0, left).to_pylist():
                with Image.open(io.BytesIO(line["image"]["bytes"]), formats=("WEBP",)) as image:
                    buffer = io.BytesIO()
                    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, subsampling=0)
                yield f"{line['prompt']}; seed {line['seed']}", buffer.getvalue()
                left -= 1
            if not left:
                return


def seconds(stores: Sequence[Store], configuration: str, run: Run) -> dict[str, float]:
    """The 90th percentile of seconds an image, where the median is known: of all images, or it is of none."""
    if "seconds_p50" not in run.summary:
        return {}
    files = [(store, name) for store in stores for name in sorted(store.names(f"timings/{configuration}"))]
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda file: file[0].record(file[1])["seconds"], files))
    return {"seconds_p90": float(np.percentile(np.concatenate(parts), 90))} if parts else {}


def log_summary(folder: Path, project: str, book: Logbook, id: str, mode: str) -> None:
    """The table of all configurations, as HTML and online as W&B's own too, and the pictures."""
    import wandb

    record = book.record()
    config = {**record["protocol"], "grid": book.grid}
    more = {"name": "summary", "job_type": "summary", "config": config}
    with started(folder, project, book.group, id, **more) as live:
        body = "".join(
            f"<h3>{escape(part['title'])}</h3><pre>{escape(part['markdown'])}</pre>" for part in record["parts"]
        )
        live.log({"results": wandb.Html(f"<p>{escape(record['answer'])}</p>{body}", inject=False)})
        for name, png in book.pictures.items():
            live.log({name: wandb.Image(Image.open(io.BytesIO(png), formats=("PNG",)))})
    if mode == "online":
        log_table(record, project)


def log_table(record: dict[str, Any], project: str, entity: str | None = None) -> str:
    """The table of all configurations as W&B's own, in a run of its own: online alone. Returns the run's id."""
    import wandb

    id = f"{record['group']}-table-{record['grid']}"
    columns, lines = record["table"]["columns"], record["table"]["lines"]
    more: dict[str, Any] = {
        "name": "table",
        "job_type": "table",
        "config": {**record["protocol"], "grid": record["grid"]},
    }
    more |= {"entity": entity, "mode": "online"}
    with (
        TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True) as scratch,
        started(Path(scratch), project, record["group"], id, **more) as live,
    ):
        live.log({"configurations": wandb.Table(columns=columns, data=lines)})
    return id


def find_project(entity: str, project: str) -> str:
    """The address of the W&B server that knows us, after the project was made if it was not there.

    Raises: ValueError, and asks no one for a key, if there is none or the server does not know it.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    before = sys.stdin
    try:
        with open(os.devnull) as nothing:  # at a terminal W&B would ask for a key
            sys.stdin = nothing
            api = wandb.Api(timeout=ANSWER)
    except (wandb.errors.Error, OSError) as error:
        raise ValueError(
            f"W&B does not let us in: {clean(str(error))}; expected WANDB_API_KEY in the environment, or `wandb login`"
        ) from None
    finally:
        sys.stdin = before
    if project not in {one.name for one in api.projects(entity)}:
        api.create_project(project, entity)
    return str(api.settings["base_url"])


def remove_unfinished(store: Store, done: set[str]) -> dict[str, set[str]]:
    """Remove what is kept of runs without a marker among the names `done`: a driver died before they were finished.
    Returns {run id: names of its files} of the others."""
    finished = {f"{group}-{id.removesuffix('.json')}" for _, _, group, id in (name.split("/") for name in done)}
    logged: dict[str, set[str]] = {}
    for name in store.names(OFFLINE):
        if folder := RUN_FOLDER.match(name):
            logged.setdefault(folder[1], set()).add(name)
    remove(store, logged, logged.keys() - finished)
    return {id: names for id, names in logged.items() if id in finished}


def remove(store: Store, logged: Mapping[str, set[str]], ids: Iterable[str]) -> None:
    """Remove what is `logged` of the runs `ids`: it is half of one, or what takes its place tells more."""
    for name in (name for id in ids for name in logged.get(id, ())):
        store.delete(name)
        if store.is_local:
            rmtree(Path(store.root) / RUN_FOLDER.match(name)[0], ignore_errors=True)  # type: ignore[index]
