"""The sampler equals diffusers where it must, lands where theory says, and leaves no trace."""

from functools import partial
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, diffusers_solver, fitting, pipeline_images
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

import postdiff
from postdiff import decoding, methods, sampling, solvers
from postdiff.models.evaluations import check_plan, goes_with
from postdiff.models.schedulers import GENERAL, PINNED, SCHEDULERS
from postdiff.models.spec import Sampling, settle
from postdiff.resolution import upsample


@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("n", [1, 3])
def test_dense_equals_the_diffusers_pipeline_bit_for_bit(backbone, solver, n):
    plan = fitting(solver, methods.dense)
    ours = postdiff.sample(backbone, PROMPTS[:n], SEEDS[:n], plan, solver=solver)
    np.testing.assert_array_equal(ours, pipeline_images(backbone, n, solver, len(plan)))


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize(
    "shipped",
    [
        DEISMultistepScheduler(**SCHEDULE),  # DreamShaper-7's
        PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False),  # SD1.5's
        DPMSolverMultistepScheduler(
            **SCHEDULE, algorithm_type="sde-dpmsolver++", solver_order=3, euler_at_final=True, use_lu_lambdas=True
        ),
        UniPCMultistepScheduler(**SCHEDULE, predict_x0=False, disable_corrector=[0, 1], lower_order_final=False),
        EulerAncestralDiscreteScheduler(**SCHEDULE),
    ],
    ids=lambda shipped: type(shipped).__name__,
)
def test_every_solver_runs_deterministically_whatever_scheduler_a_checkpoint_ships(backbone, solver, shipped):
    pipe, before = backbone.pipe, backbone.pipe.scheduler
    pipe.scheduler = shipped
    try:
        plan = fitting(solver, partial(methods.postdiff, m=2))
        images = [postdiff.sample(backbone, PROMPTS[:1], [1], plan, solver=solver) for _ in "ab"]
        own = solvers.make_scheduler(solver, shipped.config)
    finally:
        pipe.scheduler = before
    np.testing.assert_array_equal(*images)
    assert images[0].std() > 10
    assert isinstance(own, getattr(diffusers, SCHEDULERS[solver]))
    assert {key: own.config[key] for key in PINNED[solver]} == PINNED[solver]


@pytest.mark.parametrize("solver", GENERAL)
def test_no_cfg_equals_the_pipeline_at_guidance_1(backbone, solver):
    plan = fitting(solver, methods.no_cfg)
    ours = postdiff.sample(backbone, PROMPTS, SEEDS, plan, solver=solver)
    np.testing.assert_array_equal(ours, pipeline_images(backbone, 3, solver, len(plan), guidance=1.0))


def test_switched_off_methods_equal_dense_bit_for_bit(backbone):
    dense = postdiff.sample(backbone, PROMPTS, SEEDS, methods.dense(4))
    for off in (
        methods.deepcache(4, k=1),
        methods.cross_attention_cache(4, m=4),
        methods.mixed_resolution(4, s=0.0),
        methods.mixed_resolution(4, beta=1.0, s=0.5),
        methods.postdiff(4, s=0.0, k=1, m=4),
    ):
        np.testing.assert_array_equal(postdiff.sample(backbone, PROMPTS, SEEDS, off), dense)


@pytest.mark.parametrize("plan", [methods.postdiff(6), methods.tgate(6, 4, sp_interval=2)], ids=lambda plan: plan.name)
def test_the_model_is_untouched_afterwards(backbone, plan):
    before = pipeline_images(backbone, 2, "dpm")
    weights = {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}
    attributes = {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}
    postdiff.sample(backbone, PROMPTS, SEEDS, plan)
    assert attributes == {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}
    assert all(torch.equal(weights[name], value) for name, value in backbone.denoiser.state_dict().items())
    np.testing.assert_array_equal(pipeline_images(backbone, 2, "dpm"), before)


def test_the_model_is_untouched_after_an_error_in_the_middle(backbone):
    def fail(step):
        raise KeyboardInterrupt

    attributes = {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}
    with pytest.raises(KeyboardInterrupt):
        postdiff.sample(backbone, PROMPTS, SEEDS, methods.postdiff(6), on_step=fail)
    assert attributes == {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}


