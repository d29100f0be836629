"""The table of configurations, the fronts, and the sentence that answers the question."""

import csv
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import Literal

import numpy as np

from pipelines.metrics.statistics import Interval, difference, extrapolated, frechet_difference
from postdiff.terminal import one_line

FAMILIES = {
    "fewer steps": ("dense",),
    "mixed resolution": ("mixed_resolution",),
    "caching": ("caching", "deepcache+ca", "deepcache", "cross_attention_cache", "cfg_drop", "no_cfg"),
    "PostDiff": ("postdiff",),
    "others": (),  # the methods that the paper compares with, and your own
}

Metric = Literal["fid", "clip"]
METRICS: dict[Metric, str] = {"fid": "FID", "clip": "CLIP score"}
# Paired differences: FID's without its bias at this n, which does not cancel.
PAIRED: dict[Metric, Callable[[Interval, Sequence[tuple[float, Interval]], int], Interval]] = {
    "fid": frechet_difference,
    "clip": difference,
}
DISTANCES = ("kid", "cmmd", "precision", "recall")


@dataclass(frozen=True)
class Row:
    """One configuration, priced for one image and scored. `settings` is readable, e.g. 's=0.5 k=2 m=15'.

    more: DISTANCES of the features that FID is made of; empty without FID. CMMD is one only of CLIP's features.
    """

    configuration: str
    method: str
    settings: str
    steps: int
    macs_paper: int
    flops: int
    seconds: float
    fid: Interval | None
    clip: Interval
    more: dict[str, float] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return next((family for family, methods in FAMILIES.items() if self.method in methods), "others")

    def interval(self, metric: Metric) -> Interval:
        if metric == "clip":
            return self.clip
        if self.fid is None:
            raise ValueError(f"{self.label} has no FID: there were no reference images")
        return self.fid

    @property
    def label(self) -> str:
        return f"{self.method.replace('_', ' ')} T={self.steps} {self.settings}".strip()


def to_csv(rows: Sequence[Row], more: Mapping[str, Sequence[str]] | None = None) -> str:
    """One line a row. more: further columns, {name: a value a row}."""
    more = {**(more or {}), **further(rows)}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    metric_columns = [f"{name}{part}" for name in ("fid", "clip_score") for part in ("", "_low", "_high")]
    writer.writerow(
        ["configuration", "method", "settings", "steps", "macs_paper", "flops", "seconds", *metric_columns, "n", *more]
    )
    for i, row in enumerate(rows):
        numbers = [
            f"{x:.4f}" if interval else ""
            for interval in (row.fid, row.clip)
            for x in ((interval.value, interval.low, interval.high) if interval else (0, 0, 0))
        ]
        fixed = [row.configuration, row.method, row.settings, row.steps, row.macs_paper, row.flops]
        writer.writerow([*fixed, f"{row.seconds:.4f}", *numbers, row.clip.n, *(column[i] for column in more.values())])
    return out.getvalue()


