"""Searches: schedules that are found by running a model on a few calibration prompts (block caching, DiTFastAttn).

Each takes any plan and returns it with a schedule for each module (`ScheduledModules`). The schedule is for that model,
number of steps, resolution and guidance; it can be saved (`save_plan`), and runs without the prompts. Every function
takes `settings`, that is guidance, solver and size, as `sample` does; `seeds` is one a prompt.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import get_ident
from typing import Unpack

import numpy as np
import torch

from postdiff import drawing, sampling
from postdiff.arguments import callback, instance, number
from postdiff.mechanisms import ScheduledModules, TokenMerging
from postdiff.mechanisms.attach import Cache, attach
from postdiff.mechanisms.merging import SHARES
from postdiff.models.anatomy import anatomy
from postdiff.models.loading import Backbone
from postdiff.models.spec import SamplingSettings
from postdiff.plan import Plan


def block_caching(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    delta: float = 0.5,
    on_step: Callable[[int], None] | None = None,
    **settings: Unpack[SamplingSettings],
) -> Plan:
    """Cache Me if You Can (CVPR 2024), without its learned scale and shift: `plan` with reused blocks.

    What a block adds to its input is reused until its relative L1 change from step to step, averaged over the prompts,
    adds up to more than `delta` since it last ran; a block runs where the resolution or the guidance changes.

    Raises: ValueError, before any work is done, if `delta` is not 0 or more, or as `sample` does.
    """
    delta = number("delta", delta, "[0, inf)")
    changes = contribution_changes(backbone, prompts, seeds, plan, on_step, **settings)
    schedules = ScheduledModules(tuple((name, marks(d, delta)) for name, d in changes.items()))
    return plan.plus(schedules, name="block_caching")


def marks(changes: Sequence[float] | np.ndarray, delta: float) -> str:
    """The schedule of a block, a mark a step, from its `changes` [T-1] between steps; it runs where one is NaN."""
    row, sum_since = "#", 0.0
    for change in changes:
        sum_since += change
        if sum_since <= delta:  # False for what is not a number
            row += "."
        else:
            row, sum_since = row + "#", 0.0
    return row


def contribution_changes(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    on_step: Callable[[int], None] | None = None,
    **settings: Unpack[SamplingSettings],
) -> dict[str, np.ndarray]:
    """{block: [T-1] mean of |F(x_t) - F(x_t-1)|_1 / |F(x_t)|_1}, where F is what the block adds to its input."""
    callback("on_step", on_step)
    denoiser = instance("backbone", backbone, Backbone).denoiser
    names = anatomy(denoiser).transformers if denoiser else ()  # without one, `sample` says so
    with _contributions(backbone.denoiser, names) as now:
        steps: list[dict[str, torch.Tensor]] = []
        distances: dict[str, list[float]] = {name: [] for name in names}

        def compare(step: int, _: torch.Tensor) -> None:
            if steps:
                before = steps.pop()
                for name in names:
                    distances[name].append(_relative_change(before[name], now[name]))
            steps.append(dict(now))
            if on_step:
                on_step(step)

        for _ in drawing.batches(backbone, prompts, seeds, plan, on_step=compare, **settings):
            pass
    return {name: np.array(values) for name, values in distances.items()}


def _relative_change(before: torch.Tensor, now: torch.Tensor) -> float:
    if before.shape != now.shape:
        return float("nan")
    change, size = (now - before).flatten(1).norm(1, dim=1), now.flatten(1).norm(1, dim=1)
    return float((change / size).mean())


@contextmanager
def _contributions(denoiser: torch.nn.Module, names: Sequence[str]):
    now: dict[str, torch.Tensor] = {}
    handles, thread = [], get_ident()
    for name in names:

        def hook(module, args, kwargs, output, name=name):
            if get_ident() != thread:  # another's run on this model
                return
            x = args[0] if args else kwargs["hidden_states"]
            now[name] = ((output[0] if isinstance(output, tuple) else output) - x).float()

        handles.append(denoiser.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        yield now
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def ditfastattn(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    threshold: float = 0.0725,
    window: float = 0.125,
    *,
    on_step: Callable[[int], None] | None = None,
    **settings: Unpack[SamplingSettings],
) -> Plan:
    """DiTFastAttn (NeurIPS 2024): `plan` with the cheapest self-attention that changes each step's output little.

    At every step, block by block, the first of: reuse the last output; a window, one half for both; a window; one
    half for both, is taken whose denoiser output O' has mean(clip(|O - O'| / (max(O, O') + 1e-6), 0, 10)) below
    threshold * (b + 1) / blocks, with what was taken before it in place; otherwise all of it is computed, as it is at
    the first step, and where the resolution or the guidance changes. Costs up to 4 passes a block and step.

    threshold: the authors try 0 (nothing) to 0.15. window: a share of the tokens to either side, 1/8 there.

    Raises: ValueError, before any work is done, if `threshold` is not 0 or more or `window` not in (0, 1], or as
        `sample` does.
    """
    threshold, window = number("threshold", threshold, "[0, inf)"), number("window", window, "(0, 1]")
    callback("on_step", on_step)
    state = sampling.begin_batch(backbone, prompts, seeds, plan, **settings)
    plan = state.plan
    names = anatomy(backbone.denoiser).layers("self-attention")
    alike = [(step.scale, step.guided) for step in plan.steps]
    afresh = [i == 0 or alike[i] != alike[i - 1] for i in range(len(plan))]
    chosen = dict.fromkeys(names, "")

    def with_marks(now: dict[str, str]) -> Plan:
        """The plan with what was taken, this step's marks, and after it reuse: so that every output is stored."""
        to_come = "".join("#" if fresh else "." for fresh in afresh[state.index + 1 :])
        schedules = tuple((name, chosen[name] + now[name] + to_come) for name in names)
        return plan.plus(ScheduledModules(schedules, window), name="ditfastattn")

    def run(now: dict[str, str], cache: Cache) -> torch.Tensor:
        marked = with_marks(now)
        with attach(backbone.denoiser, marked) as running:
            return sampling.evaluate(backbone, replace(state, plan=marked, cache=cache), running)

    while state.index < len(plan):
        now = dict.fromkeys(names, "S")  # in full, and what a window would leave out of it
        if not afresh[state.index]:
            full = run(now, _copy(state.cache))
            for b, name in enumerate(names):
                for mark in ".xwc" if plan.steps[state.index].guided else ".w":
                    output = run({**now, name: mark}, _copy(state.cache))
                    if _output_change(full, output) < threshold * (b + 1) / len(names):
                        now[name] = mark
                        break
        output = run(now, state.cache)
        sampling.advance(backbone, state, sampling.guide(state, output))
        chosen = {name: chosen[name] + now[name] for name in names}
        if on_step:
            on_step(state.index)
    schedules = tuple((name, _without_waste(row, afresh)) for name, row in chosen.items())
    return plan.plus(ScheduledModules(schedules, window), name="ditfastattn")


@torch.inference_mode()
def ca_tome(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    *,
    on_step: Callable[[int], None] | None = None,
    **settings: Unpack[SamplingSettings],
) -> Plan:
    """`plan`, whose merging has a threshold (`methods.ca_tome`), with what its cost depends on: the share of the tokens
    that each block merges at each step, the mean over the prompts."""
    callback("on_step", on_step)
    tokens = instance("plan", plan, Plan).get(TokenMerging)
    if tokens is None or tokens.threshold is None:
        raise ValueError(f"expected a plan that merges tokens by a threshold (ca_tome), got {plan.name}")
    state = sampling.begin_batch(backbone, prompts, seeds, plan, **settings)
    sampling.denoise(backbone, state, (lambda i, _: on_step(i)) if on_step else None)
    plan, rows = state.plan, []
    for name, by_step in state.cache[TokenMerging.__name__][SHARES].items():
        shares: list[float] = []
        for i in range(len(plan)):  # a matching that is reused merges what it merged before
            shares.append(shares[-1] if tokens.matching[i : i + 1] == "." else by_step.get(i, 0.0))
        rows.append((name, tuple(shares)))
    return plan.plus(replace(tokens, merged=tuple(rows)))


def _copy(cache: Cache) -> Cache:
    """So that a trial changes no entry of `cache`; the tensors are shared."""
    return {kind: dict(stored) for kind, stored in cache.items()}


def _output_change(full: torch.Tensor, output: torch.Tensor) -> float:
    """The authors' measure. Its signed maximum lets negative numbers weigh less; their thresholds are meant so."""
    full, output = full.float(), output.float()
    return float(((full - output).abs() / (torch.maximum(full, output) + 1e-6)).clamp(0, 10).mean())


def _without_waste(row: str, afresh: list[bool]) -> str:
    """The marks, storing what a window leaves out only where a window follows."""
    marks, needed = "", False
    for mark, fresh in zip(reversed(row), reversed(afresh), strict=True):
        marks = ("#" if mark == "S" and not needed else mark) + marks
        needed = mark in "wx" or (needed and mark != "S" and not fresh)
    return marks
