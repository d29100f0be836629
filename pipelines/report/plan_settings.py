"""The settings of a plan as flat keys, read off the plan itself: what W&B groups, colours and filters by.

A plan is what its steps and mechanisms do, and tells no names of settings (`postdiff/plan.py`). A setting is read only
where what the plan does is what that setting means; a plan that has none of it has no key, not a 0.
"""

from collections.abc import Iterator

from postdiff.mechanisms import AttentionCache, DeepCache
from postdiff.plan import Plan, as_json, kind

Setting = bool | int | float | str
ORDER = ("steps", "beta", "s", "k", "m", "mode")  # as tables and axes have them


def settings(plan: Plan) -> dict[str, Setting]:
    """The keys that `plan` has of these:

    steps: T. beta: the one scale of its low resolution. s: the share of its steps at it, as they run (round(s*T) / T);
    low_steps: their number. k: DeepCache's interval; branch. m: the step at which guidance ends and stored
    cross-attention is reused, where both begin at one step or there is one of them; mode: what the stored holds.
    size_condition, of a plan that changes resolution, and switch, if it does so in another way than usual; half, of one
    that drops guidance. Numbers and switches of other mechanisms as `Mechanism_setting`, several as text ("2,1").
    """
    values: dict[str, Setting] = {"steps": len(plan)}
    low = [step.scale for step in plan.steps if step.scale < 1]
    if low:
        values["size_condition"] = plan.size_condition
        values |= {} if plan.switch == "fresh" else {"switch": plan.switch}
    if len(set(low)) == 1:
        values |= {"beta": low[0], "s": len(low) / len(plan), "low_steps": len(low)}
    gates = {gate for gate in (_guidance_ends(plan), _attention_reused(plan)) if gate is not None}
    if len(gates) == 1:
        values["m"] = min(gates)
    if not all(step.guided for step in plan.steps):
        values["half"] = plan.half
    attention, deep = plan.get(AttentionCache), plan.get(DeepCache)
    if attention and attention.cross:
        values["mode"] = attention.mode
    if deep:
        values["branch"] = deep.branch
        k = interval(deep.marks, plan.switches, gates)
        values |= {} if k is None else {"k": k}
    return values | dict(_of_others(plan))


def _guidance_ends(plan: Plan) -> int | None:
    """The step from which on there is no guidance; None where it never ends, never begins, or comes back."""
    guided = [step.guided for step in plan.steps]
    end = guided.index(False) if False in guided else 0
    return end if end and not any(guided[end:]) else None


def _attention_reused(plan: Plan) -> int | None:
    """The step from which on all cross-attention is reused; None if there is none, or it is computed again after."""
    attention = plan.get(AttentionCache)
    first = attention.cross.find(".") if attention else -1
    return first if attention and first >= 0 and set(attention.cross[first:]) == {"."} else None


def interval(marks: str, switches: tuple[int, ...], gates: set[int]) -> int | None:
    """The k of `marks` that compute at every k-th step; None if there is none.

    It is counted anew from the steps of `gates` and `switches`, as the paper's methods do, or a switch computes once
    and the count goes on, as in a plan that was made smaller first (`postdiff.low_first`). Where the plan is too short
    to tell, the smallest k that makes these marks.
    """
    for k in range(2, len(marks) + 1):
        anew = _computed(len(marks), k, {0, *gates, *switches})
        goes_on = _computed(len(marks), k, {0, *gates}) | set(switches)
        if {i for i, mark in enumerate(marks) if mark != "."} in (anew, goes_on):
            return k
    return None


def _computed(steps: int, k: int, starts: set[int]) -> set[int]:
    """The steps that run in full: `starts`, and every k-th after each."""
    computed, since = set(), 0
    for i in range(steps):
        since = 0 if i in starts else since + 1
        if since % k == 0:
            computed.add(i)
    return computed


def _of_others(plan: Plan) -> Iterator[tuple[str, Setting]]:
    for mechanism in plan.mechanisms:
        if not isinstance(mechanism, AttentionCache | DeepCache):
            for name, value in as_json(mechanism, measured=False).items():
                if isinstance(value, int | float):
                    yield f"{kind(mechanism)}_{name}", value
                elif isinstance(value, tuple) and value and all(isinstance(part, int | float) for part in value):
                    yield f"{kind(mechanism)}_{name}", ",".join(map(str, value))
