"""Scenes: Shapes made harder, so that a model needs its steps: 128 px, one to four objects, fine texture, letters.

A scene is a background and one to four objects, each with a size, a colour, a shape and either a texture or a letter
on it. Two objects stand in a named relation, three in a row or a column, four in a grid. Layout is low-frequency,
stripes, hatching, letters and the grain of the background are high-frequency: both ends of what mixed resolution trades
are in the picture. A scene is a pure function of (split, index): nothing is stored, nothing depends on order.

    scene = scenes.scene("val", 7)
    scene.caption              # 'a big hatched green heart left of a small red star marked x on sand'
    scenes.render(scene)       # uint8 [128, 128, 3]

Captions are divided once, by hash, as those of Shapes are (pipelines/data/shapes.py), whose drawings these share.
"""

from collections.abc import Sequence

import numpy as np

from pipelines.data import shapes
from pipelines.data.shapes import COLOURS, RELATIONS, SHAPES, Object, Scene, is_held_out

SIZE = 128
SIZES = {"small": (0.095, 0.11), "big": (0.138, 0.15)}  # radius, as a share of the image's width
PATTERNS = ("striped", "checkered", "dotted", "hatched")
LETTERS = {  # strokes from (x, y) to (x, y), x right, y up, in units of the letter's half height
    "h": ((-0.6, -1, -0.6, 1), (0.6, -1, 0.6, 1), (-0.6, 0, 0.6, 0)),
    "t": ((-0.8, 0.9, 0.8, 0.9), (0, -1, 0, 0.9)),
    "v": ((-0.8, 1, 0, -0.9), (0.8, 1, 0, -0.9)),
    "x": ((-0.75, -1, 0.75, 1), (-0.75, 1, 0.75, -1)),
}
TEXTURES = ("plain", *PATTERNS, *LETTERS)  # what is on an object: a letter is one of them
ATTRIBUTES = {"size": tuple(SIZES), "texture": TEXTURES, "colour": tuple(COLOURS), "shape": tuple(SHAPES)}
BACKGROUNDS = shapes.BACKGROUNDS
COUNTS = {1: 0.25, 2: 0.4, 3: 0.2, 4: 0.15}  # how often a scene has so many objects


def scene(split: str, index: int) -> Scene:
    """The scene at `index` of `split`. Redraws until the caption is on the split's side of the hold-out."""
    if split not in shapes.SPLITS:
        raise ValueError(f"split must be one of {', '.join(shapes.SPLITS)}, got {split!r}")
    rng = np.random.default_rng([4, shapes.SPLITS.index(split), index])
    while True:
        drawn = _draw(rng)
        if split == "val" or is_held_out(drawn.caption) == (split in shapes.HELD_OUT_ALONE):
            return drawn


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    words = {"a", "and", "in", "on", "marked", "row", "column", "grid", *SIZES, *PATTERNS, *LETTERS, *COLOURS, *SHAPES}
    return sorted(words.union(BACKGROUNDS, *(relation.split() for relation in RELATIONS)))


def words(thing: Object) -> str:
    """What a caption says of an object: 'a big striped red star', 'a small blue circle marked x'."""
    pattern = (thing.texture,) if thing.texture in PATTERNS else ()
    letter = ("marked", thing.texture) if thing.texture in LETTERS else ()
    return " ".join(("a", thing.size, *pattern, thing.colour, thing.shape, *letter))


def caption(objects: Sequence[Object], layout: str, background: str) -> str:
    """What is said of `objects`, in their order. layout: a relation of two, `row`, `column`, `grid`, or `alone`."""
    phrases = [words(thing) for thing in objects]
    if layout in RELATIONS:
        return f"{phrases[0]} {layout} {phrases[1]} on {background}"
    return " and ".join(phrases) + ("" if layout == "alone" else f" in a {layout}") + f" on {background}"


def _draw(rng: np.random.Generator) -> Scene:
    background = _pick(rng, BACKGROUNDS)
    tint = tuple(rng.uniform(-12, 12, 3))
    count = int(rng.choice(list(COUNTS), p=list(COUNTS.values())))
    layout = {1: ("alone",), 2: RELATIONS, 3: ("row", "column"), 4: ("grid",)}[count]
    chosen = _pick(rng, layout)
    objects = _placed(rng, [_object(rng) for _ in range(count)], chosen)
    return Scene(caption(objects, chosen, background), background, tint, tuple(objects))


def _object(rng: np.random.Generator) -> Object:
    size = _pick(rng, SIZES)
    radius = rng.uniform(*SIZES[size])
    shape = _pick(rng, SHAPES)
    textures = ("plain", *PATTERNS) if shape == "ring" else TEXTURES  # a ring has no room for a letter
    return Object(size, _pick(rng, textures), _pick(rng, COLOURS), shape, 0.5, 0.5, radius, float(rng.random()))


