"""Wrapping: a diffusers pipeline that is in memory as a backbone, with all that its user gave it.

Adapters, textual inversions, FreeU, a sliced or tiled autoencoder and the scheduler stay as they are: the denoiser, the
text encoders and the autoencoder that run are the pipeline's own. What would run otherwise than in it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from postdiff.arguments import DTYPES, shown
from postdiff.models.checkpoints import spec_from
from postdiff.models.configs import in_memory
from postdiff.models.families import FAMILIES
from postdiff.models.family import Family, Size, class_of
from postdiff.models.loading import Backbone, check, float32_vae
from postdiff.models.schedulers import distilled, kept_solver
from postdiff.models.spec import settle
from postdiff.offloading import check_groups, offloaded, targets

# Hooks that change no arithmetic: accelerate's and diffusers' offloading, diffusers' layerwise casting.
WHERE_AND_IN_WHAT_DTYPE = {
    "AlignDevicesHook", "CpuOffload", "SequentialHook", "group_offloading",
    "layerwise_casting", "peft_autocast_disable",
}  # fmt: skip


def wrap(
    pipe: Any, *, size: int | Size | None = None, guidance: float | None = None, solver: str | None = None
) -> Backbone:
    """A diffusers pipeline in memory, as a backbone for `sample`, `cost` and `search`. Nothing of it is changed.

    Args:
        pipe: a StableDiffusionPipeline, StableDiffusionXLPipeline, LatentConsistencyModelPipeline, PixArtAlphaPipeline
            or PixArtSigmaPipeline (no subclass), all of it on one device or offloaded, in float32, float16 or bfloat16.
        size: of its images in pixels, (height, width) or one number for a square; by default as the pipeline's.
        guidance: w of classifier-free guidance, 1 or more; its family's by default.
        solver: on the pipeline's noise schedule; by default the pipeline's scheduler is kept, with its settings.

    Returns: a backbone whose dense plan gives the pipeline's own bits for the same latents.
    Raises: ValueError, in one line with what was expected, if `pipe` is of another class, has a part of
        another kind, a scheduler that is not offered, or a safety checker or watermark, which `sample` would leave out
        (`accelerate` has them).
    """
    backbone = backbone_of(pipe, size=size, guidance=guidance, solver=solver)
    for part in ("safety_checker", "watermark"):
        if getattr(pipe, part, None) is not None:
            raise ValueError(
                f"{part} of {backbone.spec.name} must be None: `sample` has none (`postdiff.accelerate` runs it)"
            )
    return Backbone(backbone.spec, pipe, float32_vae(backbone.spec, pipe.vae))


def backbone_of(
    pipe: Any, *, size: int | Size | None = None, guidance: float | None = None, solver: str | None = None
) -> Backbone:
    """The backbone of `wrap`, for callers that decode with the pipeline's own autoencoder, checker and watermark."""
    family = family_of(pipe)
    rules, name = FAMILIES[family], type(pipe).__name__
    _check_parts(pipe, rules, name)
    check_in_place(pipe, name)
    parts = (rules.denoiser, "vae", *(part for part in rules.text_encoders if getattr(pipe, part) is not None))
    configs = {part: in_memory(getattr(pipe, part)) for part in parts}
    tokenizers = [getattr(pipe, part) for part in rules.tokenizers if getattr(pipe, part) is not None]
    kind = type(pipe.scheduler).__name__
    scheduler = {**pipe.scheduler.config, "_class_name": kind}
    solver_name = kept_solver(name, pipe.scheduler, rules.solvers) if solver is None else solver
    lengths = [tokenizer.model_max_length for tokenizer in tokenizers]
    spec = spec_from(name, "", family, configs, lengths, scheduler)
    if rules.guided and guidance is None and solver is None and (reason := distilled(kind, pipe.scheduler.config)):
        raise ValueError(f"{name} runs guided here: {reason}; if this one is not, say its guidance or solver")
    settled = settle(spec, guidance, solver_name, size)
    spec = replace(spec, guidance=settled.guidance, solver=settled.solver, size=settled.size)
    check(spec, pipe)
    return Backbone(spec, pipe)


def family_of(pipe: Any) -> str:
    """The family whose pipeline `pipe` is. Raises ValueError if none has it: a subclass has a loop of its own."""
    for family, rules in FAMILIES.items():
        if type(pipe).__name__ == rules.pipeline and type(pipe) is class_of(rules.pipeline):
            return family
    known = ", ".join(rules.pipeline for rules in FAMILIES.values())
    raise ValueError(f"pipe must be one of diffusers' {known}, and no subclass, got {shown(type(pipe))}")


def _check_parts(pipe: Any, rules: Family, name: str) -> None:
    """Raise ValueError if a part of the pipeline is of another class than the family's."""
    needed = {rules.denoiser: (rules.model, "diffusers"), "vae": ("AutoencoderKL", "diffusers")}
    words = {part: (kind, "transformers") for part, kind in rules.text_encoders.items()}
    for part, (kind, library) in {**needed, **words}.items():
        module = getattr(pipe, part, None)
        if module is None and part in words:  # its embeddings are given
            continue
        if type(module) is not class_of(kind, library):
            got = "none" if module is None else type(module).__name__
            raise ValueError(f"{part} of {name} must be a {kind}, and no subclass, got {got}")
    for part in (rules.denoiser, "vae"):
        dtype = str(getattr(pipe, part).dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ValueError(f"{part} of {name} must hold its weights in one of {', '.join(DTYPES)}, got {dtype}")


def check_in_place(pipe: Any, name: str) -> None:
    """Raise ValueError if hooks in the pipeline skip what a plan would skip too, or would leave weights where they are;
    or if it is on several devices, and none of it is moved when it runs."""
    devices, moved = set(), False
    for part, module in pipe.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        if hook := next((hook for hook in _hooks(module) if hook not in WHERE_AND_IN_WHAT_DTYPE), None):
            raise ValueError(f"{part} of {name} must have no hooks but of offloading and casting, got {hook}")
        check_groups(module)
        devices |= targets(module) if offloaded(module) else {tensor.device for tensor in module.parameters()}
        moved = moved or offloaded(module)
    if moved:  # what is excluded from offloading may lie where it is
        devices -= {torch.device("cpu"), torch.device("meta")}
    if len(devices) > 1 or any(device.type == "meta" for device in devices):
        raise ValueError(f"all of {name} must be on one device, got {', '.join(sorted(map(str, devices)))}")


def _hooks(module: torch.nn.Module) -> Iterator[str]:
    """The hooks of accelerate and diffusers in a module and those below it, by class or name."""
    for inner in module.modules():
        if hasattr(inner, "_hf_hook"):
            yield type(inner._hf_hook).__name__
        yield from getattr(getattr(inner, "_diffusers_hook", None), "hooks", {})
