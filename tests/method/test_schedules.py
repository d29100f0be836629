"""Schedules of single modules: windows, shared halves and reused outputs, at the cost that is told."""

import pytest
import torch
from conftest import PROMPTS, SEEDS, latents

import postdiff
from postdiff import Plan, Step, methods
from postdiff.mechanisms import ScheduledModules
from postdiff.mechanisms.windows import split_attention, window_attention

STEPS = 6


def attentions(backbone):
    return [name for name, _ in backbone.denoiser.named_modules() if name.endswith(".attn1")]


def blocks(backbone):
    if hasattr(backbone.denoiser, "transformer_blocks"):
        return [f"transformer_blocks.{i}" for i in range(len(backbone.denoiser.transformer_blocks))]
    return [name for name, m in backbone.denoiser.named_modules() if type(m).__name__ == "Transformer2DModel"]


def plan(names, marks, **settings):
    scheduled = ScheduledModules(tuple((name, marks) for name in names), **settings)
    return Plan("scheduled", (Step(),) * len(marks), (scheduled,))


def illegal(steps, *modules):
    return Plan("illegal", steps, (ScheduledModules(modules),))


@pytest.mark.parametrize("n", [16, 40, 64, 100])
@pytest.mark.parametrize("window", [1, 5, 12, 40])
def test_a_window_is_full_attention_under_a_band_mask(n, window):
    q, k, v = torch.randn(3, 2, 4, n, 8, generator=torch.Generator().manual_seed(n)).unbind()
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    masked = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=distance <= window)
    assert (window_attention(q, k, v, window) - masked).abs().max() < 1e-5


def test_a_window_as_wide_as_the_sequence_is_full_attention():
    q, k, v = torch.randn(3, 2, 4, 33, 8).unbind()
    assert torch.equal(window_attention(q, k, v, 32), torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_what_a_window_leaves_out_makes_it_whole_again(backbone):
    module = backbone.denoiser.get_submodule(attentions(backbone)[0])
    x = torch.randn(2, 64, module.to_q.in_features)
    with torch.no_grad():
        whole, rest = split_attention(module, x, 0.125)
        again, _ = split_attention(module, x, 0.125, rest)
        full = module(x)
    assert rest.abs().max() > 1e-3
    assert torch.equal(whole, full)
    assert (again - full).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart"])
def test_windows_as_wide_as_the_image_are_dense(backbone, backbones, kind):
    under_test = backbone if kind == "sd" else backbones(kind)
    dense = latents(under_test, PROMPTS[:2], SEEDS[:2], methods.dense(STEPS))
    wide = latents(under_test, PROMPTS[:2], SEEDS[:2], plan(attentions(under_test), "SwwSww", window=1.0))
    assert torch.equal(dense, wide)
    narrow = latents(under_test, PROMPTS[:2], SEEDS[:2], plan(attentions(under_test), "SwwSww", window=0.1))
    assert not torch.equal(dense, narrow)


def test_a_shared_half_changes_nothing_where_both_halves_are_alike(backbone):
    """With the empty prompt the conditional half is the unconditional one."""
    dense = latents(backbone, [""], SEEDS[:1], methods.dense(STEPS))
    shared = latents(backbone, [""], SEEDS[:1], plan(attentions(backbone), "#ccccc"))
    assert (dense - shared).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["sd", "pixart"])
def test_a_block_that_is_reused_adds_what_it_added_before(backbone, backbones, kind):
    """Reused at every step but the first, every block runs once."""
    under_test = backbone if kind == "sd" else backbones(kind)
    names, runs = blocks(under_test), []
    assert names
    handles = [
        under_test.denoiser.get_submodule(f"{name}.{inner}").register_forward_hook(lambda *_: runs.append(1))
        for name in names
        for inner in [next(n for n, _ in under_test.denoiser.get_submodule(name).named_modules() if n.endswith("to_q"))]
    ]
    cached = latents(under_test, PROMPTS[:1], SEEDS[:1], plan(names, "#....."))
    for handle in handles:
        handle.remove()
    assert len(runs) == len(names)
    assert not torch.equal(cached, latents(under_test, PROMPTS[:1], SEEDS[:1], methods.dense(STEPS)))


def test_a_schedule_that_always_computes_is_no_schedule(backbone):
    assert plan(attentions(backbone), "######").id == methods.dense(STEPS).id
    one, other = (plan(names, "#.") for names in (["a.attn1", "b.attn1"], ["b.attn1", "a.attn1"]))
    assert one.id == other.id


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ("#.", "expected 3 marks"),
        ("#?.", "expected marks, each one of # S w c x ., got '#\\?.'"),
        (".##", "step 0: nothing of a.attn1 is stored that '.' could use"),
        ("#w#", "step 1: nothing of a.attn1 is stored that 'w' could use"),
    ],
)
def test_illegal_schedules_are_refused(marks, message):
    with pytest.raises(ValueError, match=message):
        illegal((Step(),) * 3, ("a.attn1", marks))


def test_schedules_that_contradict_the_steps_are_refused():
    with pytest.raises(ValueError, match="one half without guidance"):
        illegal((Step(), Step(guided=False)), ("a.attn1", "#c"))
    with pytest.raises(ValueError, match=r"nothing of a\.attn1"):
        illegal((Step(0.5), Step()), ("a.attn1", "#."))
    with pytest.raises(ValueError, match="only self-attention"):
        illegal((Step(),) * 2, ("a", "Sw"))
    with pytest.raises(ValueError, match="within another"):
        illegal((Step(),) * 2, ("a", "#."), ("a.attn1", "#."))


def test_a_module_that_is_not_there_is_told_before_any_work(backbone):
    with pytest.raises(ValueError, match=r"has a schedule of nowhere\.attn1, which a UNet2DConditionModel"):
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan(["nowhere.attn1"], "#."))
