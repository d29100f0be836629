"""Plans as JSON files: what a search found can be saved, sent and replayed."""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from postdiff.arguments import instance, listed, one_of, printable, shown
from postdiff.mechanisms import MECHANISMS
from postdiff.outputs import whole
from postdiff.plan import Mechanism, Plan, Step, as_json

MAX_BYTES = 2**25  # of a file: a thousand steps, with a schedule for each of a hundred modules, are a tenth of it

Kind = TypeVar("Kind")


def to_json(plan: Plan, **notes) -> str:
    """notes: what a reader should know, such as the backbone it was found for; they are not read back.

    Raises: ValueError if they hold a number that JSON has not (infinity, not a number); TypeError if anything else.
    """
    value = asdict(instance("plan", plan, Plan)) | {"mechanisms": [as_json(mechanism) for mechanism in plan.mechanisms]}
    if plan.switch == "fresh":  # versions before it was there read the others
        del value["switch"]
    return json.dumps({"plan": value, "id": plan.id, "notes": notes}, indent=1, allow_nan=False) + "\n"


def from_json(text: str | bytes, where: str = "the text") -> Plan:
    """The plan that `to_json` wrote, in UTF-8. Raises ValueError, with `where` and what is wrong, if it is no legal
    plan."""
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"expected {MAX_BYTES} bytes at most, got more")
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else instance("text", text, str)
        value = json.loads(decoded, object_pairs_hook=_once, parse_constant=_no_number)
        _expect_keys("the file", value, {"plan", "id"}, {"notes"})
        plan = _plan(value["plan"])
        if plan.id != value["id"]:
            raise ValueError(f"it was written as plan {shown(value['id'])}, but what it holds is {plan.id}")
    except ValueError as error:  # JSON's and Unicode's errors are ValueErrors
        raise ValueError(f"{where} must hold a plan that save_plan wrote: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} must hold a plan that save_plan wrote: it is nested too deep") from None
    return plan


def _plan(value: Any) -> Plan:
    _expect_fields("the plan", value, Plan)
    lists = {name: listed(name, value.get(name, []), "objects") for name in ("steps", "mechanisms")}
    steps = tuple(_build(f"step {i}", step, Step) for i, step in enumerate(lists["steps"]))
    return Plan(**{**value, "steps": steps, "mechanisms": tuple(map(_mechanism, lists["mechanisms"]))})


def _mechanism(value: Any) -> Mechanism:
    _expect_keys("a mechanism", value, {"kind"}, value)
    settings = dict(value)
    kind = one_of("a mechanism's kind", settings.pop("kind"), MECHANISMS)
    return _build(kind, settings, MECHANISMS[kind])


def _build(name: str, value: Any, kind: type[Kind]) -> Kind:
    _expect_fields(name, value, kind)
    try:
        return kind(**value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _expect_fields(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError if `value` is not a JSON object that has the fields of the dataclass `kind`, and no others."""
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    _expect_keys(name, value, needed, {field.name for field in fields(kind)} - needed)


def _expect_keys(name: str, value: Any, needed: set[str], optional: Iterable[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {shown(value)}")
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    if extra := sorted(value.keys() - needed - set(optional)):
        raise ValueError(f"{name} has no such thing as {shown(extra[0])}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different. Raises ValueError if one is repeated: JSON readers keep the last."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"it says {shown(key)} twice")
        result[key] = value
    return result


def _no_number(name: str) -> None:
    raise ValueError(f"expected numbers, got {name}")


def save_plan(plan: Plan, file: str | Path, **notes) -> None:
    """Write `plan` to a JSON file: all of it, or nothing if an error occurs.

    Args:
        plan: any plan.
        file: an existing one is replaced.
        notes: JSON values for whoever reads the file, such as backbone="sdxl"; `load_plan` ignores them.

    Raises: ValueError if `load_plan` would not read it; OSError if it cannot be written.
    """
    text, file = to_json(plan, **notes), Path(file)
    from_json(text)
    if os.path.exists(file) and not file.is_file():
        raise ValueError(f"expected a file to write the plan to, got {printable(str(file))}, which is none")
    with whole(file) as part:
        part.write_text(text, encoding="utf-8")


def load_plan(file: str | Path) -> Plan:
    """The plan that `save_plan` wrote. Raises ValueError if it is not a legal plan; OSError if the file is missing."""
    name = printable(str(file))
    if not stat.S_ISREG(Path(file).stat().st_mode):  # a pipe would never end
        raise ValueError(f"expected the file of a plan, got {name}, which is none")
    with open(file, "rb") as stream:
        return from_json(stream.read(MAX_BYTES + 1), name)
