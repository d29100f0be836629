"""The solvers offered: diffusers schedulers, and around them `Solver`, all that the sampler knows of one.

A schedule (timesteps, noise levels, coefficients) is a few numbers that the host knows: they stay there, so no step
waits for the device to look one up. Latents are multiplied by numbers of the host, which costs no copy.
"""

from typing import Any

import diffusers
import torch

from postdiff import resolution
from postdiff.host_schedulers import GivenNoiseEulerAncestral, GivenNoiseLCM, HostUniPC, RestartingPNDM
from postdiff.models.evaluations import check_runs, inference_steps
from postdiff.models.schedulers import SCHEDULERS, check_solver, pinned


class Solver:
    """A solver at work on a schedule: a multistep solver in sigma space (DPM-Solver++, UniPC, DEIS).

    A step here is one run of the model, as in a plan; some solvers run it more often than they take steps of their own.
    steps: how often it is run; own_steps: steps of its own (diffusers' num_inference_steps). timesteps: [steps], on the
    host. train_steps: of the noise schedule that the model was trained with. prior_scale: what standard normal noise is
    multiplied by to be the first latents. noise_dtype: of the noise that diffusers draws for it, None for the model's.
    predicts_clean: its pipeline returns the clean latents that its last step predicts.
    """

    noise_dtype: torch.dtype | None = None
    predicts_clean = False

    def __init__(self, scheduler: Any, steps: int, own_steps: int):
        self.scheduler, self.steps, self.own_steps = scheduler, steps, own_steps
        self.restart()
        self.timesteps: torch.Tensor = scheduler.timesteps
        self.train_steps: int = scheduler.config.num_train_timesteps
        self.prior_scale: Any = scheduler.init_noise_sigma

    def restart(self, at: int = 0) -> None:
        """Begin at step `at` without history: that step is of first order.

        A multistep solver's history holds latents of the old size, and setting the timesteps clears it. The index is
        told: looked up by its timestep it would be another where rounding makes two timesteps one (cosine betas with
        Karras noise levels, beta noise levels from 32 steps on).
        """
        self.scheduler.set_timesteps(self.own_steps, device="cpu")
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(at)

    def draws_at(self, i: int) -> bool:
        """Is noise added at step `i`?"""
        return False

    @staticmethod
    def most_steps(config: Any) -> int:
        """Steps that a schedule has at most; config: the scheduler's."""
        return config.num_train_timesteps

    def level(self, i: int) -> tuple[float, float]:
        """(alpha, sigma) of the latents that step `i` takes in: x = alpha * x0 + sigma * noise."""
        sigma = float(self.scheduler.sigmas[i])
        alpha = 1 / (1 + sigma**2) ** 0.5
        return alpha, sigma * alpha

    def scale(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """The latents as the denoiser takes them at step `i`."""
        return self.scheduler.scale_model_input(x, self.timesteps[i])

    def x0(self, output: torch.Tensor, x: torch.Tensor, i: int) -> torch.Tensor:
        """The clean latents, in fp32, that the denoiser's `output` at `x` implies."""
        return resolution.predict_x0(output, x, *self.level(i), self.scheduler.config.prediction_type)

    def step(
        self, output: torch.Tensor, i: int, x: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Step `i`: the latents at the next noise level, and the clean ones where the solver predicts them itself.

        noise: what is added, [B, C, h, w]; None where the solver draws none (`draws_at`).
        """
        return self.scheduler.step(output, self.timesteps[i], x, return_dict=False)[0], None


class Stochastic(Solver):
    """DPM-Solver++ of the SDE: it adds noise at every step (at the last one times 0, as diffusers draws it)."""

    noise_dtype = torch.float32

    def draws_at(self, i: int) -> bool:
        return True

    def step(
        self, output: torch.Tensor, i: int, x: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.scheduler.step(output, self.timesteps[i], x, variance_noise=noise, return_dict=False)[0], None


class Euler(Solver):
    """Its latents grow with the noise: alpha is 1. Heun's too, which has a noise level for each run of the model."""

    def level(self, i: int) -> tuple[float, float]:
        return 1.0, float(self.scheduler.sigmas[i])


class Ancestral(Euler):
    """Euler that goes below the next noise level, and adds noise up to it (at the last step times 0)."""

    def draws_at(self, i: int) -> bool:
        return True

    def step(
        self, output: torch.Tensor, i: int, x: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.scheduler.step(output, self.timesteps[i], x, noise), None


class DDIM(Solver):
    """It looks its noise levels up by timestep. PNDM's too."""

    def level(self, i: int) -> tuple[float, float]:
        variance = 1 - float(self.scheduler.alphas_cumprod[self.timesteps[i]])
        return (1 - variance) ** 0.5, variance**0.5


class Consistency(DDIM):
    """LCM's: it predicts the clean latents itself."""

    predicts_clean = True

    def draws_at(self, i: int) -> bool:
        return i + 1 < self.steps

    @staticmethod
    def most_steps(config: Any) -> int:
        return config.original_inference_steps

    def step(
        self, output: torch.Tensor, i: int, x: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.scheduler.step(output, self.timesteps[i], x, noise)


SOLVERS: dict[str, type[Solver]] = {
    "ddim": DDIM, "dpm": Solver, "euler": Euler, "unipc": Solver, "dpm_3m": Solver, "dpm_sde": Stochastic,
    "euler_a": Ancestral, "deis": Solver, "heun": Euler, "pndm": DDIM, "plms": DDIM, "lcm": Consistency,
}  # fmt: skip
# Where the class of diffusers is not the one that runs.
OWN: dict[str, Any] = {
    "unipc": HostUniPC, "euler_a": GivenNoiseEulerAncestral, "pndm": RestartingPNDM, "plms": RestartingPNDM,
    "lcm": GivenNoiseLCM,
}  # fmt: skip


def make_scheduler(name: str, config: dict) -> Any:
    """A fresh scheduler on the noise schedule of `config` (a checkpoint's own scheduler config)."""
    kind = OWN.get(name) or getattr(diffusers, SCHEDULERS[name])
    return kind.from_config(config, **pinned(name, config))


def make_solver(name: str, config: dict, steps: int, model: str = "the model") -> Solver:
    """The solver `name` at the first of `steps` steps, runs of the model, on the noise schedule of `config`.

    Raises: ValueError if it has no schedule of so many steps of what `model` was trained with, or none like that.
    """
    check_solver(model, name, config)
    check_runs(name, steps)
    kind, scheduler = SOLVERS[name], make_scheduler(name, config)
    if steps > (most := kind.most_steps(scheduler.config)):
        raise ValueError(f"steps must be at most {most}, all that {model} was trained with, got {steps}")
    solver = kind(scheduler, steps, inference_steps(name, steps))
    times = [int(t) for t in solver.timesteps]
    levels = solver.train_steps
    if len(times) != steps or min(times) < 0 or max(times) >= levels:  # diffusers' rounding, close to all levels
        raise ValueError(f"{name} has no schedule of {steps} of {model}'s {levels} steps; expected fewer")
    return solver
