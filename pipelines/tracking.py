"""Weights & Biases: a mirror of committed results, never the record. The only file that imports wandb.

One run a configuration, one group a sweep, and a run with the summary table. A configuration is logged once: its
marker in the store is written after its run is finished.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pipelines.store import Store
from pipelines.tables import Row


def log(
    store: Store,
    sweep: str,
    rows: Sequence[Row],
    specs: dict[str, dict],
    pictures: dict[str, bytes],
    folder: Path,
    project: str = "postdiff",
) -> int:
    """Log what is not logged yet; returns the number of runs made. Offline unless WANDB_MODE says otherwise.

    Args:
        specs: configuration id -> what it is, the run's config.
        pictures: name -> PNG, logged with the summary. folder: where W&B keeps its offline runs.
    """
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    done = store.names("wandb")
    made = 0

    def start(id: str, name: str, kind: str, config: dict):
        return wandb.init(
            project=project, group=sweep, id=f"{sweep}-{id}", name=name, job_type=kind, config=config, dir=str(folder)
        )

    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        if f"wandb/{row.configuration}.json" in done:
            continue
        run = start(row.configuration, row.label, "configuration", specs[row.configuration])
        run.summary.update(_numbers(row))
        run.finish()
        store.put(f"wandb/{row.configuration}.json", json.dumps({"run": run.id}).encode())
        made += 1
    if made:
        run = start("summary", f"{sweep} summary", "summary", {"configurations": len(rows)})
        table = [{"configuration": row.label, **_numbers(row)} for row in rows]
        columns = list(table[0])
        run.log(
            {"configurations": wandb.Table(columns=columns, data=[[line.get(c) for c in columns] for line in table])}
        )
        for name, png in pictures.items():
            file = folder / f"{name}.png"
            file.write_bytes(png)
            run.log({name: wandb.Image(str(file))})
        run.finish()
        made += 1
    return made


def _numbers(row: Row) -> dict[str, float]:
    numbers = {"steps": row.steps, "macs_paper": row.macs_paper, "flops": row.flops, "seconds": row.seconds}
    for name, interval in (("fid", row.fid), ("clip_score", row.clip)):
        if interval:
            numbers |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {**numbers, "n": row.clip.n}
