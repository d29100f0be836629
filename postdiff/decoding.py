"""Decoding: from latents to pixels."""

import numpy as np
import torch

from postdiff.models.families import FAMILIES
from postdiff.models.family import Size
from postdiff.models.loading import Backbone
from postdiff.transfer import Fetched

DECODED_PIXELS = 2**21  # at a time: eight images of 1024 px would need a tensor of 2^31 numbers


class Decoding:
    """Images of a batch on their way to the host, made of latents [B, C, h, w]. A GPU can be given the next batch
    before `pixels` are asked for.

    resized: (height, width) that they become, as the pipeline resizes and crops them; None for their own.
    """

    @torch.no_grad()
    def __init__(self, backbone: Backbone, latents: torch.Tensor, resized: Size | None = None):
        self.backbone = backbone
        decoder = FAMILIES[backbone.spec.family].decode
        parts = []
        for part in latents.split(_slice(backbone, latents)):
            images = decoder(backbone.decoder, part)
            if resized is not None:
                images = backbone.pipe.image_processor.resize_and_crop_tensor(images, resized[1], resized[0])
            parts.append(_pixels(images))
        self.fetched = Fetched(*(torch.cat(rows) for rows in zip(*parts, strict=True)))

    def pixels(self) -> np.ndarray:
        """uint8 [B, H, W, 3]. Raises ArithmeticError if a pixel is not finite: as uint8 it would be a black image like
        any other."""
        pixels, finite = self.fetched.arrays()
        check_finite(self.backbone, len(finite) - int(finite.sum()), len(finite))
        return pixels


def check_finite(backbone: Backbone, broken: int, images: int) -> None:
    """Raise ArithmeticError if `broken` of so many images are not finite."""
    if broken:
        raise ArithmeticError(
            f"{broken} of {images} images are not finite in {backbone.dtype}: "
            f"expected a dtype that {backbone.spec.name} bears (float32, bfloat16)"
        )


def decode(backbone: Backbone, latents: torch.Tensor) -> np.ndarray:
    """Decode clean latents [B, C, h, w] to images, uint8 [B, H, W, 3] RGB.

    Raises: ArithmeticError as `Decoding.pixels`.
    """
    return Decoding(backbone, latents).pixels()


def _pixels(decoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What an autoencoder gives, [B, 3, H, W] in about [-1, 1] -> uint8 [B, H, W, 3], as the pipelines do, and whether
    each image was finite: bool [B]."""
    images = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
    return (images * 255).round().to(torch.uint8), images.isfinite().flatten(1).all(1)


def _slice(backbone: Backbone, latents: torch.Tensor) -> int:
    """Images to decode at a time: a divisor of the batch, so that the slices, and an image's bits, are all alike."""
    batch, _, h, w = latents.shape
    fits = DECODED_PIXELS // (h * w * backbone.spec.vae_factor**2)
    return max((n for n in range(1, batch + 1) if batch % n == 0 and n <= fits), default=1)
