"""Paired fidelity: how near an image is to another of the same prompt and noise, pixel by pixel.

It tells plans apart with far fewer images than scores of sets do. It cannot judge what changes resolution while
sampling: fresh noise is drawn at the switch, so the image is another one, however good.
"""

import numpy as np

from pipelines.metrics.intervals import Interval, mean_interval

VERSION = 1  # counts changes of what `compare` computes
AT_ONCE = 8  # images: in float64 and filtered, one of 1,024 pixels takes 200 MB
EQUAL = 60.0  # dB, the most: of equal images it is infinite, and rounding to 256 levels alone gives 59


def compare(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """PSNR in dB and SSIM (Wang et al., 2004) of images to others: uint8 [N, H, W, 3] twice -> float32 [N, 2]."""
    if images.shape != others.shape:
        raise ValueError(f"expected images of one shape, got {list(images.shape)} and {list(others.shape)}")
    parts = [slice(i, i + AT_ONCE) for i in range(0, len(images), AT_ONCE)]
    return np.concatenate([_compare(images[part], others[part]) for part in parts])


def _compare(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    x, y = (torch.from_numpy(np.ascontiguousarray(part)).permute(0, 3, 1, 2).double() for part in (images, others))
    psnr = peak_signal_noise_ratio(x, y, data_range=255.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
    return torch.stack([psnr.clamp(max=EQUAL), ssim], 1).float().numpy()


def psnr(compared: np.ndarray, _: np.ndarray) -> Interval:
    """Mean PSNR in dB of what `compare` gave [N, 2]; Student's t over images."""
    return mean_interval(compared[:, 0])


def ssim(compared: np.ndarray, _: np.ndarray) -> Interval:
    """Mean SSIM, likewise."""
    return mean_interval(compared[:, 1])