class Oracle(torch.nn.Module):
    """A denoiser that knows x0: what it returns is the exact noise in its input."""

    def __init__(self, x0, alphas_cumprod):
        super().__init__()
        self.x0, self.alphas_cumprod = x0, alphas_cumprod
        self.config = {"in_channels": x0.shape[1]}
        self.seen = []

    def forward(self, x, timestep, encoder_hidden_states, return_dict):
        alpha = self.alphas_cumprod[int(timestep[0])]  # of every row the same
        x0 = self.x0 if x.shape[2:] == self.x0.shape[2:] else self.low
        x0 = torch.cat([x0] * (len(x) // len(x0)))
        self.seen.append((x - alpha.sqrt() * x0) / (1 - alpha).sqrt())
        return (self.seen[-1],)


def last_level(solver, scheduler):
    """(alpha, sigma) of what a schedule ends at: clean latents, or those of the model's lowest noise level."""
    if solver not in ("pndm", "plms", "deis"):
        return 1.0, 0.0
    alpha = float(scheduler.alphas_cumprod[0])
    return alpha**0.5, (1 - alpha) ** 0.5


@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("s", [0.0, 0.05, 0.1, 0.3, 0.4, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("beta", [0.5, 0.75])
def test_an_oracle_ends_at_x0_through_the_switch(backbone, solver, s, beta):
    torch.manual_seed(0)
    low = torch.randn(2, 8, int(16 * beta), int(16 * beta))
    config = backbone.pipe.scheduler.config
    oracle = Oracle(upsample(low, (16, 16)), solvers.make_scheduler("ddim", config).alphas_cumprod)
    oracle.low = low
    pipe = SimpleNamespace(
        unet=oracle,
        _execution_device=torch.device("cpu"),
        dtype=torch.float32,
        scheduler=SimpleNamespace(config=config),
    )
    knowing = postdiff.Backbone(backbone.spec, pipe)
    plan = methods.mixed_resolution(21 if solver == "heun" else 20, beta=beta, s=s)
    if not goes_with(solver, plan):
        with pytest.raises(ValueError, match=rf"switches its resolution at step \d+, within a step of {solver}"):
            check_plan(solver, plan)
        return
    text = {"text": torch.zeros(4, 1, 1)}
    state = sampling.begin(knowing, text, [1, 2], plan, Sampling(7.5, solver, (64, 64)))
    latents = sampling.denoise(knowing, state)
    drawn = oracle.seen[0][:2]
    for switch in plan.switches:  # re-noised to the level of the next timestep: the noise in it is the noise drawn
        drawn = sampling.draw([1, 2], f"switch-{switch}", 8, (16, 16))
        torch.testing.assert_close(oracle.seen[switch][:2], drawn, atol=1e-3, rtol=0)
    alpha, sigma = last_level(solver, state.solver.scheduler)
    torch.testing.assert_close(latents, alpha * oracle.x0 + sigma * drawn, atol=2e-4, rtol=0)


def test_noise_does_not_depend_on_batch_order_or_plan():
    together = sampling.draw([1, 2, 3], "initial", 4, (5, 7))
    assert torch.equal(sampling.draw([3], "initial", 4, (5, 7))[0], together[2])
    assert not torch.equal(sampling.draw([3], "switch-4", 4, (5, 7))[0], together[2])
    assert abs(float(sampling.draw(range(100), "initial", 4, (8, 8)).std()) - 1) < 0.02


def test_a_fixed_batch_shape_makes_bytes_independent_of_sharding(backbone):
    plan = methods.postdiff(6)
    whole = postdiff.sample(backbone, PROMPTS, SEEDS, plan, batch_size=2)
    alone = [postdiff.sample(backbone, [p], [s], plan, batch_size=2)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    np.testing.assert_array_equal(whole, alone)


def test_across_batch_shapes_pixels_agree_within_a_bound(backbone):
    plan = methods.dense(6)
    one, three = (postdiff.sample(backbone, PROMPTS, SEEDS, plan, batch_size=n).astype(int) for n in (1, 3))
    assert np.abs(one - three).max() <= 2  # of 255: fp32 sums in another order


def test_a_state_can_be_copied_and_both_go_on_alike(backbone):
    plan = methods.postdiff(8, s=0.25, m=6)
    text = postdiff.encode(backbone, PROMPTS, 3).batch(0, 3, guided=True)
    state = sampling.begin(backbone, text, SEEDS, plan, settle(backbone.spec))
    copies = []

    def copy_in_the_middle(i):
        if i == 5:
            copies.append(state.copy())

    first = sampling.denoise(backbone, state, copy_in_the_middle)
    assert torch.equal(sampling.denoise(backbone, copies[0]), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1]}, "one seed a prompt"),
        ({"prompts": [], "seeds": []}, "at least one prompt"),
        ({"guidance": 0.5}, "guidance must be 1 or more"),
        ({"size": 63}, "multiple of 4"),
        ({"solver": "rk45"}, "solver must be one of"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 16384, got 0"),
        ({"plan": methods.deepcache(4, branch=11)}, "branch must be a whole number from 0 to 10"),
    ],
)
def test_bad_input_is_told(backbone, change, message):
    good = {"prompts": PROMPTS, "seeds": SEEDS, "plan": methods.dense(2)}
    with pytest.raises(ValueError, match=message):
        postdiff.sample(backbone, **{**good, **change})


def test_an_image_that_is_not_finite_is_an_error_and_no_black_image(backbone):
    latents = torch.zeros(2, 8, 16, 16)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match=r"1 of 2 images are not finite in torch.float32: expected a dtype"):
        decoding.decode(backbone, latents)


@pytest.mark.parametrize("steps", [4, 8, 20])
def test_ddim_lands_on_the_next_timestep_whatever_spacing_a_checkpoint_ships(backbone, steps):
    config = {**backbone.pipe.scheduler.config, "timestep_spacing": "linspace"}
    solver = solvers.make_solver("ddim", config, steps)
    landed = [int(t) - 1000 // steps for t in solver.timesteps]
    assert landed[:-1] == [int(t) for t in solver.timesteps[1:]]


def test_embeddings_of_another_dtype_are_taken(backbone):
    """A text encoder may run on another device, in its own dtype."""
    plan = methods.postdiff(4, m=2)
    made = postdiff.encode(backbone, PROMPTS[:1], 1)
    double = postdiff.text.Embeddings(*({k: v.double() for k, v in part.items()} for part in (made.cond, made.uncond)))
    np.testing.assert_array_equal(
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan, embeddings=double),
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan),
    )


