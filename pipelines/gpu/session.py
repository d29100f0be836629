"""The parts of jobs/bench_gpu.py one after the other, each with its share of the minutes, and what is kept of each."""

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from pipelines.engine import provenance
from pipelines.gpu import tables
from pipelines.gpu.runs import Budget, Outcome, Settings, reason

Part = Callable[[Settings, Budget], Outcome]
SHOWN = 8  # of what failed, in the last line


def about(settings: Settings, minutes: float) -> dict[str, Any]:
    """What the numbers are of: every JSON file says it."""
    return {
        "rehearsal": settings.rehearsal,
        "machine": provenance.machine(settings.device == "cuda"),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
        "commit": provenance.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {**asdict(settings), "minutes": minutes},
    }


def attempt(part: Part, settings: Settings, budget: Budget) -> Outcome:
    """Run a part. One that raises has failed, and says where."""
    try:
        return part(settings, budget)
    except Exception as error:  # the other parts are still worth their minutes
        return Outcome(failed={"all of it": reason(error)}, notes=[traceback.format_exc()])


def write(file: Path, text: str) -> None:
    """Whole or not at all."""
    part = file.with_name(f"{file.name}.tmp")
    part.write_text(text, "utf-8")
    os.replace(part, file)


def report(part: str, result: dict[str, Any], out: Path) -> None:
    """Print what a part found; its table goes to a file too."""
    rehearsal = "REHEARSAL, " if result["rehearsal"] else ""
    counts = ", ".join(f"{len(result[key])} {key.replace('_', ' ')}" for key in ("failed", "refused", "left_out"))
    print(f"\n{part}: {rehearsal}{len(result['numbers'])} measured, {counts}, {result['seconds']:.0f} s")
    for note in result["notes"]:
        print(f"  {note}")
    if part in tables.TABLES:
        table = tables.TABLES[part](result)
        write(out / f"{part}.md", table)
        print(f"\n{table}", flush=True)


def listed(items: list[str]) -> str:
    """The first few."""
    return "; ".join(items[:SHOWN]) + (f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def run(parts: Mapping[str, Part], chosen: Sequence[str], settings: Settings, minutes: float, out: Path) -> int:
    """All parts `chosen`, each with its share of the minutes that are left. Returns the exit status."""
    for library in (diffusers, transformers):  # a bar and a warning for every model and cast would hide what is found
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    budget, failed, left_out = Budget(60 * minutes), [], []
    for part, share in budget.shares(chosen):
        began = time.monotonic()
        outcome = attempt(parts[part], settings, share)
        result = {**about(settings, minutes), "part": part, "seconds": round(time.monotonic() - began, 1)}
        result |= asdict(outcome)
        write(out / f"{part}.json", json.dumps(result, indent=1))
        report(part, result, out)
        failed += [f"{part}: {key}: {why}" for key, why in outcome.failed.items()]
        left_out += [f"{part}: {key}" for key in outcome.left_out]
    if left_out:
        print(f"no time was left for {len(left_out)}: {listed(left_out)}")
    print(f"{len(failed)} failed: {listed(failed)}" if failed else f"nothing failed: {out}")
    return 1 if failed else 0
