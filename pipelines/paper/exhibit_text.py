"""An exhibit as text: what was measured beside what the paper printed, and what the print gets wrong."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.metrics.statistics import Interval
from pipelines.paper.exhibit import Exhibit, Run
from pipelines.report import tables
from pipelines.report.tables import METRICS, Metric, Row
from pipelines.stages.latency import Latency

if TYPE_CHECKING:
    from postdiff.pricing import Cost

TIMES = ("p50", "p90", "speedup", "denoise", "decode", "encode", "memory")  # of Latency: seconds, a ratio, GiB
# Relative differences of a counted cost from the printed one: below the first it is the same number, from the second on
# another one.
SAME, OTHER = 1e-4, 1e-3

LEGEND = (
    "Intervals are 95 %. T MACs: what the paper calls FLOPs (T), of the paper's own model, counted here by the paper's "
    "rule; GFLOPs here: of the model that was run, everything counted. FID is of this many images, and its interval "
    "says nothing of the bias that this brings. Change: from the model as it is, paired image by image, FID's without "
    "that bias, so it is not the difference of two cells; intervals of a column hold all at once (Bonferroni)."
)
MINI_LEGEND = (
    " Quality and seconds are of mini models on Shapes, the paper's of large models on photographs: only directions "
    "can be compared."
)


@dataclass(frozen=True)
class Measured:
    """What is known of a run. there: the cost of one image of the paper's own model under this plan; None for a plan
    that was searched on another model."""

    row: Row
    there: Cost | None
    latency: Latency | None = None


Results = Mapping[tuple[str, str], Measured]  # (the paper's model, plan id)


def of(results: Results, run: Run) -> Measured:
    return results[run.model, run.plan.id]


def change(exhibit: Exhibit, results: Results, run: Run, metric: Metric) -> Interval | None:
    """Paired difference from the model's reference run; None for that itself, and where nothing was measured. A
    table's intervals of one metric hold all at once (Bonferroni)."""
    first, own = of(results, exhibit.reference(run.model)).row, of(results, run).row
    if own is first or not tables.measured([own, first], metric):
        return None
    n = sum(of(results, r).row is not of(results, exhibit.reference(r.model)).row for r in exhibit.runs)
    return tables.PAIRED[metric](own.interval(metric), [(1.0, first.interval(metric))], n)


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    lines: list[list[str]]
    footnotes: list[str]


def table(exhibit: Exhibit, results: Results) -> Table:
    """Text of every cell; what a dash or a word stands for is a footnote."""
    printed = {key: any(key in run.values for run in exhibit.runs) for key in ("tmacs", *METRICS)}
    header = ["setting", "T MACs", *(["paper"] if printed["tmacs"] else []), "GFLOPs here"]
    for metric in exhibit.metrics:
        name = METRICS[metric]
        header += [name, f"{name}: change", *(["paper", "paper's change"] if printed[metric] else [])]
    header += ["s/image p50 (p90)", "speed-up", "FLOPs allow", "paper: s", "paper: speed-up"] if exhibit.timed else []
    lines: list[list[str]] = []
    footnotes: list[str] = []
    for run in exhibit.runs:
        found = of(results, run)
        cost = [f"{found.there.macs_paper / 1e12:.3f}" if found.there else "–"]
        cost += [_number(exhibit, run, "tmacs", 3)] if printed["tmacs"] else []
        quality = []
        for metric in exhibit.metrics:
            quality += _quality(exhibit, results, run, metric, printed[metric])
        marks = [_mark(footnotes, note) for note in (*run.notes, *_cost_notes(run, found))]
        label = exhibit.name(run) + (f" [{', '.join(marks)}]" if marks else "")
        lines.append([label, *cost, f"{found.row.flops / 1e9:.2f}", *quality, *_times(exhibit, results, run)])
    if printed["tmacs"]:
        footnotes.append(_attention_note(exhibit, results))
    footnotes += [text for cell, text in CELLS.items() if any(cell in line for line in lines)]
    return Table(tuple(header), lines, footnotes)


CELLS = {  # words in cells, and what they stand for
    "–": "–: the row that changes are from, what the paper does not print, a change from or to what is lost of it, or "
    "the paper's own model under a plan that was searched on another",
    "lost": "lost: cannot be read in the print",
    "no reference": "no reference: FID needs reference images (--reference)",
    "not timed": "not timed: --rounds 0",
}


def _cost_notes(run: Run, found: Measured) -> list[str]:
    """What to say of a cost beside the printed one."""
    if found.there is None:
        return ["its plan was searched on the model that ran here: of the paper's own it says nothing"]
    counted, printed = found.there.macs_paper / 1e12, run.values.get("tmacs", 0.0)
    gap = abs(counted / printed - 1) if printed else 0.0
    if gap <= SAME:
        return []
    if gap <= OTHER:
        return [f"the paper's count of {run.model} is {gap:.2%} off ours: the same passes, counted otherwise"]
    note = f"the paper printed {printed:.3f} T MACs, its method costs {counted:.3f}"
    if abs(found.there.macs_printed / 1e12 / printed - 1) <= OTHER:
        note += " (the print takes the cross-attention of the whole net off steps that run a part of it)"
    return [note]


def _attention_note(exhibit: Exhibit, results: Results) -> str:
    dense = {model: of(results, exhibit.reference(model)).there for model in exhibit.models}
    ratios = [f"{cost.flops / cost.macs_paper:.1f} times ({model})" for model, cost in dense.items() if cost]
    return (
        "the paper's FLOPs are multiply-accumulates without attention products; FLOPs with attention, two a MAC, are "
        + ", ".join(ratios)
        + " as many"
    )


