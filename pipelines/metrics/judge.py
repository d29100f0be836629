"""Scores of content: what two judges read in an image of Shapes, held against what its caption asks.

A judge answers QUESTIONS about a scene in canonical order: of two objects side by side the left one is the first, of
two above each other the upper one. Features of an image are the probabilities of all answers by either judge
[N, 2 x WIDTH]; of a prompt, in the same layout, 1 for what its caption asks, and 0 for all answers to what it leaves
open. All scores are percent, the mean of both judges or, with `judge`, of one alone; `agreement` says how far they are
one. Neither knows an image of nothing or of three objects: it is counted as one or two, and its attributes are right by
chance, a quarter to a third.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from pipelines.data import shapes
from pipelines.data.changes import ATTRIBUTES
from pipelines.metrics.intervals import Interval, mean_interval

QUESTIONS = {  # and how many answers each has
    "count": 2,
    "axis": 2,  # of two objects: side by side, above each other
    "background": len(shapes.BACKGROUNDS),
    **{f"{name}{i}": len(values) for i in (0, 1) for name, values in ATTRIBUTES.items()},
}
WIDTH = sum(QUESTIONS.values())
NAMES = ("convolutional", "transformer")  # of the judges, in their order
JUDGES = len(NAMES)
_OBJECT = r"a ({}) (?:({}) )?({}) ({})".format(
    *("|".join(value for value in values if value != "plain") for values in ATTRIBUTES.values())
)
_CAPTION = re.compile(f"{_OBJECT}(?: ({'|'.join(shapes.RELATIONS)}) {_OBJECT})? on ({'|'.join(shapes.BACKGROUNDS)})")


def asked(caption: str) -> list[int]:
    """The right answer to each of QUESTIONS, -1 to those that the caption leaves open.

    Raises: ValueError if it is no caption of Shapes.
    """
    match = _CAPTION.fullmatch(caption)
    if not match:
        raise ValueError(f"the judges read captions of Shapes ('a big red star on snow'), got {caption!r}")
    relation, background = match[5], match[10]
    objects = [match.group(1, 2, 3, 4), match.group(6, 7, 8, 9)] if relation else [match.group(1, 2, 3, 4), None]
    if relation in ("right of", "below"):
        objects.reverse()
    answers = [int(bool(relation)), shapes.RELATIONS.index(relation) // 2 if relation else -1]
    answers.append(tuple(shapes.BACKGROUNDS).index(background))
    for thing in objects:
        if thing is None:
            answers += [-1] * len(ATTRIBUTES)
        else:
            answers += [values.index(word or "plain") for values, word in zip(ATTRIBUTES.values(), thing, strict=True)]
    return answers


def asks_for_two(caption: str) -> bool:
    return asked(caption)[0] == 1


def one_hot(captions: Sequence[str]) -> np.ndarray:
    """What `asked` says of each caption -> float32 [N, WIDTH]."""
    told: np.ndarray = np.zeros((len(captions), WIDTH), np.float32)
    starts = np.cumsum([0, *QUESTIONS.values()][:-1])
    for row, caption in zip(told, captions, strict=True):
        for start, answer in zip(starts, asked(caption), strict=True):
            if answer >= 0:
                row[start + answer] = 1
    return told


def answers(features: np.ndarray) -> np.ndarray:
    """The likeliest answer of each judge, [N, 2 x WIDTH] -> int [2, N, len(QUESTIONS)]; -1 where all are 0."""
    parts = np.split(features.reshape(len(features), JUDGES, WIDTH), np.cumsum([*QUESTIONS.values()])[:-1], axis=2)
    return np.stack([np.where(part.any(2), part.argmax(2), -1) for part in parts], 2).swapaxes(0, 1)


class _Reading:
    """Which answers are right, by judge and image: arrays [2, N]."""

    def __init__(self, images: np.ndarray, prompts: np.ndarray):
        if images.shape != prompts.shape or images.shape[1:] != (JUDGES * WIDTH,):
            expected = f"features of images and of their prompts, both [N, {JUDGES * WIDTH}]"
            raise ValueError(f"expected {expected}, got {list(images.shape)} and {list(prompts.shape)}")
        if not np.isfinite(images).all():
            raise ValueError("features are not finite")
        given, wanted = answers(images), answers(prompts)
        right = dict(zip(QUESTIONS, np.moveaxis(given == wanted, 2, 0), strict=True))
        self.two = wanted[0, :, 0] == 1  # [N]: two objects are asked for
        self.count, self.background, self.axis = right["count"], right["background"], right["axis"]
        first, second = (given[..., 3 + i * 4 : 7 + i * 4] for i in (0, 1))
        wanted_first, wanted_second = (wanted[..., 3 + i * 4 : 7 + i * 4] for i in (0, 1))
        ordered = np.stack([first == wanted_first, second == wanted_second], 2)  # [2, N, object, attribute]
        swapped = np.stack([first == wanted_second, second == wanted_first], 2)
        ordered[:, ~self.two, 1] = swapped[:, ~self.two] = False  # one object is the first, wherever it is
        forwards, backwards = ordered.sum((2, 3)), swapped.sum((2, 3))
        same = (wanted_first == wanted_second).all(2)  # two alike stand in either order
        undecided = np.where(same & (forwards > 0), 1.0, np.where(forwards > 0, 0.5, 0.0))
        self.order = np.where(forwards == backwards, undecided, np.where(forwards > backwards, 1.0, 0.0))
        self.ordered = ordered
        self.attributes = np.where((forwards >= backwards)[..., None, None], ordered, swapped)
        # Of two that were asked for and one that is there, the one is credited, as what suits it better.
        alone = np.stack([first == wanted_first, first == wanted_second], 2)
        better = alone.sum(3).argmax(2)[..., None, None] == np.arange(2)[:, None]
        lacking = (self.two & ~self.count)[..., None, None]
        self.attributes = np.where(lacking, alone & better, self.attributes)


def _objects(read: _Reading) -> np.ndarray:
    return read.count.astype(float)


def _attributes(read: _Reading) -> np.ndarray:
    return read.attributes.sum((2, 3)) / np.where(read.two, 8, 4)


def _binding(read: _Reading) -> np.ndarray:
    return read.attributes.all(3).sum(2) / np.where(read.two, 2, 1)


def _background(read: _Reading) -> np.ndarray:
    return read.background.astype(float)


def _relation(read: _Reading) -> np.ndarray:
    return np.where(read.two, read.count * read.axis * read.order, np.nan)


def _content(read: _Reading) -> np.ndarray:
    whole = read.ordered.all(3)
    layout = np.where(read.two, read.axis & whole[..., 1], True)
    return (read.count & read.background & whole[..., 0] & layout).astype(float)


def _score(of: Callable[[_Reading], np.ndarray], documentation: str) -> Callable[..., Interval]:
    def score(images: np.ndarray, prompts: np.ndarray, judge: int | None = None) -> Interval:
        by_judge = of(_Reading(images, prompts))
        values = by_judge.mean(0) if judge is None else by_judge[judge]
        return mean_interval(100 * values[np.isfinite(values)])

    score.__doc__ = documentation
    return score


objects = _score(_objects, "Images that show as many objects as asked.")
attributes = _score(_attributes, "Attributes that are as asked, two objects taken in the order that suits them better.")
binding = _score(_binding, "Objects all of whose attributes are as asked, in the better order.")
background = _score(_background, "Images on the background that was asked for.")
relation = _score(_relation, "Of images asked to show two objects: those where the objects stand as asked.")
content = _score(_content, "Images in which all is as asked: objects, attributes, relation, background.")


def agreement(images: np.ndarray, prompts: np.ndarray) -> Interval:
    """Of what captions ask: the share of questions to which both judges give the same answer, right or wrong."""
    _Reading(images, prompts)  # checks
    (one, other), wanted = answers(images), answers(prompts)[0]
    same = np.where(wanted >= 0, one == other, np.nan)
    return mean_interval(100 * np.nanmean(same, 1))
