"""The solvers offered: diffusers schedulers, and around them `Solver`, all that the sampler knows of one.

A schedule (timesteps, noise levels, coefficients) is a few numbers that the host knows: they stay there, so no step
waits for the device to look one up. Latents are multiplied by numbers of the host, which costs no copy.
"""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import LCMScheduler, UniPCMultistepScheduler

from postdiff import resolution
from postdiff.models.schedulers import SCHEDULERS, pinned


class HostUniPC(UniPCMultistepScheduler):
    """UniPC of order 2 at most (B(h) = expm1(-h), data prediction), with its coefficients on the host.

    diffusers' own moves every noise level to the latents' device and solves for the coefficients there: five copies
    and a wait a step. The arithmetic here is the same, operation by operation, and so are the bits.
    """

    def _level(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(alpha, sigma, lambda) at step `i`, where lambda = log(alpha / sigma)."""
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[i])
        return alpha, sigma, torch.log(alpha) - torch.log(sigma)

    def _base(self, x: torch.Tensor, m0: torch.Tensor, to: int) -> tuple[torch.Tensor, ...]:
        """From step `to` - 1 to `to`: the update of first order, alpha * B(h), -h, and lambda where it starts."""
        (alpha, sigma, end), (_, sigma_start, start) = self._level(to), self._level(to - 1)
        hh = -(end - start)
        b_h = torch.expm1(hh)
        return sigma / sigma_start * x - alpha * b_h * m0, alpha * b_h, hh, start

    def _slope(self, before: int, hh: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How far back step `before` lies, in steps of the one that is taken, and the slope of the data from there."""
        r = (self._level(before)[2] - start) / -hh
        return r, (self.model_outputs[-2] - self.model_outputs[-1]) / r

    def multistep_uni_p_bh_update(self, model_output: torch.Tensor, *, sample: torch.Tensor, order: int):
        """The predictor: from `sample` at this step to the next (UniPC, Alg. 1)."""
        first, scale, hh, start = self._base(sample, self.model_outputs[-1], self.step_index + 1)
        if order == 1:
            return first.to(sample.dtype)
        _, slope = self._slope(self.step_index - 1, hh, start)
        return (first - scale * (0.5 * slope)).to(sample.dtype)

    def multistep_uni_c_bh_update(
        self, this_model_output: torch.Tensor, *, last_sample: torch.Tensor, this_sample: torch.Tensor, order: int
    ):
        """The corrector: this step's sample anew, now that the model has seen the one before it (UniPC, Alg. 1)."""
        first, scale, hh, start = self._base(last_sample, self.model_outputs[-1], self.step_index)
        change = this_model_output - self.model_outputs[-1]
        if order == 1:
            return (first - scale * (0.5 * change)).to(last_sample.dtype)
        r, slope = self._slope(self.step_index - 2, hh, start)
        phi = torch.expm1(hh) / hh - 1
        ones = torch.ones_like(r)
        rows = torch.stack([torch.stack([ones, ones]), torch.stack([r, ones])])
        sides = torch.stack([phi / torch.expm1(hh), (phi / hh - 0.5) * 2 / torch.expm1(hh)])
        rho = torch.linalg.solve(rows, sides).to(last_sample.dtype)
        return (first - scale * (rho[0] * slope + rho[1] * change)).to(last_sample.dtype)


class GivenNoiseLCM(LCMScheduler):
    """LCM's solver, which takes the noise that it adds: noise is an image's own, and drawn before the first step."""

    def step(  # type: ignore[override]
        self, output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents at the next noise level and the clean ones, [B, C, h, w] each. noise: None at the last step."""
        if self.step_index is None:
            self._init_step_index(timestep)
        alpha = self.alphas_cumprod[timestep]
        roots = alpha.sqrt(), (1 - alpha).sqrt()
        if self.config.prediction_type == "epsilon":
            x0 = (sample - roots[1] * output) / roots[0]
        elif self.config.prediction_type == "v_prediction":
            x0 = roots[0] * sample - roots[1] * output
        else:
            x0 = output
        c_skip, c_out = self.get_scalings_for_boundary_condition_discrete(timestep)
        clean = c_out * x0 + c_skip * sample
        self._step_index += 1
        if noise is None:
            return clean, clean
        after = self.alphas_cumprod[self.timesteps[self.step_index]]
        return after.sqrt() * clean + (1 - after).sqrt() * noise.to(clean.dtype), clean


class Solver:
    """A solver at work on a schedule of so many steps: a multistep solver in sigma space (DPM-Solver++, UniPC).

    timesteps: [T], on the host. train_steps: of the noise schedule that the model was trained with. prior_scale: what
    standard normal noise is multiplied by to be the first latents. predicts_clean: its pipeline returns the clean
    latents that its last step predicts. schedule: what its `set_timesteps` is given; by default the number of steps.
    """

    predicts_clean = False

    def __init__(self, scheduler: Any, steps: int, schedule: Mapping[str, Any] | None = None):
        self.scheduler, self.steps = scheduler, steps
        self.schedule = schedule or {"num_inference_steps": steps}
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
        self.scheduler.set_timesteps(**self.schedule, device="cpu")
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(at)

    @staticmethod
    def most_steps(config: Any) -> int:
        """Steps that a schedule has at most; config: the scheduler's."""
        return config.num_train_timesteps

    def draws_at(self, i: int) -> bool:
        """Is noise added at step `i`?"""
        return False

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

        noise: what the solver adds, [B, C, h, w], where it draws at this step (`draws_at`), else None.
        """
        return self.scheduler.step(output, self.timesteps[i], x, return_dict=False)[0], None


class Euler(Solver):
    """Its latents grow with the noise: alpha is 1."""

    def level(self, i: int) -> tuple[float, float]:
        return 1.0, float(self.scheduler.sigmas[i])


class DDIM(Solver):
    """It looks its noise levels up by timestep. eta: of the noise that it adds, from none (0) to DDPM's (1)."""

    eta = 0.0

    def draws_at(self, i: int) -> bool:
        # The last step too: where set_alpha_to_one is off it does not end at clean latents.
        return self.eta > 0

    def step(
        self, output: torch.Tensor, i: int, x: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if noise is None:
            return super().step(output, i, x, None)
        added = {"eta": self.eta, "variance_noise": noise.to(output.dtype)}
        return self.scheduler.step(output, self.timesteps[i], x, **added, return_dict=False)[0], None

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


SOLVERS: dict[str, type[Solver]] = {"ddim": DDIM, "dpm": Solver, "euler": Euler, "unipc": Solver, "lcm": Consistency}
# Where the class of diffusers is not the one that runs.
OWN: dict[str, Any] = {"unipc": HostUniPC, "lcm": GivenNoiseLCM}


def make_scheduler(name: str, config: dict) -> Any:
    """A fresh scheduler on the noise schedule of `config` (a checkpoint's own scheduler config)."""
    kind = OWN.get(name) or getattr(diffusers, SCHEDULERS[name])
    return kind.from_config(config, **pinned(name, config))


def make_solver(
    name: str, config: dict, steps: int, model: str = "the model", schedule: Mapping[str, Any] | None = None
) -> Solver:
    """The solver `name` at the first of `steps` steps, on the noise schedule of `config`. schedule: as `Solver` has it.

    Raises: ValueError if it has no schedule of so many steps of what `model` was trained with.
    """
    kind, scheduler = SOLVERS[name], make_scheduler(name, config)
    if steps > (most := kind.most_steps(scheduler.config)):
        raise ValueError(f"steps must be at most {most}, all that {model} was trained with, got {steps}")
    solver = kind(scheduler, steps, schedule)
    times = [int(t) for t in solver.timesteps]
    levels = solver.train_steps
    if len(times) != steps or min(times) < 0 or max(times) >= levels:  # diffusers' rounding, close to all levels
        raise ValueError(f"{name} has no schedule of {steps} of {model}'s {levels} steps; expected fewer")
    return solver
