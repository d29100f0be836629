"""Judges of Scenes: networks that find a scene's objects, and read each where it stands.

What "the third object" is depends on where all others are, which no network of this size learned in an hour (NOTES.md,
session 17). So these say of every cell of a grid whether an object's centre lies in it, and what object that would be,
as CenterNet does (Zhou et al. 2019, "Objects as Points"); how many there are, how they stand, and which is the third,
follows from the places of the centres by arithmetic.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.data import shapes
from pipelines.data.procedural import Procedural
from pipelines.data.shapes import Scene
from pipelines.metrics.judge_networks import WIDTH, Residual, encoder, with_coordinates

SIDE = 16  # cells a side: centres of two objects are three or more apart
LEAST = 0.4  # of a cell that is likelier than this an object is found, unless a likelier one is two or less away
SPREAD = 0.75  # cells, the standard deviation of the bump around a centre that the network is to draw
SURE = 8.0  # the logit of the arrangement that the places of the centres say; that of others is 0


class Detector(nn.Module):
    """`body`: [N, 5, size, size], pixels in [-1, 1] and their coordinates -> [N, 128, 16, 16]."""

    def __init__(self, data: Procedural, body: nn.Module):
        super().__init__()
        self.data, self.body = data, body
        self.sizes = [len(values) for values in data.attributes.values()]
        self.cells = nn.Conv2d(WIDTH, 1 + sum(self.sizes), 1)
        nn.init.constant_(self.cells.bias[:1], -4.0)  # few cells hold a centre
        self.background = nn.Linear(WIDTH, len(shapes.BACKGROUNDS))

    def grid(self, images: Tensor) -> Tensor:
        """float32 [N, 3, size, size] in [-1, 1] -> [N, 128, 16, 16]."""
        return self.body(with_coordinates(images))

    def read(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of a centre [N, 16, 16], of each cell's attributes [N, values, 16, 16], and backgrounds [N, 6]."""
        grid = self.grid(images)
        cells = self.cells(grid)
        return cells[:, 0], cells[:, 1:], self.background(grid.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        """float32 [N, 3, size, size] in [-1, 1] -> logits [N, answers], those of a question side by side."""
        centre, attributes, background = (part.float() for part in self.read(images))
        places, is_object, values = peaks(centre.sigmoid(), attributes, self.data.most)
        arrangement, order = arranged(places, is_object)
        names = self.data.arrangements
        arrangement_logits = SURE * F.one_hot(
            torch.tensor([names.index(name) for name in arrangement], device=images.device), len(names)
        )
        values = torch.take_along_dim(values, order[..., None].to(images.device), 1)
        return torch.cat([arrangement_logits, background, values.flatten(1)], 1)

    def loss(self, read: tuple[Tensor, Tensor, Tensor], scenes: Sequence[Scene]) -> Tensor:
        """Of what `read` said of images of `scenes`: CenterNet's focal loss of the centres, and the cross-entropy of
        what stands there, an object's mean; and that of the background, an image's mean."""
        centre, attributes, background = (part.float() for part in read)
        heat, weights, right = targets(self.data, scenes)
        n = weights.sum()
        p = centre.sigmoid().clamp(1e-4, 1 - 1e-4)
        at_centres = torch.where(heat == 1, (1 - p) ** 2 * p.log(), 0).sum()
        elsewhere = ((1 - heat) ** 4 * p**2 * (1 - p).log()).sum()
        losses = [
            (weights * F.cross_entropy(part, right[:, i], reduction="none")).sum()
            for i, part in enumerate(attributes.split(self.sizes, 1))
        ]
        where = torch.tensor([list(shapes.BACKGROUNDS).index(scene.background) for scene in scenes])
        return (torch.stack(losses).sum() - at_centres - elsewhere) / n + F.cross_entropy(background, where)


def targets(data: Procedural, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """What to say of `scenes`: a bump of height 1 on each centre [N, 16, 16]; how much of an object is each cell's, its
    share of the bilinear weights of the centre [N, 16, 16]; the values of its attributes, int64 [N, kinds, 16, 16]."""
    axis = torch.arange(SIDE) + 0.5
    heat, weights = torch.zeros(2, len(scenes), SIDE, SIDE)
    right = torch.zeros(len(scenes), len(data.attributes), SIDE, SIDE, dtype=torch.long)
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            x, y = ((SIDE * torch.tensor(place) - axis).abs() for place in (thing.x, thing.y))
            bump = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * SPREAD**2))
            heat[row] = torch.maximum(heat[row], bump / bump.max())
            share = (1 - y).clamp(min=0)[:, None] * (1 - x).clamp(min=0)
            weights[row] += share
            for kind, (name, values) in enumerate(data.attributes.items()):
                right[row, kind][share > 0] = values.index(getattr(thing, name))
    return heat, weights, right


