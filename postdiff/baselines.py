"""The methods that the paper compares with (Tables 3 and 4), as it compares them: settings in, `Plan` out.

Each takes `beta` and `s` too: mixed resolution with that method at both resolutions, which the paper leaves "for future
work" (sec. 3.4). They are off by default.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

from postdiff.compose import check_steps, compose, gate_of, low_first
from postdiff.plan import Action, BlockAction, Plan, StepPlan
from postdiff.reduction import Downsample, Merge, Refresh


def tgate(
    steps: int = 20,
    gate_step: int | float = 0.5,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
    beta: float = 1.0,
    s: float = 0.0,
) -> Plan:
    """T-GATE (arXiv 2404.02747): from `gate_step` on no guidance, and the mean of both halves' last cross-attention.

    The defaults are its first version. Its second also reuses self-attention: before the gate, but for the first
    `warm_up` steps, it is computed at steps that `sp_interval` divides (authors: 5, with a warm-up of 2), after it at
    steps that `fi_interval` divides. After the gate its code evaluates the unconditional half, and so do we.
    """
    whole = {"sp_interval": (sp_interval, 1), "fi_interval": (fi_interval, 1), "warm_up": (warm_up, 0)}
    for name, (value, least) in whole.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}")
    gate = gate_of(gate_step, steps, "gate_step")
    plan = compose("tgate", steps, m=gate, mode="ave", cache_attention=True)

    def fresh(i: int) -> bool:
        if i < gate - 1:
            return i <= warm_up or i % sp_interval == 0
        return i == gate - 1 or i % fi_interval == 0

    computed = [fresh(i) for i in range(steps)]

    def self_attention(i: int) -> Action:
        if not computed[i]:
            return "reuse"
        return "store" if i + 1 < steps and not computed[i + 1] else "compute"

    stepped = tuple(replace(step, self_attention=self_attention(i)) for i, step in enumerate(plan.steps))
    return low_first(replace(plan, steps=stepped, half="uncond"), beta, s)


def tome(
    steps: int = 20,
    ratio: float = 0.5,
    sx: int = 2,
    sy: int = 2,
    random: bool = True,
    max_downsample: int = 1,
    attention: bool = True,
    cross_attention: bool = False,
    mlp: bool = False,
    beta: float = 1.0,
    s: float = 0.0,
) -> Plan:
    """ToMe for Stable Diffusion (CVPR 2023 workshop): tokens that are alike are merged around self-attention.

    The defaults are the authors'; `Merge` says what they mean; a ratio of 0 is off. It is what their package does,
    but for the random partition: an image's own here; a batch's there, and none if the batch is odd.
    """
    tokens = Merge(ratio, sx, sy, random, max_downsample, attention, cross_attention, mlp) if ratio else None
    return low_first(replace(compose("tome", steps), tokens=tokens), beta, s)


def ca_tome(
    steps: int = 20,
    threshold: float = 0.7,
    match_steps: tuple[int, ...] = (0, 7, 10, 12, 19, 24, 29, 34, 44, 45, 46, 47, 48),
    random: bool = True,
    max_downsample: int = 1,
    beta: float = 1.0,
    s: float = 0.0,
) -> Plan:
    """CA-ToMe (arXiv 2501.00946): ToMe around self-attention that merges what is alike enough, matched at few steps.

    threshold: cosine of two tokens that are merged.
    match_steps: steps that match anew, those below T; the authors' best list for 50 steps by default, less 1, since
        their code counts steps from 1, and with 0, where they match because nothing is stored yet.

    How much is merged depends on the images: `postdiff search ca_tome` measures it, and then the plan has a cost.
    """
    check_steps(steps)
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine, in [-1, 1], got {threshold}")
    fresh = _steps_from_0("match_steps", match_steps)
    tokens = Merge(0.75, random=random, max_downsample=max_downsample, threshold=threshold)
    planned = tuple(StepPlan(matching=action) for action in _stored_at(fresh, steps))
    return low_first(Plan("ca_tome", planned, tokens=tokens), beta, s)


def todo(steps: int = 20, factor: int = 2, factor_2: int = 1, beta: float = 1.0, s: float = 0.0) -> Plan:
    """ToDo (arXiv 2402.13573): every `factor`-th row and column of the tokens are keys and values of self-attention.

    factor: where the grid is the latents' own; factor_2: where it is half that (SDXL's and PixArt's first); 1 is off.
    """
    for name, value in (("factor", factor), ("factor_2", factor_2)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    tokens = None if factor == factor_2 == 1 else Downsample((factor, factor_2))
    return low_first(replace(compose("todo", steps), tokens=tokens), beta, s)


def faster_diffusion(
    steps: int = 20,
    key_steps: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 15, 25, 35),
    prior_noise: float = 0.003,
    ahead: bool = False,
    beta: float = 1.0,
    s: float = 0.0,
) -> Plan:
    """Faster Diffusion (NeurIPS 2024): the encoder runs at key steps alone, the decoder at all, on its features.

    key_steps: those below T apply; the authors' list for 50 steps by default.
    prior_noise: share of the initial noise that is added to the latents in the second half of the schedule.
    ahead: between two key steps nothing depends on the latents, so the decoder takes those steps as one batch.
    """
    check_steps(steps)
    fresh = _steps_from_0("key_steps", key_steps)
    planned = tuple(StepPlan(encoder=action) for action in _stored_at(fresh, steps))
    return low_first(Plan("faster_diffusion", planned, prior_noise=prior_noise, ahead=ahead), beta, s)


def duca(
    steps: int = 20,
    interval: int = 3,
    fresh_ratio: float = 0.3,
    score: Literal["entropy", "random"] = "entropy",
    soft: float = 0.25,
    beta: float = 1.0,
    s: float = 0.0,
) -> Plan:
    """DuCa (arXiv 2412.18911) for transformers: of every `interval` steps the first is full, then those that refresh
    tokens (ToCa) and those that skip all blocks alternate.

    The defaults are the authors' programme's; their README's command says fresh_ratio=0.75. `Refresh` says what they
    mean.
    """
    check_steps(steps)
    refresh = Refresh(fresh_ratio, score, soft, interval)

    def blocks(i: int) -> BlockAction:
        if i % interval == 0:
            return "store" if interval > 1 and i + 1 < steps else "compute"
        return "tokens" if i % interval % 2 else "reuse"

    plan = Plan("duca", tuple(StepPlan(blocks=blocks(i)) for i in range(steps)), refresh=refresh)
    return low_first(plan, beta, s)


def _steps_from_0(name: str, steps: tuple[int, ...]) -> tuple[int, ...]:
    if not steps or steps[0] != 0 or any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"{name} must be rising numbers of steps from 0 on, got {steps}")
    return steps


def _stored_at(fresh: tuple[int, ...], steps: int) -> list[Action]:
    """What is computed at the steps `fresh`, and reused after each until the next."""

    def action(i: int) -> Action:
        if i not in fresh:
            return "reuse"
        return "store" if i + 1 < steps and i + 1 not in fresh else "compute"

    return [action(i) for i in range(steps)]
