"""Solvers: every family gives diffusers' bits with each, they keep their order after a switch, and what they run of the
model is what a plan counts."""

import copy
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, fitting, pipeline_images, with_parts
from torch.utils.flop_counter import FlopCounterMode

import postdiff
from postdiff import methods, sampling, solvers
from postdiff.models.evaluations import check_plan, goes_with, inference_steps
from postdiff.models.schedulers import GENERAL, ODE, SDE
from postdiff.models.spec import settle

NEW = ("dpm_3m", "dpm_sde", "euler_a", "deis", "heun", "pndm", "plms")
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
STOCK = {**SCHEDULE, "steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False}  # SD1.5's, of PNDM


@pytest.mark.parametrize("solver", NEW)
@pytest.mark.parametrize("kind", ["sdxl", "pixart", "sigma"])
def test_dense_equals_the_diffusers_pipeline_bit_for_bit(random_backbones, kind, solver):
    model, plan = random_backbones(kind), fitting(solver, methods.dense, 3)
    ours = postdiff.sample(model, PROMPTS[:2], SEEDS[:2], plan, solver=solver)
    assert ours.std() > 1
    np.testing.assert_array_equal(ours, pipeline_images(model, 2, solver, len(plan)))


@pytest.mark.parametrize("solver", GENERAL)
def test_disabled_methods_are_dense_and_cached_ones_are_not(backbone, solver):
    def image(make):
        return postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], fitting(solver, make, 5), solver=solver)

    dense = image(methods.dense)
    np.testing.assert_array_equal(image(lambda n: methods.postdiff(n, s=0.0, k=1, m=n)), dense)
    assert (image(partial(methods.deepcache, k=2)) != dense).any()


@pytest.mark.parametrize("solver", SDE)
def test_noise_is_an_images_own_at_every_step(backbone, solver):
    """Neither the other images of a batch nor their number changes what an image draws, before or after a switch."""
    plan, text = methods.postdiff(6), postdiff.encode(backbone, PROMPTS, 3).batch(0, 3, True)

    def noises(seeds):
        state = sampling.begin(backbone, text, seeds, plan, settle(backbone.spec, solver=solver))
        sampling.denoise(backbone, state)
        return {key: rows for key, rows in state.sent.items() if key[0] == "noise"}

    together, other = noises([1, 2, 3]), noises([9, 2, 8])
    grids = [(key[1], key[2]) for key in together if key[1].startswith("solver")]
    assert grids == [(f"solver-{i}", (8, 8) if i < 3 else (16, 16)) for i in range(6)]
    for key, rows in together.items():
        assert torch.equal(rows[1], other[key][1])
        assert not torch.equal(rows[0], other[key][0])
    alone = [
        postdiff.sample(backbone, [p], [s], plan, solver=solver, batch_size=2)
        for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    whole = postdiff.sample(backbone, PROMPTS, SEEDS, plan, solver=solver, batch_size=2)
    np.testing.assert_array_equal(whole, np.concatenate(alone))


def gaussian_error(solver, runs, begin, prediction="epsilon"):
    """How far a solver that begins at run `begin` of `runs`, without history, is at the last from the exact solution.

    Data are normal with standard deviation 1/2, so the best prediction is known, and the probability flow multiplies
    latents by the standard deviation of their noise level.
    """
    config = {**SCHEDULE, "steps_offset": 1, "timestep_spacing": "leading", "prediction_type": prediction}
    at = solvers.make_solver(solver, config, runs)
    at.restart(begin)
    x = torch.tensor(1.0, dtype=torch.float64).reshape(1, 1, 1, 1)

    def spread(alpha, sigma):
        return (alpha**2 / 4 + sigma**2) ** 0.5

    start = spread(*at.level(begin))
    for i in range(begin, runs - 1):
        alpha, sigma = at.level(i)
        at.scale(x, i)
        clean = x * alpha / 4 / spread(alpha, sigma) ** 2
        noise = (x - alpha * clean) / sigma
        norm = (alpha**2 + sigma**2) ** 0.5
        x, _ = at.step(noise if prediction == "epsilon" else (alpha * noise - sigma * clean) / norm, i, x, None)
        x = x.double()
    return abs(float(x) / spread(*at.level(runs - 1)) * start - 1)


@pytest.mark.parametrize("begin", [0, 12])
@pytest.mark.parametrize("solver", [solver for solver in ODE if solver not in ("ddim", "euler")])
def test_higher_orders_are_nearer_to_the_exact_solution_also_after_a_restart(solver, begin):
    first = gaussian_error("ddim", 40, begin)
    assert gaussian_error(solver, 41 if solver == "heun" else 40, begin) < first / 2


def test_pndm_begun_in_the_middle_is_adams_bashforth_of_rising_order():
    solver = solvers.make_solver("plms", STOCK, 11)
    solver.restart(4)
    x, outputs = torch.ones(1, 1, 2, 2), torch.randn(7, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    weights = [(1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), *[(55 / 24, -59 / 24, 37 / 24, -9 / 24)] * 4]
    alphas = [
        *(float(solver.scheduler.alphas_cumprod[t]) for t in solver.timesteps[4:]),
        float(solver.scheduler.alphas_cumprod[0]),
    ]
    for i, terms in enumerate(weights):
        eps = sum(weight * outputs[i - back] for back, weight in enumerate(terms))
        now, after = alphas[i], alphas[i + 1]
        expected = after**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - after) ** 0.5 * eps  # DDIM's step
        x, _ = solver.step(outputs[i], i + 4, x, None)
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("solver", "runs", "steps"),
    [
        ("heun", 21, 11),
        ("heun", 1, 1),
        ("plms", 21, 20),
        ("plms", 3, 2),
        ("pndm", 29, 20),
        ("pndm", 13, 4),
        ("dpm", 7, 7),
    ],
)
def test_runs_of_the_model_are_diffusers_timesteps(backbone, solver, runs, steps):
    assert inference_steps(solver, runs) == steps
    theirs = solvers.make_scheduler(solver, backbone.pipe.scheduler.config)
    theirs.set_timesteps(steps)
    assert len(theirs.timesteps) == runs


