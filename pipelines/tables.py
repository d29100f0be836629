"""The table of configurations, the fronts, and the sentence that answers the question."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from postdiff.metrics import Interval

FAMILIES = {
    "fewer steps": ("dense",),
    "mixed resolution": ("mixed_resolution",),
    "caching": ("caching", "deepcache", "cross_attention_cache", "cfg_drop", "no_cfg"),
    "PostDiff": ("postdiff",),
}

Metric = Literal["fid", "clip"]


@dataclass(frozen=True)
class Row:
    """One configuration, priced for one image and scored. `settings` is readable, e.g. 's=0.5 k=2 m=15'."""

    configuration: str
    method: str
    settings: str
    steps: int
    macs_paper: int
    flops: int
    seconds: float
    fid: Interval | None
    clip: Interval

    @property
    def family(self) -> str:
        return next(family for family, methods in FAMILIES.items() if self.method in methods)

    def interval(self, metric: Metric) -> Interval:
        if metric == "clip":
            return self.clip
        if self.fid is None:
            raise ValueError(f"{self.label} has no FID: there were no reference images")
        return self.fid

    @property
    def label(self) -> str:
        return f"{self.method.replace('_', ' ')} T={self.steps} {self.settings}".strip()


def to_csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    metric_columns = [f"{name}{part}" for name in ("fid", "clip_score") for part in ("", "_low", "_high")]
    writer.writerow(
        ["configuration", "method", "settings", "steps", "macs_paper", "flops", "seconds", *metric_columns, "n"]
    )
    for row in rows:
        numbers = [
            f"{x:.4f}" if interval else ""
            for interval in (row.fid, row.clip)
            for x in ((interval.value, interval.low, interval.high) if interval else (0, 0, 0))
        ]
        fixed = [row.configuration, row.method, row.settings, row.steps, row.macs_paper, row.flops]
        writer.writerow([*fixed, f"{row.seconds:.4f}", *numbers, row.clip.n])
    return out.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| configuration | GFLOPs | MACs (paper rule, G) | s/image | FID | CLIP score |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        fid = str(row.fid) if row.fid else "no reference"
        cost = f"{row.flops / 1e9:.2f} | {row.macs_paper / 1e9:.2f} | {row.seconds:.3f}"
        lines.append(f"| {row.label} | {cost} | {fid} | {row.clip} |")
    return "\n".join(lines) + "\n"


def front(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """The rows that no cheaper row equals or betters, by rising FLOPs."""
    best, kept = -np.inf, []
    for row in sorted(rows, key=lambda r: (r.flops, -quality(r, metric))):
        if quality(row, metric) > best:
            best = quality(row, metric)
            kept.append(row)
    return kept


def quality(row: Row, metric: Metric) -> float:
    """Higher is better."""
    value = row.interval(metric).value
    return -value if metric == "fid" else value


@dataclass(frozen=True)
class Verdict:
    """Cheaper steps against fewer steps at equal FLOPs, for one metric."""

    compared: int  # cheaper-step configurations whose FLOPs lie within those of the fewer-step ones
    wins: int  # of them, better than the fewer-step curve at the same FLOPs
    clear_wins: int  # of them, by more than the interval
    clear_losses: int


def verdict(rows: Sequence[Row], metric: Metric) -> Verdict:
    """Compare each cheaper-step row with the fewer-step rows, interpolated linearly in FLOPs."""
    dense = sorted((row for row in rows if row.method == "dense"), key=lambda r: r.flops)
    flops = [row.flops for row in dense]
    others = [row for row in rows if row.method != "dense" and flops[0] <= row.flops <= flops[-1]]
    wins = clear_wins = clear_losses = 0
    for row in others:
        gain = quality(row, metric) - float(np.interp(row.flops, flops, [quality(r, metric) for r in dense]))
        interval = row.interval(metric)
        half = (interval.high - interval.low) / 2
        nearest = min(dense, key=lambda r: abs(r.flops - row.flops))
        other = nearest.interval(metric)
        margin = float(np.hypot(half, (other.high - other.low) / 2))
        wins += gain > 0
        clear_wins += gain > margin
        clear_losses += gain < -margin
    return Verdict(len(others), wins, clear_wins, clear_losses)


def answer(rows: Sequence[Row], model: str) -> str:
    """One plain sentence: fewer steps or cheaper steps, for this model, on this evidence."""
    if not any(row.method == "dense" for row in rows) or all(row.method == "dense" for row in rows):
        return f"{model}: nothing to compare; the sweep needs both fewer steps and cheaper steps."
    parts = []
    names: dict[Metric, str] = {"fid": "FID", "clip": "CLIP score"}
    for metric, name in names.items():
        if metric == "fid" and any(row.fid is None for row in rows):
            continue
        v = verdict(rows, metric)
        if not v.compared:
            continue
        word = "cheaper steps" if v.wins > v.compared / 2 else "fewer steps" if v.wins < v.compared / 2 else "neither"
        clear = f"{v.clear_wins} clearly so, {v.clear_losses} clearly worse"
        parts.append(f"by {word} on {name} ({v.wins} of {v.compared} cheaper-step configurations are better, {clear})")
    if not parts:
        return f"{model}: no cheaper-step configuration has the FLOPs of a fewer-step one, so nothing can be compared."
    return f"At equal FLOPs, {model} is better served {' and '.join(parts)}, n = {rows[0].clip.n} images each."
