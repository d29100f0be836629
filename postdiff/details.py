"""What a call sets beside guidance, solver and size: a schedule of its own, noise that is added, rescaled guidance.

`sample` and `accelerate` take the same, by the names of diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any

from postdiff import arguments
from postdiff.models.evaluations import RUNS
from postdiff.models.schedulers import SIGMAS
from postdiff.plan import Plan
from postdiff.solvers import DDIM, Solver, make_scheduler, make_solver


@dataclass(frozen=True)
class Details:
    """Checked as far as no model is needed; the rest as `solver` makes one.

    guidance_rescale: share in [0, 1] by which guided predictions are brought to the conditional half's spread.
    timesteps: one a step, falling. sigmas: noise levels of Euler, one a step and the one that it ends at, falling.
    original_inference_steps: of which LCM's steps are chosen. eta: in [0, 1], of the noise that DDIM adds.
    """

    guidance_rescale: float = 0.0
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    original_inference_steps: int | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        rescale = arguments.number("guidance_rescale", self.guidance_rescale, "[0, 1]")
        eta = arguments.number("eta", self.eta, "[0, 1]", ": from none of the noise of DDPM to all of it")
        times, sigmas, original = self.timesteps, self.sigmas, self.original_inference_steps
        if times is not None and sigmas is not None:
            raise ValueError("expected timesteps or sigmas, got both")
        if times is not None and original is not None:
            raise ValueError("expected timesteps or original_inference_steps, of which they are chosen, got both")
        if times is not None:
            times = arguments.whole_numbers("timesteps", times, 0)
            _check_falling("timesteps", times)
        if sigmas is not None:
            values = arguments.listed("sigmas", sigmas, "noise levels")
            sigmas = tuple(arguments.number(f"sigmas[{i}]", value, "[0, inf)") for i, value in enumerate(values))
            _check_falling("sigmas", sigmas)
        if original is not None:
            original = arguments.whole_number("original_inference_steps", original)
        arguments.put(self, guidance_rescale=rescale, timesteps=times, sigmas=sigmas, eta=eta)
        arguments.put(self, original_inference_steps=original)

    def check(self, plan: Plan) -> None:
        """Raise ValueError if they have no effect on `plan`."""
        if self.guidance_rescale and not any(step.guided for step in plan.steps):
            raise ValueError(f"guidance_rescale cannot be honoured: no step of {plan.name} is guided in this call")

    def solver(self, name: str, config: Mapping[str, Any], steps: int, model: str) -> Solver:
        """The solver `name` at the first of `steps` steps, as `make_solver` makes it, with this schedule and noise.

        Raises: ValueError if the solver cannot be given them, or they are not of so many steps.
        """
        settings, scheduler = dict(config), make_scheduler(name, dict(config))
        if self.original_inference_steps is not None:
            if "original_inference_steps" not in signature(scheduler.set_timesteps).parameters:
                got = self.original_inference_steps
                raise ValueError(f"original_inference_steps must be None for {name}, got {got}: it is LCM's")
            settings["original_inference_steps"] = self.original_inference_steps
        if self.eta and "eta" not in signature(scheduler.step).parameters:
            raise ValueError(f"eta must be 0 for {name}, got {self.eta:g}: DDIM alone adds noise by it")
        solver = make_solver(name, settings, steps, model, self._schedule(name, scheduler, steps))
        if isinstance(solver, DDIM):
            solver.eta = self.eta
        times = solver.timesteps.tolist()
        if self.sigmas is not None and any(a <= b for a, b in pairwise(times)):
            raise ValueError(f"sigmas must be of falling timesteps of the model, got ones of timesteps {times}")
        return solver

    def _schedule(self, name: str, scheduler: Any, steps: int) -> dict[str, Any] | None:
        """What the scheduler's `set_timesteps` is given in place of a number of steps."""
        chosen = {"timesteps": self.timesteps, "sigmas": self.sigmas}
        given = {key: values for key, values in chosen.items() if values is not None}
        for key, values in given.items():
            if name in RUNS:
                raise ValueError(f"{key} must be None for {name}, which runs the model more often than it takes steps")
            # UniPC's sigmas are of flow matching, which is not offered.
            if key not in signature(scheduler.set_timesteps).parameters or (key, name) == ("sigmas", "unipc"):
                raise ValueError(f"{key} must be None: the scheduler of {name} ({type(scheduler).__name__}) takes none")
            if len(values) != (needed := steps + (key == "sigmas")):
                also = ", a step each and the one it ends at" if key == "sigmas" else ""
                raise ValueError(f"{key} must be {needed} numbers for a plan of {steps} steps{also}, got {len(values)}")
            levels = scheduler.config.num_train_timesteps
            if key == "timesteps" and values[0] >= levels:
                raise ValueError(f"timesteps must be from 0 to {levels - 1}, got {values[0]}")
            if key == "timesteps" and (on := [switch for switch in SIGMAS if scheduler.config.get(switch)]):
                raise ValueError(f"timesteps must be None where the scheduler has {on[0]}, which sets them")
        return {key: list(values) for key, values in given.items()} or None


def _check_falling(name: str, values: Sequence[float]) -> None:
    if any(a <= b for a, b in pairwise(values)):
        raise ValueError(f"{name} must fall from each to the next, got {arguments.shown(list(values))}")
