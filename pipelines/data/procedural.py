"""The procedural data sets, Shapes and Scenes, as values: what draws and says scenes, and what can be asked of them.

Both have one grammar. A caption names its objects, their layout and the background; a layout is `alone`, a relation of
two, or of three and four `row`, `column` or `grid`. Questions are of objects in canonical order, which the picture
alone tells: from left to right, from top to bottom, a grid as it is read.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data import scenes, shapes
from pipelines.data.shapes import RELATIONS, Object, Scene
from postdiff.arguments import printable
from postdiff.models import additions, minis
from postdiff.models.checkpoints import resolve

COUNTS = {"alone": 1, "beside": 2, "above": 2, "row": 3, "column": 3, "grid": 4}  # objects of each arrangement
ARRANGEMENTS = {  # what a picture shows of each layout: of two objects, either may be named first
    **{name: name for name in COUNTS},
    "left of": "beside",
    "right of": "beside",
    "below": "above",
}


@dataclass(frozen=True)
class Procedural:
    """A procedural data set.

    scene: (split, index) -> Scene. render: a scene -> uint8 [size, size, 3]. caption: (objects, layout, background) ->
    what is said of them. attributes: {name: values} of an object. most: objects a scene. tokens: what a text encoder
    reads of a caption; the longest has 14 words (Shapes) or 32 (Scenes), a start and an end. clip, judges: the names of
    what was trained on it and scores it by default (pipelines/metrics/encoders.py); no judges if it is empty.
    """

    name: str
    size: int
    scene: Callable[[str, int], Scene]
    render: Callable[[Scene], np.ndarray]
    caption: Callable[[Sequence[Object], str, str], str]
    vocabulary: Callable[[], list[str]]
    attributes: Mapping[str, Sequence[str]]
    most: int
    tokens: int
    clip: str
    judges: str

    @property
    def arrangements(self) -> tuple[str, ...]:
        return tuple(name for name, count in COUNTS.items() if count <= self.most)

    @property
    def questions(self) -> dict[str, int]:
        """How many answers each question has: the arrangement, the background, each attribute of each object.

        Of at most two objects the arrangement is two questions, how many there are and on which axis they lie.
        """
        asked = {"count": 2, "axis": 2} if self.most == 2 else {"arrangement": len(self.arrangements)}
        asked["background"] = len(shapes.BACKGROUNDS)
        slots = range(self.most)
        return asked | {f"{name}{i}": len(values) for i in slots for name, values in self.attributes.items()}

    def parse(self, caption: str) -> tuple[str, list[tuple[str, ...]], str]:
        """The layout, the attributes of each object in the caption's order, and the background of a caption.

        Raises: ValueError if it is no caption of this data set.
        """
        layout = layout_of(caption)
        things, _, background = caption.rpartition(" on ")
        texts = things.removesuffix(f" in a {layout}").split(f" {layout} " if layout in RELATIONS else " and ")
        objects = [self._attributes(text.split()) for text in texts]
        suits = len(objects) == COUNTS[ARRANGEMENTS[layout]] <= self.most
        if suits and background in shapes.BACKGROUNDS and all(objects):
            drawn = [Object(*thing, 0.5, 0.5, 0.1, 0.0) for thing in objects]  # type: ignore[call-arg, arg-type]
            if self.caption(drawn, layout, background) == caption:
                return layout, objects, background
        raise ValueError(f"expected a caption of {self.name} ({self.example!r}), got {caption!r}")

    def _attributes(self, words: list[str]) -> tuple[str, ...]:
        """One value of each attribute, () if the words have not one; of none, a texture is plain."""
        named = {name: [word for word in words[1:] if word in values] for name, values in self.attributes.items()}
        named["texture"] = named["texture"] or ["plain"]
        return tuple(values[0] for values in named.values()) if all(map(len, named.values())) else ()

    @property
    def example(self) -> str:
        return self.scene("val", 0).caption

    def answers(self, caption: str) -> list[int]:
        """The right answer to each of `questions`, -1 to those that the caption leaves open.

        Raises: ValueError as `parse` does.
        """
        layout, objects, background = self.parse(caption)
        if layout in ("right of", "below"):  # from left to right, from top to bottom, as a picture is read
            objects.reverse()
        arrangement = ARRANGEMENTS[layout]
        if self.most == 2:
            right = [len(objects) - 1, {"alone": -1, "beside": 0, "above": 1}[arrangement]]
        else:
            right = [self.arrangements.index(arrangement)]
        right.append(tuple(shapes.BACKGROUNDS).index(background))
        for thing in objects:
            right += [values.index(word) for values, word in zip(self.attributes.values(), thing, strict=True)]
        return right + [-1] * (len(self.questions) - len(right))

    def distinct(self, split: str, n: int) -> list[Scene]:
        """The first `n` scenes of `split` whose captions differ from all before them. Raises ValueError if it has not
        so many captions."""
        seen: dict[str, Scene] = {}
        for i in range(100 * n + 1000):
            drawn = self.scene(split, i)
            seen.setdefault(drawn.caption, drawn)
            if len(seen) == n:
                return list(seen.values())
        raise ValueError(f"expected {n} different captions of {self.name}, its split {split!r} gives {len(seen)}")

    def drawn(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Real renders, uint8 [N, size, size, 3]."""
        return np.stack([self.render(scene) for scene in scenes])


def layout(scene: Scene) -> str:
    """How the objects stand, as the caption says it: `alone`, a relation, `row`, `column` or `grid`."""
    return layout_of(scene.caption)


def layout_of(caption: str) -> str:
    match = re.search(rf" ({'|'.join(RELATIONS)}) a | in a (row|column|grid) on ", caption)
    return match[1] or match[2] if match else "alone"


SHAPES = Procedural(
    "shapes", 64, shapes.scene, shapes.render, shapes.caption, shapes.vocabulary, shapes.ATTRIBUTES,
    most=2, tokens=20, clip="mini-clip", judges="mini-judges",
)  # fmt: skip
SCENES = Procedural(
    "scenes", scenes.SIZE, scenes.scene, scenes.render, scenes.caption, scenes.vocabulary, scenes.ATTRIBUTES,
    most=4, tokens=36, clip="mini-clip-scenes", judges="mini-judges-scenes",
)  # fmt: skip
PROCEDURAL = {data.name: data for data in (SHAPES, SCENES)}


def drawn_by(model: str) -> Procedural | None:
    """The data set that a mini model or what was fine-tuned of one draws, as its postdiff.json says, whatever is loaded
    beside it (`+vae=...`); None of other models, which may draw anything.

    Raises: ValueError if it is none of these data sets, and as `resolve` does of a folder.
    """
    base, _ = additions.split(model)
    if base not in minis.NAMES and not os.path.isdir(base):
        return None
    name = resolve(base).prompts
    if name and name not in PROCEDURAL:
        raise ValueError(f"prompts in {base} must be one of {', '.join(PROCEDURAL)}, got {printable(name)}")
    return PROCEDURAL[name] if name else None
