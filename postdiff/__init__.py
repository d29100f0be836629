"""PostDiff: fewer denoising steps, or cheaper steps?

backbone = postdiff.load("mini-sd")
plan = postdiff.methods.postdiff(steps=20)
images = postdiff.sample(backbone, ["a big red star on snow"], seeds=[0], plan=plan)  # uint8 [1, 64, 64, 3]

Importing this package imports neither torch nor diffusers (5 s): what needs them is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postdiff import methods
from postdiff.methods.schedule import low_first
from postdiff.plan import Plan, Step
from postdiff.planfile import load_plan, save_plan

if TYPE_CHECKING:
    from postdiff.drawing import sample
    from postdiff.models.loading import Backbone, load
    from postdiff.models.wrapping import wrap
    from postdiff.own_call import accelerate
    from postdiff.own_loop import attach
    from postdiff.pricing import cost, costs
    from postdiff.text import Embeddings, encode

__all__ = [
    "Backbone",
    "Embeddings",
    "Plan",
    "Step",
    "accelerate",
    "attach",
    "cost",
    "costs",
    "encode",
    "load",
    "load_plan",
    "low_first",
    "methods",
    "sample",
    "save_plan",
    "wrap",
]

_LATER = {  # name: its module
    "Backbone": "models.loading",
    "Embeddings": "text",
    "accelerate": "own_call",
    "attach": "own_loop",
    "cost": "pricing",
    "costs": "pricing",
    "encode": "text",
    "load": "models.loading",
    "sample": "drawing",
    "wrap": "models.wrapping",
}


def __getattr__(name: str) -> Any:
    """What is imported when it is first used: the names above, and every module of the package (PEP 562)."""
    if name in _LATER:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":  # it is there, and what it needs is not
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
