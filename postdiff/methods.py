"""One function a method: settings in, `Plan` out. Symbols as in the paper (sec. 2, sec. 3.1).

T (steps)  evaluations of the denoiser in all
beta       scale of the low resolution, in (0, 1]
s          share of the steps at low resolution, in [0, 1); round(s*T) steps
k          DeepCache's interval: every k-th step runs the whole U-Net; 1 is off
m          guidance is on for steps i < m; a step (int) or a share of T (float); m = T is off
mode       which guidance the cached cross-attention holds: ave, cond, uncond, cfg
size_condition  the size that SDXL and PixArt are told at low resolution: target (of the finished image) or current
"""

import inspect
from dataclasses import replace

from postdiff.plan import Action, Downsample, Merge, Mode, Plan, SizeCondition, StepPlan


def dense(steps: int = 20) -> Plan:
    """Every step in full. With another `steps` this is the paper's rival: fewer denoising steps."""
    return _compose("dense", steps)


def no_cfg(steps: int = 20) -> Plan:
    """The conditional half only, at every step (Table 1, 'Original w/o CFG')."""
    return _compose("no_cfg", steps, m=0)


def cfg_drop(steps: int = 20, m: int | float = 0.75) -> Plan:
    """Guidance dropped from step m on, nothing cached."""
    return _compose("cfg_drop", steps, m=_gate(m, steps))


def mixed_resolution(
    steps: int = 20, beta: float = 0.5, s: float = 0.5, size_condition: SizeCondition = "target"
) -> Plan:
    """The first round(s*T) steps at scale beta, the rest at full resolution (sec. 2.2)."""
    return _compose("mixed_resolution", steps, beta=beta, s=s, size_condition=size_condition)


def deepcache(steps: int = 20, k: int = 2, branch: int = 1) -> Plan:
    """DeepCache (CVPR 2024), uniform interval: every k-th step in full, the others through the skip branch."""
    return _compose("deepcache", steps, k=k, branch=branch)


def cross_attention_cache(steps: int = 20, m: int | float = 0.75, mode: Mode = "cond") -> Plan:
    """Cross-attention stored at step m-1 and reused from m on, where guidance ends (sec. 2.5)."""
    return _compose("cross_attention_cache", steps, m=_gate(m, steps), mode=mode, cache_attention=True)


def postdiff(
    steps: int = 20,
    beta: float = 0.5,
    s: float = 0.5,
    k: int = 2,
    m: int | float = 0.75,
    mode: Mode = "cond",
    branch: int = 1,
    size_condition: SizeCondition = "target",
) -> Plan:
    """The whole method: mixed resolution, DeepCache, cached cross-attention, guidance dropped late (sec. 2.5).

    The defaults are the paper's for SD1.5; `backbone.spec.settings` holds those of each backbone.
    """
    return _compose(
        "postdiff", steps, beta, s, k, _gate(m, steps), mode, branch, cache_attention=True,
        size_condition=size_condition,
    )  # fmt: skip


def tgate(
    steps: int = 20,
    gate_step: int | float = 0.5,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
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
    gate = _gate(gate_step, steps, "gate_step")
    plan = _compose("tgate", steps, m=gate, mode="ave", cache_attention=True)

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
    return replace(plan, steps=stepped, half="uncond")


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
) -> Plan:
    """ToMe for Stable Diffusion (CVPR 2023 workshop): tokens that are alike are merged around self-attention.

    The defaults are the authors'; `Merge` says what they mean; a ratio of 0 is off. It is what their package does,
    but for the random partition: an image's own here; a batch's there, and none if the batch is odd.
    """
    tokens = Merge(ratio, sx, sy, random, max_downsample, attention, cross_attention, mlp) if ratio else None
    return replace(_compose("tome", steps), tokens=tokens)


def todo(steps: int = 20, factor: int = 2, factor_2: int = 1) -> Plan:
    """ToDo (arXiv 2402.13573): every `factor`-th row and column of the tokens are keys and values of self-attention.

    factor: where the grid is the latents' own; factor_2: where it is half that (SDXL's and PixArt's first); 1 is off.
    """
    for name, value in (("factor", factor), ("factor_2", factor_2)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    tokens = None if factor == factor_2 == 1 else Downsample((factor, factor_2))
    return replace(_compose("todo", steps), tokens=tokens)


METHODS = {
    f.__name__: f
    for f in (dense, no_cfg, cfg_drop, mixed_resolution, deepcache, cross_attention_cache, postdiff, tgate, tome, todo)
}


def settings_of(name: str) -> tuple[str, ...]:
    """The settings of a method. Raises ValueError if there is none of that name."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    return tuple(inspect.signature(METHODS[name]).parameters)


def _compose(
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
    _check_steps(steps)
    if not 0 < beta <= 1:
        raise ValueError(f"beta must be in (0, 1], got {beta}")
    if not 0 <= s < 1:
        raise ValueError(f"s must be in [0, 1): the last step is at full resolution; got {s}")
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of 1 or more (1 is off), got {k!r}")
    low = int(s * steps + 0.5)
    if low == steps:
        raise ValueError(f"s={s} of {steps} steps leaves no step at full resolution; expected round(s*T) < T")
    gate = steps if m is None else m
    cached = cache_attention and gate < steps

    # Full steps restart where the grid or the batch changes: at 0, at the switch, at the gate; else every k-th.
    starts = {0, gate, low if beta < 1 else 0}
    full, since = [], 0
    for i in range(steps):
        since = 0 if i in starts else since + 1
        full.append(since % k == 0)

    def deep(i: int) -> Action:
        if not full[i]:
            return "reuse"
        return "store" if i + 1 < steps and not full[i + 1] else "compute"

    # If gate-1 skips the deep part, the deep cross-attentions are those of the last full step before it.
    last_full = max((i for i in range(gate) if full[i]), default=0)

    def attention(i: int) -> Action:
        if not cached or last_full > i or (last_full < i < gate - 1):
            return "compute"
        return "store" if i < gate else "reuse"

    plan = [StepPlan(beta if i < low else 1.0, i < gate, deep(i), attention(i)) for i in range(steps)]
    return Plan(name, tuple(plan), branch, mode, size_condition)


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of 1 or more, got {steps!r}")


def _gate(m: int | float, steps: int, name: str = "m") -> int:
    """The step where guidance ends. A float is a share of T, as in PostDiff's sec. 3.1 settings scaled to other T."""
    _check_steps(steps)
    gate = int(m * steps + 0.5) if isinstance(m, float) else m
    if isinstance(m, float) and not 0 < m <= 1:
        raise ValueError(f"{name} as a share of the steps must be in (0, 1], got {m}")
    if not 1 <= gate <= steps:
        raise ValueError(f"{name} must be a step from 1 to T={steps} (T is off) or a share of T, got {m}")
    return gate
