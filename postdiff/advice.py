"""Which plan to deploy for a share of a model's cost: what it costs, what is known of its quality, and when not to.

Costs are counted. Quality is what a calibration measured on this model; without one nothing is claimed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postdiff import arguments, methods
from postdiff.models.additions import split
from postdiff.models.checkpoints import MINIS
from postdiff.models.evaluations import goes_with
from postdiff.models.families import FAMILIES
from postdiff.models.spec import Spec
from postdiff.plan import Plan
from postdiff.planfile import load_plan
from postdiff.pricing import costs

# Pixels of the shorter side at the low resolution. From here on the paper reports that its models draw without being
# trained for it (SD1.5 of 768 px at half of it); at 256 px, half of SD1.5's own 512, its Table 7 says that one cannot.
SMALLEST = 384
TABLE_7 = "SD1.5 of 512 px with beta = 1/2 falls to an FID of 63.64, to 22.28 once fine-tuned (the paper's Table 7)"
NOTES = {"backbone": str, "by": str, "prompts": int, "answer": str, "budget": str}  # of a calibration's plan.json


@dataclass(frozen=True)
class Advice:
    """settings: of `methods.postdiff`, or None where `plan` is a file's. share: what it costs of `dense_steps` dense
    steps' FLOPs; asked: the most that it may. calibration: the file, and its notes."""

    spec: Spec
    plan: Plan
    settings: Mapping[str, Any] | None
    flops: int
    macs: int
    dense_steps: int
    share: float
    asked: float
    calibration: tuple[Path, Mapping[str, Any]] | None = None

    @property
    def rival(self) -> int:
        """Dense steps of at most the share that was asked for."""
        return int(self.asked * self.dense_steps + 1e-9)

    @property
    def code(self) -> str:
        """What runs the plan in a program that has a pipeline, `pipe`."""
        if self.calibration:
            plan = f"postdiff.load_plan({str(self.calibration[0])!r})"
        else:
            given = ", ".join(f"{name}={value!r}" for name, value in (self.settings or {}).items())
            plan = f"postdiff.methods.postdiff({given})"
        lines = ["import postdiff", "", f"plan = {plan}"]
        lines += ["fast = postdiff.accelerate(pipe, plan)  # pipe: your diffusers pipeline"]
        return "\n".join([*lines, 'images = fast("a prompt").images'])

    @property
    def quality(self) -> str:
        if not self.calibration:
            return "nothing was measured on this model"
        notes = self.calibration[1]
        return f"chosen by {notes['by']} on {notes['prompts']} prompts, within {notes['budget']}: {notes['answer']}"

    @property
    def certainty(self) -> str:
        if self.calibration:
            return (
                "as the comparisons above say, for prompts like those; the chosen plan's own score flatters it, since "
                "it was chosen by it"
            )
        return (
            f"not at all: `python jobs/calibrate.py --backbone {self.spec.name} --share {self.asked:g}` measures the "
            "plans of this budget, and its plan.json is taken here (--calibration)"
        )

    @property
    def cautions(self) -> list[str]:
        """When not to deploy it."""
        cautions = []
        if self.rival:
            cautions.append(
                f"where {self.rival} dense steps, which cost no more than that share, look as good: at equal cost "
                "PostDiff could not be told from fewer steps on the mini models; on yours compare both"
            )
        else:
            cautions.append("where so small a share ruins images: it does not pay for one dense step")
        family = FAMILIES[self.spec.family]
        if not family.guided:
            cautions.append("this model is distilled to few steps: each changes much, and little is left to save")
        low = low_side(self.spec, min(step.scale for step in self.plan.steps))
        if self.plan.switches:
            cautions.append(f"where the model cannot draw at {low} px: {TABLE_7}; a calibration asks that first")
        elif self.settings and self.spec.settings["beta"] < 1:
            beta, s = (self.spec.settings[name] for name in ("beta", "s"))
            low = low_side(self.spec, beta)
            cautions.append(
                f"with mixed resolution, which is left out here: {low} px are too few for a model that was not trained "
                f"at them (where yours was, by jobs/finetune.py: beta={beta:g}, s={s:g}); {TABLE_7}"
            )
        return cautions


