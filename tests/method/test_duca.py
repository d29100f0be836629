"""DuCa: what it promises, limits that are known, and its cost."""

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, flops_of_run, latents

import postdiff
from postdiff import Plan, Step, methods
from postdiff.mechanisms import AttentionCache, TokenCache
from postdiff.mechanisms.token_scores import attend, score


@pytest.fixture
def pixart(backbones):
    return backbones("pixart")


def test_it_alternates_between_tokens_and_nothing_after_each_full_step():
    assert methods.duca(8, interval=4).get(TokenCache).marks == "St.t" * 2
    mixed = methods.duca(8, beta=0.5, s=0.5, interval=3)
    assert mixed.get(TokenCache).marks[3:] == "#S.St"


def test_full_at_every_step_is_the_dense_plan():
    assert methods.duca(6, interval=1).id == methods.dense(6).id


def test_all_tokens_refreshed_is_reused_self_attention_alone(pixart, monkeypatch):
    """With every token computed, what is left of it is that self-attention comes from the step before."""
    monkeypatch.setattr(TokenCache, "share", lambda *_: 1.0)
    reused = methods.dense(4).plus(AttentionCache(own="S.S."))
    ours = latents(pixart, PROMPTS[:2], SEEDS[:2], methods.duca(4, interval=2))
    assert (ours - latents(pixart, PROMPTS[:2], SEEDS[:2], reused)).abs().max() < 1e-4
    assert (ours - latents(pixart, PROMPTS[:2], SEEDS[:2], methods.dense(4))).abs().max() > 1e-3


@pytest.mark.parametrize(("share", "alike"), [(0.0, True), (0.5, False), (1.0, True)])
def test_what_chooses_tokens_matters_where_there_is_a_choice(pixart, monkeypatch, share, alike):
    monkeypatch.setattr(TokenCache, "share", lambda *_: share)
    one, other = (latents(pixart, PROMPTS, SEEDS, methods.duca(6, score=score)) for score in ("entropy", "random"))
    assert ((one - other).abs().max() < 1e-4) == alike


def test_what_is_skipped_is_not_executed(pixart):
    rows, per_step = [], []
    denoiser = pixart.denoiser
    handles = [
        denoiser.transformer_blocks[1].attn1.to_q.register_forward_hook(
            lambda m, a, out: rows.append(("attn1", out.shape[1]))
        ),
        denoiser.transformer_blocks[1].attn2.to_q.register_forward_hook(
            lambda m, a, out: rows.append(("attn2", out.shape[1]))
        ),
        denoiser.transformer_blocks[1]
        .ff.net[2]
        .register_forward_hook(lambda m, a, out: rows.append(("ff", out.shape[1]))),
    ]
    postdiff.sample(
        pixart, PROMPTS[:1], SEEDS[:1], methods.duca(6),
        on_step=lambda *_: (per_step.append(dict(rows)), rows.clear()),
    )  # fmt: skip
    for handle in handles:
        handle.remove()
    n, depth, cache = 64, len(denoiser.transformer_blocks), methods.duca(6).get(TokenCache)
    for i, seen in enumerate(per_step):
        kinds = {"attn2": "cross-attention", "ff": "feed-forward"}
        share = {layer: int(n * cache.share(i, 1, depth, kind)) for layer, kind in kinds.items()}
        assert seen == [{"attn1": n, "attn2": n, "ff": n}, share, {}][i % 3]
        assert 0 < share["attn2"] < share["ff"] <= n


def test_attention_spelled_out_is_the_modules(pixart):
    module = pixart.denoiser.transformer_blocks[0].attn2
    x, text = torch.randn(2, 64, module.to_q.in_features), torch.randn(2, 7, module.to_k.in_features)
    bias = torch.tensor([0.0, 0, 0, 0, 0, -10000, -10000]).expand(2, 1, 7)
    with torch.no_grad():
        ours, entropy = attend(module, x, text, bias)
        theirs = module(x, encoder_hidden_states=text, attention_mask=bias)
    assert (ours - theirs).abs().max() < 1e-5
    assert entropy.shape == (2, 64)
    assert (entropy >= 0).all()
    assert (entropy <= np.log(5) + 1e-5).all()  # of five words


def test_the_best_token_of_each_neighbourhood_and_the_longest_waiting_come_first():
    cache = methods.duca(6, soft=10.0).get(TokenCache)
    entropy, age = torch.zeros(1, 64), torch.zeros(1, 64)
    entropy[0, 9] = 0.1
    assert score(entropy, cache, age, (16, 16)).argmax() == 9
    assert (score(entropy, cache, age, (16, 16)) > 0.15).sum() == 4  # one of each of 2x2 cells
    age[0, 63] = 3
    assert score(entropy, cache, age, (16, 16)).argmax() == 63


def test_an_image_is_its_own_whatever_is_beside_it(pixart):
    for plan in (methods.duca(6), methods.duca(6, score="random", beta=0.5, s=0.5)):
        images = postdiff.sample(pixart, PROMPTS, SEEDS, plan, batch_size=3)
        again = postdiff.sample(pixart, PROMPTS[::-1], SEEDS[::-1], plan, batch_size=3)
        np.testing.assert_array_equal(images, again[::-1])
    dense = methods.dense(2)
    before = postdiff.sample(pixart, PROMPTS, SEEDS, dense)
    postdiff.sample(pixart, PROMPTS, SEEDS, methods.duca(4))
    np.testing.assert_array_equal(before, postdiff.sample(pixart, PROMPTS, SEEDS, dense))


@pytest.mark.parametrize("plan", [methods.duca(6), methods.duca(6, score="random", beta=0.5, s=0.5)])
def test_flops_of_a_real_run_equal_the_cost_model(pixart, plan):
    assert flops_of_run(pixart, plan) == postdiff.cost(plan, pixart.spec).flops


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fresh_ratio": 1.5}, r"ratio must be in \[0, 1\], got 1.5"),
        ({"score": "loud"}, "score must be one of entropy, random, got 'loud'"),
        ({"interval": 0}, "interval must be a whole number of 1 or more, got 0"),
        ({"soft": -1.0}, "soft must be 0 or more"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        methods.duca(**settings)


def test_a_unet_has_no_such_blocks(backbone):
    with pytest.raises(ValueError, match="token caching needs a transformer, got UNet2DConditionModel"):
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], methods.duca(4))


def test_it_goes_with_no_other_reuse():
    with pytest.raises(ValueError, match="what the blocks store is of all that they compute: it goes with no other"):
        Plan("a", (Step(),) * 2, (TokenCache("S."), AttentionCache("S.")))
