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
from collections.abc import Callable
from typing import Any

from postdiff.arguments import meant, shown
from postdiff.methods.baselines import ca_tome, duca, faster_diffusion, tgate, todo, tome
from postdiff.methods.schedule import compose, gate_of
from postdiff.plan import Mode, Plan, SizeCondition


def dense(steps: int = 20) -> Plan:
    """Every step in full. With another `steps` this is the paper's rival: fewer denoising steps."""
    return compose("dense", steps)


def no_cfg(steps: int = 20) -> Plan:
    """The conditional half only, at every step (Table 1, 'Original w/o CFG')."""
    return compose("no_cfg", steps, m=0)


def cfg_drop(steps: int = 20, m: int | float = 0.75) -> Plan:
    """Guidance dropped from step m on, nothing cached."""
    return compose("cfg_drop", steps, m=gate_of(m, steps))


def mixed_resolution(
    steps: int = 20, beta: float = 0.5, s: float = 0.5, size_condition: SizeCondition = "target"
) -> Plan:
    """The first round(s*T) steps at scale beta, the rest at full resolution (sec. 2.2)."""
    return compose("mixed_resolution", steps, beta=beta, s=s, size_condition=size_condition)


def deepcache(steps: int = 20, k: int = 2, branch: int = 1) -> Plan:
    """DeepCache (CVPR 2024), uniform interval: every k-th step in full, the others through the skip branch."""
    return compose("deepcache", steps, k=k, branch=branch)


def cross_attention_cache(steps: int = 20, m: int | float = 0.75, mode: Mode = "cond") -> Plan:
    """Cross-attention stored at step m-1 and reused from m on, where guidance ends (sec. 2.5)."""
    return compose("cross_attention_cache", steps, m=gate_of(m, steps), mode=mode, cache_attention=True)


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
    return compose(
        "postdiff", steps, beta, s, k, gate_of(m, steps), mode, branch, cache_attention=True,
        size_condition=size_condition,
    )  # fmt: skip


PAPER = (dense, no_cfg, cfg_drop, mixed_resolution, deepcache, cross_attention_cache, postdiff)
METHODS: dict[str, Callable[..., Plan]] = {
    f.__name__: f for f in (*PAPER, tgate, tome, ca_tome, todo, faster_diffusion, duca)
}


def settings_of(name: str) -> tuple[str, ...]:
    """The settings of a method. Raises ValueError if there is none of that name."""
    if not isinstance(name, str) or name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"unknown method {shown(name)}: expected one of {known}{meant(name, METHODS)}")
    return tuple(inspect.signature(METHODS[name]).parameters)


def settings_for(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a backbone's `settings` that a method takes. They are the paper's own: of the methods that it compares
    with they tell the number of steps alone."""
    accepted = settings_of(name)  # raises if there is no such method
    if METHODS[name] not in PAPER:
        accepted = ("steps",)
    found = {key: value for key, value in settings.items() if key in accepted}
    if name == "deepcache" and found.get("k") == 1:  # a family without it: the method's own k, so that it is refused
        del found["k"]
    return found
