"""A plan as a JSON file: what a search found is kept, sent and replayed."""

import json
from dataclasses import asdict
from pathlib import Path

from postdiff.plan import Plan, StepPlan
from postdiff.reduction import Downsample, Merge, Refresh

TOKENS = {"merge": Merge, "downsample": Downsample}


def save_plan(plan: Plan, file: str | Path, **notes) -> None:
    """Write `plan`. notes: what a reader should know, such as the backbone it was found for; they are not read back."""
    value = asdict(plan)
    if plan.tokens:
        value["tokens"] = {"kind": type(plan.tokens).__name__.lower(), **value["tokens"]}
    Path(file).write_text(json.dumps({"plan": value, "id": plan.id, "notes": notes}, indent=1) + "\n")


def load_plan(file: str | Path) -> Plan:
    """Read what `save_plan` wrote. Raises ValueError, with what is wrong, if it is no legal plan; OSError if it is not
    there."""
    try:
        whole = json.loads(Path(file).read_text())
        value = dict(whole["plan"])
        value["steps"] = tuple(StepPlan(**step) for step in value["steps"])
        value["modules"] = tuple((name, marks) for name, marks in value.get("modules", ()))
        if value.get("tokens"):
            settings = dict(value["tokens"])
            value["tokens"] = TOKENS[settings.pop("kind")](**settings)
        value["merged"] = tuple((name, tuple(shares)) for name, shares in value.get("merged", ()))
        if value.get("refresh"):
            value["refresh"] = Refresh(**value["refresh"])
        plan = Plan(**value)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} must hold a plan that save_plan wrote: {type(error).__name__}: {error}") from None
    if plan.id != whole.get("id"):
        raise ValueError(f"{file} was written as plan {whole.get('id')}, but what it holds is {plan.id}")
    return plan
