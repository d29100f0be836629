"""What `sample` takes beside what makes a configuration, and whether a model and a plan have a use for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from postdiff import arguments
from postdiff.details import Details
from postdiff.models.families import FAMILIES
from postdiff.models.family import Size
from postdiff.models.spec import Spec
from postdiff.noise import Generators, check_generator
from postdiff.plan import Plan
from postdiff.sampling import check_told
from postdiff.text import Embeddings, check_encoding


@dataclass(frozen=True)
class Told:
    """Sizes and crops that SDXL is told, in place of the image's own: (height, width), (top, left)."""

    original_size: Size | None = None
    crops_coords_top_left: tuple[int, int] | None = None
    target_size: Size | None = None

    @property
    def given(self) -> dict[str, Any]:
        return {name: pair for name, pair in vars(self).items() if pair is not None}

    def as_called(self) -> dict[str, Any]:
        """As a call of the pipeline has them, those of the negative prompt too."""
        plain = {"original_size": None, "crops_coords_top_left": (0, 0), "target_size": None}
        return {**plain, **{f"negative_{name}": value for name, value in plain.items()}, **self.given}


@dataclass(frozen=True)
class Asked:
    """Arguments of `sample`, by its names.

    as_called: a guidance of 1 or less is none, as in diffusers; else the plan alone says which steps are guided.
    """

    negative: str | Sequence[str] | None = None
    num_images_per_prompt: int = 1
    clip_skip: int | None = None
    generator: Generators = None
    latents: torch.Tensor | None = None
    details: Details = field(default_factory=Details)
    told: Told = field(default_factory=Told)
    use_resolution_binning: bool = False
    as_called: bool = False
    progress: bool = False


def asked_by(**given: Any) -> Asked:
    """What arguments of `sample` ask for."""
    parts: dict[str, Any] = {}
    for name, kind in (("details", Details), ("told", Told)):
        own = {part.name for part in fields(kind)}
        parts[name] = kind(**{key: value for key, value in given.items() if key in own})
        given = {key: value for key, value in given.items() if key not in own}
    return Asked(**given, **parts)


def check(spec: Spec, plan: Plan, asked: Asked, prompts: int) -> None:
    """Raise ValueError if `spec` under `plan` has no use for what is asked; weights are not needed. The rest of it is
    told by `Details.check`, with the solver."""
    other = [name for name in ("generator", "latents") if getattr(asked, name) is not None]
    if other and plan.switches and plan.switch == "same-noise":
        raise ValueError(f"{plan.name} adds the noise of a dense plan of the same seed: expected seeds, got {other[0]}")
    negative, _ = check_encoding(spec, prompts, asked.negative, asked.clip_skip)
    if negative and not plan.needs_both_texts:
        raise ValueError(f"negative cannot be honoured: no step of {plan.name} is guided in this call")
    for name, pair in asked.told.given.items():
        if not FAMILIES[spec.family].told_sizes:
            raise ValueError(f"{name} must be None: {spec.name} is told no sizes and crops")
        if len(arguments.whole_numbers(name, pair, 0)) != 2:
            raise ValueError(f"{name} must be two numbers, got {arguments.shown(pair)}")
        check_told(plan)


def check_beside(asked: Asked, embeddings: Any) -> None:
    """Raise ValueError if embeddings are none, or what they have is asked for too."""
    arguments.instance("embeddings", embeddings, Embeddings)
    for name in ("negative", "clip_skip"):
        if (value := getattr(asked, name)) is not None:
            raise ValueError(f"{name} must be None, got {value!r}: embeddings are given, which have it")


def check_noise(asked: Asked, seeds: Sequence[int] | None, images: int, prompts: int) -> tuple[int, ...] | None:
    """The seeds, if there are any. Raises ValueError if noise is of nowhere, or of two places."""
    check_generator(asked.generator, images)
    if seeds is None and (asked.generator is not None or asked.latents is not None):
        if not images:
            raise ValueError("expected at least one prompt, got 0")
        return None
    chosen = arguments.whole_numbers("seeds", seeds)
    if asked.generator is not None:
        raise ValueError("expected seeds or a generator, got both")
    if len(chosen) != images or not images:
        if asked.num_images_per_prompt == 1:
            raise ValueError(f"expected one seed a prompt and at least one prompt, got {prompts} and {len(chosen)}")
        raise ValueError(f"expected one seed an image, {images}, got {len(chosen)}")
    return chosen
