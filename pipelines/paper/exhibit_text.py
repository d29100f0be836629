"""An exhibit as text: what was measured beside what the paper printed, and what the print gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.metrics.intervals import LEVEL, PAIRED, Interval, together
from pipelines.metrics.metric import METRICS, Metric
from pipelines.paper.exhibit import Cell, Exhibit
from pipelines.report import real_images, tables
from pipelines.report.real_images import Real
from pipelines.report.tables import Row
from pipelines.stages.latency import BLOCKS, STEADY, Latency

if TYPE_CHECKING:
    from postdiff.pricing import Cost

# Of Latency: seconds, a ratio, GiB, a number.
TIMES = ("p50", "p90", "speedup", "denoise", "decode", "encode", "memory", "blocks")
PRINTED = ("tmacs", "fid", "clip")  # what the paper prints of a cell: `tmacs`, its FLOPs, and metrics by key
# Relative differences of a counted cost from the printed one: below the first it is the same number, from the second on
# another one.
SAME, OTHER = 1e-4, 1e-3
SLOWER = 1.75  # a printed speed-up by which FLOPs allow more, or less, is told

LEGEND = (
    f"{LEVEL} T MACs: what the paper calls FLOPs (T), of the paper's own model, counted here by the paper's "
    "rule; GFLOPs here: of the model that was run, everything counted. FID is of this many images, and its interval "
    "says nothing of the bias that this brings. Change: from the model as it is, "
    f"{PAIRED}. FID's is without that bias, so it is not the difference of two cells."
)
MINI_LEGEND = (
    " Quality and seconds are of mini models on {}, the paper's of large models on photographs: only directions "
    "can be compared."
)


@dataclass(frozen=True)
class Measured:
    """What is known of a cell. there: the cost of one image of the paper's own model under this plan; None for a plan
    that was searched on another model."""

    row: Row
    there: Cost | None
    latency: Latency | None = None


Results = Mapping[tuple[str, str], Measured]  # (the paper's model, plan id)


def measured_of(results: Results, cell: Cell) -> Measured:
    return results[cell.model, cell.plan.id]


def changes(exhibit: Exhibit, results: Results, metric: Metric) -> dict[Cell, Interval]:
    """Paired differences from the reference cell of each cell's model, but of that itself and where nothing was
    measured. Their intervals hold all at once (max-t)."""
    differences = {}
    for cell in exhibit.cells:
        first, own = measured_of(results, exhibit.reference(cell.model)).row, measured_of(results, cell).row
        if own is not first and tables.measured([own, first], metric) and tables.judges(metric, own):
            differences[cell] = metric.difference(own.interval(metric), [(1.0, first.interval(metric))])
    return dict(zip(differences, together(list(differences.values())), strict=True))


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    lines: list[list[str]]
    footnotes: list[str]


def table(exhibit: Exhibit, results: Results, real: Real | None = None) -> Table:
    """Text of every cell; what a dash or a word stands for is a footnote. real: scores of the prompts' real images, the
    last line."""
    printed = {key: any(key in cell.values for cell in exhibit.cells) for key in PRINTED}
    header = ["setting", "T MACs", *(["paper"] if printed["tmacs"] else []), "GFLOPs here"]
    for metric in exhibit.metrics:
        beside = ["paper", "paper's change"] if printed.get(metric.key) else []
        header += [metric.title, f"{metric.title}: change", *beside]
    header += ["s/image p50 (p90)", "speed-up", "FLOPs allow", "paper: s", "paper: speed-up"] if exhibit.timed else []
    lines: list[list[str]] = []
    footnotes: list[str] = []
    moved = {metric.key: changes(exhibit, results, metric) for metric in exhibit.metrics}
    for cell in exhibit.cells:
        measured = measured_of(results, cell)
        cost = [f"{measured.there.macs_paper / 1e12:.3f}" if measured.there else "–"]
        cost += [_number(exhibit, cell, "tmacs", 3)] if printed["tmacs"] else []
        quality = []
        for metric in exhibit.metrics:
            own = moved[metric.key].get(cell)
            quality += _quality(exhibit, results, cell, metric, own, printed.get(metric.key, False))
        marks = [
            _mark(footnotes, note)
            for note in (*cell.notes, *_cost_notes(cell, measured), *_speed_notes(exhibit, results, cell))
        ]
        label = exhibit.name(cell) + (f" [{', '.join(marks)}]" if marks else "")
        lines.append([label, *cost, f"{measured.row.flops / 1e9:.2f}", *quality, *_times(exhibit, results, cell)])
    if real:
        scores = {metric.title: real_images.text(real, metric) for metric in exhibit.metrics}
        lines.append([real_images.LABEL, *(scores.get(name, real_images.NOT_DRAWN) for name in header[1:])])
        footnotes.append(real_images.MEANING)
    if printed["tmacs"]:
        footnotes.append(_attention_note(exhibit, results))
    footnotes += _unsteady(exhibit, results)
    footnotes += [text for cell, text in CELLS.items() if any(cell in line for line in lines)]
    return Table(tuple(header), lines, footnotes)


CELLS = {  # words in cells, and what they stand for
    "–": "–: the row that changes are from, what the paper does not print, a change from or to what is lost of it, or "
    "the paper's own model under a plan that was searched on another",
    "lost": "lost: cannot be read in the print",
    "no reference": "no reference: FID needs reference images (--reference)",
    "not timed": "not timed: --rounds 0",
}


def _cost_notes(cell: Cell, measured: Measured) -> list[str]:
    """What to say of a cost beside the printed one."""
    if measured.there is None:
        return ["its plan was searched on the model that ran here: of the paper's own it says nothing"]
    counted, printed = measured.there.macs_paper / 1e12, cell.values.get("tmacs", 0.0)
    gap = abs(counted / printed - 1) if printed else 0.0
    if gap <= SAME:
        return []
    if gap <= OTHER:
        return [f"the paper's count of {cell.model} is {gap:.2%} off ours: the same passes, counted otherwise"]
    note = f"the paper printed {printed:.3f} T MACs, its method costs {counted:.3f}"
    if abs(measured.there.macs_printed / 1e12 / printed - 1) <= OTHER:
        note += " (the print takes the cross-attention of the whole net off steps that run a part of it)"
    return [note]


def _speed_notes(exhibit: Exhibit, results: Results, cell: Cell) -> list[str]:
    """What to say of a printed speed-up that is far from what the FLOPs of the paper's own model allow."""
    first = exhibit.reference(cell.model)
    own, whole = measured_of(results, cell).there, measured_of(results, first).there
    if not (exhibit.timed and own and whole and cell.seconds and first.seconds):
        return []
    printed, allowed = first.seconds / cell.seconds, whole.flops / own.flops
    if 1 / SLOWER < allowed / printed < SLOWER:
        return []
    return [
        f"the paper's speed-up is {printed:.2f}, where the FLOPs of its method with these settings allow {allowed:.2f}"
    ]


