"""Captions that say something else of a procedural scene than it shows: one thing changed, the words kept."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipelines.data import shapes
from pipelines.data.procedural import Procedural, layout
from pipelines.data.shapes import RELATIONS, Object, Scene

OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ACROSS = {  # layouts of the other axis
    **dict.fromkeys(("left of", "right of"), ("above", "below")),
    **dict.fromkeys(("above", "below"), ("left of", "right of")),
    "row": ("column",),
    "column": ("row",),
}
LESS = {"row": "left of", "column": "above", "grid": "row"}  # what is left of a layout when one object is missing
Change = Callable[[Procedural, Scene, np.random.Generator], str | None]


def _opposite(data: Procedural, scene: Scene, rng: np.random.Generator) -> str | None:
    if layout(scene) not in RELATIONS or not _differ(scene):
        return None
    return data.caption(scene.objects, OPPOSITES[layout(scene)], scene.background)


def _left_right(data: Procedural, scene: Scene, rng: np.random.Generator) -> str | None:
    return _opposite(data, scene, rng) if layout(scene) in ("left of", "right of") else None


def _above_below(data: Procedural, scene: Scene, rng: np.random.Generator) -> str | None:
    return _opposite(data, scene, rng) if layout(scene) in ("above", "below") else None


def _exchanged(data: Procedural, scene: Scene, rng: np.random.Generator) -> str | None:
    """Two of the objects that differ stand in each other's places."""
    pair = _pair(scene, rng, lambda one, other: _words(one) != _words(other))
    if not pair:
        return None
    objects = list(scene.objects)
    objects[pair[0]], objects[pair[1]] = objects[pair[1]], objects[pair[0]]
    return data.caption(objects, layout(scene), scene.background)


def _axis(data: Procedural, scene: Scene, rng: np.random.Generator) -> str | None:
    others = ACROSS.get(layout(scene))
    return data.caption(scene.objects, _pick(others, rng), scene.background) if others else None


def _swapped(data: Procedural, scene: Scene, rng: np.random.Generator) -> str | None:
    """Two objects have exchanged one attribute in which they differ."""
    pair = _pair(scene, rng, lambda one, other: _words(one) != _words(other))
    if not pair:
        return None
    objects = list(scene.objects)
    one, other = (objects[i] for i in pair)
    name = _pick([name for name in data.attributes if getattr(one, name) != getattr(other, name)], rng)
    objects[pair[0]], objects[pair[1]] = _with(one, name, getattr(other, name)), _with(other, name, getattr(one, name))
    return data.caption(objects, layout(scene), scene.background)


def _missing(data: Procedural, scene: Scene, rng: np.random.Generator) -> str | None:
    if len(scene.objects) == 1:
        return None
    objects = list(scene.objects)
    del objects[rng.integers(len(objects))]
    return data.caption(objects, LESS.get(layout(scene), "alone"), scene.background)


def _background(data: Procedural, scene: Scene, rng: np.random.Generator) -> str:
    return data.caption(scene.objects, layout(scene), _another(shapes.BACKGROUNDS, scene.background, rng))


def _attribute(name: str) -> Callable[[Procedural, Scene, np.random.Generator], str]:
    def change(data: Procedural, scene: Scene, rng: np.random.Generator) -> str:
        objects = list(scene.objects)
        which = rng.integers(len(objects))
        objects[which] = _with(
            objects[which], name, _another(data.attributes[name], getattr(objects[which], name), rng)
        )
        return data.caption(objects, layout(scene), scene.background)

    return change


def _with(thing: Object, name: str, value: str) -> Object:
    return replace(thing, **{name: value})  # type: ignore[arg-type]  # all attributes are words


def _words(thing: Object) -> tuple[str, str, str, str]:
    return thing.size, thing.texture, thing.colour, thing.shape


def _differ(scene: Scene) -> bool:
    """Whether there are two objects that words tell apart: two alike stand in either order."""
    return len(scene.objects) == 2 and _words(scene.objects[0]) != _words(scene.objects[1])


def _pair(scene: Scene, rng: np.random.Generator, suits: Callable[[Object, Object], bool]) -> tuple[int, int] | None:
    """The places of two objects that suit, drawn of all such; None if there are none."""
    places = range(len(scene.objects))
    pairs = [(i, j) for i in places for j in places if i < j and suits(scene.objects[i], scene.objects[j])]
    return _pick(pairs, rng) if pairs else None


def _pick(options, rng: np.random.Generator):
    return options[rng.integers(len(options))]


def _another(options, but: str, rng: np.random.Generator) -> str:
    return _pick([option for option in options if option != but], rng)


# Each takes a data set, one of its scenes and a generator, and returns a caption that is wrong of the scene, or None
# where there is nothing so to change: a scene of one object has no relation.
CHANGES: dict[str, Change] = {
    "left and right": _left_right,
    "above and below": _above_below,
    "objects exchanged": _exchanged,
    "axis": _axis,
    "attribute swapped": _swapped,
    **{name: _attribute(name) for name in shapes.ATTRIBUTES},
    "background": _background,
    "object missing": _missing,
}
ORDER = ("left and right", "above and below", "objects exchanged")  # kinds that only the order tells


def hard_negatives(data: Procedural, scene: Scene, rng: np.random.Generator) -> list[str]:
    """Four captions, each wrong of the scene in another way."""
    if len(scene.objects) == 1:
        kinds = ["shape", "texture", "size", ("colour", "background")[rng.integers(2)]]
    else:
        order = "objects exchanged" if rng.random() < 0.5 or len(scene.objects) > 2 else "opposite"
        attribute = ("shape", "shape", "texture", "texture", "size", "colour")[rng.integers(6)]
        other = ("axis", "axis", "object missing", "background")[rng.integers(4)]
        kinds = [order, "attribute swapped", attribute, other]
    changes = {**CHANGES, "opposite": _opposite}
    return [changes[kind](data, scene, rng) or _attribute("shape")(data, scene, rng) for kind in kinds]
