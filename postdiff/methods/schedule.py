"""What the functions of `methods` and `baselines` have in common: types of settings, and schedules made from them."""

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated

from postdiff.arguments import instance, number, one_of, plain, shown, whole_number
from postdiff.mechanisms import AttentionCache, DeepCache
from postdiff.mechanisms.attention import Mode
from postdiff.plan import MAX_STEPS, SIZE_CONDITIONS, Plan, SizeCondition, Step

# Settings that several methods take. What a setting means is said here, or where its method alone takes it, and nowhere
# else: the command line's help is made of it (`postdiff.settings`).
Steps = Annotated[int, "T, the number of denoising steps"]
Beta = Annotated[float, "scale of the low resolution, in (0, 1]; 1 is off"]
LowShare = Annotated[float, "share of the steps at low resolution, the first round(s*T); in [0, 1), 0 is off"]
Interval = Annotated[int, "DeepCache's interval: every k-th step runs the whole U-Net; 1 is off"]
Gate = Annotated[int | float, "guidance ends at this step (15), or share of the steps (0.75); T is off"]
CacheMode = Annotated[Mode, "which guidance the cached cross-attention holds"]
Branch = Annotated[int, "DeepCache's skip branch; 0 is the outermost, the paper's is 1"]
SizeTold = Annotated[SizeCondition, "the size that SDXL and PixArt are told at low resolution"]
RandomCell = Annotated[bool, "draw which token of a cell that is; off: the upper left one; CA-ToMe too"]
MaxDownsample = Annotated[int, "merge where the grid is at most so many times smaller than the latents'; CA-ToMe too"]


def compose(
    name: str,
    steps: int,
    beta: float = 1.0,
    s: float = 0.0,
    k: int = 1,
    m: int | None = None,
    mode: Mode = "cond",
    branch: int = 1,
    cache_attention: bool = False,
    size_condition: SizeCondition = "target",
) -> Plan:
    """The plan that combines the paper's savings. Each of its methods is this function with some of them on.

    Args:
        name: of the plan.
        steps: T, at least 1.
        beta, s: the first round(s*T) steps run at scale beta; off if beta = 1 or s = 0.
        k, branch: DeepCache runs the whole U-Net at every k-th step, and else the skip branch alone; off if k = 1.
        m: the step at which guidance ends; T or None for never.
        mode: what the cached cross-attention holds of guidance.
        cache_attention: from step m on, the cross-attention of step m - 1 is reused.
        size_condition: the size that a low-resolution step tells a model which is conditioned on size.

    Raises: ValueError, with what was expected and what was given, if a setting is out of range.
    """
    steps, k = check_steps(steps), whole_number("k", k, note=" (1 is off)")
    low = low_steps(steps, beta, s)
    gate = steps if m is None else m
    cached = cache_attention and gate < steps

    # Full steps restart where the grid or the batch changes: at 0, at the switch, at the gate; else every k-th.
    starts = {0, gate, low if beta < 1 else 0}
    full, since = [], 0
    for i in range(steps):
        since = 0 if i in starts else since + 1
        if since % k == 0:
            full.append(i)

    mechanisms = (
        DeepCache(stored_at(full, steps), branch),
        AttentionCache(_attention(full, gate, steps) if cached else "", mode=mode),
    )
    planned = tuple(Step(beta if i < low else 1.0, i < gate) for i in range(steps))
    return Plan(name, planned, mechanisms, size_condition=size_condition)


def stored_at(fresh: Collection[int], steps: int) -> str:
    """Marks of what is computed at the steps `fresh`, and reused after each until the next."""

    def mark(i: int) -> str:
        if i not in fresh:
            return "."
        return "S" if i + 1 < steps and i + 1 not in fresh else "#"

    return "".join(map(mark, range(steps)))


def _attention(full: Collection[int], gate: int, steps: int) -> str:
    """Marks of cross-attention that is stored at gate - 1 and reused from `gate` on."""
    # If gate - 1 skips the deep part, the deep cross-attentions are those of the last full step before it.
    last_full = max((i for i in full if i < gate), default=0)
    return "".join("." if i >= gate else "S" if i in (last_full, gate - 1) else "#" for i in range(steps))


def check_steps(steps: int) -> int:
    return whole_number("steps", steps, 1, MAX_STEPS)


def gate_of(m: int | float, steps: int, name: str = "m") -> int:
    """The step where guidance ends. A float is a share of T, as in PostDiff's sec. 3.1 settings scaled to other T."""
    steps, m = check_steps(steps), plain(m)
    if isinstance(m, float):
        m = int(number(f"{name} as a share of the steps", m, "(0, 1]") * steps + 0.5)
    if not isinstance(m, int) or isinstance(m, bool) or not 1 <= m <= steps:
        raise ValueError(f"{name} must be a step from 1 to T={steps} (T is off) or a share of T, got {shown(m)}")
    return int(m)


def low_steps(steps: int, beta: float, s: float) -> int:
    """How many of the steps are at scale `beta`. Raises ValueError if `beta` or `s` is out of range."""
    number("beta", beta, "(0, 1]")
    low = int(number("s", s, "[0, 1)", "; the last step is at full resolution") * steps + 0.5)
    if low == steps:
        raise ValueError(f"s={s} of {steps} steps leaves no step at full resolution; expected round(s*T) < T")
    return low


def low_first(plan: Plan, beta: float, s: float, size_condition: SizeCondition = "target") -> Plan:
    """`plan` with its first round(s*T) steps at scale `beta`: any method, composed with mixed resolution (sec. 3.4).

    What is stored at the low resolution is dropped at the switch: a step that would reuse it computes and stores
    instead. Cross-attention alone is kept, and resized. beta = 1 or s = 0 is off.

    Raises: ValueError if `plan` has low-resolution steps of its own, or `beta` or `s` is out of range.
    """
    low = low_steps(len(instance("plan", plan, Plan)), beta, s)
    size_condition = one_of("size_condition", size_condition, SIZE_CONDITIONS)
    if beta == 1 or not low:
        return plan
    if plan.steps[0].scale != 1:
        raise ValueError(f"{plan.name} is at low resolution already (scale {plan.steps[0].scale})")
    steps = tuple(replace(step, scale=beta if i < low else 1.0) for i, step in enumerate(plan.steps))
    mechanisms = tuple(mechanism.restarted(low) for mechanism in plan.mechanisms)
    return replace(plan, steps=steps, mechanisms=mechanisms, size_condition=size_condition)