def peaks(likely: Tensor, attributes: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest centres [N, 16, 16]: their places (x, y) in cells [N, most, 2], whether an object is found there
    [N, most] (at the likeliest one always is), and its attributes [N, most, values]: means of the 3x3 cells around, of
    which each counts as much as it is likely."""
    _, highest = F.max_pool2d(likely, 5, 1, 2, return_indices=True)  # one of those that are equal
    own = torch.arange(SIDE * SIDE, device=likely.device)
    heights, where = torch.where(highest.flatten(1) == own, likely.flatten(1), 0).topk(most)
    axis = torch.arange(SIDE, device=likely.device).float()
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([x, y]).expand(len(likely), -1, -1, -1)
    stacked = torch.cat([places, attributes], 1) * likely[:, None]
    around = F.avg_pool2d(stacked, 3, 1, 1) / F.avg_pool2d(likely, 3, 1, 1).clamp(min=1e-30)[:, None]
    taken = torch.take_along_dim(around.flatten(2).mT, where[..., None], 1)
    is_object = heights > LEAST
    is_object[:, 0] = True
    return taken[..., :2], is_object, taken[..., 2:]


def arranged(places: Tensor, is_object: Tensor) -> tuple[list[str], Tensor]:
    """How the objects that were found stand, an arrangement a scene, and the order in which a picture of it is read
    [N, most], those that were not found last."""
    names, orders = [], []
    for image, is_one in zip(places.tolist(), is_object.tolist(), strict=True):
        seen = [i for i, one in enumerate(is_one) if one]
        x, y = ([image[i][axis] for i in seen] for axis in (0, 1))
        flat = max(x) - min(x) >= max(y) - min(y)
        name = {1: "alone", 2: "beside" if flat else "above", 3: "row" if flat else "column"}.get(len(seen), "grid")
        along = sorted(seen, key=lambda i: image[i][name in ("above", "column", "grid")])
        if name == "grid":
            along = [i for line in (along[:2], along[2:]) for i in sorted(line, key=lambda i: image[i][0])]
        names.append(name)
        orders.append(along + [i for i in range(len(is_one)) if i not in seen])
    return names, torch.tensor(orders)


def convolutional(data: Procedural) -> Detector:
    """A ResNet down to a grid of 16x16 cells, of which each sees 103 pixels a side."""
    body = nn.Sequential(
        nn.Conv2d(5, 24, 3, 2, 1),
        nn.ReLU(),
        Residual(24, 32, 2),
        Residual(32, 64, 2),
        Residual(64, 96, 1),
        Residual(96, WIDTH, 1),
    )
    return Detector(data, body)


class _Tokens(nn.Module):
    """Strided convolutions to a grid of 16x16 cells, and a transformer over them."""

    def __init__(self):
        super().__init__()
        widths, strides = (5, 32, 64, WIDTH, WIDTH), (2, 2, 2, 1)
        layers: list[nn.Module] = []
        for (inputs, outputs), stride in zip(pairwise(widths), strides, strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]
        self.stem = nn.Sequential(*layers)
        self.position = nn.Parameter(torch.randn(SIDE * SIDE, WIDTH) * 0.02)
        self.encoder = encoder(layers=2)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.stem(x).flatten(2).mT + self.position
        return self.norm(self.encoder(cells)).mT.unflatten(2, (SIDE, SIDE))


def transformer(data: Procedural) -> Detector:
    return Detector(data, _Tokens())
