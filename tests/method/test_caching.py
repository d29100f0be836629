"""Caching: equal to the authors' DeepCache on every branch; cross-attention stored, resized and dropped as planned."""

import pytest
import torch
from conftest import PROMPTS, SEEDS, latents

import postdiff
from postdiff import methods, sampling
from postdiff.mechanisms.attention import merge_guidance, resize_tokens
from postdiff.models.anatomy import anatomy, token_grid


@pytest.mark.parametrize("branch", range(11))
@pytest.mark.parametrize("k", [2, 3])
def test_deepcache_equals_the_authors_package(backbone, branch, k):
    from DeepCache import DeepCacheSDHelper

    ours = latents(backbone, PROMPTS[:2], SEEDS[:2], methods.deepcache(5, k=k, branch=branch))
    helper = DeepCacheSDHelper(pipe=backbone.pipe)
    helper.set_params(cache_interval=k, cache_branch_id=branch)
    helper.enable()
    noise = sampling.draw(SEEDS[:2], "initial", 8, (16, 16))
    theirs = backbone.pipe(
        PROMPTS[:2], num_inference_steps=5, guidance_scale=backbone.spec.guidance, latents=noise, output_type="latent"
    ).images
    helper.disable()
    assert torch.equal(ours, theirs)


def test_caching_changes_the_image(backbone):
    dense = postdiff.sample(backbone, PROMPTS, SEEDS, methods.dense(8))
    for plan in (methods.deepcache(8), methods.cross_attention_cache(8, m=4), methods.mixed_resolution(8)):
        assert (postdiff.sample(backbone, PROMPTS, SEEDS, plan) != dense).any()


def test_skips_are_numbered_from_the_outside(backbone):
    beyond = anatomy(backbone.denoiser).beyond
    with pytest.raises(ValueError, match="branch must be a whole number from 0 to 10, got 11"):  # of 12 skips
        beyond(11)
    assert beyond(1)[:3] == [
        "down_blocks.0.resnets.1",
        "down_blocks.0.attentions.1",
        "down_blocks.0.downsamplers.0",
    ]
    assert beyond(1)[3:] == [
        "down_blocks.1",
        "down_blocks.2",
        "down_blocks.3",
        "mid_block",
        "up_blocks.0",
        "up_blocks.1",
        "up_blocks.2",
        "up_blocks.3.resnets.0",
        "up_blocks.3.attentions.0",
    ]


@pytest.mark.parametrize("plan", [methods.postdiff(8), methods.postdiff(8, s=0.5, m=3), methods.deepcache(8, k=3)])
def test_what_is_reused_is_not_computed(backbone, plan):
    calls = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in backbone.denoiser.named_modules()
        if name.endswith(("attn2.to_q", "mid_block.resnets.0.conv1"))
    ]
    per_step = []

    def count(*_):
        per_step.append((sum(name.endswith("to_q") for name in calls), sum("mid_block.r" in name for name in calls)))
        calls.clear()

    postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan, on_step=count)
    for handle in handles:
        handle.remove()
    shallow = 2 + 1  # cross-attentions within branch 1: the decoder's last two and the encoder's first
    for i, (attention, mid) in enumerate(per_step):
        reused = plan.reuses(i)
        assert mid == ("deep" not in reused)
        expected = shallow if "deep" in reused else 16
        assert attention == (0 if "cross-attention" in reused else expected)
    assert len(per_step) == len(plan)


@pytest.mark.parametrize(
    ("mode", "expected"), [("ave", [2.0]), ("cond", [3.0]), ("uncond", [1.0]), ("cfg", [1.0 + 7.5 * 2.0])]
)
def test_the_four_choices_of_what_to_cache(mode, expected):
    output = torch.tensor([[[1.0]], [[3.0]]])  # unconditional half first
    assert merge_guidance(output, mode, 7.5).flatten().tolist() == expected


def test_stored_tokens_are_resized_to_the_grid_of_the_step():
    ramp = torch.arange(4.0).repeat(4, 1).reshape(1, 16, 1)  # 4x4 tokens, rising to the right
    bigger = resize_tokens(ramp, (8, 8), (16, 16), 64)
    assert bigger.shape == (1, 64, 1)
    assert torch.equal(bigger.reshape(8, 8)[0], bigger.reshape(8, 8)[7])
    assert (bigger.reshape(8, 8)[0].diff() >= 0).all()
    assert resize_tokens(ramp, (8, 8), (8, 8), 16) is ramp
    assert token_grid((5, 7), 12) == (3, 4)  # odd sides are halved upwards, as a U-Net does
    with pytest.raises(ValueError, match="no level"):
        token_grid((8, 8), 17)
