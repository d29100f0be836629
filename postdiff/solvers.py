"""The solvers offered, as diffusers schedulers, and what the sampler must know about them."""

from collections.abc import Callable

import diffusers
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler

from postdiff.schedulers import ODE, PINNED, SCHEDULERS

SOLVERS = {name: getattr(diffusers, SCHEDULERS[name]) for name in (*ODE, "lcm")}


def make_solver(name: str, config: dict):
    """A fresh scheduler on the noise schedule of `config` (a checkpoint's own scheduler config)."""
    pinned = dict(PINNED[name])
    if name == "ddim" and config.get("timestep_spacing") == "linspace":
        # diffusers' DDIM always lands 1000/T below t: with linspace that is not the next timestep, and the denoiser
        # would be told less noise than there is.
        pinned["timestep_spacing"] = "trailing"
    return SOLVERS[name].from_config(config, **pinned)


def noise_level(solver, i: int) -> tuple[float, float]:
    """(alpha, sigma) of the latents that step `i` takes in: x = alpha * x0 + sigma * noise."""
    if isinstance(solver, (DDIMScheduler, LCMScheduler)):
        variance = 1 - float(solver.alphas_cumprod[solver.timesteps[i]])
        return (1 - variance) ** 0.5, variance**0.5
    sigma = float(solver.sigmas[i])
    if isinstance(solver, EulerDiscreteScheduler):
        return 1.0, sigma
    alpha = 1 / (1 + sigma**2) ** 0.5
    return alpha, sigma * alpha


def step(
    solver, output: torch.Tensor, i: int, x: torch.Tensor, generators: Callable[[], list[torch.Generator]]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Step `i`: the latents at the next noise level, and the clean ones where the solver predicts them itself.

    A consistency model's solver draws noise: one CPU generator an image.
    """
    if isinstance(solver, LCMScheduler):
        return solver.step(output, solver.timesteps[i], x, generator=generators(), return_dict=False)
    return solver.step(output, solver.timesteps[i], x, return_dict=False)[0], None


def restart(solver, steps: int, at: int, device: torch.device) -> None:
    """Forget all history and continue at step `at`: the next step is of first order.

    A multistep solver's history holds latents of the old size. Setting the timesteps again clears it.
    """
    solver.set_timesteps(steps, device=device)
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(at)
