"""sample(): the only denoising loop in the repository.

It runs any plan on any backbone. A dense plan gives, bit for bit, what the diffusers pipeline gives for the same
latents. Every draw depends on the image's own seed and on nothing else: not on batch, order or plan.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Unpack

import numpy as np
import torch

from postdiff import arguments, resolution, solvers, switching
from postdiff.decoding import Decoding
from postdiff.guidance import combine
from postdiff.mechanisms.attach import Pass, Running, attach, runners
from postdiff.mechanisms.encoder import repeat
from postdiff.models.configs import check_denoiser, in_memory
from postdiff.models.evaluations import check_plan
from postdiff.models.families import FAMILIES, adapt
from postdiff.models.family import Conditions, Size, Text
from postdiff.models.loading import Backbone
from postdiff.models.schedulers import check_scheduler
from postdiff.models.spec import Sampling, SamplingSettings, Spec, settle
from postdiff.offloading import check_groups, rest
from postdiff.plan import Plan, Step
from postdiff.state import State, draw
from postdiff.text import Embeddings, encode
from postdiff.transfer import Moment, send

AHEAD_CELLS = 2**19  # of latents in one pass of steps computed ahead, which holds its skip features as often


def sample(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    *,
    guidance: float | None = None,
    solver: str | None = None,
    size: int | Size | None = None,
    batch_size: int | None = None,
    embeddings: Embeddings | None = None,
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Generate one image a prompt.

    Args:
        prompts, seeds: as many of one as of the other; an image depends on its own pair. Strings and whole numbers, in
            a list, a tuple, an array, a Series or a range.
        plan: at most as many steps, runs of the model, as the backbone was trained with (1000; LCM: 50).
        guidance: w of classifier-free guidance, 1 or more; the backbone's own by default.
        solver: of `models.schedulers.GENERAL` (ddim, dpm, ...; lcm for LCM); the backbone's own by default.
        size: of the images in pixels, (height, width) or one number for a square; the backbone's own by default.
        batch_size: images a forward pass; a short batch is padded to it. In fp32 the last bits of an image depend
            on the batch shape, so it belongs to a configuration. All prompts in one batch by default.
        embeddings: of these prompts, made by `encode` for this batch size; encoded here by default.
        on_step: called with the number of finished steps of the current batch.

    Returns: uint8 [N, H, W, 3] RGB.
    Raises: ValueError, before any work is done, if an argument is out of range; ArithmeticError if an image is not
        finite, as when float16 overflows.
    """
    settings: SamplingSettings = {"guidance": guidance, "solver": solver, "size": size}
    pixels, _ = zip(*batches(backbone, prompts, seeds, plan, batch_size, embeddings, on_step, **settings), strict=True)
    return np.concatenate(pixels)


def batches(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    batch_size: int | None = None,
    embeddings: Embeddings | None = None,
    on_step: Callable[[int], None] | None = None,
    **settings: Unpack[SamplingSettings],
) -> Iterator[tuple[np.ndarray, float]]:
    """The images of `sample`, batch by batch, each with the seconds that it took from its first noise to its pixels.

    A GPU is given batch n + 1 before the pixels of batch n are waited for, so that it never waits for the host.
    """
    prompts, seeds, plan, sampling = _checked(backbone, prompts, seeds, plan, **settings)
    batch_size = arguments.batch_size(len(prompts) if batch_size is None else batch_size)
    arguments.callback("on_step", on_step)
    if embeddings is not None:
        arguments.instance("embeddings", embeddings, Embeddings).check(backbone, len(prompts))
    embeddings = encode(backbone, prompts, batch_size) if embeddings is None else embeddings
    ahead = 1 if backbone.device.type == "cuda" else 0  # batches that were launched, and not waited for
    launched: deque[tuple[Moment, Decoding, int]] = deque()
    for start in range(0, len(prompts), batch_size):
        began = Moment(backbone.device)
        chunk = list(seeds[start : start + batch_size])
        padded = chunk + [chunk[-1]] * (batch_size - len(chunk))
        text = embeddings.batch(start, batch_size, plan.needs_both_texts)
        latents = denoise(backbone, begin(backbone, text, padded, plan, sampling), on_step)
        launched.append((began, Decoding(backbone, latents), len(chunk)))
        if len(launched) > ahead:
            yield _fetch(*launched.popleft())
    while launched:
        yield _fetch(*launched.popleft())
    rest(backbone.pipe)


def _fetch(began: Moment, decoding: Decoding, count: int) -> tuple[np.ndarray, float]:
    """The first `count` images of a batch, and the seconds that it took."""
    pixels = decoding.pixels()
    return pixels[:count], decoding.fetched.ready.since(began)


