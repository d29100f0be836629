"""Shapes: a procedural captioned data set, so that quality can be measured with nothing downloaded.

A scene is a background and one or two objects, each with a size, a texture, a colour and a shape; two objects stand
in a named relation. Layout is low-frequency and texture is high-frequency, so both ends of what mixed resolution
trades are in the picture. A scene is a pure function of (split, index): nothing is stored, nothing depends on order.

    scene = shapes.scene("val", 7)
    scene.caption              # 'a big striped green heart left of a small red ring on sand'
    shapes.render(scene)       # uint8 [64, 64, 3]

Captions are divided once, by hash: one in eight is held out, never drawn for `train`, and the only kind drawn for
`prompts` and for the `reference` images of FID. So an evaluation prompt never occurs in training, though its words do,
and real renders of the prompts are drawn as the references are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

SPLITS = ("train", "val", "prompts", "recaption", "reference")
HELD_OUT_ALONE = ("prompts", "recaption", "reference")  # val has both sides
SIZES = {"small": (0.125, 0.145), "big": (0.195, 0.225)}  # radius, as a share of the image's width
TEXTURES = ("plain", "striped", "checkered", "dotted")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 220, 50),
    "green": (34, 140, 60),
    "blue": (40, 90, 220),
    "purple": (130, 50, 170),
    "white": (245, 245, 245),
    "black": (30, 30, 34),
}
BACKGROUNDS = {  # vertical gradients: colour at the top, colour at the bottom
    "grass": ((150, 215, 110), (70, 140, 60)),
    "sky": ((100, 165, 235), (205, 230, 250)),
    "sand": ((240, 220, 170), (200, 165, 105)),
    "night": ((14, 16, 48), (44, 44, 96)),
    "snow": ((205, 215, 230), (246, 248, 252)),
    "sunset": ((250, 175, 85), (185, 65, 115)),
}
RELATIONS = ("left of", "right of", "above", "below")
HELD_OUT = 8  # one caption in this many


@dataclass(frozen=True)
class Object:
    """One object; positions and radius in shares of the image's width, y downwards."""

    size: str
    texture: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float
    phase: float  # shifts the texture, in periods

    @property
    def words(self) -> str:
        texture = () if self.texture == "plain" else (self.texture,)
        return " ".join(("a", self.size, *texture, self.colour, self.shape))


@dataclass(frozen=True)
class Scene:
    caption: str
    background: str
    tint: tuple[float, float, float]  # added to the background's colours, in 0..255
    objects: tuple[Object, ...]


def scene(split: str, index: int) -> Scene:
    """The scene at `index` of `split`. Redraws until the caption is on the split's side of the hold-out."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = np.random.default_rng([SPLITS.index(split), index])
    while True:
        drawn = _draw(rng)
        if split == "val" or is_held_out(drawn.caption) == (split in HELD_OUT_ALONE):
            return drawn


def is_held_out(caption: str) -> bool:
    return sha256(caption.encode()).digest()[0] % HELD_OUT == 0


def caption(objects: Sequence[Object], layout: str, background: str) -> str:
    """What is said of one object (layout `alone`), or of two in a relation, which is their layout."""
    return f" {layout} ".join(thing.words for thing in objects) + f" on {background}"


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    words = {"a", "on", *SIZES, *TEXTURES, *COLOURS, *SHAPES, *BACKGROUNDS}
    words.update(word for relation in RELATIONS for word in relation.split())
    return sorted(words - {"plain"})


def _draw(rng: np.random.Generator) -> Scene:
    background = _pick(rng, BACKGROUNDS)
    tint = tuple(rng.uniform(-12, 12, 3))
    if rng.random() < 0.45:
        only = _object(rng, None, None)
        return Scene(caption([only], "alone", background), background, tint, (only,))
    relation = _pick(rng, RELATIONS)
    pair = _pair(rng, relation)
    return Scene(caption(pair, relation, background), background, tint, pair)


def _object(rng: np.random.Generator, x: float | None, y: float | None) -> Object:
    size = _pick(rng, SIZES)
    radius = rng.uniform(*SIZES[size])
    lo, hi = radius + 0.03, 0.97 - radius
    return Object(
        size,
        _pick(rng, TEXTURES),
        _pick(rng, COLOURS),
        _pick(rng, SHAPES),
        rng.uniform(lo, hi) if x is None else x,
        rng.uniform(lo, hi) if y is None else y,
        radius,
        rng.random(),
    )


def _pair(rng: np.random.Generator, relation: str) -> tuple[Object, Object]:
    """Two objects side by side along the relation's axis, each near the middle of the other axis."""
    across = rng.uniform(0.36, 0.64, 2)
    a, b = _object(rng, 0.5, across[0]), _object(rng, 0.5, across[1])
    lead, trail = (a, b) if relation in ("left of", "above") else (b, a)
    gaps = rng.dirichlet((2, 1, 2)) * (1 - 2 * (a.radius + b.radius))  # what is left: margin, gap, margin
    at = {lead: gaps[0] + lead.radius, trail: 1 - gaps[2] - trail.radius}
    vertical = relation in ("above", "below")

    def place(thing: Object) -> Object:
        along = float(at[thing])
        return Object(**{**thing.__dict__, "x": thing.y if vertical else along, "y": along if vertical else thing.y})

    return place(a), place(b)


