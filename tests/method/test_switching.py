"""The ablations of the switch of resolution: what each does otherwise, to the bit, and where it is refused."""

from dataclasses import replace

import pytest
import torch
from conftest import PROMPTS, SEEDS

import postdiff
from postdiff import methods, planfile, resolution, sampling
from postdiff.plan import SWITCHES, Step

T, LOW = 6, 3


@pytest.fixture(scope="module")
def unet(random_backbones):
    return random_backbones("sd")


def mixed(switch, steps=T):
    return replace(methods.mixed_resolution(steps, 0.5, LOW / steps), switch=switch)


def begin(backbone, plan, solver="ddim"):
    return sampling.begin_batch(backbone, PROMPTS[:2], SEEDS[:2], plan, solver=solver, guidance=2.0)


def run(backbone, state, steps=None):
    """Take `steps` steps, or all; returns the clean latents that each predicted, and the latents after it."""
    seen, after = [], []
    with torch.inference_mode(), sampling.attach(backbone.denoiser, state.plan) as running:
        sampling.prepare(backbone, state, running)
        while state.index < len(state.plan) and (steps is None or len(after) < steps):
            output = sampling.guide(state, sampling.evaluate(backbone, state, running))
            sampling.advance(backbone, state, output, seen.append)
            after.append(state.latents)
    return seen, after


def test_usually_noise_is_fresh_and_of_the_next_level(unet):
    state = begin(unet, mixed("fresh"))
    seen, after = run(unet, state, LOW)
    alpha, sigma = state.solver.level(LOW)
    noise = state.noise(f"switch-{LOW}", state.grid)
    assert torch.equal(after[-1], alpha * resolution.upsample(seen[-1], state.grid) + sigma * noise)


def test_the_same_noise_is_that_of_a_dense_plan(unet):
    state, dense = begin(unet, mixed("same-noise")), begin(unet, methods.dense(T))
    seen, after = run(unet, state, LOW)
    alpha, sigma = state.solver.level(LOW)
    noise = dense.latents / dense.solver.prior_scale
    assert torch.equal(after[-1], alpha * resolution.upsample(seen[-1], state.grid) + sigma * noise)
    assert torch.equal(run(unet, begin(unet, mixed("fresh")), LOW)[0][-1], seen[-1])  # until there it is the same


@pytest.mark.parametrize("solver", ["ddim", "dpm", "euler"])
def test_literally_the_model_sees_the_last_low_timestep_again(unet, solver):
    """From there on it is a dense run of T steps, begun at that timestep."""
    state = begin(unet, mixed("literal", T + 1), solver)
    own = begin(unet, methods.dense(T), solver)
    assert state.timesteps.tolist() == [*own.timesteps[:LOW].tolist(), *own.timesteps[LOW - 1 :].tolist()]
    early = state.copy()
    seen, after = run(unet, early, LOW)
    alpha, sigma = own.solver.level(LOW - 1)
    noisy = alpha * resolution.upsample(seen[-1], early.grid) + sigma * early.noise(f"switch-{LOW}", early.grid)
    assert torch.equal(after[-1], noisy)
    own.latents, own.index = noisy, LOW - 1
    own.solver.restart(LOW - 1)
    _, expected = run(unet, own)
    assert torch.equal(run(unet, state)[1][-1], expected[-1])


def test_a_kept_history_is_enlarged_and_goes_on(unet):
    kept, fresh = begin(unet, mixed("kept"), "dpm"), begin(unet, mixed("fresh"), "dpm")
    seen, after = run(unet, kept, LOW)
    _, usual = run(unet, fresh, LOW)
    assert torch.equal(after[-1], usual[-1])
    history = kept.solver.scheduler.model_outputs
    for own, clean in zip(history, seen[-2:], strict=True):
        torch.testing.assert_close(own, resolution.upsample(clean, kept.grid), rtol=1e-5, atol=1e-5)
    assert kept.solver.scheduler.lower_order_nums == 2
    assert fresh.solver.scheduler.lower_order_nums == 0
    assert not torch.equal(run(unet, kept, 1)[1][-1], run(unet, fresh, 1)[1][-1])  # second order, and first


def test_the_cost_of_the_literal_one_is_of_one_step_more(unet):
    spec = unet.spec
    usual, literal = (postdiff.cost(plan, spec).flops for plan in (mixed("fresh"), mixed("literal", T + 1)))
    dense = postdiff.cost(methods.dense(T), spec).flops
    assert literal - usual == dense // T


def test_each_is_another_computation_and_a_plan_that_does_not_switch_is_none():
    plans = [mixed(switch) for switch in SWITCHES]
    assert len({plan.id for plan in plans}) == len(SWITCHES)
    assert plans[0].id == methods.mixed_resolution(T, 0.5, 0.5).id
    assert {replace(methods.dense(T), switch=switch).id for switch in SWITCHES} == {methods.dense(T).id}
    for plan in plans:
        text = planfile.to_json(plan)
        assert planfile.from_json(text) == plan
        assert ('"switch"' in text) == ("at the switch: " in str(plan)) == (plan.switch != "fresh")


def test_what_cannot_be_is_refused(unet):
    with pytest.raises(ValueError, match="switch must be one of fresh, same-noise, kept, literal, got 'stale'"):
        mixed("stale")
    with pytest.raises(
        ValueError, match="mixed_resolution keeps the solver's history at the switch: expected dpm, got"
    ):
        begin(unet, mixed("kept"), "ddim")
    with pytest.raises(
        ValueError, match="repeats a timestep: expected a solver that runs the model once a step, got plms"
    ):
        begin(unet, mixed("literal", 13), "plms")
    twice = replace(mixed("fresh"), steps=tuple(map(Step, (0.5, 0.75, *[1.0] * (T - 2)))))
    with pytest.raises(ValueError, match="a literal switch repeats a timestep once, got 2 switches"):
        replace(twice, switch="literal")
    with pytest.raises(ValueError, match="has switch kept, which `sample` runs alone: expected fresh"):
        postdiff.accelerate(unet.pipe, mixed("kept"))
