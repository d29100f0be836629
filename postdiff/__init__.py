"""PostDiff: fewer denoising steps, or cheaper steps?

backbone = postdiff.load("mini-sd")
plan = postdiff.methods.postdiff(steps=20)
images = postdiff.sample(backbone, ["a big red star on snow"], seeds=[0], plan=plan)  # uint8 [1, 64, 64, 3]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postdiff import methods
from postdiff.compose import low_first
from postdiff.cost import cost, costs
from postdiff.plan import Plan, StepPlan
from postdiff.planfile import load_plan, save_plan

if TYPE_CHECKING:
    from postdiff.loading import Backbone, load
    from postdiff.sampling import sample
    from postdiff.text import encode

__all__ = [
    "Backbone",
    "Plan",
    "StepPlan",
    "cost",
    "costs",
    "encode",
    "load",
    "load_plan",
    "low_first",
    "methods",
    "sample",
    "save_plan",
]

# What needs torch is imported when it is first used: `postdiff --help` and a refusal need not wait for it.
_LATE = {"Backbone": "loading", "encode": "text", "load": "loading", "sample": "sampling"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return value
