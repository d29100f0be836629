"""The table of configurations, the fronts, and the sentence that answers the question."""

import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipelines.metrics.intervals import FEWEST_GROUPS, Interval, column_names, together
from pipelines.metrics.metric import METRICS, Metric, shown
from postdiff.terminal import one_line

FAMILIES = {
    "fewer steps": ("dense",),
    "mixed resolution": ("mixed_resolution",),
    "caching": ("caching", "deepcache+ca", "deepcache", "cross_attention_cache", "cfg_drop", "no_cfg"),
    "PostDiff": ("postdiff",),
    "others": (),  # the methods that the paper compares with, and your own
}


@dataclass(frozen=True)
class Row:
    """One configuration, priced for one image and scored. `settings` is readable, e.g. 's=0.5 k=2 m=15'.

    scores: {key of a metric: its interval}, of the metrics that could be measured. redraws: it changes resolution while
    sampling, where fresh noise is drawn: its image is another one, which no paired metric can judge.
    """

    configuration: str
    method: str
    settings: str
    steps: int
    macs_paper: int
    flops: int
    seconds: float
    scores: Mapping[str, Interval]
    redraws: bool = False

    @property
    def family(self) -> str:
        return next((family for family, methods in FAMILIES.items() if self.method in methods), "others")

    @property
    def n(self) -> int:
        """Images that it was scored on."""
        return max(interval.n for interval in self.scores.values())

    def interval(self, metric: Metric) -> Interval:
        """Raises ValueError if it was not measured."""
        if metric.key not in self.scores:
            raise ValueError(f"{self.label} has no {metric.title}: it was not measured")
        return self.scores[metric.key]

    @property
    def label(self) -> str:
        return name(self.method, self.steps, self.settings)

    @property
    def word(self) -> str:
        """What a chart writes beside its point."""
        return f"T={self.steps}" if self.method == "dense" else self.settings or self.method.replace("_", " ")


def name(method: str, steps: int, settings: str) -> str:
    """A configuration as tables print it, e.g. 'mixed resolution T=20 s=0.5'."""
    return f"{method.replace('_', ' ')} T={steps} {settings}".strip()


def csv_columns(rows: Sequence[Row], more: Mapping[str, Sequence[str]] | None = None) -> dict[str, Sequence]:
    """Of a csv with a line a row, {name: a cell a line}. more: further columns, likewise."""
    facts = ("configuration", "method", "settings", "steps", "macs_paper", "flops")
    named: dict[str, Sequence] = {fact: [getattr(row, fact) for row in rows] for fact in facts}
    named["seconds"] = [f"{row.seconds:.4f}" for row in rows]
    for metric in columns(rows):
        named |= interval_columns(metric.column, [row.scores.get(metric.key) for row in rows], metric.digits + 2)
    return {**named, "n": [row.n for row in rows], **(more or {}), **further(rows)}


def csv_of(columns: Mapping[str, Sequence]) -> str:
    """{name: a cell a line} as csv."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *zip(*columns.values(), strict=True)])
    return out.getvalue()


def interval_columns(prefix: str, intervals: Sequence[Interval | None], digits: int) -> dict[str, list[str]]:
    """Columns of numbers and their bounds, empty where there is none."""
    cells = [interval.columns(prefix) if interval else {} for interval in intervals]
    return {name: [f"{cell[name]:.{digits}f}" if cell else "" for cell in cells] for name in column_names(prefix)}


def further(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Columns of a csv beside what tables show: that without its bias at this n, and the other metrics' values."""
    named: dict[str, list[str]] = {}
    for metric in columns(rows):
        if metric.biased:
            scores = [row.scores.get(metric.key) for row in rows]
            ends = [metric.unbiased(score) if score else None for score in scores]
            named |= interval_columns(f"{metric.column}_infinity", ends, metric.digits + 2)
    for metric in METRICS.values():
        if not metric.shown and (not metric.only_where_measured or measured(rows, metric)):
            scores = [row.scores.get(metric.key) for row in rows]
            named[metric.column] = [f"{score.value:.{metric.digits + 2}f}" if score else "" for score in scores]
    return named


