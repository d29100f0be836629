"""PostDiff: fewer denoising steps, or cheaper steps?

backbone = postdiff.load("mini-sd")
plan = postdiff.methods.postdiff(steps=20)
images = postdiff.sample(backbone, ["a big red star on snow"], seeds=[0], plan=plan)  # uint8 [1, 64, 64, 3]
"""

from postdiff import methods
from postdiff.backbones import Backbone, load
from postdiff.compose import low_first
from postdiff.cost import cost, costs
from postdiff.plan import Plan, StepPlan
from postdiff.planfile import load_plan, save_plan
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
