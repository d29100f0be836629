"""Where the labels of a chart go: beside their points, clear of each other, of all points and, where that can be, of
lines. Pure geometry, in any unit of length, whichever way y points."""

from collections.abc import Sequence
from math import hypot

Point = tuple[float, float]
Line = tuple[Point, Point]
Box = tuple[float, float, float, float]  # left, right, and the lesser and the greater y
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))  # the first are preferred
REACH = (0.0, 0.6, 1.4, 2.4, 3.6)  # how far beyond a label's own point, in heights of a line
CROSSED = 1.5  # what a line under a label costs, in the unit of `REACH`


def place(
    anchors: Sequence[Point],
    sizes: Sequence[Point],
    area: Box,
    points: Sequence[Point] = (),
    radius: float = 4.0,
    lines: Sequence[Line] = (),
) -> list[Point | None]:
    """The centre of each label; None where nothing is free, and the label is better left out.

    Args:
        anchors: the point that each label names, in order of importance: the first ones choose first.
        sizes: width and height of each label.
        area: that no label leaves.
        points: all points of the chart, of the size `radius`; no label lies on one.
        lines: curves and intervals; a label lies on one only where all else is farther off.
    """
    marks = [_around(point, (2 * radius, 2 * radius)) for point in points]
    placed: list[Box] = []
    centres: list[Point | None] = []
    for anchor, size in zip(anchors, sizes, strict=True):
        best, least = None, float("inf")
        for centre, cost in _candidates(anchor, size, radius):
            box = _around(centre, size)
            if cost >= least or not _within(box, area) or any(_overlap(box, other) for other in (*placed, *marks)):
                continue
            cost += CROSSED * sum(_crosses(line, box) for line in lines)
            if cost < least:
                best, least = centre, cost
        centres.append(best)
        if best:
            placed.append(_around(best, size))
    return centres


def is_far(anchor: Point, centre: Point, size: Point, radius: float) -> bool:
    """Whether a label stands so far from its point that a line should lead there."""
    gap_x = max(0.0, abs(anchor[0] - centre[0]) - size[0] / 2)
    gap_y = max(0.0, abs(anchor[1] - centre[1]) - size[1] / 2)
    return hypot(gap_x, gap_y) > radius + size[1]


def _candidates(anchor: Point, size: Point, radius: float) -> list[tuple[Point, float]]:
    """Centres around the point, each with its cost."""
    width, height = size
    return [
        (
            (
                anchor[0] + dx * (width / 2 + radius * (1.1 if not dy else 0.4) + reach * height),
                anchor[1] + dy * (height / 2 + radius * (1.1 if not dx else 0.4) + reach * height),
            ),
            reach + 0.1 * at,
        )
        for reach in REACH
        for at, (dx, dy) in enumerate(DIRECTIONS)
    ]


def _around(centre: Point, size: Point) -> Box:
    (x, y), (width, height) = centre, size
    return x - width / 2, x + width / 2, y - height / 2, y + height / 2


def _within(box: Box, area: Box) -> bool:
    return area[0] <= box[0] and box[1] <= area[1] and area[2] <= box[2] and box[3] <= area[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _crosses(line: Line, box: Box) -> bool:
    """Whether a straight line passes through the box (Liang and Barsky, 1984)."""
    (x, y), (to_x, to_y) = line
    first, last = 0.0, 1.0
    for start, step, low, high in ((x, to_x - x, box[0], box[1]), (y, to_y - y, box[2], box[3])):
        if not step:
            if not low <= start <= high:
                return False
            continue
        near, far = sorted(((low - start) / step, (high - start) / step))
        first, last = max(first, near), min(last, far)
    return first <= last
