"""The configurations of a sweep: fewer steps against cheaper steps."""

from dataclasses import replace

from postdiff import methods
from postdiff.plan import Plan

NAMES = ("steps", "small", "laptop", "full")


def label(total: int, s: float | None = None, k: int = 1, m: float | None = None) -> str:
    """Settings as tables print them, e.g. 's=0.5 k=2 m=15'. m: a share of the `total` steps."""
    parts = [s is not None and f"s={s}", k > 1 and f"k={k}", m and f"m={round(m * total)}"]
    return " ".join(part for part in parts if part)


def grid(name: str, settings: dict) -> list[tuple[str, str, Plan]]:
    """(method, settings, plan): fewer steps against mixed resolution (s) and caching (k, m) at the backbone's own T.

    settings: the paper's for the backbone. With its T = 20, fewer steps are T in {8..20}; with LCM's 8, {2..8}.

    `full` is the paper's kind of grid, `laptop` a half of it, `small` what tests can afford; `steps` asks only whether
    more steps help, and so can afford more prompts.
    """
    total, beta, k, own = settings["steps"], settings["beta"], settings["k"], (settings["s"], settings["m"])
    first, stride = (8, 4) if total == 20 else (total // 4, total // 4)
    shares = {  # s of mixed resolution; m of caching as a share of the steps; (s, m) of PostDiff
        "steps": ((), (), ()),
        "small": ((0.3,), (0.75,), ((0.3, own[1]),)),
        "laptop": ((0.1, 0.3, 0.5), (0.5, 0.75), ((0.1, own[1]), (0.3, own[1]), (0.5, own[1]), own)),
        "full": (
            (0.1, 0.2, 0.3, 0.4, 0.5),
            (0.25, 0.5, 0.75),
            ((0.1, own[1]), (0.2, own[1]), (0.3, own[1]), (0.5, own[1]), (0.2, 0.5), own),
        ),
    }
    fewer = {"steps": (first, total), "full": range(first, total + 1, stride // 2)}
    scales, ends, whole = shares[name]
    intervals = {"laptop": (2,), "full": (2, 3)}.get(name, ()) if k > 1 else ()
    attention = {"small": (), "steps": ()}.get(name, (0.75,)) if k > 1 else ends  # k = 1: caching is this alone

    def cached(s: float, m: float) -> Plan:
        return methods.postdiff(total, beta, s, k, m)

    return [
        *[("dense", "", methods.dense(t)) for t in fewer.get(name, range(first, total + 1, stride))],
        *[("mixed_resolution", label(total, s), methods.mixed_resolution(total, beta, s)) for s in scales],
        *([("no_cfg", "", methods.no_cfg(total))] if name == "full" else []),
        *[("cross_attention_cache", label(total, m=m), methods.cross_attention_cache(total, m)) for m in attention],
        *[("deepcache", label(total, k=n), methods.deepcache(total, n)) for n in intervals],
        *[("caching", label(total, None, k, m), replace(cached(0.0, m), name="caching")) for m in ends if k > 1],
        *[("postdiff", label(total, s, k, m), cached(s, m)) for s, m in whole],
    ]
