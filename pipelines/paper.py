"""An exhibit as text: what was measured beside what the paper printed, what is clear, and what the print gets wrong."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines import tables
from pipelines.exhibits import TUNED, Exhibit, Run
from pipelines.latency import Latency
from pipelines.tables import METRICS, Metric, Row
from postdiff.metrics import Interval, difference

TIMES = ("p50", "p90", "speedup", "denoise", "decode", "encode", "memory")  # of Latency: seconds, a ratio, GiB
ALIKE = 1e-3  # relative difference from which a counted cost is not the printed one: footnoted


@dataclass(frozen=True)
class Measured:
    """What is known of a run. macs: of the paper's own model under this plan, by the paper's rule, one image; None for
    a plan that was searched on another model."""

    row: Row
    macs: int | None
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
    return difference(own.interval(metric), [(1.0, first.interval(metric))], n)


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    lines: list[list[str]]
    footnotes: list[str]
    clear: str


def table(exhibit: Exhibit, results: Results) -> Table:
    """Text of every cell. A cell that the paper has not is a dash, one that cannot be read is `lost`, footnoted."""
    printed = {key: any(key in run.values for run in exhibit.runs) for key in ("tmacs", *METRICS)}
    header = ["setting", "T MACs", *(["paper"] if printed["tmacs"] else []), "GFLOPs here"]
    for metric in exhibit.metrics:
        header += [METRICS[metric], "change", *(["paper", "paper's change"] if printed[metric] else [])]
    header += ["s/image p50 (p90)", "speed-up", "FLOPs allow", "paper: s", "speed-up"] if exhibit.timed else []
    lines: list[list[str]] = []
    footnotes: list[str] = []
    for run in exhibit.runs:
        found, notes = of(results, run), list(run.notes)
        cost = [f"{found.macs / 1e12:.3f}" if found.macs else "–"]
        if found.macs is None:
            notes.append("its plan was searched on the model that ran here: of the paper's own it says nothing")
        cost += [_number(run, "tmacs", 3)] if printed["tmacs"] else []
        if found.macs and "tmacs" in run.values and abs(found.macs / 1e12 / run.values["tmacs"] - 1) > ALIKE:
            notes.append(f"the paper printed {run.values['tmacs']:.3f} T MACs, its method costs {cost[0]}")
        quality = []
        for metric in exhibit.metrics:
            quality += _quality(exhibit, results, run, metric, printed[metric])
        marks = [_mark(footnotes, note) for note in notes]
        label = exhibit.name(run) + (f" [{', '.join(marks)}]" if marks else "")
        lines.append([label, *cost, f"{found.row.flops / 1e9:.2f}", *quality, *_times(exhibit, results, run)])
    if any("–" in line for line in lines):
        footnotes.append("–: the row that changes are from, or what the paper does not print")
    return Table(tuple(header), lines, footnotes, clear(exhibit, results))


def _quality(exhibit: Exhibit, results: Results, run: Run, metric: Metric, printed: bool) -> list[str]:
    row = of(results, run).row
    if not tables.measured([row], metric):
        cells = ["no reference", "–"]
    else:
        moved = change(exhibit, results, run, metric)
        cells = [str(row.interval(metric)), f"{moved:+}" if moved else "–"]
    if printed:
        moved_there = printed_change(exhibit, run, metric)
        cells += [_number(run, metric, 2), "–" if moved_there is None else f"{moved_there:+.2f}"]
    return cells


def _times(exhibit: Exhibit, results: Results, run: Run) -> list[str]:
    if not exhibit.timed:
        return []
    first = exhibit.reference(run.model)
    took, allowed = of(results, run).latency, of(results, first).row.flops / of(results, run).row.flops
    here = [f"{took.p50:.3f} ({took.p90:.3f})", f"{took.speedup:.2f}"] if took else ["not timed", "–"]
    there = ["–", "–"]
    if run.seconds and first.seconds:
        there = [f"{run.seconds:.3f}", f"{first.seconds / run.seconds:.2f}"]
    return [*here, f"{allowed:.2f}", *there]


def _number(run: Run, key: str, digits: int) -> str:
    return f"{run.values[key]:.{digits}f}" if key in run.values else "lost"


def printed_change(exhibit: Exhibit, run: Run, metric: Metric) -> float | None:
    first = exhibit.reference(run.model)
    if run is first or metric not in run.values or metric not in first.values:
        return None
    return run.values[metric] - first.values[metric]


def _mark(footnotes: list[str], note: str) -> str:
    if note not in footnotes:
        footnotes.append(note)
    return str(footnotes.index(note) + 1)


def clear(exhibit: Exhibit, results: Results) -> str:
    """A sentence a metric: how many changes from the reference are clear, and go the paper's way; which are not."""
    parts = []
    since = "before fine-tuning" if any(model.endswith(TUNED) for model in exhibit.models) else "the model as it is"
    for metric in exhibit.metrics:
        changes = {run: change(exhibit, results, run, metric) for run in exhibit.runs}
        known = {run: moved for run, moved in changes.items() if moved}
        if not known:
            continue
        sure = {run: moved for run, moved in known.items() if moved.low > 0 or moved.high < 0}
        there = {run: printed_change(exhibit, run, metric) for run in sure}
        alike = [run for run, moved in sure.items() if (there[run] or 0) * moved.value > 0]
        against = [exhibit.name(run) for run, moved in sure.items() if (there[run] or 0) * moved.value < 0]
        text = f"{METRICS[metric]}: {len(sure)} of {len(known)} changes from {since} are clear"
        if any(there.values()):
            text += f", {len(alike)} of them in the paper's direction"
            text += f" (against it: {'; '.join(against)})" if against else ""
        open_ones = [exhibit.name(run) for run in known if run not in sure]
        parts.append(f"{text}. Not resolved: {'; '.join(open_ones) or 'none'}.")
    return " ".join(parts)


