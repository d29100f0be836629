"""What a checkpoint is, without its weights, and how its images are sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

from postdiff import arguments
from postdiff.models.families import FAMILIES
from postdiff.models.family import Size
from postdiff.models.schedulers import check_solver


@dataclass(frozen=True)
class Spec:
    """Where a backbone is and how it is run.

    source: folder, hub id, or a function's name; revision: commit of the hub repository, None for a folder.
    size: (height, width) of the images in pixels, a whole number for squares; vae_factor: pixels a latent cell;
        text_tokens: length of a padded prompt.
    guidance: w of classifier-free guidance.
    solver: the paper states none; these are ours, and part of every configuration's id.
    denoiser: the denoiser's config, where it is needed before (or without) the weights.
    settings: the paper's for its method (sec. 3.1, App. F), arguments of `methods.postdiff`.
    vae: another autoencoder's hub id and commit, or its folder and None; None for the checkpoint's own.
    train_steps: of the noise schedule that the model was trained with; a plan has no more.
    scheduler: the config of the scheduler that a folder ships, with its class as `_class_name`; of a hub's row it is
        there once it is loaded.
    dtype: of the weights that a function's pipeline has, which runs in no other; None where it is chosen.
    loras: (file, scale) of each LoRA that is added to the weights. variant: of the weight files, as `fp16`; None for
        those without a name, or fp16 where there are no others. file: the single file that the weights are in, where
        `source` has the configs alone.
    prompts: the data set whose captions it was trained to draw, as a job's --prompts names it; empty where it may draw
        any.
    """

    name: str
    source: str
    revision: str | None
    family: str
    size: Size
    denoiser: dict
    settings: dict
    guidance: float = 7.5
    solver: str = "dpm"
    vae_factor: int = 8
    text_tokens: int = 77
    vae: tuple[str, str | None] | None = None
    train_steps: int = 1000
    scheduler: dict = field(default_factory=dict)
    dtype: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    variant: str | None = None
    file: str | None = None
    prompts: str = ""

    def __post_init__(self) -> None:
        arguments.put(self, size=arguments.size(self.size))

    @property
    def patch(self) -> int:
        """Latent cells a side of a transformer's token; a U-Net takes any size."""
        return self.denoiser.get("patch_size", 1)

    def latents(self, size: Size) -> tuple[int, int]:
        """(h, w) of the latents of images of `size` pixels. Raises ValueError if there are none."""
        cell = self.vae_factor * self.patch
        if any(side <= 0 or side % cell for side in size):
            raise ValueError(f"size must be a positive multiple of {cell} pixels, got {arguments.shown_size(size)}")
        return size[0] // self.vae_factor, size[1] // self.vae_factor


class SamplingSettings(TypedDict, total=False):
    """How images are sampled, as a user gives it: the backbone's own where a setting is None or missing."""

    guidance: float | None
    solver: str | None
    size: int | Size | None


@dataclass(frozen=True)
class Sampling:
    """How images are sampled, checked (`settle`): w of classifier-free guidance, the solver's name, (height, width) of
    the images in pixels."""

    guidance: float
    solver: str
    size: Size

    @property
    def settings(self) -> dict[str, Any]:
        """The three as a user gives them (a square's size is one number); names of files have them."""
        return {**vars(self), "size": arguments.one_size(self.size)}


def spec_of(
    name: str, source: str, revision: str | None, family: str, size: int | Size, denoiser: dict, **overrides: Any
) -> Spec:
    """A checkpoint's spec: its family's defaults, but for `overrides`."""
    rules = FAMILIES[family]
    defaults = {"settings": dict(rules.settings), "guidance": rules.guidance, "solver": rules.solver}
    tokens = rules.most_tokens or Spec.text_tokens
    required = name, source, revision, family, arguments.size(size), denoiser
    return Spec(*required, **{**defaults, "text_tokens": tokens, **overrides})


def settle(
    spec: Spec, guidance: float | None = None, solver: str | None = None, size: int | Size | None = None
) -> Sampling:
    """The sampling settings of `spec`: its own where None. Raises ValueError if one is out of range."""
    instead = "; for none use a plan without it (no_cfg)"
    guidance = arguments.number("guidance", spec.guidance if guidance is None else guidance, "[1, inf)", instead)
    if guidance > arguments.LARGEST_GUIDANCE:
        raise ValueError(f"guidance must be at most {arguments.LARGEST_GUIDANCE}, got {guidance:g}")
    offered = FAMILIES[spec.family].solvers
    solver = arguments.one_of(f"{spec.name}'s solver", spec.solver if solver is None else solver, offered)
    check_solver(spec.name, solver, spec.scheduler)
    settled = Sampling(guidance, solver, arguments.size(spec.size if size is None else size))
    spec.latents(settled.size)
    return settled
