"""Two networks that read a scene of Shapes or Scenes, so that what an image shows can be held against its caption.

Both answer the questions of their data set. Their architectures and the scenes that they were trained on differ, so
that what one of them imagines in an image the other need not; of Scenes, both read by one rule (detectors.py).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipelines.data.procedural import PROCEDURAL, SHAPES, Procedural
from pipelines.metrics import detectors, judge_networks
from pipelines.metrics.judge import NAMES, one_hot

Architecture = Callable[[Procedural], nn.Module]


def architectures(data: Procedural) -> dict[str, Architecture]:
    """What makes each judge of a data set, by its name."""
    of_shapes = judge_networks.Convolutional, judge_networks.Transformer
    made = of_shapes if data is SHAPES else (detectors.convolutional, detectors.transformer)
    return dict(zip(NAMES, made, strict=True))


class JudgeEncoder:
    """Both judges of a folder: what they read in images, and what captions ask, in the layout of `judge.one_hot`."""

    def __init__(self, folder: Path, device: str = "cpu"):
        self.device = device
        self.data = PROCEDURAL[json.loads((folder / "judges.json").read_text())["data"]]
        self.judges: list = []
        for name, make in architectures(self.data).items():
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
