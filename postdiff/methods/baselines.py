"""The methods that the paper compares with (Tables 3 and 4), as it compares them: settings in, `Plan` out.

Each takes `beta` and `s` too: mixed resolution with that method at both resolutions, which the paper leaves "for future
work" (sec. 3.4). They are off by default.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from postdiff.arguments import flag, number, shown, whole_number, whole_numbers
from postdiff.mechanisms import (
    AttentionCache,
    EncoderPropagation,
    KeyDownsampling,
    TokenCache,
    TokenMerging,
)
from postdiff.methods.schedule import check_steps, compose, gate_of, low_first, stored_at
from postdiff.plan import Plan


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
    steps, warm_up = check_steps(steps), whole_number("warm_up", warm_up, 0)
    sp_interval, fi_interval = whole_number("sp_interval", sp_interval), whole_number("fi_interval", fi_interval)
    gate = gate_of(gate_step, steps, "gate_step")
    plan = compose("tgate", steps, m=gate, mode="ave", cache_attention=True)

    def fresh(i: int) -> bool:
        if i < gate - 1:
            return i <= warm_up or i % sp_interval == 0
        return i == gate - 1 or i % fi_interval == 0

    own = stored_at([i for i in range(steps) if fresh(i)], steps)
    cached = replace(plan.get(AttentionCache) or AttentionCache(mode="ave"), own=own)
    return low_first(plan.plus(cached, half="uncond"), beta, s)


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

    The defaults are the authors'; `TokenMerging` says what they mean; a ratio of 0 is off. It is what their package
    does, but for the random partition: an image's own here; a batch's there, and none if the batch is odd.
    """
    off = number("ratio", ratio, "[0, 1)") == 0
    tokens = TokenMerging(0.1 if off else ratio, sx, sy, random, max_downsample, attention, cross_attention, mlp)
    plan = compose("tome", steps)
    return low_first(plan if off else plan.plus(tokens), beta, s)


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
    steps = check_steps(steps)
    fresh = _steps_from_0("match_steps", match_steps)
    threshold = number("threshold", threshold, "[-1, 1]", "; it is a cosine")
    matching = stored_at(fresh, steps)
    tokens = TokenMerging(
        0.75, random=random, max_downsample=max_downsample, threshold=threshold, matching=matching
    )  # fmt: skip
    return low_first(compose("ca_tome", steps).plus(tokens), beta, s)


def todo(steps: int = 20, factor: int = 2, factor_2: int = 1, beta: float = 1.0, s: float = 0.0) -> Plan:
    """ToDo (arXiv 2402.13573): every `factor`-th row and column of the tokens are keys and values of self-attention.

    factor: where the grid is the latents' own; factor_2: where it is half that (SDXL's and PixArt's first); 1 is off.
    """
    keys = KeyDownsampling((whole_number("factor", factor), whole_number("factor_2", factor_2)))
    return low_first(compose("todo", steps).plus(keys), beta, s)


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
    steps = check_steps(steps)
    fresh = _steps_from_0("key_steps", key_steps)
    encoder = EncoderPropagation(stored_at(fresh, steps), flag("ahead", ahead), prior_noise)
    return low_first(compose("faster_diffusion", steps).plus(encoder), beta, s)


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

    The defaults are the authors' programme's; their README's command says fresh_ratio=0.75. `TokenCache` says what
    they mean.
    """
    steps, interval = check_steps(steps), whole_number("interval", interval)

    def mark(i: int) -> str:
        if i % interval == 0:
            return "S" if interval > 1 and i + 1 < steps else "#"
        return "t" if i % interval % 2 else "."

    tokens = TokenCache("".join(map(mark, range(steps))), fresh_ratio, score, soft, interval)
    return low_first(compose("duca", steps).plus(tokens), beta, s)


def _steps_from_0(name: str, steps: Sequence[int]) -> tuple[int, ...]:
    found = whole_numbers(name, steps)
    if not found or found[0] != 0 or any(b <= a for a, b in pairwise(found)):
        raise ValueError(f"{name} must be rising numbers of steps from 0 on, got {shown(found)}")
    return found