def _pick(rng: np.random.Generator, options):
    return tuple(options)[rng.integers(len(options))]


# Drawing: signed distances in units of the radius (x right, y up), one pixel of soft edge.


def _circle(x, y):
    return np.hypot(x, y) - 1


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.86


def _triangle(x, y):
    y = y + 0.15
    return np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.57


def _star(x, y):
    angle = np.mod(np.arctan2(x, y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5  # folded to one of five arms
    r = np.hypot(x, y)
    px, py = np.abs(r * np.sin(angle)), r * np.cos(angle)
    tip, notch = np.array([0.0, 1.08]), 0.5 * np.array([np.sin(np.pi / 5), np.cos(np.pi / 5)])
    edge = notch - tip
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    return (px - tip[0]) * normal[0] + (py - tip[1]) * normal[1]


def _heart(x, y):
    x, y = np.abs(x) * 0.62, y * 0.62 + 0.55
    lobe = np.hypot(x - 0.25, y - 0.75) - 0.3536
    tip = np.sqrt(
        np.minimum(x**2 + (y - 1) ** 2, (x - np.maximum(x + y, 0) / 2) ** 2 + (y - np.maximum(x + y, 0) / 2) ** 2)
    )
    return np.where(x + y > 1, lobe, tip * np.sign(x - y)) / 0.62


def _ring(x, y):
    return np.abs(np.hypot(x, y) - 0.74) - 0.26


SHAPES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart, "ring": _ring}
ATTRIBUTES = {"size": tuple(SIZES), "texture": TEXTURES, "colour": tuple(COLOURS), "shape": tuple(SHAPES)}


def _texture(name: str, x, y, phase: float):
    """Share of the dark tone at each point; periods are shares of the image's width, so a scene scales."""
    if name == "striped":
        return _soft(np.cos(2 * np.pi * ((x + y) / 0.14 + phase)))
    if name == "checkered":
        return _soft(np.cos(2 * np.pi * (x / 0.17 + phase)) * np.cos(2 * np.pi * (y / 0.17 + phase)) * 1.6)
    if name == "dotted":
        return _soft(np.cos(2 * np.pi * (x / 0.115 + phase)) + np.cos(2 * np.pi * (y / 0.115 + phase)) - 0.7)
    return 0.0


def _soft(wave):
    return np.clip(0.5 + 1.2 * wave, 0, 1)


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Draw `scene` as uint8 [size, size, 3] RGB."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = axis[None, :], axis[:, None]
    top, bottom = (np.array(c, np.float32) + np.array(scene.tint, np.float32) for c in BACKGROUNDS[scene.background])
    image = np.broadcast_to(top + (bottom - top) * y[..., None], (size, size, 3)).astype(np.float32)
    for thing in scene.objects:
        distance = SHAPES[thing.shape]
        u, v = (x - thing.x) / thing.radius, (thing.y - y) / thing.radius
        shadow = np.clip(0.5 - distance(u - 0.14, v + 0.18) * 2.5, 0, 1)
        image = image * (1 - 0.35 * shadow[..., None])
        cover = np.clip(0.5 - distance(u, v) * (thing.radius * size), 0, 1)[..., None]
        colour = np.array(COLOURS[thing.colour], np.float32)
        dark = colour * 0.45 if thing.colour != "black" else colour + 95
        tone = _texture(thing.texture, x - thing.x, y - thing.y, thing.phase)
        paint = colour + (dark - colour) * np.asarray(tone, np.float32)[..., None]
        paint = paint * (1 + 0.1 * np.clip(v - u, -1.5, 1.5))[..., None]
        image = image * (1 - cover) + paint * cover
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
