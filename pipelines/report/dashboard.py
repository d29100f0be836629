"""From stores to a dashboard in W&B: what was logged, where the dashboard is kept, and that there is one of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from pipelines.engine import records
from pipelines.engine.identity import digest
from pipelines.engine.store import Store
from pipelines.engine.urls import below
from pipelines.report.runs import VERSION
from pipelines.report.tracking import RECORDS

Record = dict[str, Any]
KINDS = ("images", "timings", "features", "text", "scores", "failed", "lease", "wandb", "wandb-offline", RECORDS)
LINKS = "links-"  # what names of files begin with that say where a dashboard is


def check_installed() -> None:
    """Raise ValueError, naming the extra, if W&B's packages are not here."""
    if lacking := [name for name in ("wandb", "wandb_workspaces") if not find_spec(name)]:
        raise ValueError(f"dashboards need {' and '.join(lacking)}: pip install '.[pipelines,dashboard]'")


def with_those_below(urls: Sequence[str]) -> list[Store]:
    """The stores, each before those of its own that a job has put right below it (Table 6 and the galleries)."""
    stores = []
    for url in urls:
        store = Store(url)
        own = (Store(below(store.url, name)) for name in store.folders() if name not in KINDS)
        stores += [store, *(other for other in own if RECORDS in other.folders())]
    return stores


def read(store: Store) -> list[Record]:
    """What was logged from a store, the newest first. Raises ValueError if an older version of this code logged it."""
    names = [name for name in store.names(RECORDS) if not name.startswith(f"{RECORDS}/{LINKS}")]
    logged = [store.record(name) for name in sorted(names)]
    if old := [record["sweep"] for record in logged if record.get("version") != VERSION]:
        raise ValueError(
            f"{store.shown}: {', '.join(old)} was logged by another version of this code; run its job again, which "
            "makes no image twice"
        )
    return sorted(logged, key=lambda record: record["logged"], reverse=True)


def gather(stores: Sequence[Store]) -> list[Record]:
    """What was logged from the stores. Raises ValueError, naming them, if there is nothing."""
    logged = [record for store in stores for record in read(store)]
    if not logged:
        raise ValueError(
            f"nothing was logged for W&B in {', '.join(store.shown for store in stores)}: expected the store of a "
            "finished coco_sweep, reproduce, calibrate or compare; run that job again (it makes no image twice), "
            "without WANDB_MODE=disabled"
        )
    return logged


def publish(store: Store, logged: Sequence[Record], entity: str, project: str) -> list[str]:
    """Make the dashboard in W&B, or bring the one up to date that `store` knows of; returns its URLs, the report's
    first. Raises ValueError if W&B does not let us in."""
    from pipelines.report import tracking, workspaces

    server = tracking.find_project(entity, project)
    name = f"{RECORDS}/{LINKS}{digest([server, entity, project], 8)}.json"
    links: Record = store.record(name) if store.has(name) else {"report": "", "views": {}, "tables": {}}
    url = workspaces.save_report(logged, entity, project, links["report"])
    if not links["report"] and not store.commit(name, records.to_json({**links, "report": url}, name)):
        # Another call has made one in the same moment: theirs stays, or there were two.
        workspaces.remove_report(url)
        links = store.record(name)
        url = workspaces.save_report(logged, entity, project, links["report"])
    links = {**links, "report": url}
    for record in logged:
        if links["tables"].get(record["group"]) != record["grid"]:
            tracking.log_table(record, project, entity)
            links["tables"][record["group"]] = record["grid"]
        for key, view in workspaces.views(record, entity, project).items():
            links["views"][key] = workspaces.save_view(view, links["views"].get(key, ""))
        store.put(name, records.to_json(links, name))
    return [url, *links["views"].values()]
