"""The first noise of images as diffusers' pipelines take it: torch's generators, and latents."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, TypeAlias

import torch
from diffusers.utils.torch_utils import randn_tensor

from postdiff import arguments
from postdiff.details import Details
from postdiff.models.families import FAMILIES
from postdiff.models.family import Conditions, Text
from postdiff.models.loading import Backbone
from postdiff.models.spec import Sampling
from postdiff.plan import Plan
from postdiff.sampling import begin, grid_at
from postdiff.state import State

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def begin_drawn(
    backbone: Backbone,
    text: Text,
    plan: Plan,
    sampling: Sampling,
    details: Details,
    images: int,
    generator: Generators,
    latents: torch.Tensor | None = None,
    conditions: Conditions | None = None,
    batch: int | None = None,
) -> State:
    """As `begin`, with the noise that a pipeline's call would draw, in the same order: first the initial one, then, of
    a solver that adds noise, that of each step.

    What else a plan draws (at a switch of resolution, say) depends on each image's initial noise alone.

    Args:
        images: that are drawn. batch: of `text`; the last image is repeated where they are fewer.
        generator: one, or one an image; None is torch's global one.
        latents: as `first_latents` gives them, in place of the initial noise.
    """
    channels = FAMILIES[backbone.spec.family].latent_channels(backbone.denoiser.config)

    def drawn(i: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        shape = images, channels, *grid_at(backbone.spec, sampling, plan.steps[i])
        given: Any = list(generator) if isinstance(generator, Sequence) else generator
        rows = randn_tensor(shape, generator=given, device=backbone.device, dtype=dtype or backbone.dtype)
        return padded(rows, batch or images)

    first = drawn(0) if latents is None else padded(latents, batch or images)
    state = begin(backbone, text, seeds_of(first), plan, sampling, details, noise=first, conditions=conditions)
    for i in range(len(plan)):
        if state.solver.draws_at(i):
            state.give(f"solver-{i}", drawn(i, state.solver.noise_dtype))
    return state


def padded(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """`rows` with the last one repeated, so that there are `batch` of them."""
    return torch.cat([rows, rows[-1:].expand(batch - len(rows), *rows.shape[1:])]) if len(rows) < batch else rows


def first_latents(backbone: Backbone, latents: Any, images: int, plan: Plan, sampling: Sampling) -> torch.Tensor:
    """`latents`, checked. Raises ValueError if they are not [images, C, h, w] at the grid of the plan's first step, in
    the denoiser's dtype."""
    tensor = arguments.instance("latents", latents, torch.Tensor)
    channels, dtype = FAMILIES[backbone.spec.family].latent_channels(backbone.denoiser.config), backbone.dtype
    shape = images, channels, *grid_at(backbone.spec, sampling, plan.steps[0])
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        wanted, got = (f"{list(size)} in {kind}" for size, kind in ((shape, dtype), (tensor.shape, tensor.dtype)))
        raise ValueError(f"latents must be of the plan's first step, {wanted}, got {got}")
    return tensor


def check_generator(generator: Any, images: int) -> None:
    """Raise ValueError if `generator` is neither one of torch's nor a list of one an image."""
    each = list(generator) if isinstance(generator, list | tuple) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise ValueError(f"generator must be a torch.Generator, or a list of them, got {arguments.shown(generator)}")
    if isinstance(generator, list | tuple) and len(each) != images:
        raise ValueError(f"generator must be one, or a list of one an image ({images}), got {len(each)}")


def seeds_of(noise: torch.Tensor) -> list[int]:
    """A seed an image, of its initial noise [B, C, h, w]."""
    rows = noise.float().cpu().numpy()
    return [int.from_bytes(sha256(row.tobytes()).digest()[:8], "little") for row in rows]
