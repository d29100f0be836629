"""What jobs/bench_gpu.py measured, as Markdown: the paper's Tables 2 to 6 with its latencies beside, batches."""

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.gpu.speed import MADE_UP, OTHER_VAE
from pipelines.gpu.speed import tables as exhibits
from pipelines.paper.exhibit import Cell, Exhibit
from pipelines.report import tables

Result = Mapping[str, Any]  # a part's JSON

HEADER = ("setting", "s/image p50 (p90)", "denoise", "decode", "peak GiB", "speed-up", "of denoising", "FLOPs allow",
          "paper: s", "paper: speed-up")  # fmt: skip
LEGEND = f"""\
One image, noise to pixels, text encoded before; random weights. Speed-up: the model's dense plan at its most steps over
this one, median of the rounds; of denoising: without the autoencoder, which is what the FLOPs are of. DiTFastAttn runs
a made-up schedule ({MADE_UP} repeated: in full, reused, in a window), since a search needs weights; CA-ToMe
merges another share of random images than of real ones. –: not measured, not printed, or no cost without images."""


def heading(result: Result) -> str:
    """What ran where. A rehearsal says so."""
    where = f"{result['machine']}, {result['dtype']}, commit {result['commit']}"
    if not result["rehearsal"]:
        return where
    models = "thin random models" if result["settings"]["thin"] else "random models"
    return f"REHEARSAL ({models} on {result['settings']['device']}): no number is a GPU's or the paper's. {where}"


def latency(result: Result) -> str:
    """Tables 2 to 6, and SDXL with its other autoencoder. Of a plan that was not measured, dashes."""
    numbers, parts = result["numbers"], [f"# Latency\n\n{heading(result)}\n\n{LEGEND}\n"]
    for exhibit in exhibits(result["settings"]["thin"]):
        title = f"## Table {exhibit.key.removeprefix('table')}: {exhibit.title}{_rehearsal(result)}"
        parts.append(f"{title}\n\n{tables.markdown(HEADER, [_line(exhibit, cell, numbers) for cell in exhibit.cells])}")
    others = [[row["plan"], *_measured(row)] for key, row in numbers.items() if key.startswith(f"{OTHER_VAE} ")]
    if others:
        title = f"## SDXL with an autoencoder that decodes in half precision, not in the paper{_rehearsal(result)}"
        parts.append(f"{title}\n\n{tables.markdown(HEADER[:-2], others)}")
    return "\n".join(parts)


def batches(result: Result) -> str:
    header = ("model", "plan", "images", "images/s", "decoding", "peak GiB")
    lines = [
        [row["model"], row["plan"], str(row["batch"]), f"{row['images_per_s']:.2f}", f"{row['decode_share']:.0%}",
         _text(row["peak_gib"], ".1f")]
        for row in result["numbers"].values()
    ]  # fmt: skip
    table, notes = tables.markdown(header, lines, 2), "".join(f"{note}\n" for note in result["notes"])
    return f"# Batches\n\n{heading(result)}\n\n## Images a second{_rehearsal(result)}\n\n{table}\n{notes}"


def _line(exhibit: Exhibit, cell: Cell, numbers: Mapping[str, Any]) -> list[str]:
    first = exhibit.reference(cell.model)
    printed = [f"{cell.seconds:.3f} ({cell.gpu})" if cell.seconds else "–"]
    printed += [f"{first.seconds / cell.seconds:.2f}" if cell.seconds and first.seconds else "–"]
    return [exhibit.name(cell), *_measured(numbers.get(f"{cell.model} {cell.plan.id}", {})), *printed]


def _measured(row: Result) -> list[str]:
    seconds = f"{row['p50_s']:.3f} ({row['p90_s']:.3f})" if row else "–"
    shown = (("denoise_s", ".3f"), ("decode_s", ".3f"), ("peak_gib", ".2f"), ("speedup", ".2f"),
             ("denoise_speedup", ".2f"), ("flops_allow", ".2f"))  # fmt: skip
    return [seconds, *(_text(row.get(key), form) for key, form in shown)]


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _rehearsal(result: Result) -> str:
    return " (REHEARSAL)" if result["rehearsal"] else ""


TABLES: dict[str, Callable[[Result], str]] = {"latency": latency, "batch": batches}
