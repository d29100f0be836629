"""Scoring networks: uint8 images [N, H, W, 3] -> float32 features [N, D]; texts -> float32 [N, D].

ClipEncoder("mini-clip")                       trained on Shapes, in the repository
ClipEncoder("ViT-g-14/laion2b_s34b_b88k")      any open_clip model and weights
InceptionEncoder("inception-2015-12-05.pt")    clean-fid's own resizer and TorchScript Inception
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from postdiff.backbones import MINI


class ClipEncoder:
    """An open_clip model: image and text embeddings, not normalised. `name` is `MODEL/WEIGHTS`, or a folder."""

    def __init__(self, name: str = "mini-clip", device: str = "cpu"):
        folder = MINI / name if name == "mini-clip" else Path(name)
        if folder.is_dir():
            model, weights = f"local-dir:{folder}", None
        elif "/" in name:
            model, weights = name.split("/", 1)
        else:
            raise ValueError(f"unknown CLIP model {name!r}: expected mini-clip, a folder, or MODEL/WEIGHTS")
        self.name, self.device = name, device
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, weights, device=device)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(model)

    @torch.no_grad()
    def images(self, images: np.ndarray) -> np.ndarray:
        batch = torch.stack([self.preprocess(Image.fromarray(image)) for image in images])
        return self.model.encode_image(batch.to(self.device)).float().cpu().numpy()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float().cpu().numpy()


class InceptionEncoder:
    """clean-fid's features, [N, 2048]: its antialiased bicubic resize to 299x299, then its TorchScript Inception.

    `path` is clean-fid's `inception-2015-12-05.pt`, or a TorchScript file whose `layers` takes [N, 3, 299, 299] in
    about [-1, 1]. Load only files that you trust: TorchScript is a program.
    """

    def __init__(self, path: str | Path, device: str = "cpu"):
        from cleanfid.resize import build_resizer

        if not Path(path).is_file():
            raise ValueError(f"no Inception weights at {path}: expected clean-fid's inception-2015-12-05.pt")
        self.name, self.device = f"inception/{Path(path).stem}", device
        self.resize = build_resizer("clean")
        self.layers = torch.jit.load(str(path), map_location=device).eval().layers

    @torch.no_grad()
    def images(self, images: np.ndarray) -> np.ndarray:
        resized = np.stack([self.resize(image) for image in images]).transpose(0, 3, 1, 2)
        batch = (torch.from_numpy(resized).to(self.device) - 128) / 128
        return self.layers(batch).flatten(1).float().cpu().numpy()
