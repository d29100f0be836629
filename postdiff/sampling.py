"""sample(): the only denoising loop in the repository.

It runs any plan on any backbone. A dense plan gives, bit for bit, what the diffusers pipeline gives for the same
latents. Every draw depends on the image's own seed and on nothing else: not on batch, order or plan.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from postdiff import caching, resolution, solvers
from postdiff.backbones import Spec
from postdiff.families import FAMILIES, Text, adapt
from postdiff.loading import Backbone
from postdiff.plan import Plan
from postdiff.text import Embeddings, encode

VERSION = 2  # counts changes of this package that change pixels
AHEAD_CELLS = 2**19  # of latents in one pass of steps computed ahead, which holds its skip features as often
DECODED_PIXELS = 2**21  # at a time: eight images of 1024 px would need a tensor of 2^31 numbers


@dataclass
class State:
    """All that a run holds between two steps: copy it, and both copies go on independently."""

    latents: torch.Tensor  # [B, C, h, w], at step `index`'s noise level
    solver: Any  # a diffusers scheduler
    text: Text  # 2B rows, unconditional half first, or B rows
    seeds: tuple[int, ...]
    index: int = 0
    cache: caching.Cache = field(default_factory=caching.Cache)

    def streams(self, name: str) -> list[torch.Generator]:
        """One generator an image, of this step's draws called `name`."""
        return [_generator(seed, f"{name}-{self.index}") for seed in self.seeds]

    def copy(self) -> "State":
        return copy.deepcopy(self)


def sample(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    *,
    guidance: float | None = None,
    solver: str | None = None,
    size: int | None = None,
    batch_size: int | None = None,
    embeddings: Embeddings | None = None,
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Generate one image a prompt.

    Args:
        prompts, seeds: as many of one as of the other; an image depends on its own pair.
        guidance: w of classifier-free guidance; the backbone's own by default.
        solver: ddim, dpm, euler or unipc (lcm for LCM); the backbone's own by default.
        size: side of the images in pixels; the backbone's own by default.
        batch_size: images a forward pass; a short batch is padded to it. In fp32 the last bits of an image depend
            on the batch shape, so it belongs to a configuration. All prompts in one batch by default.
        embeddings: of these prompts, made by `encode` for this batch size; encoded here by default.
        on_step: called with the number of finished steps of the current batch.

    Returns: uint8 [N, H, W, 3] RGB.
    Raises: ValueError, before any work is done, if an argument is out of range; ArithmeticError if an image is not
        finite, as when float16 overflows.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if embeddings is None and prompts and backbone.pipe.text_encoder is None:
        raise ValueError("the backbone was loaded without its text encoder: expected `embeddings` of the prompts")
    plan, guidance, solver, size = _checked(backbone, prompts, seeds, plan, guidance, solver, size)
    batch_size = batch_size or len(prompts)
    embeddings = encode(backbone, prompts, batch_size) if embeddings is None else embeddings
    if len(embeddings) != len(prompts):
        raise ValueError(f"expected one row of embeddings a prompt ({len(prompts)}), got {len(embeddings)}")
    images = []
    for start in range(0, len(prompts), batch_size):
        chunk = list(seeds[start : start + batch_size])
        padded = chunk + [chunk[-1]] * (batch_size - len(chunk))
        text = embeddings.batch(start, batch_size, plan.needs_both_texts)
        state = begin(backbone, text, padded, plan, solver, size)
        latents = denoise(backbone, state, plan, guidance, size, on_step)
        images.append(decode(backbone, latents)[: len(chunk)])
    return np.concatenate(images)


def _checked(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    guidance: float | None,
    solver: str | None,
    size: int | None,
) -> tuple[Plan, float, str, int]:
    """The plan as the family runs it, guidance, solver and size. Raises ValueError for what is out of range."""
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts must be a list of strings, got {prompts!r}")
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"expected one seed a prompt and at least one prompt, got {len(prompts)} and {len(seeds)}")
    if backbone.denoiser is None:
        raise ValueError("the backbone was loaded without its denoiser (parts='text'): it can only `encode`")
    if hasattr(backbone.denoiser, "_hf_hook"):  # accelerate moves modules in forward, which caches wrap
        raise ValueError("the pipeline is offloaded: expected all of it on one device")
    guidance, solver, size = settle(backbone.spec, guidance, solver, size)
    plan = adapt(plan, backbone.spec.family)
    caching.check(backbone.denoiser, plan)
    return plan, guidance, solver, size