def _attention_note(exhibit: Exhibit, results: Results) -> str:
    dense = {model: measured_of(results, exhibit.reference(model)).there for model in exhibit.models}
    ratios = [f"{cost.flops / cost.macs_paper:.1f} times ({model})" for model, cost in dense.items() if cost]
    return (
        "the paper's FLOPs are multiply-accumulates without attention products; FLOPs with attention, two a MAC, are "
        + ", ".join(ratios)
        + " as many"
    )


def _quality(
    exhibit: Exhibit, results: Results, cell: Cell, metric: Metric, moved: Interval | None, printed: bool
) -> list[str]:
    row = measured_of(results, cell).row
    if not tables.measured([row], metric):
        cells = ["no reference", "–"]
    else:
        cells = [metric.text(row.interval(metric)), metric.text(moved, "+") if moved else "–"]
    if printed:
        moved_there = printed_change(exhibit, cell, metric)
        cells += [_number(exhibit, cell, metric.key, 2), "–" if moved_there is None else f"{moved_there:+.2f}"]
    return cells


def _times(exhibit: Exhibit, results: Results, cell: Cell) -> list[str]:
    if not exhibit.timed:
        return []
    first = exhibit.reference(cell.model)
    own, whole = measured_of(results, cell), measured_of(results, first)
    took, allowed = own.latency, whole.row.flops / own.row.flops
    here = [f"{took.p50:.3f} ({took.p90:.3f})", f"{took.speedup:.2f}"] if took else ["not timed", "–"]
    paper = ["–", "–"]
    if cell.seconds and first.seconds:
        paper = [f"{cell.seconds:.3f} ({cell.gpu})", f"{first.seconds / cell.seconds:.2f}"]
    return [*here, f"{allowed:.2f}", *paper]