def to_csv(exhibit: Exhibit, results: Results, protocol: str) -> str:
    """Every number, full precision, a line a run. protocol: its name and fingerprint."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = [f"{metric}{part}" for metric in METRICS for part in ("", "_low", "_high")]
    changes = [f"{metric}_change{part}" for metric in METRICS for part in ("", "_low", "_high")]
    paper = ["paper_tmacs", "paper_fid", "paper_clip", "paper_seconds"]
    identity = ["exhibit", "label", "model", "curve", "plan", "configuration", "protocol", "n"]
    more = tables.further([of(results, run).row for run in exhibit.runs])
    prices = ["macs_paper_of_the_papers_model", "macs_paper", "flops"]
    writer.writerow([*identity, *prices, *measured, *changes, *TIMES, *paper, *more])
    for at, run in enumerate(exhibit.runs):
        found = of(results, run)
        row, took = found.row, found.latency
        who = [exhibit.key, run.label, run.model, run.curve, run.plan.id, row.configuration, protocol, row.clip.n]
        numbers = [row.fid, row.clip, change(exhibit, results, run, "fid"), change(exhibit, results, run, "clip")]
        cells = [f"{x:.5f}" if n else "" for n in numbers for x in ((n.value, n.low, n.high) if n else (0, 0, 0))]
        times = [getattr(took, name, None) for name in TIMES]
        printed = [*(run.values.get(key, "") for key in ("tmacs", "fid", "clip")), run.seconds or ""]
        others = [column[at] for column in more.values()]
        writer.writerow(
            [
                *who,
                found.macs or "",
                row.macs_paper,
                row.flops,
                *cells,
                *("" if x is None else f"{x:.5f}" for x in times),
                *printed,
                *others,
            ]
        )
    return out.getvalue()


def to_latex(caption: str, header: Sequence[str], lines: Sequence[Sequence[str]], footnotes: Sequence[str]) -> str:
    """A booktabs table; all text is data, and escaped."""
    rows = [" & ".join(map(escape_latex, line)) + r" \\" for line in lines]
    notes = [rf"\par {i}. {escape_latex(note)}" for i, note in enumerate(footnotes, 1)]
    body = [
        r"\begin{table}", r"\centering\small", rf"\caption{{{escape_latex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
        " & ".join(map(escape_latex, header)) + r" \\", r"\midrule", *rows, r"\bottomrule", r"\end{tabular}",
        *notes, r"\end{table}",
    ]  # fmt: skip
    return "\n".join(body) + "\n"


def escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    return re.sub(r"[\\~^–&%$#_{}]", lambda found: special.get(found[0], "\\" + found[0]), text)
