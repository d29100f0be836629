"""A compiled denoiser under every mechanism, on every family. Dynamo traces as it does for kernels, and runs what it
traced as it stands, so that not a bit may change; kernels themselves are compiled by one slow test."""

from dataclasses import replace

import pytest
import torch
from conftest import KINDS, PROMPTS, SEEDS, latents
from test_mechanisms import plan_of

import postdiff
from postdiff import compiling, methods
from postdiff.mechanisms import MECHANISMS
from postdiff.models.anatomy import anatomy
from postdiff.models.families import adapt

STEPS = 4


# A U-Net and a transformer always; what else differs between families lies outside of the denoiser's blocks.
@pytest.fixture(params=[k if k in ("sd", "pixart") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def model(request, random_backbones):
    return random_backbones(request.param)


@pytest.fixture
def traced(monkeypatch):
    """Compiled parts run the operations that were traced, not kernels made of them."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trace = lambda name, forward: torch.compile(forward, dynamic=False, backend="eager")  # noqa: E731
    monkeypatch.setattr(compiling, "_compiled", trace)
    # Beyond its limit of graphs torch would run a part as it is, with the same bits.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_compiled_denoiser_gives_the_same_bits_under_every_mechanism(model, traced):
    compiled = replace(model, compiled=True)
    plans = {name: plan_of(model, name) for name in MECHANISMS} | {"dense": methods.dense(STEPS)}
    for name, plan in plans.items():
        if plan:
            expected = latents(model, PROMPTS[:1], SEEDS[:1], plan)
            assert torch.equal(latents(compiled, PROMPTS[:1], SEEDS[:1], plan), expected), name
            assert graphs() > 0, name
            before = graphs()
            latents(compiled, PROMPTS[:1], SEEDS[1:2], plan)
            assert graphs() == before, f"{name}: another batch of the same shape compiles again"


def test_graphs_are_of_shapes_not_of_steps(random_backbones, traced):
    """Steps of PostDiff differ in resolution, halves and what they reuse: twice as many, and no more graphs."""
    compiled = replace(random_backbones("sd"), compiled=True)
    latents(compiled, PROMPTS[:1], SEEDS[:1], methods.postdiff(8, s=0.5, m=6))
    made = graphs()
    assert made > 0
    latents(compiled, PROMPTS[:1], SEEDS[:1], methods.postdiff(16, s=0.5, m=12))
    assert graphs() == made


def test_the_largest_parts_are_compiled_inside_of_which_nothing_is_changed(random_backbones):
    denoiser = random_backbones("sd").denoiser
    described = anatomy(denoiser)
    first = described.blocks[0]
    whole = [*described.convolutions, *(block.name for block in described.blocks)]
    assert described.convolutions
    assert compiling.parts(denoiser, []) == compiling.parts(denoiser, [first.name]) == whole
    inside = compiling.parts(denoiser, [first.layers["cross-attention"]])
    assert set(whole) - set(inside) == {first.name}
    assert set(inside) - set(whole) == set(first.layers.values())


def test_the_model_is_untouched_afterwards(random_backbones, traced):
    backbone = random_backbones("sd")
    limit = torch._dynamo.config.recompile_limit
    latents(replace(backbone, compiled=True), PROMPTS[:1], SEEDS[:1], methods.deepcache(STEPS, 2))
    assert not [name for name, module in backbone.denoiser.named_modules() if "forward" in module.__dict__]
    assert torch._dynamo.config.recompile_limit == limit


def test_shapes_that_depend_on_the_image_are_not_compiled(random_backbones):
    plan = methods.ca_tome(STEPS)
    backbone = replace(random_backbones("sd"), compiled=True)
    with pytest.raises(ValueError, match=r"ca_tome runs other shapes for each image, which cannot be compiled"):
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], adapt(plan, "sd"))


@pytest.mark.slow
def test_kernels_give_the_same_image_but_for_the_last_bits(random_backbones):
    backbone, plan = random_backbones("sd"), methods.postdiff(STEPS, s=0.5, m=3)
    expected = latents(backbone, PROMPTS[:1], SEEDS[:1], plan)
    got = latents(replace(backbone, compiled=True), PROMPTS[:1], SEEDS[:1], plan)
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
