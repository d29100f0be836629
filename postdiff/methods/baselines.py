"""The methods that the paper compares with (Tables 3 and 4), as it compares them: settings in, `Plan` out.

Each takes `beta` and `s` too: mixed resolution with that method at both resolutions, which the paper leaves "for future
work" (sec. 3.4). They are off by default.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal

from postdiff.arguments import flag, number, shown, whole_number, whole_numbers
from postdiff.mechanisms import (
    AttentionCache,
    EncoderPropagation,
    KeyDownsampling,
    TokenCache,
    TokenMerging,
)
from postdiff.methods.schedule import (
    Beta,
    LowShare,
    MaxDownsample,
    RandomCell,
    Steps,
    check_steps,
    compose,
    gate_of,
    low_first,
    stored_at,
)
from postdiff.plan import Plan

# Meanings too long for a parameter's line; those of settings that several methods take are in `schedule`.
MatchSteps = Annotated[tuple[int, ...], "steps that match tokens anew; those below T apply"]
Factor = Annotated[int, "every so many rows and columns are keys and values, where the grid is the latents'; 1 is off"]
KeySteps = Annotated[tuple[int, ...], "steps that run the encoder; those below T apply"]
TokenScore = Annotated[Literal["entropy", "random"], "what chooses them: entropy of cross-attention, or chance"]
PriorNoise = Annotated[float, "share of the initial noise that is added before each step of the schedule's second half"]


def tgate(
    steps: Steps = 20,
    gate_step: Annotated[int | float, "guidance ends at this step (10), or share of the steps (0.5)"] = 0.5,
    sp_interval: Annotated[int, "self-attention is computed every so many steps before the gate"] = 1,
    fi_interval: Annotated[int, "self-attention is computed every so many steps after the gate"] = 1,
    warm_up: Annotated[int, "number of first steps that compute all self-attention"] = 0,
    beta: Beta = 1.0,
    s: LowShare = 0.0,
) -> Plan:
    """T-GATE (arXiv 2404.02747): from `gate_step` on no guidance, and the mean of both halves' last cross-attention.

    The defaults are its first version. Its second also reuses self-attention (sp_interval=5, warm_up=2): before the
    gate it is computed in the first `warm_up` steps and at those that `sp_interval` divides, after the gate at those
    that `fi_interval` divides. After the gate it evaluates the unconditional half, as the authors' code does.
    """
    steps, warm_up = check_steps(steps), whole_number("warm_up", warm_up, 0)
    sp_interval, fi_interval = whole_number("sp_interval", sp_interval), whole_number("fi_interval", fi_interval)
    gate = gate_of(gate_step, steps, "gate_step")
    plan = compose("tgate", steps, m=gate, mode="ave", cache_attention=True)

    def fresh(i: int) -> bool:
        if i < gate - 1:
            return i <= warm_up or i % sp_interval == 0
        return i == gate - 1 or i % fi_interval == 0

    self_attention = stored_at([i for i in range(steps) if fresh(i)], steps)
    cached = replace(plan.get(AttentionCache) or AttentionCache(mode="ave"), own=self_attention)
    return low_first(plan.plus(cached, half="uncond"), beta, s)


def tome(
    steps: Steps = 20,
    ratio: Annotated[float, "share of the tokens that are merged away; 0 is off"] = 0.5,
    sx: Annotated[int, "width of a cell of tokens, one of which the others may be merged into"] = 2,
    sy: Annotated[int, "height of that cell"] = 2,
    random: RandomCell = True,
    max_downsample: MaxDownsample = 1,
    attention: Annotated[bool, "merge tokens around self-attention"] = True,
    cross_attention: Annotated[bool, "merge tokens around cross-attention"] = False,
    mlp: Annotated[bool, "merge tokens around the feed-forward layers"] = False,
    beta: Beta = 1.0,
    s: LowShare = 0.0,
) -> Plan:
    """ToMe for Stable Diffusion (CVPR 2023 workshop): tokens that are alike are merged around self-attention.

    The defaults are the authors'. It computes what their package does, but for the random partition: here each image
    draws its own; there a batch draws one, and none if its size is odd.
    """
    off = number("ratio", ratio, "[0, 1)") == 0
    tokens = TokenMerging(0.1 if off else ratio, sx, sy, random, max_downsample, attention, cross_attention, mlp)
    plan = compose("tome", steps)
    return low_first(plan if off else plan.plus(tokens), beta, s)


def ca_tome(
    steps: Steps = 20,
    threshold: Annotated[float, "tokens whose cosine similarity is at least this are merged"] = 0.7,
    match_steps: MatchSteps = (0, 7, 10, 12, 19, 24, 29, 34, 44, 45, 46, 47, 48),
    random: RandomCell = True,
    max_downsample: MaxDownsample = 1,
    beta: Beta = 1.0,
    s: LowShare = 0.0,
) -> Plan:
    """CA-ToMe (arXiv 2501.00946): ToMe around self-attention that merges what is alike enough, matched at few steps.

    The default of `match_steps` is the authors' best list for 50 steps, less 1, since their code counts steps from 1;
    and with 0, where they match because nothing is stored yet. How much is merged depends on the images:
    `postdiff search ca_tome` measures it, and then the plan has a cost.
    """
    steps = check_steps(steps)
    fresh = _steps_from_0("match_steps", match_steps)
    threshold = number("threshold", threshold, "[-1, 1]", "; it is a cosine")
    matching = stored_at(fresh, steps)
    tokens = TokenMerging(
        0.75, random=random, max_downsample=max_downsample, threshold=threshold, matching=matching
    )  # fmt: skip
    return low_first(compose("ca_tome", steps).plus(tokens), beta, s)


def todo(
    steps: Steps = 20,
    factor: Factor = 2,
    factor_2: Annotated[int, "the same where the grid is half of that"] = 1,
    beta: Beta = 1.0,
    s: LowShare = 0.0,
) -> Plan:
    """ToDo (arXiv 2402.13573): every `factor`-th row and column of the tokens are keys and values of self-attention.

    SDXL's and PixArt's first grid of tokens is half the latents': there it is `factor_2` that acts.
    """
    keys = KeyDownsampling((whole_number("factor", factor), whole_number("factor_2", factor_2)))
    return low_first(compose("todo", steps).plus(keys), beta, s)


def faster_diffusion(
    steps: Steps = 20,
    key_steps: KeySteps = (0, 1, 2, 3, 5, 10, 15, 25, 35),
    prior_noise: PriorNoise = 0.003,
    ahead: Annotated[bool, "steps that reuse the encoder are one batch"] = False,
    beta: Beta = 1.0,
    s: LowShare = 0.0,
) -> Plan:
    """Faster Diffusion (NeurIPS 2024): the encoder runs at key steps alone, the decoder at all, on its features.

    The default of `key_steps` is the authors' list for 50 steps. Between two key steps nothing depends on the latents,
    so with `ahead` the decoder takes those steps as one batch.
    """
    steps = check_steps(steps)
    fresh = _steps_from_0("key_steps", key_steps)
    encoder = EncoderPropagation(stored_at(fresh, steps), flag("ahead", ahead), prior_noise)
    return low_first(compose("faster_diffusion", steps).plus(encoder), beta, s)


def duca(
    steps: Steps = 20,
    interval: Annotated[int, "every so many steps one computes everything"] = 3,
    fresh_ratio: Annotated[float, "about what share of the tokens the steps between them compute anew"] = 0.3,
    score: TokenScore = "entropy",
    soft: Annotated[float, "weight, in that choice, of the steps since a token was computed"] = 0.25,
    beta: Beta = 1.0,
    s: LowShare = 0.0,
) -> Plan:
    """DuCa (arXiv 2412.18911) for transformers: of every `interval` steps the first is full, then those that refresh
    tokens (ToCa) and those that skip all blocks alternate.

    The defaults are those of the authors' program; the command in their README has fresh_ratio=0.75.
    """
    steps, interval = check_steps(steps), whole_number("interval", interval)

    def mark(i: int) -> str:
        if i % interval == 0:
            return "S" if interval > 1 and i + 1 < steps else "#"
        return "t" if i % interval % 2 else "."

    tokens = TokenCache("".join(map(mark, range(steps))), fresh_ratio, score, soft, interval)
    return low_first(compose("duca", steps).plus(tokens), beta, s)


def _steps_from_0(name: str, steps: Sequence[int]) -> tuple[int, ...]:
    numbers = whole_numbers(name, steps)
    if not numbers or numbers[0] != 0 or any(b <= a for a, b in pairwise(numbers)):
        raise ValueError(f"{name} must be rising numbers of steps from 0 on, got {shown(numbers)}")
    return numbers
