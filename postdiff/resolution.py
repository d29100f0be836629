"""The switch from low to full resolution: pure functions on latents [B, C, h, w].

A noisy latent is x = alpha * x0 + sigma * noise. Solvers that work in sigma space (Euler) have alpha = 1.
"""

import torch
import torch.nn.functional as F


def predict_x0(output: torch.Tensor, x: torch.Tensor, alpha: float, sigma: float, prediction: str) -> torch.Tensor:
    """The clean latent that the denoiser's `output` at `x` implies, in fp32 (Eq. 2)."""
    output, x = output.float(), x.float()
    if prediction == "epsilon":
        return (x - sigma * output) / alpha
    if prediction == "sample":
        return output
    if prediction == "v_prediction":
        # v is defined for alpha^2 + sigma^2 = 1; in sigma space x is that latent times sqrt(1 + sigma^2).
        norm = (alpha**2 + sigma**2) ** 0.5
        return (alpha / norm) * (x / norm) - (sigma / norm) * output
    raise ValueError(f"prediction type must be epsilon, sample or v_prediction, got {prediction!r}")


def upsample(x0: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear interpolation to (h, w), in fp32 (Eq. 4)."""
    return F.interpolate(x0.float(), size=size, mode="bilinear", align_corners=False)


def renoise(x0: torch.Tensor, noise: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """A noisy latent at the level (alpha, sigma) (Eq. 5).

    # Paper differs: Eq. 5 writes the level of the step that predicted x0. Its FLOPs column counts T evaluations in
    # all, so the sample must continue at the level of the next timestep; the caller passes that one.
    """
    return alpha * x0 + sigma * noise


def latent_size(full: tuple[int, int], scale: float, patch: int = 1) -> tuple[int, int]:
    """(h, w) of the latents at `scale`, rounded to whole patches of `patch` cells a side, at least one."""
    h, w = (patch * max(1, int(side * scale / patch + 0.5)) for side in full)
    return h, w