def _quality(exhibit: Exhibit, results: Results, run: Run, metric: Metric, printed: bool) -> list[str]:
    row = of(results, run).row
    if not tables.measured([row], metric):
        cells = ["no reference", "–"]
    else:
        moved = change(exhibit, results, run, metric)
        cells = [str(row.interval(metric)), f"{moved:+}" if moved else "–"]
    if printed:
        moved_there = printed_change(exhibit, run, metric)
        cells += [_number(exhibit, run, metric, 2), "–" if moved_there is None else f"{moved_there:+.2f}"]
    return cells


def _times(exhibit: Exhibit, results: Results, run: Run) -> list[str]:
    if not exhibit.timed:
        return []
    first = exhibit.reference(run.model)
    took, allowed = of(results, run).latency, of(results, first).row.flops / of(results, run).row.flops
    here = [f"{took.p50:.3f} ({took.p90:.3f})", f"{took.speedup:.2f}"] if took else ["not timed", "–"]
    there = ["–", "–"]
    if run.seconds and first.seconds:
        there = [f"{run.seconds:.3f} ({run.gpu})", f"{first.seconds / run.seconds:.2f}"]
    return [*here, f"{allowed:.2f}", *there]


def _number(exhibit: Exhibit, run: Run, key: str, digits: int) -> str:
    if key in run.values:
        return f"{run.values[key]:.{digits}f}"
    return "lost" if exhibit.is_table else "–"  # of a figure, what a table has of the same plan


def printed_change(exhibit: Exhibit, run: Run, metric: Metric) -> float | None:
    first = exhibit.reference(run.model)
    if run is first or metric not in run.values or metric not in first.values:
        return None
    return run.values[metric] - first.values[metric]


def _mark(footnotes: list[str], note: str) -> str:
    if note not in footnotes:
        footnotes.append(note)
    return str(footnotes.index(note) + 1)


def to_csv(exhibit: Exhibit, results: Results, protocol: str) -> str:
    """Every number, full precision, a line a run. protocol: its name and fingerprint."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = [f"{metric}{part}" for metric in METRICS for part in ("", "_low", "_high")]
    changes = [f"{metric}_change{part}" for metric in METRICS for part in ("", "_low", "_high")]
    paper = [f"paper_{name}" for name in ("tmacs", "fid", "clip", "seconds", "gpu")]
    paper += ["fid_less_paper", "clip_less_paper"]
    identity = ["exhibit", "label", "model", "curve", "plan", "configuration", "protocol", "n"]
    more = tables.further([of(results, run).row for run in exhibit.runs])
    prices = ["macs_paper_of_the_papers_model", "flops_of_the_papers_model", "macs_paper", "flops"]
    writer.writerow([*identity, *prices, *measured, *changes, *TIMES, *paper, *more])
    for at, run in enumerate(exhibit.runs):
        found = of(results, run)
        row, took = found.row, found.latency
        who = [exhibit.key, run.label, run.model, run.curve, run.plan.id, row.configuration, protocol, row.clip.n]
        numbers = [row.fid, row.clip, change(exhibit, results, run, "fid"), change(exhibit, results, run, "clip")]
        cells = [f"{x:.5f}" if n else "" for n in numbers for x in ((n.value, n.low, n.high) if n else (0, 0, 0))]
        times = [getattr(took, name, None) for name in TIMES]
        printed = [*(run.values.get(key, "") for key in ("tmacs", "fid", "clip")), run.seconds or "", run.gpu]
        printed += [
            f"{n.value - run.values[key]:.5f}" if n and key in run.values else ""
            for key, n in (("fid", row.fid), ("clip", row.clip))
        ]
        others = [column[at] for column in more.values()]
        writer.writerow(
            [
                *who,
                found.there.macs_paper if found.there else "",
                found.there.flops if found.there else "",
                row.macs_paper,
                row.flops,
                *cells,
                *("" if x is None else f"{x:.5f}" for x in times),
                *printed,
                *others,
            ]
        )
    return out.getvalue()


def to_latex(
    caption: str, header: Sequence[str], lines: Sequence[Sequence[str]], footnotes: Sequence[str], picture: str = ""
) -> str:
    """A booktabs table as wide as the page (packages booktabs, graphicx), after `picture`, a file. All text is data,
    and escaped. caption: without the exhibit's number, which LaTeX gives."""
    rows = [" & ".join(map(escape_latex, line)) + r" \\" for line in lines]
    notes = [rf"\par {i}. {escape_latex(note)}" for i, note in enumerate(footnotes, 1)]
    shown = [r"\begin{figure}", r"\centering", rf"\includegraphics[width=\textwidth]{{{picture}}}",
             rf"\caption{{{escape_latex(caption)}}}", r"\end{figure}"]  # fmt: skip
    body = [
        *(shown if picture else []),
        r"\begin{table}", r"\centering\small", rf"\caption{{{escape_latex(caption)}}}",
        r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
        " & ".join(map(escape_latex, header)) + r" \\", r"\midrule", *rows, r"\bottomrule", r"\end{tabular}}",
        *notes, r"\end{table}",
    ]  # fmt: skip
    return "\n".join(body) + "\n"


def escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    return re.sub(r"[\\~^–&%$#_{}]", lambda found: special.get(found[0], "\\" + found[0]), text)