def _checked(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    **settings: Unpack[SamplingSettings],
) -> tuple[list[str], tuple[int, ...], Plan, Sampling]:
    """Prompts, seeds, and what `ready` gives. Raises ValueError for what is not meant or out of range."""
    arguments.instance("backbone", backbone, Backbone)
    prompts, seeds = arguments.strings("prompts", prompts), arguments.whole_numbers("seeds", seeds)
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"expected one seed a prompt and at least one prompt, got {len(prompts)} and {len(seeds)}")
    return prompts, seeds, *ready(backbone, plan, **settings)


def ready(backbone: Backbone, plan: Plan, **settings: Unpack[SamplingSettings]) -> tuple[Plan, Sampling]:
    """The plan as the family runs it, and how it is sampled. Raises ValueError if the backbone cannot run it so."""
    spec = backbone.spec
    if backbone.denoiser is None:
        raise ValueError("the backbone was loaded without its denoiser (parts='text'): it can only `encode`")
    check_groups(backbone.denoiser)
    check_denoiser(FAMILIES[spec.family], in_memory(backbone.denoiser), spec.name)  # an adapter may be loaded by hand
    check_scheduler(spec, backbone.pipe.scheduler, settings.get("solver"))
    sampling = settle(spec, **settings)
    plan = adapt(arguments.instance("plan", plan, Plan), spec.family)
    check_plan(sampling.solver, plan)
    switching.make_solver(sampling.solver, backbone.pipe.scheduler.config, plan, spec.name)
    runners(backbone.denoiser, plan)  # raises where it cannot be carried out
    if backbone.compiled and any(mechanism.varies for mechanism in plan.mechanisms):
        raise ValueError(f"{plan.name} runs other shapes for each image, which cannot be compiled: load without it")
    return plan, sampling


def begin_batch(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    **settings: Unpack[SamplingSettings],
) -> State:
    """Start all prompts as one batch, for callers that take the steps themselves. Arguments, errors: as `sample`."""
    prompts, seeds, plan, sampling = _checked(backbone, prompts, seeds, plan, **settings)
    text = encode(backbone, prompts, len(prompts)).batch(0, len(prompts), plan.needs_both_texts)
    return begin(backbone, text, seeds, plan, sampling)


@torch.inference_mode()
def begin(
    backbone: Backbone,
    text: Text,
    seeds: Sequence[int],
    plan: Plan,
    sampling: Sampling,
    *,
    noise: torch.Tensor | None = None,
    conditions: Conditions | None = None,
) -> State:
    """Draw the initial noise, set the solver's timesteps.

    Args:
        text: a row an image, two if `plan.needs_both_texts`; maybe encoded in another dtype or on another device.
        noise: standard normal, [B, C, h, w] at the grid of the first step (`grid_at`), in place of what is drawn.
        conditions: rows as `text` has them, in place of the family's own.
    """
    spec, dtype = backbone.spec, backbone.dtype
    solver = switching.make_solver(sampling.solver, backbone.pipe.scheduler.config, plan, spec.name)
    text = {
        name: send(rows, backbone.device, dtype if rows.is_floating_point() else None)
        for name, rows in text.items()
    }  # fmt: skip
    channels = FAMILIES[spec.family].latent_channels(backbone.denoiser.config)
    first = draw(seeds, "initial", channels, grid_at(spec, sampling, plan.steps[0])) if noise is None else noise
    latents = send(first, backbone.device, dtype) * solver.prior_scale
    timesteps = send(solver.timesteps, backbone.device)
    state = State(plan, sampling, latents, solver, timesteps, text, tuple(seeds), conditions=conditions)
    if noise is not None:
        state.give("initial", send(noise, backbone.device, torch.float32))
    return state


def grid_at(spec: Spec, sampling: Sampling, step: Step) -> tuple[int, int]:
    """(h, w) of the latents at `step`."""
    return resolution.latent_size(spec.latents(sampling.size), step.scale, spec.patch)


def prepare(backbone: Backbone, state: State, running: Running) -> None:
    """Make what the steps that are left need of the host, and send it to the device before the first of them.

    A copy from the host, or a number read back, makes the host wait for the device: the loop has none of either. (But
    for CA-ToMe: how many tokens an image merges is what its tokens say.)
    """
    plan = state.plan
    for i in range(state.index, len(plan)):
        grid = grid_at(backbone.spec, state.sampling, plan.steps[i])
        _conditions(backbone, state, i, grid)
        if i in plan.switches:
            switching.noise(state, i, grid)
        if state.solver.draws_at(i):
            state.noise(f"solver-{i}", grid)
        if _adds_prior_noise(plan, state.solver, i):
            state.noise("initial", grid)
        running.draw_ahead(i, grid, state.drawn)


