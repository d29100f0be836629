"""Two networks that read a scene of Shapes or Scenes, so that what an image shows can be held against its caption.

Both answer the questions of their data set, and share nothing else: their architectures and the scenes that they were
trained on differ, so that what one of them imagines in an image the other need not.
"""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipelines.data.procedural import PROCEDURAL, SHAPES, Procedural
from pipelines.metrics.judge import NAMES, one_hot

WIDTH = 128


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.skip(x))


class Convolutional(nn.Module):
    """A ResNet on pixels and their coordinates, whose 8x8 grid is pooled by three learned attentions."""

    def __init__(self, data: Procedural):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(5, 24, 3, 2, 1),
            nn.ReLU(),
            _Residual(24, 32, data.size // 64),
            _Residual(32, 64, 2),
            _Residual(64, 96, 2),
            _Residual(96, WIDTH, 1),
        )
        self.queries = nn.Parameter(torch.randn(3, WIDTH) * 0.1)
        self.key = nn.Conv2d(WIDTH, WIDTH, 1)
        self.position = nn.Parameter(torch.randn(WIDTH, 8, 8) * 0.02)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(3 * WIDTH, 96), nn.ReLU(), nn.Linear(96, n))
                for name, n in data.questions.items()
            }
        )

    def grid(self, images: Tensor) -> Tensor:
        """float32 [N, 3, size, size] in [-1, 1] -> [N, 128, 8, 8], not negative."""
        return self.body(_with_coordinates(images))

    def forward(self, images: Tensor) -> Tensor:
        """float32 [N, 3, size, size] in [-1, 1] -> logits [N, answers], those of a question side by side."""
        grid = self.grid(images) + self.position
        attention = torch.softmax(self.queries @ self.key(grid).flatten(2) / WIDTH**0.5, -1)  # [N, 3, 64]
        pooled = (attention @ grid.flatten(2).mT).flatten(1)
        return torch.cat([head(pooled) for head in self.heads.values()], 1)


class Transformer(nn.Module):
    """Strided convolutions to an 8x8 grid, a transformer over its cells and one query a question."""

    def __init__(self, data: Procedural):
        super().__init__()
        widths, patch = ((5, 32, 64, WIDTH), (3, 2, 1)) if data is SHAPES else ((5, 48, 96, WIDTH), (8, 4, 2))
        self.asked = len(data.questions)
        first, *later = pairwise(widths)
        convolutions = [nn.Conv2d(*first, *patch, bias=False)]
        convolutions += [nn.Conv2d(*pair, 3, 2, 1, bias=False) for pair in later]
        self.stem = nn.Sequential(
            *(layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.GELU()))
        )
        self.position = nn.Parameter(torch.randn(64, WIDTH) * 0.02)
        self.queries = nn.Parameter(torch.randn(self.asked, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 3 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in data.questions.items()})

    def forward(self, images: Tensor) -> Tensor:
        """As `Convolutional.forward`."""
        cells = self.stem(_with_coordinates(images)).flatten(2).mT + self.position
        queries = self.queries.expand(len(images), -1, -1)
        answers = self.norm(self.encoder(torch.cat([queries, cells], 1))[:, : self.asked])
        return torch.cat([head(answers[:, i]) for i, head in enumerate(self.heads.values())], 1)


def _with_coordinates(images: Tensor) -> Tensor:
    axis = torch.linspace(-1, 1, images.shape[-1], device=images.device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    return torch.cat([images, grid.expand(len(images), -1, -1, -1)], 1)


Architecture = Callable[[Procedural], nn.Module]
ARCHITECTURES: dict[str, Architecture] = dict(zip(NAMES, (Convolutional, Transformer), strict=True))


class JudgeEncoder:
    """Both judges of a folder: what they read in images, and what captions ask, in the layout of `judge.one_hot`."""

    def __init__(self, folder: Path, device: str = "cpu"):
        self.device = device
        self.data = PROCEDURAL[json.loads((folder / "judges.json").read_text())["data"]]
        self.judges: list = []
        for name, make in ARCHITECTURES.items():
            judge = make(self.data)
            weights = load_file(folder / f"{name}.safetensors")
            judge.load_state_dict(
                {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
            )
            self.judges.append(judge.to(device).eval())

    def prepare(self, image: np.ndarray) -> Tensor:
        """What `encode` takes of an image, uint8 [H, W, 3]: float32 [3, size, size] in [-1, 1]."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1
        size = (self.data.size, self.data.size)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
        return pixels

    def images(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> as `encode`."""
        return self.encode([self.prepare(image) for image in images])

    def encode(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """Probabilities of each answer, those of the one judge and then of the other: float32 [N, 2 x width]."""
        batch = torch.stack(list(prepared)).to(self.device)
        with torch.no_grad():
            logits = [judge(batch).split(list(self.data.questions.values()), 1) for judge in self.judges]
        return torch.cat([part.softmax(1) for judge in logits for part in judge], 1).cpu().numpy()

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.tile(one_hot(texts, self.data), (1, len(self.judges)))


class GridEncoder(JudgeEncoder):
    """What the convolutional judge sees before it answers: its last grid, a mean over the cells, float32 [N, 128].

    For a Frechet distance that is not of CLIP's features: these know textures, outlines and how much there is of each.
    """

    def encode(self, prepared: Sequence[Tensor]) -> np.ndarray:
        batch = torch.stack(list(prepared)).to(self.device)
        with torch.no_grad():
            return self.judges[0].grid(batch).mean((2, 3)).cpu().numpy()
