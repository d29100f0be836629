"""Faster Diffusion, and every method composed with mixed resolution."""

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, latents

import postdiff
from postdiff import Step, low_first, methods, sampling
from postdiff.mechanisms import ScheduledModules
from postdiff.models.spec import Sampling
from postdiff.plan import strip


def row(plan, name):
    return next((line.split()[-1] for line in strip(plan).splitlines() if line.split()[0] == name), None)


def test_faster_diffusion_is_this_schedule():
    plan = methods.faster_diffusion(20)
    assert row(plan, "encoder") == "###S.S....S....S...."
    assert plan.prior_noise == 0.003


@pytest.mark.parametrize("kind", ["sd", "sdxl", "lcm", "tiny"])
def test_key_steps_everywhere_are_the_dense_plan(backbone, backbones, kind):
    under_test = backbone if kind == "sd" else backbones(kind)
    every = methods.faster_diffusion(4, tuple(range(4)), prior_noise=0.0)
    assert every.id == methods.dense(4).id
    assert torch.equal(
        latents(under_test, PROMPTS[:2], SEEDS[:2], every),
        latents(under_test, PROMPTS[:2], SEEDS[:2], methods.dense(4)),
    )


@pytest.mark.parametrize("kind", ["sd", "sdxl", "tiny"])
def test_the_batched_decoder_gives_what_the_serial_one_gives(backbone, backbones, kind):
    under_test = backbone if kind == "sd" else backbones(kind)
    runs = []
    handle = under_test.denoiser.conv_out.register_forward_hook(lambda m, args, out: runs.append(len(out)))
    serial, ahead = (
        latents(under_test, PROMPTS[:2], SEEDS[:2], methods.faster_diffusion(8, (0, 1, 5), ahead=together))
        for together in (False, True)
    )
    handle.remove()
    assert runs == [4] * 8 + [4, 4, 12, 4, 8]  # rows of each pass: 2 images, 2 halves
    assert (serial - ahead).abs().max() < 1e-4 * serial.abs().max()
    assert not torch.equal(serial, latents(under_test, PROMPTS[:2], SEEDS[:2], methods.dense(8)))


def test_between_key_steps_the_prediction_does_not_depend_on_the_latents(backbone):
    """With no step of the encoder after the first, the noise added to the latents cannot change what is predicted."""
    encoder_runs = []
    handle = backbone.denoiser.down_blocks[0].resnets[0].register_forward_hook(lambda *_: encoder_runs.append(1))
    plain, noisy = (
        latents(backbone, PROMPTS[:1], SEEDS[:1], methods.faster_diffusion(6, (0,), prior_noise=noise))
        for noise in (0.0, 0.003)
    )
    handle.remove()
    assert len(encoder_runs) == 2
    assert 0 < (plain - noisy).abs().max() < 0.1


def test_prior_noise_is_the_authors_rule(backbone):
    """DDIM is linear in the latents: noise that is added comes out times what the later steps keep of it."""
    plan = methods.faster_diffusion(4, (0,), prior_noise=0.0)
    text = postdiff.encode(backbone, PROMPTS[:1], 1).batch(0, 1, True)
    ends = []
    for noise in (0.0, 0.01):
        noisy = methods.faster_diffusion(4, (0,), noise)
        state = sampling.begin(backbone, text, SEEDS[:1], noisy, Sampling(2.0, "ddim", (64, 64)))
        ends.append(sampling.denoise(backbone, state))
        timesteps, solver = state.solver.timesteps, state.solver
    initial = sampling.draw(SEEDS[:1], "initial", 8, (16, 16))
    late = [i for i, t in enumerate(timesteps) if t < 500]
    assert 0 < len(late) < 4
    # With the noise's prediction e fixed, a step maps x to (a'/a) x + const; the last step has a' = alpha of t = 0.
    final = float(solver.scheduler.final_alpha_cumprod) ** 0.5
    alphas = [*(solver.level(i)[0] for i in range(len(plan))), final]
    expected = sum(0.01 * alphas[-1] / alphas[i] for i in late) * initial
    assert torch.allclose(ends[1] - ends[0], expected, atol=1e-4)


COMPOSED = {
    "tgate": {"gate_step": 6, "sp_interval": 2, "fi_interval": 2},
    "tome": {},
    "todo": {},
    "faster_diffusion": {"key_steps": (0, 1, 5), "ahead": True},
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_method_at_low_resolution_first(backbone, name):
    """Alone at beta = 1; with mixed resolution another image, at less cost; the same in any batch of the same shape."""
    method, settings = methods.METHODS[name], COMPOSED[name]
    plain, mixed = method(8, **settings), method(8, **settings, beta=0.5, s=0.5)
    assert method(8, **settings, beta=1.0, s=0.5) == plain == method(8, **settings, beta=0.5, s=0.0)
    assert [step.scale for step in mixed.steps] == [0.5] * 4 + [1.0] * 4
    assert postdiff.cost(mixed, backbone.spec).flops < postdiff.cost(plain, backbone.spec).flops
    images = postdiff.sample(backbone, PROMPTS[:2], SEEDS[:2], mixed, batch_size=2)
    again = postdiff.sample(backbone, PROMPTS[1:2] + PROMPTS[:1], SEEDS[1:2] + SEEDS[:1], mixed, batch_size=2)
    np.testing.assert_array_equal(images, again[::-1])
    assert (images != postdiff.sample(backbone, PROMPTS[:2], SEEDS[:2], plain)).any()


def test_what_was_stored_before_the_switch_is_not_reused_after_it():
    plan = methods.faster_diffusion(10, (0, 2), beta=0.5, s=0.4)
    assert row(plan, "encoder") == "S.S.S....."
    gated = methods.tgate(10, 8, sp_interval=3, beta=0.5, s=0.4)
    assert row(methods.tgate(10, 8, sp_interval=3), "self-attention") == "S..S..####"
    assert row(gated, "self-attention") == "S..#S.####"
    scheduled = postdiff.Plan("a", (Step(),) * 6, [ScheduledModules([("b.attn1", "S.w.xw")])])
    assert low_first(scheduled, 0.5, 0.5).get(ScheduledModules).modules == (("b.attn1", "S.w#Sw"),)


def test_what_is_at_low_resolution_already_is_refused():
    with pytest.raises(ValueError, match="mixed_resolution is at low resolution already"):
        low_first(methods.mixed_resolution(), 0.5, 0.5)
    with pytest.raises(ValueError, match=r"beta must be in \(0, 1\]"):
        methods.tome(beta=2.0, s=0.5)


@pytest.mark.parametrize("keys", [(), (1, 2), (0, 3, 2)])
def test_key_steps_must_rise_from_0(keys):
    with pytest.raises(ValueError, match="key_steps must be rising numbers of steps from 0 on"):
        methods.faster_diffusion(key_steps=keys)


def test_a_transformer_has_no_encoder(backbones):
    with pytest.raises(ValueError, match="encoder propagation needs a U-Net"):
        postdiff.sample(backbones("pixart"), PROMPTS[:1], SEEDS[:1], methods.faster_diffusion(8))