@pytest.mark.parametrize(
    ("solver", "plan", "told"),
    [
        ("heun", methods.dense(20), r"heun runs the model 2 \* T - 1 times for T steps .*T from 1: .*got one of 20"),
        ("plms", methods.dense(2), r"plms runs the model T \+ 1 times for T .*, T from 2: .*got one of 2"),
        ("pndm", methods.dense(12), r"pndm runs the model T \+ 9 times .*T from 4: .*got one of 12"),
        (
            "plms",
            methods.mixed_resolution(10, s=0.1),
            r"at step 1, within a step of plms \(2 runs of the model\): .*2 or 3",
        ),
        ("heun", methods.mixed_resolution(21, s=0.25), r"at step 5, within a step of heun .* such as at 4 or 6"),
        ("pndm", methods.mixed_resolution(20, s=0.3), r"at step 6, within a step of pndm \(4 .* such as at 4 or 8"),
        (
            "heun",
            methods.faster_diffusion(21, key_steps=(0, 4)),
            "adds initial noise to the latents .* and heun leaves",
        ),
    ],
)
def test_what_does_not_go_with_a_solvers_runs_is_refused_before_any_work(backbone, monkeypatch, solver, plan, told):
    monkeypatch.setattr(sampling, "encode", None)
    with pytest.raises(ValueError, match=told) as refused:
        postdiff.sample(backbone, PROMPTS[:1], [1], plan, solver=solver)
    assert "\n" not in str(refused.value)
    assert not goes_with(solver, plan)
    check_plan("dpm", plan)


@pytest.mark.parametrize("solver", ["heun", "plms"])
def test_every_run_is_paid_for(random_backbones, solver):
    """A plan's cost is that of what runs: each run of the model once, and a cached run is cheap."""
    model = random_backbones("sd")
    for make in (methods.dense, partial(methods.deepcache, k=2)):
        plan, runs = fitting(solver, make, 5), []
        handle = model.denoiser.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        with FlopCounterMode(display=False) as counter:
            state = sampling.begin_batch(model, PROMPTS[:1], [1], plan, solver=solver)
            before = counter.get_total_flops()
            sampling.denoise(model, state)
        handle.remove()
        price = postdiff.cost(plan, model.spec)
        assert len(runs) == len(plan) == len(price.steps)
        assert counter.get_total_flops() - before <= price.flops


@pytest.mark.parametrize("solver", NEW)
def test_a_copy_in_the_middle_goes_on_alike(random_backbones, solver):
    model, copies = random_backbones("sd"), []
    plan = fitting(solver, methods.dense, 5)
    state = sampling.begin_batch(model, PROMPTS[:1], [1], plan, solver=solver)
    first = sampling.denoise(model, state, lambda done: copies.append(state.copy()))
    for each in copies[:-1]:
        assert torch.equal(sampling.denoise(model, each), first)


