"""The only denoising loop in the repository, under `sample` (drawing.py) and `accelerate` (own_call.py).

It runs any plan on any backbone. A dense plan gives, bit for bit, what the diffusers pipeline gives for the same
latents. Every draw depends on the image's own seed and on nothing else: not on batch, order or plan.
"""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch

from postdiff import arguments, resolution, solvers, switching
from postdiff.adapters import scaled
from postdiff.details import Details
from postdiff.guidance import combine
from postdiff.mechanisms.attach import Pass, Running, attach, runners
from postdiff.mechanisms.encoder import repeat
from postdiff.models.configs import check_denoiser, in_memory
from postdiff.models.evaluations import check_plan
from postdiff.models.families import FAMILIES, adapt
from postdiff.models.family import Conditions, Text
from postdiff.models.loading import Backbone
from postdiff.models.schedulers import check_scheduler
from postdiff.models.spec import Sampling, SamplingSettings, Spec, settle
from postdiff.offloading import check_groups
from postdiff.plan import Plan, Step
from postdiff.state import State, draw
from postdiff.text import encode
from postdiff.transfer import send

AHEAD_CELLS = 2**19  # of latents in one pass of steps computed ahead, which holds its skip features as often


def ready(
    backbone: Backbone, plan: Plan, details: Details | None = None, **settings: Unpack[SamplingSettings]
) -> tuple[Plan, Sampling]:
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
    switching.make_solver(sampling.solver, backbone.pipe.scheduler.config, plan, spec.name, details or Details())
    runners(backbone.denoiser, plan)  # raises where it cannot be carried out
    if backbone.compiled and any(mechanism.varies for mechanism in plan.mechanisms):
        raise ValueError(f"{plan.name} runs other shapes for each image, which cannot be compiled: load without it")
    return plan, sampling


def check_told(plan: Plan) -> None:
    """Raise ValueError if a caller's own sizes and crops cannot be told to the model at the steps of `plan`."""
    if plan.switches and plan.size_condition != "target":
        raise ValueError(
            f"sizes and crops cannot be told: {plan.name} tells its steps their own (size_condition current)"
        )


def begin_batch(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    **settings: Unpack[SamplingSettings],
) -> State:
    """Start all prompts as one batch, for callers that take the steps themselves. Arguments, errors: as `sample`."""
    arguments.instance("backbone", backbone, Backbone)
    prompts, seeds = arguments.strings("prompts", prompts), arguments.whole_numbers("seeds", seeds)
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"expected one seed a prompt and at least one prompt, got {len(prompts)} and {len(seeds)}")
    plan, sampling = ready(backbone, plan, **settings)
    text = encode(backbone, prompts, len(prompts)).batch(0, len(prompts), plan.needs_both_texts)
    return begin(backbone, text, seeds, plan, sampling)


@torch.inference_mode()
def begin(
    backbone: Backbone,
    text: Text,
    seeds: Sequence[int],
    plan: Plan,
    sampling: Sampling,
    details: Details | None = None,
    *,
    noise: torch.Tensor | None = None,
    conditions: Conditions | None = None,
) -> State:
    """Draw the initial noise, set the solver's timesteps.

    Args:
        text: a row an image, two if `plan.needs_both_texts`; maybe encoded in another dtype or on another device.
        details: a schedule of the call's own, noise that is added, rescaled guidance.
        noise: standard normal, [B, C, h, w] at the grid of the first step (`grid_at`), in place of what is drawn.
        conditions: rows as `text` has them, in place of the family's own.
    """
    spec, details = backbone.spec, details or Details()
    solver = switching.make_solver(sampling.solver, backbone.pipe.scheduler.config, plan, spec.name, details)
    text = beside(backbone, text)
    channels = FAMILIES[spec.family].latent_channels(backbone.denoiser.config)
    first = draw(seeds, "initial", channels, grid_at(spec, sampling, plan.steps[0])) if noise is None else noise
    latents = send(first, backbone.device, backbone.dtype) * solver.prior_scale
    timesteps = send(solver.timesteps, backbone.device)
    state = State(plan, sampling, latents, solver, timesteps, text, tuple(seeds), conditions=conditions)
    state.rescale = details.guidance_rescale
    if noise is not None:
        state.give("initial", send(noise, backbone.device, torch.float32))
    return state


def beside(backbone: Backbone, text: Text) -> Text:
    """`text`, maybe encoded elsewhere, on the denoiser's device and, where it is of real numbers, in its dtype."""
    device, dtype = backbone.device, backbone.dtype
    return {name: send(rows, device, dtype if rows.is_floating_point() else None) for name, rows in text.items()}


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
    on_step: Callable[[int, torch.Tensor], object] | None = None,
    on_x0: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Take all steps that `state` has left: the denoising loop.

    Args:
        state: as `begin` made it; afterwards it is used up.
        on_step: called after each step with the number of steps that are done and the latents [B, C, h, w], at the
            grid and noise level of the next one.
        on_x0: called with the clean latents [B, C, h, w] that each step predicts.

    Returns: clean latents [B, C, h, w].
    """
    with attach(backbone.denoiser, state.plan, backbone.compiled) as running:
        prepare(backbone, state, running)
        while state.index < len(state.plan):
            advance(backbone, state, guide(state, evaluate(backbone, state, running)), on_x0)
            if on_step:
                on_step(state.index, state.latents)
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
    with scaled(backbone.denoiser, state.adapter_scale):
        output = FAMILIES[backbone.spec.family].predict(backbone.denoiser, x, t, text, conditions)
    outputs = output.chunk(copies)
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
        state.latents = switching.noisy(state, resolution.upsample(x0, grid)).to(output.dtype)
    state.index += 1


def _adds_prior_noise(plan: Plan, solver: solvers.Solver, i: int) -> bool:
    """Is some of the initial noise added before step `i`? So it is in the second half of the schedule, where asked."""
    return plan.prior_noise > 0 and bool(solver.timesteps[i] < solver.train_steps / 2)
