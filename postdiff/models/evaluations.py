"""How often a solver runs the model, and which plans go with that: a plan has a step for each run of the denoiser.

Most solvers run it once for each step of their own. Neither torch nor diffusers is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postdiff.plan import Plan


@dataclass(frozen=True)
class Runs:
    """A solver that takes T steps of its own (`num_inference_steps`) in `each` * T + `more` runs of the model.

    fewest: the least T. group: so many runs are one step of the solver, until run number `until` (None: to the end):
    the first begins it, the others go on with what that one began.
    """

    each: int = 1
    more: int = 0
    fewest: int = 1
    group: int = 1
    until: int | None = None

    def own_steps(self, runs: int) -> int | None:
        """T with which the model is run so often, or None."""
        steps, rest = divmod(runs - self.more, self.each)
        return None if rest or steps < self.fewest else steps

    def goes_on(self, i: int) -> bool:
        """Does run `i` go on with a step that a run before it began?"""
        return i % self.group > 0 and (self.until is None or i < self.until)

    def __str__(self) -> str:
        times = f"{self.each} * T" if self.each > 1 else "T"
        more = f"{'+' if self.more > 0 else '-'} {abs(self.more)}"
        return f"{times} {more} times for T steps of its own, T from {self.fewest}"


ONCE = Runs()
RUNS = {
    "heun": Runs(each=2, more=-1, group=2),  # predicts and corrects; the last step predicts alone
    "pndm": Runs(more=9, fewest=4, group=4, until=12),  # three Runge-Kutta steps of four runs first
    "plms": Runs(more=1, fewest=2, group=2, until=2),  # its first step predicts and corrects
}


def inference_steps(solver: str, runs: int) -> int:
    """Steps of its own that a solver takes in so many runs of the model: diffusers' `num_inference_steps`.

    Raises: ValueError if there are none.
    """
    check_runs(solver, runs)
    return RUNS.get(solver, ONCE).own_steps(runs) or 0


def check_runs(solver: str, runs: int) -> None:
    """Raise ValueError if a solver never runs the model so often."""
    rule = RUNS.get(solver, ONCE)
    if rule.own_steps(runs) is None:
        raise ValueError(f"{solver} runs the model {rule}: expected a plan of so many steps, got one of {runs}")


def check_plan(solver: str, plan: Plan) -> None:
    """Check that a plan's steps are runs of the model as the solver has them.

    Raises: ValueError if it never has so many, if the resolution is switched within a step of the solver's, or if noise
        is added to latents that such a step leaves behind.
    """
    check_runs(solver, len(plan))
    rule = RUNS.get(solver, ONCE)
    if within := [i for i in plan.switches if rule.goes_on(i)]:
        allowed = [i for i in range(1, len(plan)) if not rule.goes_on(i)]
        nearest = sorted(sorted(allowed, key=lambda i: abs(i - within[0]))[:2])
        raise ValueError(
            f"{plan.name} switches its resolution at step {within[0]}, within a step of {solver} ({rule.group} runs of "
            f"the model): expected a switch elsewhere, such as at {' or '.join(map(str, nearest))}"
        )
    if plan.prior_noise and any(rule.goes_on(i) for i in range(max(0, len(plan) // 2 - 1), len(plan))):
        raise ValueError(
            f"{plan.name} adds initial noise to the latents of each step, and {solver} leaves those of some runs "
            "behind: expected prior_noise=0 or another solver"
        )


def goes_with(solver: str, plan: Plan) -> bool:
    """Is the plan one that `check_plan` lets pass?"""
    try:
        check_plan(solver, plan)
    except ValueError:
        return False
    return True
