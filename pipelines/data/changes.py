"""Captions that say something else of a scene of Shapes than it shows: one thing changed, the words kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipelines.data import shapes
from pipelines.data.shapes import Object, Scene

ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "size": tuple(shapes.SIZES),
    "texture": shapes.TEXTURES,
    "colour": tuple(shapes.COLOURS),
    "shape": tuple(shapes.SHAPES),
}
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def relation(scene: Scene) -> str | None:
    """How the first object of two stands to the second; None of one object."""
    return next((name for name in shapes.RELATIONS if f" {name} a " in scene.caption), None)


def caption(objects: Sequence[Object], relation: str | None, background: str) -> str:
    """What Shapes says of these, as `shapes.scene` does."""
    things = f" {relation} ".join(thing.words for thing in objects)
    return f"{things} on {background}"


def _opposite(scene: Scene, rng: np.random.Generator) -> str | None:
    return caption(scene.objects, OPPOSITES[str(relation(scene))], scene.background) if _differ(scene) else None


def _left_right(scene: Scene, rng: np.random.Generator) -> str | None:
    return _opposite(scene, rng) if relation(scene) in ("left of", "right of") else None


def _above_below(scene: Scene, rng: np.random.Generator) -> str | None:
    return _opposite(scene, rng) if relation(scene) in ("above", "below") else None


def _exchanged(scene: Scene, rng: np.random.Generator) -> str | None:
    return caption(scene.objects[::-1], relation(scene), scene.background) if _differ(scene) else None


def _axis(scene: Scene, rng: np.random.Generator) -> str | None:
    if len(scene.objects) == 1:
        return None
    across = ("above", "below") if relation(scene) in ("left of", "right of") else ("left of", "right of")
    return caption(scene.objects, across[rng.integers(2)], scene.background)


def _swapped(scene: Scene, rng: np.random.Generator) -> str | None:
    """The objects have exchanged one attribute in which they differ."""
    if len(scene.objects) == 1:
        return None
    one, other = scene.objects
    differing = [name for name in ATTRIBUTES if getattr(one, name) != getattr(other, name)]
    if not differing:
        return None
    name = differing[rng.integers(len(differing))]
    swapped = _with(one, name, getattr(other, name)), _with(other, name, getattr(one, name))
    return caption(swapped, relation(scene), scene.background)


def _missing(scene: Scene, rng: np.random.Generator) -> str | None:
    if len(scene.objects) == 1:
        return None
    return caption([scene.objects[rng.integers(2)]], None, scene.background)


def _background(scene: Scene, rng: np.random.Generator) -> str:
    return caption(scene.objects, relation(scene), _another(shapes.BACKGROUNDS, scene.background, rng))


def _attribute(name: str) -> Callable[[Scene, np.random.Generator], str]:
    def change(scene: Scene, rng: np.random.Generator) -> str:
        objects = list(scene.objects)
        which = rng.integers(len(objects))
        value = _another(ATTRIBUTES[name], getattr(objects[which], name), rng)
        objects[which] = _with(objects[which], name, value)
        return caption(objects, relation(scene), scene.background)

    return change


def _with(thing: Object, name: str, value: str) -> Object:
    return replace(thing, **{name: value})  # type: ignore[arg-type]  # all of ATTRIBUTES are words


def _differ(scene: Scene) -> bool:
    """Whether there are two objects that words tell apart: two alike stand in either order."""
    return len(scene.objects) == 2 and scene.objects[0].words != scene.objects[1].words


def _another(options, but: str, rng: np.random.Generator) -> str:
    others = [option for option in options if option != but]
    return others[rng.integers(len(others))]


# Each takes a scene and a generator, and returns a caption that is wrong of it, or None where there is nothing so to
# change: a scene of one object has no relation.
CHANGES: dict[str, Callable[[Scene, np.random.Generator], str | None]] = {
    "left and right": _left_right,
    "above and below": _above_below,
    "objects exchanged": _exchanged,
    "axis": _axis,
    "attribute swapped": _swapped,
    **{name: _attribute(name) for name in ATTRIBUTES},
    "background": _background,
    "object missing": _missing,
}
ORDER = ("left and right", "above and below", "objects exchanged")  # kinds that only the order tells


def hard_negatives(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Four captions, each wrong of the scene in another way."""
    if len(scene.objects) == 1:
        kinds = ["shape", "texture", "size", ("colour", "background")[rng.integers(2)]]
    else:
        order = "objects exchanged" if rng.random() < 0.5 else "opposite"
        attribute = ("shape", "shape", "texture", "texture", "size", "colour")[rng.integers(6)]
        other = ("axis", "axis", "object missing", "background")[rng.integers(4)]
        kinds = [order, "attribute swapped", attribute, other]
    changes = {**CHANGES, "opposite": _opposite}
    return [changes[kind](scene, rng) or _attribute("shape")(scene, rng) for kind in kinds]