def _unsteady(exhibit: Exhibit, results: Results) -> list[str]:
    """A footnote where seconds of a timed exhibit vary more than they should, however often they were timed."""
    times = {exhibit.name(cell): measured_of(results, cell).latency for cell in exhibit.cells} if exhibit.timed else {}
    loose = [name for name, took in times.items() if took and not took.steady]
    if not loose:
        return []
    return [
        f"seconds of {'; '.join(loose)} vary: their p90 is more than {STEADY:g} times their p50 in each of {BLOCKS} "
        "blocks of rounds"
    ]


def _number(exhibit: Exhibit, cell: Cell, key: str, digits: int) -> str:
    if key in cell.values:
        return f"{cell.values[key]:.{digits}f}"
    return "lost" if exhibit.is_table else "–"  # of a figure, what a table has of the same plan


def printed_change(exhibit: Exhibit, cell: Cell, metric: Metric) -> float | None:
    first = exhibit.reference(cell.model)
    if cell is first or metric.key not in cell.values or metric.key not in first.values:
        return None
    return cell.values[metric.key] - first.values[metric.key]


def _mark(footnotes: list[str], note: str) -> str:
    if note not in footnotes:
        footnotes.append(note)
    return str(footnotes.index(note) + 1)


def to_csv(exhibit: Exhibit, results: Results, protocol: str, real: Real | None = None) -> str:
    """Every number, full precision, a line a cell, and one of real images. protocol: its name and fingerprint."""
    cells = exhibit.cells
    measured = [measured_of(results, cell) for cell in cells]
    rows, theirs, times = [m.row for m in measured], [m.there for m in measured], [m.latency for m in measured]
    columns: dict[str, Sequence] = {
        "exhibit": [exhibit.key for _ in cells],
        **{name: [getattr(cell, name) for cell in cells] for name in ("label", "model", "curve")},
        "plan": [cell.plan.id for cell in cells],
        "configuration": [row.configuration for row in rows],
        "protocol": [protocol for _ in cells],
        "n": [row.n for row in rows],
        "macs_paper_of_the_papers_model": [cost.macs_paper if cost else "" for cost in theirs],
        "flops_of_the_papers_model": [cost.flops if cost else "" for cost in theirs],
        **{name: [getattr(row, name) for row in rows] for name in ("macs_paper", "flops")},
    }
    for metric in tables.columns(rows):
        scores = [row.scores.get(metric.key) for row in rows]
        columns |= tables.interval_columns(metric.key, scores, metric.digits + 3)
    for metric in tables.columns(rows):
        moved = changes(exhibit, results, metric)
        own = [moved.get(cell) for cell in cells]
        columns |= tables.interval_columns(f"{metric.key}_change", own, metric.digits + 3)
    columns |= {name: [_digits(getattr(took, name, None)) for took in times] for name in TIMES}
    columns |= {f"paper_{key}": [cell.values.get(key, "") for cell in cells] for key in PRINTED}
    columns |= {"paper_seconds": [cell.seconds or "" for cell in cells], "paper_gpu": [cell.gpu for cell in cells]}
    for key in PRINTED[1:]:
        known = [(row.scores.get(key), cell.values.get(key)) for row, cell in zip(rows, cells, strict=True)]
        gaps = [None if here is None or paper is None else here.value - paper for here, paper in known]
        columns[f"{key}_less_paper"] = list(map(_digits, gaps))
    names = {key: key if metric.shown else metric.column for key, metric in METRICS.items()}
    return tables.csv_of(real_images.with_line({**columns, **tables.further(rows)}, real, names))


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