def low_side(spec: Spec, scale: float) -> int:
    """Pixels of the shorter side at a step's scale."""
    return round(min(spec.size) * scale)


def advise(spec: Spec, share: float, calibration: Path | None = None) -> Advice:
    """The plan for `share`, in (0, 1], of the FLOPs of the dense plan of the family's steps.

    That is a calibration's, where its plan.json is given; else the family's settings of `methods.postdiff` at the most
    steps that cost no more, without mixed resolution where the low resolution is under SMALLEST pixels and the model
    was not trained here.

    Raises: ValueError if nothing costs so little, or the calibration is none, of another model, or costs more.
    """
    share = arguments.number("share", share, "(0, 1]")
    usual = spec.settings["steps"]
    if calibration is not None:
        plan, notes = calibrated(calibration, spec)
        dense, price = costs([methods.dense(usual), plan], spec)
        if price.flops > share * dense.flops * (1 + 1e-9):
            what = f"{str(calibration)!r} costs {price.flops / dense.flops:.1%} of the FLOPs of {usual} dense steps"
            raise ValueError(f"{what}: expected at most the share, {share:.1%}")
        known = price.flops, price.macs_paper, usual, price.flops / dense.flops, share
        return Advice(spec, plan, None, *known, (calibration, notes))
    settings = within(spec, share, spec.train_steps)
    plan = methods.postdiff(**settings)
    dense, price = costs([methods.dense(usual), plan], spec)
    known = price.flops, price.macs_paper, usual, price.flops / dense.flops, share
    return Advice(spec, plan, settings, *known)


def within(spec: Spec, share: float, most: int) -> dict[str, Any]:
    """The family's settings of `methods.postdiff`, at the most steps, `most` or fewer, that cost `share` of the FLOPs
    of the dense plan of the family's steps; without mixed resolution where the low resolution is under SMALLEST pixels.
    A step is a run of the model, and their number one that the backbone's solver takes.

    Raises: ValueError if even two steps cost more, or fewer than the solver takes.
    """
    settings, usual = dict(spec.settings), spec.settings["steps"]
    if split(spec.name)[0] not in MINIS and low_side(spec, settings["beta"]) < SMALLEST:
        settings |= {"beta": 1.0, "s": 0.0}

    def prices(numbers: Sequence[int], *more: Plan) -> list[int]:
        plans = [methods.postdiff(**{**settings, "steps": steps}) for steps in numbers]
        return [price.flops for price in costs([*more, *plans], spec)]

    dense, one = prices([usual], methods.dense(usual))
    begin = max(2, int(share * dense / one * usual) - 2)  # a step's mean cost changes little with their number
    fits: dict[int, bool] = {}
    while not fits or (all(fits.values()) and begin <= most):
        numbers = range(min(begin, most), min(begin + 5, most + 1))
        fits |= {n: flops <= share * dense for n, flops in zip(numbers, prices(numbers), strict=True)}
        begin += 5
    if not any(fits.values()):
        least = prices([2])[0] / dense
        raise ValueError(f"share must be at least {least:.3f}, two steps of postdiff on {spec.name}, got {share:g}")
    most = max(n for n, fit in fits.items() if fit)
    for steps in range(most, 1, -1):
        chosen = {**settings, "steps": steps}
        if goes_with(spec.solver, methods.postdiff(**chosen)) and (
            steps in fits or prices([steps])[0] <= share * dense
        ):
            return chosen
    raise ValueError(f"share must pay for a plan that {spec.solver} takes, got {share:g}: it pays for {most} steps")


def calibrated(file: Path, spec: Spec) -> tuple[Plan, dict[str, Any]]:
    """The plan of a calibration's plan.json, and what it says of it. Raises ValueError if it is of no calibration, or
    of another model."""
    plan = load_plan(file)
    notes = json.loads(file.read_bytes().decode("utf-8-sig")).get("notes", {})
    if not isinstance(notes, dict) or any(type(notes.get(name)) is not kind for name, kind in NOTES.items()):
        raise ValueError(f"{str(file)!r} must be the plan.json of jobs/calibrate.py, got a plan of no calibration")
    if notes["backbone"] != spec.name:
        raise ValueError(f"{str(file)!r} was calibrated on {notes['backbone']}, expected {spec.name}")
    return plan, notes
