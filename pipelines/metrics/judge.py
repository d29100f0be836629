"""Scores of content: what two judges read in an image of Shapes or Scenes, held against what its caption asks.

A judge answers the questions of a data set (`Procedural.questions`) about a scene in canonical order: from left to
right, from top to bottom. Features of an image are the probabilities of all answers by either judge [N, 2 x width]; of
a prompt, in the same layout, 1 for what its caption asks, and 0 for all answers to what it leaves open. All scores are
percent, the mean of both judges or, with `judge`, of one alone; `agreement` says how far they are one. Neither knows an
image of nothing, or of more objects than its data set has: it is counted as one that it knows, and its attributes are
right by chance, a ninth to a half.
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np

from pipelines.data.procedural import COUNTS, PROCEDURAL, Procedural, layout_of
from pipelines.metrics.intervals import Interval, mean_interval

NAMES = ("convolutional", "transformer")  # of the judges, in their order
JUDGES = len(NAMES)


def width(data: Procedural) -> int:
    return sum(data.questions.values())


def asks_for_several(caption: str) -> bool:
    return layout_of(caption) != "alone"


def one_hot(captions: Sequence[str], data: Procedural) -> np.ndarray:
    """What `answers` says of each caption -> float32 [N, width]. Raises ValueError of what is no caption of `data`."""
    asked: np.ndarray = np.zeros((len(captions), width(data)), np.float32)
    starts = np.cumsum([0, *data.questions.values()][:-1])
    for row, caption in zip(asked, captions, strict=True):
        for start, answer in zip(starts, data.answers(caption), strict=True):
            if answer >= 0:
                row[start + answer] = 1
    return asked


def data_of(features: np.ndarray) -> Procedural | None:
    """The data set whose questions features [N, 2 x width] answer."""
    widths = {JUDGES * width(data): data for data in PROCEDURAL.values()}
    return widths.get(features.shape[1]) if features.ndim == 2 else None


def answers(features: np.ndarray, data: Procedural) -> np.ndarray:
    """The likeliest answer of each judge, [N, 2 x width] -> int [2, N, questions]; -1 where all are 0."""
    by_judge = features.reshape(len(features), JUDGES, width(data))
    parts = np.split(by_judge, np.cumsum([*data.questions.values()])[:-1], axis=2)
    return np.stack([np.where(part.any(2), part.argmax(2), -1) for part in parts], 2).swapaxes(0, 1)


def _arrangement(answered: np.ndarray, data: Procedural) -> np.ndarray:
    """int [2, N], an index of `data.arrangements`."""
    return np.where(answered[..., 0] == 0, 0, 1 + answered[..., 1]) if data.most == 2 else answered[..., 0]


class _Reading:
    """Which answers are right, by judge and image: arrays [2, N]."""

    def __init__(self, images: np.ndarray, prompts: np.ndarray):
        data = data_of(images)
        if data is None or images.shape != prompts.shape:
            widths = " or ".join(str(JUDGES * width(data)) for data in PROCEDURAL.values())
            expected = f"features of images and of their prompts, both [N, {widths}]"
            raise ValueError(f"expected {expected}, got {list(images.shape)} and {list(prompts.shape)}")
        if not np.isfinite(images).all():
            raise ValueError("features are not finite")
        given, wanted = answers(images, data), answers(prompts, data)
        counts = np.array([COUNTS[name] for name in data.arrangements])
        shown, asked = (_arrangement(answered, data) for answered in (given, wanted))
        self.asked = counts[asked]  # objects
        self.count, self.arrangement = counts[shown] == self.asked, shown == asked
        before = list(data.questions).index("background")
        self.background = given[..., before] == wanted[..., before]
        self.kinds = len(data.attributes)
        slots = (*given.shape[:2], data.most, self.kinds)
        first, second = (answered[..., before + 1 :].reshape(slots) for answered in (given, wanted))
        same = (first[..., :, None, :] == second[..., None, :, :]) & (second >= 0)[..., None, :, :]
        self.matches = same.sum(4)  # [2, N, object that is read, object that is asked for]
        self.twins = (second[..., :, None, :] == second[..., None, :, :]).all(4)
        # Of three that are asked for and two that are there, two are credited, in the places that suit them best.
        shows = np.arange(data.most) < np.minimum(counts[shown], self.asked)[..., None]
        self.credited = self.matches * shows[..., None]
        self.ordered = np.diagonal(self.matches, axis1=2, axis2=3)  # [2, N, object], in canonical order

    def best(self) -> np.ndarray:
        """Attributes that are right of each object that is asked for, the objects taken in the order that suits best:
        [2, N, object]."""
        values = self.ordered * 0
        for n, places in self._orders():
            taken = np.stack([self.credited[..., order, range(len(order))] for order in places])
            best = np.take_along_axis(taken, taken.sum(3).argmax(0)[None, ..., None], 0)[0]
            values = np.where((self.asked == n)[..., None], best, values)
        return values

    def order(self) -> np.ndarray:
        """Whether the objects stand in their order: 1 if any other suits worse, less where others suit as well, 0 where
        one suits better or nothing is right. Twins stand in either order: [2, N]."""
        values = np.zeros(self.asked.shape)
        for n, places in self._orders():
            totals = np.stack([self.matches[..., order, range(len(order))][..., :n].sum(2) for order in places])
            alike = np.stack([self.twins[..., order, range(len(order))][..., :n].all(2) for order in places])
            ties = totals == totals[0]
            right = (ties & alike).sum(0) / ties.sum(0)
            right[(totals[0] < totals.max(0)) | (totals[0] == 0)] = 0
            values = np.where(self.asked == n, right, values)
        return values

    def _orders(self):
        """(n, the orders of n objects, the canonical one first), other places kept, for each n that is asked for."""
        most = self.matches.shape[2]
        for n in np.unique(self.asked):
            yield n, [[*order, *range(n, most)] for order in permutations(range(n))]


def _objects(read: _Reading) -> np.ndarray:
    return read.count.astype(float)


def _attributes(read: _Reading) -> np.ndarray:
    return read.best().sum(2) / (read.kinds * read.asked)


def _binding(read: _Reading) -> np.ndarray:
    return (read.best() == read.kinds).sum(2) / read.asked


def _background(read: _Reading) -> np.ndarray:
    return read.background.astype(float)


def _relation(read: _Reading) -> np.ndarray:
    return np.where(read.asked > 1, read.arrangement * read.order(), np.nan)


def _content(read: _Reading) -> np.ndarray:
    whole = (read.ordered == read.kinds).sum(2) == read.asked
    return (read.arrangement & read.background & whole).astype(float)


def _score(points: Callable[[_Reading], np.ndarray], documentation: str) -> Callable[..., Interval]:
    def score(images: np.ndarray, prompts: np.ndarray, judge: int | None = None) -> Interval:
        by_judge = points(_Reading(images, prompts))
        values = by_judge.mean(0) if judge is None else by_judge[judge]
        return mean_interval(100 * values[np.isfinite(values)])

    score.__doc__ = documentation
    return score


objects = _score(_objects, "Images that show as many objects as asked.")
attributes = _score(_attributes, "Attributes that are as asked, the objects taken in the order that suits them best.")
binding = _score(_binding, "Objects all of whose attributes are as asked, in the best order.")
background = _score(_background, "Images on the background that was asked for.")
relation = _score(_relation, "Of images asked to show several objects: those where the objects stand as asked.")
content = _score(_content, "Images in which all is as asked: objects, attributes, relation, background.")


def agreement(images: np.ndarray, prompts: np.ndarray) -> Interval:
    """Of what captions ask: the share of questions to which both judges give the same answer, right or wrong."""
    _Reading(images, prompts)  # checks
    data = data_of(images)
    assert data is not None
    (one, other), wanted = answers(images, data), answers(prompts, data)[0]
    same = np.where(wanted >= 0, one == other, np.nan)
    return mean_interval(100 * np.nanmean(same, 1))