def _placed(rng: np.random.Generator, objects: list[Object], layout: str) -> list[Object]:
    """The objects where the layout wants them: in its order along its axis, and nearly level across it."""
    if layout == "alone":
        (thing,) = objects
        x, y = (rng.uniform(thing.radius + 0.03, 0.97 - thing.radius) for _ in range(2))
        return [_at(thing, x, y)]
    if layout == "grid":
        across, down = ((0.25, 0.75, 0.25, 0.75), (0.25, 0.25, 0.75, 0.75))
        moved = rng.uniform(-1, 1, (4, 2)) * [[0.22 - thing.radius] for thing in objects]
        return [_at(t, x + dx, y + dy) for t, x, y, (dx, dy) in zip(objects, across, down, moved, strict=True)]
    order = objects[::-1] if layout in ("right of", "below") else objects
    spread = 0.14 if len(objects) == 2 else 0.07
    least = 0.02
    free = 1 - 2 * sum(thing.radius for thing in objects) - (len(objects) + 1) * least
    gaps = least + rng.dirichlet([2] * (len(objects) + 1)) * free  # margin, gaps, margin
    level, placed, at = rng.uniform(0.36, 0.64), {}, 0.0
    for thing, gap in zip(order, gaps, strict=False):
        at += float(gap) + thing.radius
        off = float(np.clip(level + rng.uniform(-spread, spread), thing.radius + 0.02, 0.98 - thing.radius))
        vertical = layout in ("above", "below", "column")
        placed[id(thing)] = _at(thing, off, at) if vertical else _at(thing, at, off)
        at += thing.radius
    return [placed[id(thing)] for thing in objects]


def _at(thing: Object, x: float, y: float) -> Object:
    return Object(**{**thing.__dict__, "x": float(x), "y": float(y)})


def _pick(rng: np.random.Generator, options):
    return tuple(options)[rng.integers(len(options))]


# Drawing. Periods and widths are shares of the image's width, so a scene scales.


def _wave(x, period: float, phase: float = 0.0):
    return np.cos(2 * np.pi * (x / period + phase))


def _pattern(name: str, x, y, phase: float):
    """Share of the dark tone at each point."""
    if name == "striped":
        return _soft(_wave(x + y, 0.085, phase))
    if name == "hatched":  # thin lines, the other way
        return _soft(1.6 * (_wave(x - y, 0.066, phase) - 0.55))
    if name == "checkered":
        return _soft(1.6 * _wave(x, 0.105, phase) * _wave(y, 0.105, phase))
    return _soft(_wave(x, 0.072, phase) + _wave(y, 0.072, phase) - 0.7)  # dotted


def _soft(wave):
    return np.clip(0.5 + 1.2 * wave, 0, 1)


def _letter(name: str, u, v):
    """Distance from the strokes of a letter in the middle of an object, in units of the object's radius."""
    nearest = np.inf
    for x0, y0, x1, y1 in 0.42 * np.array(LETTERS[name]):
        along = np.clip(((u - x0) * (x1 - x0) + (v - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(u - x0 - along * (x1 - x0), v - y0 - along * (y1 - y0)))
    return nearest


def _grain(background: str, x, y):
    """The fine drawing of a background, in 0..255: what is added to its gradient at each point."""
    if background == "grass":
        return 9 * _wave(x + 0.012 * np.sin(40 * y), 0.047) * (0.4 + 0.6 * y)
    if background == "sand":
        return 7 * _wave(y + 0.02 * np.sin(9 * x), 0.075)
    if background == "sunset":
        return 9 * _wave(y, 0.16) * (1 - y)
    if background == "night":
        return 130 * np.clip(_wave(x + y / 3, 0.21) * _wave(y - x / 3, 0.19) - 0.93, 0, 1) * 12 * (1 - y)
    return 0.0 * x  # sky, snow


def render(scene: Scene, size: int = SIZE) -> np.ndarray:
    """Draw `scene` as uint8 [size, size, 3] RGB."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = axis[None, :], axis[:, None]
    top, bottom = (np.array(c, np.float32) + np.array(scene.tint, np.float32) for c in BACKGROUNDS[scene.background])
    image = top + (bottom - top) * (y + 0 * x)[..., None] + _grain(scene.background, x, y)[..., None]
    image = image.astype(np.float32)
    for thing in scene.objects:
        reach = 1.5 * thing.radius  # the shadow's, too
        rows, columns = (
            slice(max(0, int((middle - reach) * size)), int((middle + reach) * size) + 2)
            for middle in (thing.y, thing.x)
        )
        image[rows, columns] = _painted(image[rows, columns], thing, axis[columns][None, :], axis[rows][:, None], size)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _painted(image: np.ndarray, thing: Object, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """A part of the image [h, w, 3], at x [1, w] and y [h, 1], with the object and its shadow on it."""
    distance = SHAPES[thing.shape]
    u, v = (x - thing.x) / thing.radius, (thing.y - y) / thing.radius
    shadow = np.clip(0.5 - distance(u - 0.14, v + 0.18) * 2.5, 0, 1)
    image = image * (1 - 0.35 * shadow[..., None])
    colour = np.array(COLOURS[thing.colour], np.float32)
    dark = colour * 0.45 if thing.colour != "black" else colour + 95
    paint = np.broadcast_to(colour, (*image.shape[:2], 3)) * (1 + 0.1 * np.clip(v - u, -1.5, 1.5))[..., None]
    pixel = thing.radius * size  # in pixels, one unit of the object
    if thing.texture in PATTERNS:
        paint = paint + (dark - colour) * _pattern(thing.texture, x - thing.x, y - thing.y, thing.phase)[..., None]
    elif thing.texture in LETTERS:
        sunk = 0.14 if thing.shape == "triangle" else 0.0  # to where it is wide
        ink = np.clip(0.5 + (0.1 - _letter(thing.texture, u, v + sunk)) * pixel, 0, 1)
        light = colour.mean() > 140
        paint = paint + (np.array((25, 25, 30) if light else (250, 250, 250), np.float32) - paint) * ink[..., None]
    cover = np.clip(0.5 - distance(u, v) * pixel, 0, 1)[..., None]
    return image * (1 - cover) + paint * cover