# inference_mode takes 0.96 of no_grad's time on mini-SD (40 alternating pairs).
@torch.inference_mode()
def denoise(
    backbone: Backbone,
    state: State,
    on_step: Callable[[int], None] | None = None,
    on_x0: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Take all steps that `state` has left: the denoising loop.

    Args:
        state: as `begin` made it; afterwards it is used up.
        on_step: called after each step with the number of steps that are done.
        on_x0: called with the clean latents [B, C, h, w] that each step predicts.

    Returns: clean latents [B, C, h, w].
    """
    with attach(backbone.denoiser, state.plan, backbone.compiled) as running:
        prepare(backbone, state, running)
        while state.index < len(state.plan):
            advance(backbone, state, guide(state, evaluate(backbone, state, running)), on_x0)
            if on_step:
                on_step(state.index)
    return state.latents


def evaluate(backbone: Backbone, state: State, running: Running) -> torch.Tensor:
    """What the denoiser predicts at this step: [B, C, h, w], or [2B, C, h, w] with guidance."""
    i, ahead = state.index, state.ahead
    if i in ahead:
        return ahead.pop(i)
    guided = state.plan.steps[i].guided
    x = state.solver.scale(torch.cat([state.latents] * 2) if guided else state.latents, i)
    copies = _ahead(state.plan, i, len(x) * state.grid[0] * state.grid[1])
    running.begin(Pass(i, guided, state.grid, state.sampling.guidance, state.drawn, copies), state.cache)
    text, conditions = _conditions(backbone, state, i, state.grid)
    t = state.timesteps[i : i + copies].repeat_interleave(len(x))
    x, text, conditions = (repeat(rows, copies) for rows in (x, text, conditions))
    outputs = FAMILIES[backbone.spec.family].predict(backbone.denoiser, x, t, text, conditions).chunk(copies)
    ahead.update(enumerate(outputs[1:], i + 1))
    return outputs[0]


def _conditions(backbone: Backbone, state: State, i: int, grid: tuple[int, int]) -> tuple[Text, Conditions]:
    """The text and the conditions of step `i` at latents of `grid` (h, w): made once a batch."""
    spec, plan, guided = backbone.spec, state.plan, state.plan.steps[i].guided
    current = grid[0] * spec.vae_factor, grid[1] * spec.vae_factor
    size = state.sampling.size if plan.size_condition == "target" else current
    key = "conditions", guided, size
    if key not in state.sent:
        batch = len(state.seeds)
        # Unguided, everything is one half's, pooled text and mask too; the conditional one comes last.
        half = slice(-batch, None) if plan.half == "cond" else slice(batch)
        whole = state.text, state.conditions or {}
        text, given = (each if guided else {name: rows[half] for name, rows in each.items()} for each in whole)
        if state.conditions is None:
            config = backbone.denoiser.config
            given = FAMILIES[spec.family].conditions(text, size, state.sampling.guidance, config)
        state.sent[key] = text, given
    return state.sent[key]


def _ahead(plan: Plan, i: int, cells: int) -> int:
    """Steps from `i` on that are one pass, each of so many cells of latents."""
    return max(1, min(plan.ahead(i), AHEAD_CELLS // cells))


def guide(state: State, output: torch.Tensor) -> torch.Tensor:
    """The denoiser's `output` as `evaluate` returns it, its halves combined by guidance w: [B, C, h, w]."""
    if not state.plan.steps[state.index].guided:
        return output
    uncond, cond = output.chunk(2)
    return combine(uncond, cond, state.sampling.guidance, state.rescale)


def advance(
    backbone: Backbone, state: State, output: torch.Tensor, on_x0: Callable[[torch.Tensor], None] | None = None
) -> None:
    """Take one step of the solver, and where the next step has another resolution, switch to it (Eq. 2, 4, 5).

    output: the prediction, guided, [B, C, h, w]. on_x0: as in `denoise`. Changes `state`.
    """
    i, solver, plan, before = state.index, state.solver, state.plan, state.latents
    if _adds_prior_noise(plan, solver, i):
        alpha, sigma = solver.level(i)
        noise = state.noise("initial", state.grid).to(before.dtype)
        before = before + plan.prior_noise * (alpha**2 + sigma**2) ** 0.5 * noise
    added = state.noise(f"solver-{i}", state.grid) if solver.draws_at(i) else None
    state.latents, clean = solver.step(output, i, before, added)
    switches = i + 1 in plan.switches
    x0 = solver.x0(output, before, i) if clean is None and (on_x0 or switches) else clean
    if on_x0:
        on_x0(x0)
    if switches:
        grid = grid_at(backbone.spec, state.sampling, plan.steps[i + 1])
        state.latents = switching.switched(state, x0, grid).to(output.dtype)
    state.index += 1


def _adds_prior_noise(plan: Plan, solver: solvers.Solver, i: int) -> bool:
    """Is some of the initial noise added before step `i`? So it is in the second half of the schedule, where asked."""
    return plan.prior_noise > 0 and bool(solver.timesteps[i] < solver.train_steps / 2)