def settle(spec: Spec, guidance: float | None, solver: str | None, size: int | None) -> tuple[float, str, int]:
    """Guidance, solver and size: the backbone's own where None. Raises ValueError if one is out of range."""
    guidance = spec.guidance if guidance is None else guidance
    solver = spec.solver if solver is None else solver
    size = spec.size if size is None else size
    if guidance < 1:
        raise ValueError(f"guidance must be 1 or more, got {guidance}; for none use a plan without it (no_cfg)")
    offered = FAMILIES[spec.family].solvers
    if solver not in offered:
        raise ValueError(f"solver must be one of {', '.join(offered)} for {spec.name}, got {solver!r}")
    spec.latents(size)
    return guidance, solver, size


def begin_batch(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    guidance: float | None,
    solver: str | None,
    size: int | None,
) -> tuple[State, Plan, float, int]:
    """All prompts as one batch, for those who take the steps themselves: its state, the plan as the family runs it,
    guidance and size. Arguments and errors are those of `sample`."""
    plan, guidance, solver, size = _checked(backbone, prompts, seeds, plan, guidance, solver, size)
    text = encode(backbone, prompts, len(prompts)).batch(0, len(prompts), plan.needs_both_texts)
    return begin(backbone, text, seeds, plan, solver, size), plan, guidance, size


@torch.inference_mode()
def begin(backbone: Backbone, text: Text, seeds: Sequence[int], plan: Plan, solver: str | None, size: int) -> State:
    """Draw the initial noise, set the solver's timesteps. `text`: a row an image, two if `plan.needs_both_texts`; it
    may have been encoded in another dtype or on another device."""
    spec = backbone.spec
    scheduler = solvers.make_solver(solver or spec.solver, backbone.pipe.scheduler.config)
    scheduler.set_timesteps(len(plan), device=backbone.device)
    dtype = backbone.dtype
    text = {
        name: rows.to(backbone.device, dtype if rows.is_floating_point() else rows.dtype)
        for name, rows in text.items()
    }  # fmt: skip
    grid = resolution.latent_size(spec.latents(size), plan.steps[0].scale, spec.patch)
    noise = draw(seeds, "initial", backbone.denoiser.config.in_channels, grid)
    latents = noise.to(backbone.device, dtype) * scheduler.init_noise_sigma
    return State(latents, scheduler, text, tuple(seeds))


