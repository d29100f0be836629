"""Schedules from settings: what the functions of `methods.py` and `baselines.py` have in common."""

from dataclasses import replace

from postdiff.arguments import instance, number, one_of, plain, shown, whole_number
from postdiff.plan import MAX_STEPS, SIZE_CONDITIONS, Action, Mode, Plan, SizeCondition, StepPlan


def compose(
    name: str,
    steps: int,
    beta: float = 1.0,
    s: float = 0.0,
    k: int = 1,
    m: int | None = None,
    mode: Mode = "cond",
    branch: int = 1,
    cache_attention: bool = False,
    size_condition: SizeCondition = "target",
) -> Plan:
    """Every schedule of the paper's own methods, of which each is a few of these settings.

    m: the step at which guidance ends, T or None for never. cache_attention: from then on the cross-attention of step
    m - 1 is reused. beta = 1 or s = 0, and k = 1: off.

    Raises: ValueError, saying what was expected and what came, for a setting out of range.
    """
    steps, k = check_steps(steps), whole_number("k", k, note=" (1 is off)")
    low = low_steps(steps, beta, s)
    gate = steps if m is None else m
    cached = cache_attention and gate < steps

    # Full steps restart where the grid or the batch changes: at 0, at the switch, at the gate; else every k-th.
    starts = {0, gate, low if beta < 1 else 0}
    full, since = [], 0
    for i in range(steps):
        since = 0 if i in starts else since + 1
        full.append(since % k == 0)

    def deep(i: int) -> Action:
        if not full[i]:
            return "reuse"
        return "store" if i + 1 < steps and not full[i + 1] else "compute"

    # If gate-1 skips the deep part, the deep cross-attentions are those of the last full step before it.
    last_full = max((i for i in range(gate) if full[i]), default=0)

    def attention(i: int) -> Action:
        if not cached or last_full > i or (last_full < i < gate - 1):
            return "compute"
        return "store" if i < gate else "reuse"

    plan = [StepPlan(beta if i < low else 1.0, i < gate, deep(i), attention(i)) for i in range(steps)]
    return Plan(name, tuple(plan), branch, mode, size_condition)


def check_steps(steps: int) -> int:
    return whole_number("steps", steps, 1, MAX_STEPS)


def gate_of(m: int | float, steps: int, name: str = "m") -> int:
    """The step where guidance ends. A float is a share of T, as in PostDiff's sec. 3.1 settings scaled to other T."""
    steps, m = check_steps(steps), plain(m)
    if isinstance(m, float):
        m = int(number(f"{name} as a share of the steps", m, "(0, 1]") * steps + 0.5)
    if not isinstance(m, int) or isinstance(m, bool) or not 1 <= m <= steps:
        raise ValueError(f"{name} must be a step from 1 to T={steps} (T is off) or a share of T, got {shown(m)}")
    return int(m)


def low_steps(steps: int, beta: float, s: float) -> int:
    """How many of the steps are at scale `beta`. Raises ValueError if `beta` or `s` is out of range."""
    number("beta", beta, "(0, 1]")
    low = int(number("s", s, "[0, 1)", "; the last step is at full resolution") * steps + 0.5)
    if low == steps:
        raise ValueError(f"s={s} of {steps} steps leaves no step at full resolution; expected round(s*T) < T")
    return low


def low_first(plan: Plan, beta: float, s: float, size_condition: SizeCondition = "target") -> Plan:
    """`plan` with its first round(s*T) steps at scale `beta`: any method, composed with mixed resolution (sec. 3.4).

    What is stored at the low resolution is dropped at the switch: a step that would reuse it computes and stores
    instead. Cross-attention alone is kept, and resized. beta = 1 or s = 0 is off.

    Raises: ValueError if `plan` has low-resolution steps of its own, or `beta` or `s` is out of range.
    """
    low = low_steps(len(instance("plan", plan, Plan)), beta, s)
    size_condition = one_of("size_condition", size_condition, SIZE_CONDITIONS)
    if beta == 1 or not low:
        return plan
    if plan.steps[0].scale != 1:
        raise ValueError(f"{plan.name} is at low resolution already (scale {plan.steps[0].scale})")
    actions = {
        name: _afresh([getattr(step, name) for step in plan.steps], low)
        for name in ("deep", "encoder", "self_attention", "blocks", "matching")
    }
    steps = [
        replace(step, scale=beta if i < low else 1.0, **{name: row[i] for name, row in actions.items()})  # type: ignore[arg-type]
        for i, step in enumerate(plan.steps)
    ]
    modules = tuple((name, _marks_afresh(marks, low)) for name, marks in plan.modules)
    # What was measured of merging (`merged`) was at full resolution.
    return replace(plan, steps=tuple(steps), modules=modules, merged=(), size_condition=size_condition)


def _afresh(actions: list[Action], at: int) -> list[Action]:
    """The actions, where nothing that was stored before step `at` can be reused."""
    since = next((i for i in range(at, len(actions)) if actions[i] != "compute"), at)
    if actions[since] in ("reuse", "tokens"):
        actions = [*actions[:since], "store", *actions[since + 1 :]]

    def used(i: int) -> bool:
        end = at if i < at else len(actions)
        after = next((action for action in actions[i + 1 : end] if action != "compute"), "compute")
        return after in ("reuse", "tokens")

    return ["compute" if action == "store" and not used(i) else action for i, action in enumerate(actions)]


def _marks_afresh(marks: str, at: int) -> str:
    """The marks, where nothing that was stored before step `at` can be reused."""
    output = residual = False
    after = ""
    for mark in marks[at:]:
        if mark == "." and not output:
            mark = "#"
        elif mark in "wx" and not residual:
            mark = "S"
        output, residual = True, residual or mark == "S"
        after += mark
    return marks[:at] + after