USERS = {
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": False}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}),
    "dpm_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
}


def users(pipe, solver):
    """The pipeline with its user's scheduler, and a plan for it."""
    other = with_parts(pipe)
    kind, changes = USERS[solver]
    plain = {key: value for key, value in pipe.scheduler.config.items() if key in STOCK or key == "timestep_spacing"}
    other.scheduler = getattr(diffusers, kind).from_config({**plain, **changes})
    return other, fitting(solver, methods.dense, 5)


@pytest.mark.parametrize("solver", USERS)
@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart"])
def test_accelerate_gives_the_bytes_of_the_users_pipeline_and_leaves_its_generator_alike(
    random_backbones, kind, solver
):
    pipe, plan = users(random_backbones(kind).pipe, solver)
    assert postdiff.wrap(pipe, size=64).spec.solver == solver
    one, two = (torch.Generator().manual_seed(5) for _ in "ab")
    options = {"use_resolution_binning": False, "clean_caption": False} if kind == "pixart" else {}
    options |= {
        "num_inference_steps": inference_steps(solver, len(plan)),
        "height": 64,
        "width": 64,
        "output_type": "np",
    }
    own = pipe(PROMPTS[:2], generator=one, **options).images
    fast = postdiff.accelerate(pipe, plan)(PROMPTS[:2], generator=two, **options).images
    np.testing.assert_array_equal(fast, own)
    assert torch.equal(one.get_state(), two.get_state())  # the next call's images are the pipeline's too


@pytest.mark.parametrize("solver", [*SDE, "heun", "plms"])
def test_bf16_draws_what_diffusers_draws(random_backbones, solver):
    pipe, plan = users(random_backbones("sd").pipe, solver)
    parts = {name: copy.deepcopy(getattr(pipe, name)).to(torch.bfloat16) for name in ("unet", "vae", "text_encoder")}
    half = with_parts(pipe, **parts)
    calls = [partial(half, num_inference_steps=inference_steps(solver, len(plan))), postdiff.accelerate(half, plan)]
    own, fast = (call(PROMPTS[0], generator=torch.Generator().manual_seed(5), output_type="np") for call in calls)
    np.testing.assert_array_equal(own.images, fast.images)


@pytest.mark.parametrize("solver", ["plms", "pndm", "heun", "dpm_sde"])
@pytest.mark.parametrize("kind", ["sd", "pixart"])
def test_callbacks_and_the_bar_count_as_the_pipelines_do(random_backbones, kind, solver):
    pipe, plan = users(random_backbones(kind).pipe, solver)
    seen, bars = [], []

    class Bar:
        def __init__(self, total):
            bars.append([total, 0])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self):
            bars[-1][1] += 1

    pipe.progress_bar = Bar
    if kind == "pixart":
        options = {"callback": lambda i, t, x: seen.append((i, float(t), float(x.sum()))), "callback_steps": 2}
        options |= {"use_resolution_binning": False, "clean_caption": False, "height": 64, "width": 64}
    else:
        options = {"callback_on_step_end": lambda p, i, t, x: seen.append((i, float(t), p.num_timesteps)) or x}
    for call in (pipe, postdiff.accelerate(pipe, plan)):
        steps = {} if call is not pipe else {"num_inference_steps": inference_steps(solver, len(plan))}
        call(PROMPTS[0], generator=torch.Generator().manual_seed(5), output_type="latent", **steps, **options)
    assert len(seen) > 1
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert bars[0] == bars[1]


def test_another_number_of_steps_than_the_plans_runs_is_refused(random_backbones):
    pipe, _ = users(random_backbones("sd").pipe, "plms")
    fast = postdiff.accelerate(pipe, methods.dense(5))
    with pytest.raises(
        ValueError, match=r"must be 4 for the plan's 5 \(plms runs the denoiser 5 times for 4 steps\), or"
    ):
        fast(PROMPTS[0], num_inference_steps=5)


@pytest.mark.parametrize("solver", ["heun", "plms", "pndm"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_share_is_of_a_plan_that_the_users_solver_takes(random_backbones, solver, share):
    pipe, _ = users(random_backbones("sd").pipe, solver)
    fast = postdiff.accelerate(pipe, share=share)
    assert goes_with(solver, fast.plan)
    costs = [postdiff.cost(plan, fast.backbone.spec).flops for plan in (fast.plan, methods.dense(20))]
    assert share - 0.2 < costs[0] / costs[1] <= share