# inference_mode takes 0.96 of no_grad's time on mini-SD (40 alternating pairs). `decode` casts weights and stays out.
@torch.inference_mode()
def denoise(
    backbone: Backbone,
    state: State,
    plan: Plan,
    guidance: float,
    size: int,
    on_step: Callable[[int], None] | None = None,
    on_x0: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Take the steps that are left. Returns clean latents [B, C, h, w]; `state` is spent.

    on_x0: called with the clean latents that each step predicts.
    """
    with caching.attach(backbone.denoiser, plan) as replay:
        while state.index < len(plan):
            output = guide(evaluate(backbone, state, plan, guidance, size, replay), state, plan, guidance)
            advance(backbone, state, plan, output, size, on_x0)
            if on_step:
                on_step(state.index)
    return state.latents


def evaluate(
    backbone: Backbone, state: State, plan: Plan, guidance: float, size: int, replay: caching.Replay
) -> torch.Tensor:
    """What the denoiser predicts at this step: [B, C, h, w], or [2B, C, h, w] with guidance."""
    i, spec, ahead = state.index, backbone.spec, state.cache.ahead
    if i in ahead:
        return ahead.pop(i)
    step, t = plan.steps[i], state.solver.timesteps[i]
    batch, (h, w) = len(state.latents), state.latents.shape[2:]
    copies = _ahead(plan, i, batch * h * w * (2 if step.guided else 1))
    replay.begin(i, (h, w), state.cache, guidance, state.streams, copies)
    x = torch.cat([state.latents] * 2) if step.guided else state.latents
    # Unguided, everything is one half's, pooled text and mask too; the conditional one comes last.
    one = slice(-batch, None) if plan.half == "cond" else slice(batch)
    text = state.text if step.guided else {name: rows[one] for name, rows in state.text.items()}
    told = (size, size) if plan.size_condition == "target" else (h * spec.vae_factor, w * spec.vae_factor)
    x = state.solver.scale_model_input(x, t)
    if copies > 1:
        t = state.solver.timesteps[i : i + copies].repeat_interleave(len(x))
        text = {name: caching.repeat(rows, copies) for name, rows in text.items()}
    inputs = FAMILIES[spec.family].inputs(text, t, told, guidance, backbone.denoiser.config)
    output = backbone.denoiser(caching.repeat(x, copies), return_dict=False, **inputs)[0]
    if output.shape[1] == 2 * x.shape[1]:  # a model that learned its variance predicts it beside the noise
        output = output.chunk(2, dim=1)[0]
    outputs = output.chunk(copies)
    ahead.update(enumerate(outputs[1:], i + 1))
    return outputs[0]


def _ahead(plan: Plan, i: int, cells: int) -> int:
    """Steps from `i` on that are one pass, each of so many cells of latents."""
    if not plan.ahead or plan.steps[i].encoder != "reuse":
        return 1
    alike = len(list(takewhile(lambda step: step == plan.steps[i], plan.steps[i:])))
    return max(1, min(alike, AHEAD_CELLS // cells))


def guide(output: torch.Tensor, state: State, plan: Plan, guidance: float) -> torch.Tensor:
    """What `evaluate` gave, combined by guidance w: [B, C, h, w]."""
    if not plan.steps[state.index].guided:
        return output
    uncond, cond = output.chunk(2)
    return uncond + guidance * (cond - uncond)


def advance(
    backbone: Backbone,
    state: State,
    plan: Plan,
    output: torch.Tensor,
    size: int,
    on_x0: Callable[[torch.Tensor], None] | None = None,
) -> None:
    """One step of the solver, or the switch to the next step's resolution."""
    i, solver, spec = state.index, state.solver, backbone.spec
    before = state.latents
    if plan.prior_noise and solver.timesteps[i] < solver.config.num_train_timesteps / 2:
        alpha, sigma = solvers.noise_level(solver, i)
        noise = draw(state.seeds, "initial", before.shape[1], before.shape[2:]).to(before)
        before = before + plan.prior_noise * (alpha**2 + sigma**2) ** 0.5 * noise
    state.latents, clean = solvers.step(solver, output, i, before, partial(state.streams, "solver"))
    switches = i + 1 in plan.switches
    if on_x0 or switches:
        level = solvers.noise_level(solver, i)
        x0 = resolution.predict_x0(output, before, *level, solver.config.prediction_type) if clean is None else clean
    if on_x0:
        on_x0(x0)
    if switches:
        grid = resolution.latent_size(spec.latents(size), plan.steps[i + 1].scale, spec.patch)
        noise = draw(state.seeds, f"switch-{i + 1}", x0.shape[1], grid).to(x0.device)
        level = solvers.noise_level(solver, i + 1)
        state.latents = resolution.renoise(resolution.upsample(x0, grid), noise, *level).to(output.dtype)
        solvers.restart(solver, len(plan), i + 1, backbone.device)
    state.index += 1


@torch.no_grad()
def decode(backbone: Backbone, latents: torch.Tensor) -> np.ndarray:
    """Latents [B, C, h, w] -> uint8 [B, H, W, 3]. Raises ArithmeticError if a pixel is not finite: as uint8 it would be
    a black image like any other."""
    pipe, vae, scale = backbone.pipe, backbone.pipe.vae, backbone.pipe.vae.config.scaling_factor
    upcast = FAMILIES[backbone.spec.family].upcast_vae and vae.dtype == torch.float16 and vae.config.force_upcast
    try:
        if upcast:  # SDXL's own autoencoder overflows in fp16
            vae.to(dtype=torch.float32)
            latents = latents.float()
        images = [vae.decode(part, return_dict=False)[0] for part in (latents / scale).split(_slice(backbone, latents))]
    finally:
        if upcast:  # after an error too (out of memory): a worker goes on with the next batch
            vae.to(dtype=torch.float16)
    pixels = pipe.image_processor.postprocess(torch.cat(images), output_type="np")
    finite = np.isfinite(pixels).all((1, 2, 3))
    if not finite.all():
        raise ArithmeticError(
            f"{(~finite).sum()} of {len(pixels)} images are not finite in {latents.dtype}: "
            f"expected a dtype that {backbone.spec.name} bears (float32, bfloat16)"
        )
    return (pixels * 255).round().astype(np.uint8)


def _slice(backbone: Backbone, latents: torch.Tensor) -> int:
    """Images to decode at a time: a divisor of the batch, so that the slices, and an image's bits, are all alike."""
    batch, _, h, w = latents.shape
    fits = DECODED_PIXELS // (h * w * backbone.spec.vae_factor**2)
    return max((n for n in range(1, batch + 1) if batch % n == 0 and n <= fits), default=1)


def draw(seeds: Sequence[int], stream: str, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Standard normal noise, fp32 [N, channels, h, w]: a function of (seed, stream) for each image alone."""
    return torch.stack([torch.randn(channels, *size, generator=_generator(seed, stream)) for seed in seeds])


def _generator(seed: int, stream: str) -> torch.Generator:
    digest = sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
