"""Scoring networks: uint8 images [N, H, W, 3] -> float32 features [N, D]; texts -> float32 [N, D].

ClipEncoder("mini-clip")                       trained on Shapes, in the repository
ClipEncoder("mini-clip-reads")                 likewise: a later one, which tells left from right
ClipEncoder("mini-clip-scenes")                likewise, on Scenes
JudgeEncoder("mini-judges")                    likewise: two networks that read a scene (judge_models.py)
GridEncoder("mini-judges-grid")                what one of the judges sees before it answers
ClipEncoder("ViT-g-14/laion2b_s34b_b88k")      any open_clip model and weights
InceptionEncoder("inception-2015-12-05.pt")    clean-fid's own resizer and TorchScript Inception
pickscore=FOLDER, hps=..., imagereward=...     human preference (preference.py, preference_models.py)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipelines.data.procedural import PROCEDURAL
from pipelines.engine.identity import digest
from pipelines.metrics import preference
from postdiff.models.checkpoints import MINI, digest_of

if TYPE_CHECKING:
    import torch

# What clean-fid downloads.
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"

LONGEST = 200  # bytes of a file's or folder's own name in an encoder's
# In the repository: what judges content, and what scores.
JUDGES = tuple(data.judges for data in PROCEDURAL.values() if data.judges)
GRIDS = {f"{name}-grid": name for name in JUDGES}  # what one of the judges sees, for a distance of its own
CLIPS = (*(data.clip for data in PROCEDURAL.values()), "mini-clip-reads")


def clip_folder(name: str) -> Path | None:
    """The folder of a CLIP model, None for open_clip's `MODEL/WEIGHTS`. Raises ValueError if it is neither."""
    folder = MINI / name if name in CLIPS else Path(name)
    if os.path.isdir(folder):
        return folder
    import open_clip  # with timm and torchvision: seconds

    if tuple(name.split("/", 1)) in open_clip.list_pretrained():
        return None
    raise ValueError(
        f"unknown CLIP model {name!r}: expected {', '.join(CLIPS)}, a folder, or open_clip's MODEL/WEIGHTS "
        "(as ViT-L-14/openai; open_clip.list_pretrained() has them all)"
    )


def fingerprint(encoder: str) -> str:
    """Names the weights of an encoder, fit for a path: `mini-clip-1f2e3d4c`, `ViT-L-14-openai`.

    Raises: ValueError if there is no such encoder.
    """
    if preference.is_named(encoder):
        return preference.fingerprint(encoder)
    if encoder.endswith(".pt"):
        return f"{_short(Path(encoder).stem)}-{_digest([inception_file(encoder)])}"
    judges = GRIDS.get(encoder, encoder)
    folder = MINI / judges if judges in JUDGES else clip_folder(encoder)
    if folder is None:
        return encoder.replace("/", "-")
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return f"{encoder if encoder in GRIDS else _short(folder.name)}-{_digest(files)}"


def _short(name: str) -> str:
    """As much of `name` as leaves room for a digest, which says what it is of, in the 255 bytes of a file's name."""
    return name.encode()[:LONGEST].decode(errors="ignore")


def _digest(files: Sequence[Path]) -> str:
    stats = [(file, file.stat()) for file in files]
    return digest(b"".join(digest_of(f, s.st_size, s.st_mtime_ns) for f, s in stats), 8)


class ClipEncoder:
    """An open_clip model: image and text embeddings of length 10. `name` is `MODEL/WEIGHTS`, or a folder.

    CLIP compares directions; lengths vary twofold, and left in they decide a Frechet distance. Ten instead of one makes
    that distance a number to read.
    """

    def __init__(self, name: str = "mini-clip", device: str = "cpu"):
        import open_clip

        folder = clip_folder(name)
        model, weights = (f"local-dir:{folder}", None) if folder else name.split("/", 1)
        self.device = device
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, weights, device=device)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(model)

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        """What `encode` takes of an image, uint8 [H, W, 3]: resized and normalized, on the CPU."""
        return self.preprocess(Image.fromarray(image))

    def encode(self, prepared: Sequence[torch.Tensor]) -> np.ndarray:
        import torch

        batch = torch.stack(list(prepared)).to(self.device)
        with torch.no_grad():
            return 10 * self.model.encode_image(batch, normalize=True).float().cpu().numpy()

    def images(self, images: np.ndarray) -> np.ndarray:
        return self.encode([self.prepare(image) for image in images])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        tokens = self.tokenizer(list(texts)).to(self.device)
        with torch.no_grad():
            return 10 * self.model.encode_text(tokens, normalize=True).float().cpu().numpy()


def inception_file(path: str | Path) -> Path:
    if not os.path.isfile(path):
        raise ValueError(f"no Inception weights at {path}: expected the file of {INCEPTION_URL}")
    return Path(path)


class InceptionEncoder:
    """clean-fid's features, [N, 2048]: its antialiased bicubic resize to 299x299, then its TorchScript Inception.

    `path` is clean-fid's `inception-2015-12-05.pt`, or a TorchScript file whose `layers` takes [N, 3, 299, 299] in
    about [-1, 1]. Load only files that you trust: TorchScript is a program.
    """

    def __init__(self, path: str | Path, device: str = "cpu"):
        import torch
        from cleanfid.resize import build_resizer

        self.device = device
        self.resize = build_resizer("clean")
        self.layers = torch.jit.load(str(inception_file(path)), map_location=device).eval().layers

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """What `encode` takes of an image, uint8 [H, W, 3]: float32 [299, 299, 3]."""
        return self.resize(image)

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        batch = (torch.from_numpy(np.stack(prepared).transpose(0, 3, 1, 2)).to(self.device) - 128) / 128
        # Without TF32: as clean-fid on a CPU, to the last digits.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.layers(batch).flatten(1).float().cpu().numpy()

    def images(self, images: np.ndarray) -> np.ndarray:
        return self.encode([self.prepare(image) for image in images])
