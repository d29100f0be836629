"""Decoding: from latents to pixels."""

import numpy as np
import torch

from postdiff.models.families import FAMILIES
from postdiff.models.loading import Backbone

DECODED_PIXELS = 2**21  # at a time: eight images of 1024 px would need a tensor of 2^31 numbers


@torch.no_grad()
def decode(backbone: Backbone, latents: torch.Tensor) -> np.ndarray:
    """Decode clean latents [B, C, h, w] to images, uint8 [B, H, W, 3] RGB.

    Raises: ArithmeticError if a pixel is not finite: as uint8 it would be a black image like any other.
    """
    decoder, parts = FAMILIES[backbone.spec.family].decode, latents.split(_slice(backbone, latents))
    images = torch.cat([_pixels(decoder(backbone.decoder, part)) for part in parts])
    finite = images.isfinite().flatten(1).all(1)
    pixels = (images * 255).round().to(torch.uint8).cpu().numpy()
    broken = len(images) - int(finite.sum())
    if broken:
        raise ArithmeticError(
            f"{broken} of {len(images)} images are not finite in {backbone.dtype}: "
            f"expected a dtype that {backbone.spec.name} bears (float32, bfloat16)"
        )
    return pixels


def _pixels(decoded: torch.Tensor) -> torch.Tensor:
    """What an autoencoder gives, [B, 3, H, W] in about [-1, 1] -> fp32 [B, H, W, 3] in [0, 1], as the pipelines do."""
    return (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()


def _slice(backbone: Backbone, latents: torch.Tensor) -> int:
    """Images to decode at a time: a divisor of the batch, so that the slices, and an image's bits, are all alike."""
    batch, _, h, w = latents.shape
    fits = DECODED_PIXELS // (h * w * backbone.spec.vae_factor**2)
    return max((n for n in range(1, batch + 1) if batch % n == 0 and n <= fits), default=1)
