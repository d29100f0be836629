"""What happens where a plan changes its resolution: the rule that the paper's costs imply, and what it is held against.

`Plan.switch` names it. All predict the clean latents by Eq. 2 and enlarge them by Eq. 4:

fresh       noise of its own stream is added, to the level of the next timestep (Eq. 5), and the solver begins anew.
same-noise  as fresh, with the noise that a dense plan of the same seed begins with.
kept        as fresh, and the solver goes on: the clean latents that it remembers are enlarged, too.
literal     Eq. 5 as it is written, at the level of the step that predicted the clean latents: the model sees that
            timestep again at the higher resolution, so a plan of T + 1 steps runs T timesteps.
"""

from collections.abc import Mapping
from typing import Any

import torch

from postdiff import resolution
from postdiff.details import Details
from postdiff.models.evaluations import RUNS
from postdiff.plan import Plan
from postdiff.state import State

REMEMBERING = ("dpm",)  # solvers whose history is clean latents alone, of older steps


class Repeating:
    """A solver whose timestep `at` - 1 comes twice: at steps `at` - 1 and `at`."""

    def __init__(self, solver: Any, at: int):
        self.solver, self.at = solver, at
        self.timesteps = torch.cat([solver.timesteps[:at], solver.timesteps[at - 1 :]])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.solver, name)

    def _own(self, i: int) -> int:
        return i if i < self.at else i - 1

    def restart(self, at: int = 0) -> None:
        self.solver.restart(self._own(at))

    def draws_at(self, i: int) -> bool:
        return self.solver.draws_at(self._own(i))

    def level(self, i: int) -> tuple[float, float]:
        return self.solver.level(self._own(i))

    def scale(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return self.solver.scale(x, self._own(i))

    def x0(self, output: torch.Tensor, x: torch.Tensor, i: int) -> torch.Tensor:
        return self.solver.x0(output, x, self._own(i))

    def step(
        self, output: torch.Tensor, i: int, x: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.solver.step(output, self._own(i), x, noise)


def make_solver(name: str, config: Mapping[str, Any], plan: Plan, model: str, details: Details) -> Any:
    """The solver `name` at the first step of `plan`, as `details.solver` makes it.

    Raises: ValueError as that does; if `details` have no effect on the plan; if the plan keeps a history that
        the solver has not.
    """
    details.check(plan)
    rule = plan.switch if plan.switches else "fresh"
    if rule == "kept" and name not in REMEMBERING:
        raise ValueError(
            f"{plan.name} keeps the solver's history at the switch: expected {' or '.join(REMEMBERING)}, got {name}"
        )
    if rule == "literal" and name in RUNS:
        raise ValueError(
            f"{plan.name} repeats a timestep: expected a solver that runs the model once a step, got {name}"
        )
    if rule != "literal":
        return details.solver(name, config, len(plan), model)
    return Repeating(details.solver(name, config, len(plan) - 1, model), plan.switches[0])


def noise(state: State, i: int, grid: tuple[int, int]) -> torch.Tensor:
    """What is added where step `i` is the first at `grid` (h, w): standard normal [B, C, h, w], fp32."""
    return state.noise("initial" if state.plan.switch == "same-noise" else f"switch-{i}", grid)


def noisy(state: State, x0: torch.Tensor) -> torch.Tensor:
    """The latents that the next step begins with, at its noise level, in fp32; the solver is ready for it. x0: the
    clean latents [B, C, h, w] that this step predicts, enlarged."""
    after, solver = state.index + 1, state.solver
    grid = (x0.shape[-2], x0.shape[-1])
    latents = resolution.renoise(x0, noise(state, after, grid), *solver.level(after))
    if state.plan.switch == "kept":
        remembered = solver.scheduler.model_outputs
        solver.scheduler.model_outputs = [
            one if one is None else resolution.upsample(one, grid).to(one.dtype) for one in remembered
        ]
    else:
        solver.restart(after)
    return latents