def columns(rows: Sequence[Row]) -> list[Metric]:
    """The metrics that a table of `rows` has a column of."""
    return [metric for metric in shown() if not metric.only_where_measured or measured(rows, metric)]


def header(rows: Sequence[Row]) -> list[str]:
    """Of `cells`."""
    quality = [title for metric in columns(rows) for title in (metric.title, f"{metric.title}: gain")]
    return ["configuration", "GFLOPs", "GMACs (paper)", "s/image", *quality]


BASELINE, ALONE, REDRAWN, UNMEASURED = "baseline", "no equal cost", "another image", "no reference"
CELLS = {  # words in the place of numbers, and what they stand for
    BASELINE: "fewer steps are what gains are over",
    ALONE: "it costs less than the fewest steps, or more than the most, that were run: there is nothing of equal cost",
    REDRAWN: "it draws other noise where it changes resolution, and so another image, which this metric cannot judge",
    UNMEASURED: "FID needs reference images (--reference)",
}


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table of configurations as text, under `header`. `gain`: over fewer steps at equal FLOPs, see `gains`; where
    there is none, a word of CELLS says why."""
    over = {metric.key: gains(rows, metric) for metric in comparable(rows)}
    lines = []
    for row in rows:
        line = [row.label, f"{row.flops / 1e9:.2f}", f"{row.macs_paper / 1e9:.2f}", f"{row.seconds:.3f}"]
        for metric in columns(rows):
            gain = over.get(metric.key, {}).get(row.configuration)
            value = metric.text(row.interval(metric)) if metric.key in over else UNMEASURED
            line += [value, metric.text(gain, "+") if gain else why_no_gain(row, metric)]
        lines.append(line)
    return lines


def why_no_gain(row: Row, metric: Metric) -> str:
    """The word of CELLS for a row that has none, of those that `gains` leaves out."""
    if metric.key not in row.scores:
        return UNMEASURED
    if row.method == "dense":
        return BASELINE
    return ALONE if judges(metric, row) else REDRAWN


def words(lines: Sequence[Sequence[str]]) -> str:
    """Sentences: what the words of CELLS that stand in a table's `lines` mean."""
    used = {cell for line in lines for cell in line}
    return " ".join(f"“{word}”: {meaning}." for word, meaning in CELLS.items() if word in used)


def judges(metric: Metric, row: Row) -> bool:
    """Whether `metric` can rank `row` among others."""
    return not (metric.is_paired and row.redraws)


def measured(rows: Sequence[Row], metric: Metric) -> bool:
    return all(metric.key in row.scores for row in rows)


def comparable(rows: Sequence[Row]) -> list[Metric]:
    """Of the metrics that tables show, those that all `rows` have."""
    return [metric for metric in shown() if measured(rows, metric)]


def directions(metrics: Sequence[Metric]) -> str:
    """A sentence: which way is better, by each of the metrics."""
    parts = []
    for metric in metrics:
        title = f"the {metric.title}" if " " in metric.title else metric.title
        parts.append(f"{title} {'when lower' if metric.lower_is_better else 'when higher'}")
    return ", ".join(parts).replace(" when", " is better when", 1) + "."


def to_markdown(rows: Sequence[Row]) -> str:
    return markdown(header(rows), cells(rows))


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
    best, on_front = -np.inf, []
    for row in sorted((row for row in rows if judges(metric, row)), key=lambda r: (r.flops, -quality(r, metric))):
        if quality(row, metric) > best:
            best = quality(row, metric)
            on_front.append(row)
    return on_front


def quality(row: Row, metric: Metric) -> float:
    """Higher is better."""
    return metric.sign * row.interval(metric).value