def test_one_string_is_no_list_of_prompts(backbone):
    with pytest.raises(ValueError, match="prompts must be a list of strings, got 'ab'"):
        postdiff.sample(backbone, "ab", [0, 1], methods.dense(1))


@pytest.mark.parametrize("prompts", [[], PROMPTS])
def test_those_who_take_the_steps_themselves_are_told_the_same(backbone, prompts):
    with pytest.raises(ValueError, match="expected one seed a prompt and at least one prompt"):
        sampling.begin_batch(backbone, prompts, SEEDS[:2], methods.no_cfg(2))


@pytest.mark.trained
def test_parts_that_were_not_loaded_are_told():
    text, denoiser = (postdiff.load("mini-sd", device="cpu", parts=parts) for parts in ("text", "denoiser"))
    with pytest.raises(ValueError, match="loaded without its denoiser"):
        postdiff.sample(text, PROMPTS[:1], [0], methods.dense(1))
    with pytest.raises(ValueError, match="loaded without its text encoder: expected `embeddings`"):
        postdiff.sample(denoiser, PROMPTS[:1], [0], methods.dense(1))


def test_steps_ahead_are_no_larger_a_pass_than_fits(backbone, monkeypatch):
    plan = methods.faster_diffusion(8, key_steps=(0, 1, 2), ahead=True)
    whole = postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan)
    assert sampling._ahead(plan, 3, 2 * 16 * 16) == 5
    monkeypatch.setattr(sampling, "AHEAD_CELLS", 2 * 2 * 16 * 16)
    assert [sampling._ahead(plan, i, 2 * 16 * 16) for i in (3, 5, 7)] == [2, 2, 1]
    parts = postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan)
    assert np.abs(whole.astype(int) - parts).max() <= 1


SAME_TIMESTEPS = {  # two of the steps round to one timestep
    "cosine betas, Karras": ({"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}, 30),
    "beta noise levels": ({"use_beta_sigmas": True}, 40),
    "exponential": ({"use_exponential_sigmas": True}, 60),
}


@pytest.mark.parametrize("schedule", SAME_TIMESTEPS)
@pytest.mark.parametrize("name", ["dpm", "unipc"])  # Euler's timesteps are no whole numbers
def test_every_step_is_taken_at_its_own_noise_level(name, schedule):
    """Where a step is looked up by its timestep, one of two equal ones is lost, and the last has no level left."""
    changes, steps = SAME_TIMESTEPS[schedule]
    solver = solvers.make_solver(name, {**SCHEDULE, "num_train_timesteps": 1000, **changes}, steps)
    assert len(solver.timesteps.unique()) < steps
    x0, noise = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    alpha, sigma = solver.level(0)
    x = alpha * x0 + sigma * noise
    for i in range(steps):
        solver.scale(x, i)
        alpha, sigma = solver.level(i)
        x, _ = solver.step((x - alpha * x0) / sigma, i, x, None)
        assert solver.scheduler.step_index == i + 1
    torch.testing.assert_close(x, x0, atol=5e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_unipc_with_its_coefficients_on_the_host_has_diffusers_bits(dtype, prediction):
    config = {**SCHEDULE, "num_train_timesteps": 1000, "prediction_type": prediction}
    ours, theirs = solvers.make_solver("unipc", config, 9), diffusers_solver("unipc", config)
    theirs.set_timesteps(9)
    generator = torch.Generator().manual_seed(0)
    a = b = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    for i, t in enumerate(theirs.timesteps):
        output = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
        a, _ = ours.step(output, i, a, None)
        b = theirs.step(output, t, b, return_dict=False)[0]
        assert a.dtype == dtype
        assert torch.equal(a, b)
