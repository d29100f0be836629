"""Networks that answer all questions about a scene of Shapes from one look at the whole of it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.data.procedural import Procedural

WIDTH = 128


class Residual(nn.Module):
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
            Residual(24, 32, 1),
            Residual(32, 64, 2),
            Residual(64, 96, 2),
            Residual(96, WIDTH, 1),
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
        return self.body(with_coordinates(images))

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
        self.asked = len(data.questions)
        convolutions = [nn.Conv2d(*pair, 3, 2, 1, bias=False) for pair in pairwise((5, 32, 64, WIDTH))]
        self.stem = nn.Sequential(
            *(layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.GELU()))
        )
        self.position = nn.Parameter(torch.randn(64, WIDTH) * 0.02)
        self.queries = nn.Parameter(torch.randn(self.asked, WIDTH) * 0.02)
        self.encoder = encoder()
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in data.questions.items()})

    def forward(self, images: Tensor) -> Tensor:
        """As `Convolutional.forward`."""
        cells = self.stem(with_coordinates(images)).flatten(2).mT + self.position
        queries = self.queries.expand(len(images), -1, -1)
        answers = self.norm(self.encoder(torch.cat([queries, cells], 1))[:, : self.asked])
        return torch.cat([head(answers[:, i]) for i, head in enumerate(self.heads.values())], 1)


def encoder(layers: int = 3) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 3 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def with_coordinates(images: Tensor) -> Tensor:
    """[N, 3, size, size] -> [N, 5, size, size]: each pixel's y and x, from -1 to 1, as channels."""
    axis = torch.linspace(-1, 1, images.shape[-1], device=images.device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    return torch.cat([images, grid.expand(len(images), -1, -1, -1)], 1)
