"""What denoisers are trained on: latents of images, at three sizes, and of crops and of images that were small."""

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from pipelines.data.procedural import Procedural
from pipelines.training import mini
from pipelines.training.loop import SEED, half_precision, load_ema, to_tensor

N_LATENTS = 32_000
SIDES = (16, 12, 8)
CHUNK = 64


@torch.no_grad()
def latents(work: Path, data: Procedural) -> dict[int, np.ndarray]:
    """The first training images as latents, {side: float16 [N, C, side, side]}, of the full and of downsampled images.

    Low-resolution latents encode downsampled images, which is what a real model has seen; pooled latents are not.
    """
    files = {side: work / f"latents-{side}.npy" for side in SIDES}
    if not all(file.exists() for file in files.values()):
        vae = load_ema(mini.autoencoder(data), work, "autoencoder").to(memory_format=torch.channels_last)
        torch.set_num_threads(os.cpu_count() or 1)
        parts: dict[int, list[np.ndarray]] = {side: [] for side in SIDES}
        for start in tqdm(range(0, N_LATENTS, CHUNK), desc=f"encode {data.name}"):
            images = to_tensor(data.drawn([data.scene("train", start + i) for i in range(CHUNK)]))
            for side in SIDES:
                parts[side].append(encoded(vae, resized(images, data.size // mini.LATENT_SIDE * side)))
        for side, file in files.items():
            _save(file, np.concatenate(parts[side]))
    return {side: np.load(file, mmap_mode="r") for side, file in files.items()}


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=size < images.shape[-1])


def encoded(vae, images: torch.Tensor) -> np.ndarray:
    with half_precision():
        return vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean.half().numpy()


def _save(file: Path, values: np.ndarray) -> None:
    np.save(file.with_suffix(".tmp.npy"), values)
    os.replace(file.with_suffix(".tmp.npy"), file)


@torch.no_grad()
def conditioned_latents(work: Path, data: Procedural, n: int = 8000) -> tuple[np.ndarray, np.ndarray]:
    """What teaches SDXL its size and crop conditions: latents [n, C, 16, 16] and ids [n, 6] of

    (original height, width, crop top, left, target height, width). Half are crops of images enlarged by a quarter, half
    were enlarged from fewer pixels than they have now, which shows as blur.
    """
    files = work / "latents-conditioned.npy", work / "ids-conditioned.npy"
    if not all(file.exists() for file in files):
        vae = load_ema(mini.autoencoder(data), work, "autoencoder").to(memory_format=torch.channels_last)
        rng, stored, ids, size = np.random.default_rng(SEED), [], [], data.size
        for i in tqdm(range(n), desc="encode crops and small originals"):
            image = to_tensor(data.drawn([data.scene("train", i)]))
            if i % 2:
                top, left = (int(x) for x in rng.integers(0, size // 4 + 1, 2))
                image = resized(image, size * 5 // 4)[:, :, top : top + size, left : left + size]
                ids.append([size, size, top, left, size, size])
            else:
                small = int(rng.integers(size * 5 // 16, size * 3 // 4 + 1))
                image = resized(resized(image, small), size)
                ids.append([small, small, 0, 0, size, size])
            stored.append(encoded(vae, image))
        for file, values in zip(files, (np.concatenate(stored), np.array(ids, np.int64)), strict=True):
            _save(file, values)
    return np.load(files[0], mmap_mode="r"), np.load(files[1])


def scaling_factor(stored: dict[int, np.ndarray]) -> float:
    """What brings the latents to unit variance (AutoencoderKL's `scaling_factor`)."""
    return round(1 / float(np.std(stored[16][:4000].astype(np.float32))), 5)