def gains(rows: Sequence[Row], metric: Metric) -> dict[str, Interval]:
    """What each cheaper-step configuration gains over fewer steps at its own FLOPs, in units of the metric.

    {configuration: paired difference to the fewer-step rows, interpolated linearly in FLOPs}; below 0 is better for
    FID, above 0 for the CLIP score. Configurations outside the fewer-step rows' FLOPs are left out. The intervals hold
    for all of them at once: with twenty comparisons, one in two sweeps would else find a clear difference in noise.
    """
    dense = sorted((row for row in rows if row.method == "dense"), key=lambda r: r.flops)
    cheaper = [row for row in rows if row.method != "dense" and judges(metric, row)]
    between = {
        row.configuration: (row, low, high)
        for low, high in pairwise(dense)
        for row in cheaper
        if low.flops <= row.flops <= high.flops and low.flops < high.flops
    }
    differences = []
    for row, low, high in between.values():
        share = (row.flops - low.flops) / (high.flops - low.flops)
        parts = [(1 - share, low.interval(metric)), (share, high.interval(metric))]
        differences.append(metric.difference(row.interval(metric), parts))
    return dict(zip(between, together(differences), strict=True))


def clear(changes: Collection[Interval], metric: Metric) -> tuple[int, int]:
    """How many of them are clearly better, and clearly worse: their intervals leave out 0."""
    above, below = sum(change.low > 0 for change in changes), sum(change.high < 0 for change in changes)
    return (below, above) if metric.lower_is_better else (above, below)


CHEAPER, FEWER, OPEN, TOO_FEW = "cheaper steps", "fewer steps", "not resolved", "too few images"


def fewest(metric: Metric) -> int:
    """Images from which on a direction is called by `metric`: those that a calibration by it begins with, and twice the
    groups that intervals need to hold together (of two groups the spread can be next to nothing by chance)."""
    return max(metric.least, 2 * FEWEST_GROUPS)


def called(changes: Collection[Interval], metric: Metric) -> str:
    """`verdict` of the changes by a metric; TOO_FEW where they are of fewer images than `fewest`."""
    if any(change.n < fewest(metric) for change in changes):
        return TOO_FEW
    return verdict(*clear(changes, metric), len(changes))


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
    changes = []
    for metric in comparable(rows):
        change = metric.difference(many.interval(metric), [(1.0, few.interval(metric))])
        changes.append(f"{metric.title} by {metric.text(change, '+')}")
    *first, last = changes
    listed = f"{', '.join(first)} and {last}" if first else last
    return f"From {few.steps} to {many.steps} steps, nothing cached or shrunk, changes {listed} (paired)."


def answer(rows: Sequence[Row], model: str) -> str:
    """One plain sentence: fewer steps or cheaper steps, for this model, on this evidence."""
    parts = []
    for metric in comparable(rows):
        compared = gains(rows, metric).values()
        if not compared:
            continue
        better, worse = clear(compared, metric)
        word = called(compared, metric)
        phrase = {
            OPEN: "neither wins clearly",
            TOO_FEW: f"too few images to call one (it takes {fewest(metric)})",
        }.get(word, f"{word} win")
        parts.append(
            f"{phrase} on {metric.title} ({better} of {len(compared)} cheaper-step configurations are clearly better, "
            f"{worse} clearly worse)"
        )
    if not parts:
        if all(row.method == "dense" for row in rows):  # that alone was asked
            return f"{model}: {more_steps(rows)}"
        return f"{model}: nothing can be compared; the sweep needs fewer steps and cheaper steps at like FLOPs."
    return (
        f"At equal FLOPs, for {model}, {', and '.join(parts)}; paired 95 % intervals, those of a metric hold together, "
        f"{sizes(rows)}."
    )


def sizes(rows: Sequence[Row]) -> str:
    """How many images the scores are of: `n = 256 (PSNR: 64)`."""
    n = rows[0].n
    own = {metric.title: rows[0].interval(metric).n for metric in comparable(rows)}
    return f"n = {n}" + "".join(f" ({title}: {size})" for title, size in own.items() if size != n)
