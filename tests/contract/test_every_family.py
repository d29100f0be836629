"""What every family must do, on its architecture with random weights; a new one needs a row of conftest.FAMILIES."""

import diffusers
import numpy as np
import pytest
from conftest import KINDS, PROMPTS, SEEDS, pipeline_images
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import postdiff
from postdiff import methods
from postdiff.models import families
from postdiff.models.schedulers import SCHEDULERS
from postdiff.pricing import cost, count_macs


@pytest.fixture(params=KINDS)
def model(request, random_backbones):
    return random_backbones(request.param)


def test_every_family_is_here(random_backbones):
    assert {random_backbones(kind).spec.family for kind in KINDS} == families.FAMILIES.keys()


@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=["square", "wide"])
def test_dense_equals_the_diffusers_pipeline_bit_for_bit(model, size):
    ours = postdiff.sample(model, PROMPTS[:2], SEEDS[:2], methods.dense(3), size=size)
    assert ours.shape == (2, *size, 3)
    assert ours.std() > 1
    np.testing.assert_array_equal(ours, pipeline_images(model, 2, model.spec.solver, steps=3, size=size))


def test_the_default_solver_is_the_one_that_the_checkpoint_ships(model):
    assert isinstance(model.pipe.scheduler, getattr(diffusers, SCHEDULERS[model.spec.solver]))


def test_switched_off_methods_equal_dense_bit_for_bit(model):
    dense = postdiff.sample(model, PROMPTS[:2], SEEDS[:2], methods.dense(3))
    for off in (methods.mixed_resolution(3, s=0.0), methods.postdiff(3, s=0.0, k=1, m=3)):
        np.testing.assert_array_equal(postdiff.sample(model, PROMPTS[:2], SEEDS[:2], off), dense)


def test_the_model_is_untouched_afterwards_and_the_second_run_equals_the_first(model):
    prompts, seeds = PROMPTS[:2], SEEDS[:2]
    dense = postdiff.sample(model, prompts, seeds, methods.dense(4))
    attributes = {name: set(module.__dict__) for name, module in model.denoiser.named_modules()}
    plan = methods.postdiff(**{**model.spec.settings, "steps": 4})
    first = postdiff.sample(model, prompts, seeds, plan)
    assert attributes == {name: set(module.__dict__) for name, module in model.denoiser.named_modules()}
    np.testing.assert_array_equal(postdiff.sample(model, prompts, seeds, methods.dense(4)), dense)
    np.testing.assert_array_equal(postdiff.sample(model, prompts, seeds, plan), first)
    assert (first != dense).any()


def test_a_run_executes_what_the_cost_model_says_step_by_step(model):
    measured, counter, inside = [], FlopCounterMode(display=False), []
    plan = methods.postdiff(**{**model.spec.settings, "steps": 5})
    handles = [
        model.denoiser.register_forward_pre_hook(lambda *_: inside.append(-counter.get_total_flops())),
        model.denoiser.register_forward_hook(lambda *_: inside.append(counter.get_total_flops())),
    ]
    with sdpa_kernel(SDPBackend.MATH), counter, count_macs(model.denoiser) as macs:
        postdiff.sample(model, PROMPTS[:1], SEEDS[:1], plan, on_step=lambda *_: measured.append(macs.total()))
    for handle in handles:
        handle.remove()
    price = cost(plan, model.spec)
    steps = [after - before for before, after in zip([0, *measured], measured, strict=False)]
    assert steps == [step.macs_paper for step in price.steps]
    assert sum(inside) == price.flops
