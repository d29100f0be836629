"""A plan as JSON: what a search found is kept, sent and replayed."""

import json
from dataclasses import asdict
from pathlib import Path

from postdiff.plan import Plan, StepPlan
from postdiff.reduction import Downsample, Merge, Refresh

TOKENS = {"merge": Merge, "downsample": Downsample}


def to_json(plan: Plan, **notes) -> str:
    """notes: what a reader should know, such as the backbone it was found for; they are not read back."""
    value = asdict(plan)
    if plan.tokens:
        value["tokens"] = {"kind": type(plan.tokens).__name__.lower(), **value["tokens"]}
    return json.dumps({"plan": value, "id": plan.id, "notes": notes}, indent=1) + "\n"


def from_json(text: str | bytes, where: str = "the text") -> Plan:
    """The plan that `to_json` wrote. Raises ValueError, with what is wrong, if it is no legal plan."""
    try:
        whole = json.loads(text)
        value = dict(whole["plan"])
        value["steps"] = tuple(StepPlan(**step) for step in value["steps"])
        value["modules"] = tuple((name, marks) for name, marks in value.get("modules", ()))
        value["merged"] = tuple((name, tuple(shares)) for name, shares in value.get("merged", ()))
        if value.get("tokens"):
            settings = dict(value["tokens"])
            value["tokens"] = TOKENS[settings.pop("kind")](**settings)
        if value.get("refresh"):
            value["refresh"] = Refresh(**value["refresh"])
        plan = Plan(**value)
    except (KeyError, TypeError, ValueError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise ValueError(f"{where} must hold a plan that save_plan wrote: {type(error).__name__}: {error}") from None
    if plan.id != whole.get("id"):
        raise ValueError(f"{where} was written as plan {whole.get('id')}, but what it holds is {plan.id}")
    return plan


def save_plan(plan: Plan, file: str | Path, **notes) -> None:
    """Write `plan` to `file`, with `notes` beside it."""
    Path(file).write_text(to_json(plan, **notes))


def load_plan(file: str | Path) -> Plan:
    """Read what `save_plan` wrote. Raises ValueError if it is no legal plan; OSError if it is not there."""
    return from_json(Path(file).read_bytes(), str(file))
