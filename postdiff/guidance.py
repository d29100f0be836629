"""Classifier-free guidance: how the two halves of a batch become one prediction."""

import torch


def combine(uncond: torch.Tensor, cond: torch.Tensor, w: float, rescale: float = 0.0) -> torch.Tensor:
    """The prediction [B, C, h, w] of both halves' under guidance `w`.

    rescale: share in [0, 1] by which it is brought to the conditional half's standard deviation, image by image (Lin et
        al. 2023, "Common diffusion noise schedules and sample steps are flawed", sec. 3.4); 0 is off.
    """
    mixed = uncond + w * (cond - uncond)
    if not rescale:
        return mixed
    dims = list(range(1, mixed.ndim))
    like_cond = mixed * (cond.std(dim=dims, keepdim=True) / mixed.std(dim=dims, keepdim=True))
    return rescale * like_cond + (1 - rescale) * mixed
