"""The families of models, by name, and what each does with a plan."""

from dataclasses import replace

from postdiff.models.family import Family
from postdiff.models.lcm import LatentConsistency
from postdiff.models.pixart import PixArtAlpha, PixArtSigma
from postdiff.models.sd import StableDiffusion
from postdiff.models.sdxl import StableDiffusionXL
from postdiff.plan import Plan

FAMILIES: dict[str, Family] = {
    "sd": StableDiffusion(),
    "lcm": LatentConsistency(),
    "sdxl": StableDiffusionXL(),
    "pixart": PixArtAlpha(),
    "pixart-sigma": PixArtSigma(),
}


def adapt(plan: Plan, family: str) -> Plan:
    """`plan` as `family` runs it: where guidance is distilled into the model, every step runs one half.

    Raises: ValueError with the reason if the family cannot run it.
    """
    rules = FAMILIES[family]
    if rules.no_deep and any("deep" in plan.reuses(i) for i in range(len(plan))):
        raise ValueError(f"{family} cannot cache deep features: {rules.no_deep}; expected k=1, got {plan.name}")
    if plan.size_condition != "target" and not rules.size_conditioned:
        raise ValueError(f"{family} is told no size; expected size_condition target, got {plan.size_condition}")
    return plan if rules.guided else unguided(plan)


def unguided(plan: Plan) -> Plan:
    """`plan` with the conditional half alone at every step. Raises ValueError if it is none without guidance."""
    return replace(plan, steps=tuple(replace(step, guided=False) for step in plan.steps), half="cond")


def guided_by(plan: Plan, family: str, guidance: float) -> tuple[Plan, float]:
    """`plan` and w as diffusers' pipelines run a call of guidance w: of 1 or less, every step runs the conditional half
    alone. A model that guidance was distilled into is told w, whatever it is."""
    return (unguided(plan), 1.0) if FAMILIES[family].guided and guidance <= 1 else (plan, guidance)
