"""The methods: each is a function from settings to a `Plan`. Symbols as in the paper (sec. 2, sec. 3.1).

A setting's meaning is the annotation of its parameter; those that several methods take are in `schedule`. Each function
raises ValueError, with what was expected and what was given, if a setting is out of range.
"""

import inspect
from collections.abc import Callable
from typing import Any

from postdiff.arguments import meant, shown
from postdiff.methods.baselines import ca_tome, duca, faster_diffusion, tgate, todo, tome
from postdiff.methods.schedule import (
    Beta,
    Branch,
    CacheMode,
    Gate,
    Interval,
    LowShare,
    SizeTold,
    Steps,
    compose,
    gate_of,
)
from postdiff.plan import Plan


def dense(steps: Steps = 20) -> Plan:
    """Every step runs in full. With fewer `steps` it is what all other methods are compared with."""
    return compose("dense", steps)


def no_cfg(steps: Steps = 20) -> Plan:
    """No classifier-free guidance: every step runs the conditional half alone (Table 1, 'Original w/o CFG')."""
    return compose("no_cfg", steps, m=0)


def cfg_drop(steps: Steps = 20, m: Gate = 0.75) -> Plan:
    """Classifier-free guidance ends at step m; nothing is cached."""
    return compose("cfg_drop", steps, m=gate_of(m, steps))


def mixed_resolution(
    steps: Steps = 20, beta: Beta = 0.5, s: LowShare = 0.5, size_condition: SizeTold = "target"
) -> Plan:
    """The first round(s*T) steps run at scale beta, the others at full resolution (sec. 2.2)."""
    return compose("mixed_resolution", steps, beta=beta, s=s, size_condition=size_condition)


def deepcache(steps: Steps = 20, k: Interval = 2, branch: Branch = 1) -> Plan:
    """DeepCache (CVPR 2024) at a uniform interval: every k-th step runs in full, the others through the skip branch."""
    return compose("deepcache", steps, k=k, branch=branch)


def cross_attention_cache(steps: Steps = 20, m: Gate = 0.75, mode: CacheMode = "cond") -> Plan:
    """Cross-attention is stored at step m-1 and reused from step m on, where guidance ends (sec. 2.5)."""
    return compose("cross_attention_cache", steps, m=gate_of(m, steps), mode=mode, cache_attention=True)


def postdiff(
    steps: Steps = 20,
    beta: Beta = 0.5,
    s: LowShare = 0.5,
    k: Interval = 2,
    m: Gate = 0.75,
    mode: CacheMode = "cond",
    branch: Branch = 1,
    size_condition: SizeTold = "target",
) -> Plan:
    """PostDiff: mixed resolution, DeepCache, cached cross-attention, and guidance that ends at step m (sec. 2.5).

    The defaults are the paper's settings for SD1.5; `backbone.spec.settings` holds those of each backbone.
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
    """The names of a method's settings. Raises ValueError if no method has that name."""
    if not isinstance(name, str) or name not in METHODS:
        names = ", ".join(METHODS)
        raise ValueError(f"unknown method {shown(name)}: expected one of {names}{meant(name, METHODS)}")
    return tuple(inspect.signature(METHODS[name]).parameters)


def settings_for(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a backbone's `settings` (the paper's for PostDiff) that the method `name` takes.

    Of a method that the paper only compares with, that is the number of steps alone. Raises: ValueError if no method
    has that name.
    """
    accepted = settings_of(name)  # raises if there is no such method
    if METHODS[name] not in PAPER:
        accepted = ("steps",)
    taken = {key: value for key, value in settings.items() if key in accepted}
    if name == "deepcache" and taken.get("k") == 1:  # a family without it: the method's own k, so that it is refused
        del taken["k"]
    return taken
