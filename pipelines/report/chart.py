"""The front as the page draws it: an SVG whose points can be pointed at, reached by keyboard and clicked. What stands
where is reckoned here, and drawn by page/chart.html; its colours are the style sheet's, for a light and a dark page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

from pipelines.metrics.metric import Metric
from pipelines.report import labels, tables
from pipelines.report.tables import Row

WIDTH, HEIGHT = 640, 420  # of the view box; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 48  # margins
LETTER, LINE = 6.3, 13  # width of a letter and height of a line of labels
RADIUS = 6.0


@dataclass(frozen=True)
class Point:
    """A plan. x, y: of the mark; low, high: ends of its interval, beside the mark. family: its place in FAMILIES.
    word: its label, "" for none; at: the label's centre, from the mark; far: whether a line leads there."""

    id: str
    family: int
    x: float
    y: float
    low: float
    high: float
    name: str
    word: str = ""
    at: labels.Point = (0.0, 0.0)
    far: bool = False


@dataclass(frozen=True)
class Chart:
    """fewer, front: paths. x_ticks, y_ticks: where, and what is written there."""

    key: str
    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    fewer: str
    front: str
    points: list[Point]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = HEIGHT - BOTTOM
    right: int = WIDTH - RIGHT
    top: int = TOP


def of_metric(rows: Sequence[Row], metric: Metric) -> Chart:
    """Quality against FLOPs, of the rows that the metric can judge."""
    shown = sorted((row for row in rows if tables.judges(metric, row)), key=lambda row: (row.flops, row.label))
    unit, divisor = ("TFLOPs", 1e12) if max(row.flops for row in shown) >= 1e12 else ("GFLOPs", 1e9)
    scores = [row.interval(metric) for row in shown]
    x_scale = _Scale([row.flops / divisor for row in shown], LEFT + 12, WIDTH - RIGHT - 12)
    ends = [end for score in scores for end in (score.low, score.high)]
    y_scale = _Scale(ends, HEIGHT - BOTTOM - 8, TOP + 8)
    best = [row.configuration for row in tables.front(shown, metric)]
    spots = [(x_scale(row.flops / divisor), y_scale(score.value)) for row, score in zip(shown, scores, strict=True)]
    points = []
    for row, score, (x, y) in zip(shown, scores, spots, strict=True):
        on_front = ", on the front" if row.configuration in best else ""
        name = f"{row.label}: {metric.title} {metric.text(score)}, {row.flops / divisor:.3g} {unit}{on_front}"
        low, high = y_scale(score.low) - y, y_scale(score.high) - y
        points.append(Point(row.configuration, family(row), x, y, low, high, name))
    dense = [spot for row, spot in zip(shown, spots, strict=True) if row.method == "dense"]
    where = dict(zip((row.configuration for row in shown), spots, strict=True))
    front = [where[id] for id in best]
    lower = "lower" if metric.lower_is_better else "higher"
    return Chart(
        metric.key,
        f"{metric.title} against cost",
        f"{len(shown)} plans. {metric.title} ({lower} is better) against {unit} an image, with 95 % intervals; the "
        "line joins the plans of fewer steps, the broad one the front. The table below has the same numbers.",
        f"{unit} an image",
        metric.axis,
        x_scale.ticks(8),
        y_scale.ticks(6),
        _path(dense),
        _path(front) if len(front) > 1 else _band(front),
        _labelled(points, shown, best, [*pairwise(dense), *pairwise(front)]),
    )


def family(row: Row) -> int:
    """Of its method, as the style sheet numbers them."""
    return list(tables.FAMILIES).index(row.family)


def _labelled(points: list[Point], rows: Sequence[Row], best: list[str], curves: list[labels.Line]) -> list[Point]:
    """The points with labels where there is room: what is on the front first, then fewer steps; others say what they
    are when pointed at."""
    order = sorted(
        (at for at, row in enumerate(rows) if row.configuration in best or row.method == "dense"),
        key=lambda at: (rows[at].configuration not in best, -at),
    )
    words = {at: rows[at].word for at in order}
    spots = [(point.x, point.y) for point in points]
    sizes = [(LETTER * len(words[at]), LINE) for at in order]
    lines = [((p.x, p.y + p.low), (p.x, p.y + p.high)) for p in points] + curves
    area = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM)
    centres = labels.place([spots[at] for at in order], sizes, area, spots, RADIUS, lines)
    labelled = list(points)
    for at, size, centre in zip(order, sizes, centres, strict=True):
        if centre:
            point = points[at]
            offset = (centre[0] - point.x, centre[1] - point.y)
            far = labels.is_far(spots[at], centre, size, RADIUS)
            labelled[at] = Point(**{**vars(point), "word": words[at], "at": offset, "far": far})
    return labelled


def _path(spots: Sequence[labels.Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots) if spots else ""


def _band(spots: Sequence[labels.Point]) -> str:
    """A front of one plan: a short stroke, since a line of one point is not drawn at all."""
    return "".join(f"M{x - 2 * RADIUS:.1f} {y:.1f}h{4 * RADIUS:.1f}" for x, y in spots)


class _Scale:
    """Values to places on the page, from `first` to `last`, and round numbers between."""

    def __init__(self, values: Sequence[float], first: float, last: float):
        self.least, self.most = min(values), max(values)
        self.span = (self.most - self.least) or abs(self.most) or 1.0
        self.first, self.last = first, last

    def __call__(self, value: float) -> float:
        return self.first + (value - self.least) / self.span * (self.last - self.first)

    def ticks(self, about: int) -> list[tuple[float, str]]:
        power = 10 ** floor(log10(self.span / about))
        step = next(power * factor for factor in (1, 2, 5, 10) if self.span / (power * factor) <= about)
        digits = max(0, -floor(log10(step)))
        whole = range(ceil(self.least / step), floor(self.most / step) + 1)
        return [(self(at * step), f"{at * step:.{digits}f}") for at in whole]
