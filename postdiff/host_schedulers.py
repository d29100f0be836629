"""diffusers' schedulers as the step loop needs them: with their numbers on the host, with noise that is given to them,
and able to begin in the middle of a schedule.
"""

import torch
from diffusers import EulerAncestralDiscreteScheduler, LCMScheduler, PNDMScheduler, UniPCMultistepScheduler


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


class GivenNoiseEulerAncestral(EulerAncestralDiscreteScheduler):
    """Ancestral Euler, which takes the noise that it adds; the arithmetic, and so the bits, are diffusers'."""

    def step(  # type: ignore[override]
        self, output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """The latents at the next noise level, [B, C, h, w], as all tensors here."""
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, after = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        x = sample.to(torch.float32)
        if self.config.prediction_type == "epsilon":
            clean = x - sigma * output
        else:
            clean = output * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
        up = (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5
        down = (after**2 - up**2) ** 0.5
        moved = x + (x - clean) / sigma * (down - sigma)
        self._step_index += 1
        return (moved + noise.to(output.dtype) * up).to(output.dtype)


class RestartingPNDM(PNDMScheduler):
    """PNDM that can begin at any run of the model, by linear multistep of as high an order as there is history for.

    diffusers' own has its first runs alone to begin with: two in place of a step (PLMS), or four for each of three
    steps (Runge-Kutta). Begun in the middle, the first step has order 1, then 2, 3 and 4.
    """

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The next run is number `begin_index` of the schedule. Call it after `set_timesteps`, which clears history."""
        self.counter = begin_index

    def step_plms(self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = True):
        """A step of order 4 (PNDM, eq. 12), of a lower one while the history is shorter."""
        if self.counter < 2 or len(self.ets) >= 3:
            return super().step_plms(model_output, timestep, sample, return_dict)
        self.ets.append(model_output)
        ets, output = self.ets, model_output
        if len(ets) == 2:
            output = (3 * ets[-1] - ets[-2]) / 2
        elif len(ets) == 3:
            output = (23 * ets[-1] - 16 * ets[-2] + 5 * ets[-3]) / 12
        before = timestep - self.config.num_train_timesteps // self.num_inference_steps
        self.counter += 1
        return (self._get_prev_sample(sample, timestep, before, output),)