def further(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Columns of a csv beside FID and CLIP score: FID extrapolated to ever more images, and DISTANCES."""
    ends = [extrapolated(row.fid) if row.fid else None for row in rows]
    columns = {
        f"fid_infinity{part}": [f"{value(end):.4f}" if end else "" for end in ends]
        for part, value in (("", attrgetter("value")), ("_low", attrgetter("low")), ("_high", attrgetter("high")))
    }
    return columns | {name: [f"{row.more[name]:.6f}" if name in row.more else "" for row in rows] for name in DISTANCES}


HEADER = (
    "configuration",
    "GFLOPs",
    "GMACs (paper)",
    "s/image",
    "FID",
    "gain",
    "CLIP score",
    "gain",
)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table of configurations as text, under HEADER. `gain`: over fewer steps at equal FLOPs, see `gains`."""
    over: dict[Metric, dict[str, Interval]] = {
        metric: gains(rows, metric) for metric in METRICS if measured(rows, metric)
    }
    lines = []
    for row in rows:
        line = [row.label, f"{row.flops / 1e9:.2f}", f"{row.macs_paper / 1e9:.2f}", f"{row.seconds:.3f}"]
        for metric in METRICS:
            gain = over.get(metric, {}).get(row.configuration)
            line += [str(row.interval(metric)) if metric in over else "no reference", f"{gain:+}" if gain else ""]
        lines.append(line)
    return lines


def measured(rows: Sequence[Row], metric: Metric) -> bool:
    return metric == "clip" or all(row.fid for row in rows)


def to_markdown(rows: Sequence[Row]) -> str:
    return markdown(HEADER, cells(rows))


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table. text_columns: how many are aligned to the left; the others hold numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    escaped = [[escape_markdown(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *escaped]) + "\n"


def escape_markdown(text: str) -> str:
    """`text` as it reads, on one line: names of folders and plans are data, and neither HTML nor links nor code."""
    marked = re.sub(r"[\\`*|]|\](?=[\[(:])|(?<!\w)_|_(?!\w)", r"\\\g<0>", one_line(text))
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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


def gains(rows: Sequence[Row], metric: Metric) -> dict[str, Interval]:
    """What each cheaper-step configuration gains over fewer steps at its own FLOPs, in units of the metric.

    {configuration: paired difference to the fewer-step rows, interpolated linearly in FLOPs}; below 0 is better for
    FID, above 0 for the CLIP score. Configurations outside the fewer-step rows' FLOPs are left out. The intervals hold
    for all of them at once: with twenty comparisons, one in two sweeps would else find a clear difference in noise.
    """
    dense = sorted((row for row in rows if row.method == "dense"), key=lambda r: r.flops)
    between = {
        row.configuration: (row, low, high)
        for low, high in pairwise(dense)
        for row in rows
        if row.method != "dense" and low.flops <= row.flops <= high.flops
    }
    found = {}
    for name, (row, low, high) in between.items():
        share = (row.flops - low.flops) / (high.flops - low.flops)
        parts = [(1 - share, low.interval(metric)), (share, high.interval(metric))]
        found[name] = PAIRED[metric](row.interval(metric), parts, len(between))
    return found


def clear(changes: Collection[Interval], metric: Metric) -> tuple[int, int]:
    """How many of them are clearly better, and clearly worse: their intervals leave out 0."""
    above, below = sum(change.low > 0 for change in changes), sum(change.high < 0 for change in changes)
    return (below, above) if metric == "fid" else (above, below)


CHEAPER, FEWER, OPEN = "cheaper steps", "fewer steps", "not resolved"


def verdict(better: int, worse: int, n: int) -> str:
    """In words, of `n` cheaper-step plans held against fewer steps. A few clear ones do not speak for all: a direction
    is called where those that go its way are a quarter of all, and outnumber the others."""
    if max(better, worse) < n / 4 or better == worse:
        return OPEN
    return CHEAPER if better > worse else FEWER


def more_steps(rows: Sequence[Row]) -> str:
    """A sentence: what the most steps change over the fewest, as paired differences."""
    dense = sorted((row for row in rows if row.method == "dense"), key=lambda r: r.steps)
    if len(dense) < 2:
        return ""
    few, many = dense[0], dense[-1]
    changes = [
        f"{name} by {PAIRED[metric](many.interval(metric), [(1.0, few.interval(metric))], 1):+}"
        for metric, name in METRICS.items()
        if measured(rows, metric)
    ]
    return (
        f"From {few.steps} to {many.steps} steps, nothing cached or shrunk, changes {' and '.join(changes)} (paired)."
    )


def answer(rows: Sequence[Row], model: str) -> str:
    """One plain sentence: fewer steps or cheaper steps, for this model, on this evidence."""
    parts = []
    for metric, name in METRICS.items():
        if not measured(rows, metric):
            continue
        compared = gains(rows, metric).values()
        if not compared:
            continue
        better, worse = clear(compared, metric)
        called = verdict(better, worse, len(compared))
        word = "neither wins clearly" if called == OPEN else f"{called} win"
        parts.append(
            f"{word} on {name} ({better} of {len(compared)} cheaper-step configurations are clearly better, "
            f"{worse} clearly worse)"
        )
    if not parts:
        if all(row.method == "dense" for row in rows):  # that alone was asked
            return f"{model}: {more_steps(rows)}"
        return f"{model}: nothing can be compared; the sweep needs fewer steps and cheaper steps at like FLOPs."
    n = rows[0].clip.n
    return f"At equal FLOPs, for {model}, {', and '.join(parts)}; paired 95 % intervals that hold together, n = {n}."
