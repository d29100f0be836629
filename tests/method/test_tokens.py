"""Fewer tokens: ToMe equal to its authors' package, with and without chance; what merging and downsampling promise."""

import copy

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, latents

import postdiff
from postdiff import drawing, methods, sampling, state
from postdiff.mechanisms import KeyDownsampling, TokenMerging
from postdiff.mechanisms.matching import match, merge_tokens, unmerge_tokens
from postdiff.models.anatomy import anatomy
from postdiff.pricing import count_macs

STEPS = 4


def authors_latents(backbone, plan, drawn, n):
    """Latents by tomesd, whose random partitions are `drawn`, one a call: its own come from torch's global state."""
    import tomesd

    pipe, merge = copy.deepcopy(backbone.pipe), plan.get(TokenMerging)
    tomesd.apply_patch(
        pipe, merge.ratio, merge.max_downsample, merge.sx, merge.sy, merge.random,
        merge.attention, merge.cross_attention, merge.mlp,
    )  # fmt: skip
    if merge.random:
        theirs, calls = tomesd.merge.bipartite_soft_matching_random2d, iter(drawn)
        tomesd.merge.bipartite_soft_matching_random2d = lambda *args, generator, **kwargs: theirs(
            *args, generator=next(calls), **kwargs
        )
    try:
        return pipe(
            PROMPTS[:n], num_inference_steps=len(plan), guidance_scale=backbone.spec.guidance,
            latents=sampling.draw(SEEDS[:n], "initial", 8, (16, 16)), output_type="latent",
        ).images  # fmt: skip
    finally:
        if merge.random:
            tomesd.merge.bipartite_soft_matching_random2d = theirs


@pytest.mark.parametrize("random", [False, True], ids=["deterministic", "seeded"])
@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.3},
        {"ratio": 0.5},
        {"ratio": 0.75, "max_downsample": 2, "cross_attention": True, "mlp": True},
        {"ratio": 0.6, "sx": 4, "sy": 3},  # cells that do not fill the grid
    ],
    ids=str,
)
def test_tome_equals_the_authors_package(backbone, settings, random):
    plan = methods.tome(STEPS, **settings, random=random)
    n = 1 if random else 2  # their random partition is a batch's, ours an image's
    order = []  # blocks in the order they run
    most = plan.get(TokenMerging).max_downsample
    names = [block.name for block in anatomy(backbone.denoiser).blocks if block.shrunk <= most]
    handles = [
        backbone.denoiser.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name in names
    ]
    ours = latents(backbone, PROMPTS[:n], SEEDS[:n], plan)
    for handle in handles:
        handle.remove()
    steps = [i // len(names) for i in range(len(order))]
    drawn = [state.generator(SEEDS[0], f"tokens-{name}-{i}") for name, i in zip(order, steps, strict=True)]
    assert torch.equal(ours, authors_latents(backbone, plan, drawn, n))
    assert (ours - latents(backbone, PROMPTS[:n], SEEDS[:n], methods.dense(STEPS))).abs().max() > 1e-2


def test_merging_then_unmerging_equal_tokens_changes_nothing():
    torch.manual_seed(0)
    cells = torch.randn(2, 2, 3, 5)  # 24 tokens on 4 x 6, the same in every cell of 2 x 2
    values = cells.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1, 2)
    how = match(values, (4, 6), torch.randint(4, (2, 2, 3)), TokenMerging(0.5))
    merged = merge_tokens(values, how)
    assert merged.shape == (2, 12, 5)
    assert torch.allclose(unmerge_tokens(merged, how), values, atol=1e-6)


def test_a_destination_becomes_the_mean_of_all_merged_into_it():
    x = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [0.0, 3.0]]])  # of one cell; the last is like no other
    how = match(x, (2, 2), torch.zeros(1, 1, 1, dtype=torch.int64), TokenMerging(0.5))
    assert merge_tokens(x, how).tolist() == [[[0.0, 3.0], [pytest.approx(7 / 3), 0.0]]]
    assert how.size.tolist() == [3.0]


def test_many_tokens_of_half_precision_have_a_true_mean():
    torch.manual_seed(0)
    x = torch.randn(1, 4096, 8) * 0.01  # nearly all are like one destination
    x[..., 0] += 1
    x[:, 0] = torch.eye(8)[0]
    how = match(x.bfloat16(), (64, 64), torch.zeros(1, 32, 32, dtype=torch.int64), TokenMerging(0.5))
    assert how.size.max() > 300  # beyond what bfloat16 can count
    assert 0.9 < merge_tokens(x.bfloat16(), how)[..., 0].max() < 1.1


def test_a_cell_larger_than_the_grid_merges_nothing():
    x = torch.randn(1, 16, 4)
    assert match(x, (4, 4), torch.zeros(1, 0, 2, dtype=torch.int64), TokenMerging(0.5, sx=2, sy=5)) is None


def test_downsampled_keys_are_every_second_row_and_column(backbone):
    seen = []
    with_keys = backbone.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    handle = with_keys.to_k.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    query = with_keys.to_q.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    latents(backbone, PROMPTS[:1], SEEDS[:1], methods.todo(1))
    handle.remove(), query.remove()
    queries, keys = seen
    assert queries.shape[1] == 256
    assert torch.equal(keys, queries.reshape(2, 16, 16, -1)[:, ::2, ::2].reshape(2, 64, -1))


@pytest.mark.parametrize("off", [methods.tome(3, ratio=0), methods.todo(3, 1)], ids=["tome", "todo"])
def test_off_is_dense(off):
    assert off.id == methods.dense(3).id


def test_one_computation_has_one_id():
    assert methods.dense(3).plus(KeyDownsampling([2])).id == methods.todo(3).id
    assert methods.todo(3).id != methods.todo(3, 1, 2).id
    assert methods.tome(3, random=False).id != methods.tome(3).id


def test_an_image_does_not_depend_on_what_else_is_in_the_batch(backbone):
    plan = methods.tome(STEPS)
    alone = postdiff.sample(backbone, PROMPTS[1:2], SEEDS[1:2], plan, batch_size=3)
    together = postdiff.sample(backbone, PROMPTS, SEEDS, plan)
    np.testing.assert_array_equal(alone[0], together[1])
    np.testing.assert_array_equal(postdiff.sample(backbone, PROMPTS, SEEDS, plan), together)


@pytest.mark.parametrize("fewer", [TokenMerging(0.5, mlp=True), KeyDownsampling((2, 2))], ids=["merge", "downsample"])
@pytest.mark.parametrize("method", [methods.postdiff(6, m=4), methods.tgate(6, 3, sp_interval=2)], ids=lambda p: p.name)
def test_fewer_tokens_compose_with_resolution_and_caches_at_the_cost_that_is_told(backbone, method, fewer):
    plan, measured = method.plus(fewer), []
    attributes = {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}
    with count_macs(backbone.denoiser) as macs:
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan, on_step=lambda *_: measured.append(macs.total()))
    told = postdiff.cost(plan, backbone.spec)
    assert np.diff([0, *measured]).tolist() == [step.macs_paper for step in told.steps]
    assert told.flops < postdiff.cost(method, backbone.spec).flops
    assert attributes == {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}


def test_a_model_without_attention_at_that_grid_says_so(backbones, monkeypatch):
    for kind in ("sdxl", "pixart"):
        plan = methods.tome(2, max_downsample=2)
        assert postdiff.sample(backbones(kind), PROMPTS[:1], SEEDS[:1], plan).shape == (1, 64, 64, 3)
        monkeypatch.setattr(drawing, "encode", None)  # told before any work is done
        with pytest.raises(ValueError, match=r"changes nothing in a .*attention has grids 2"):
            postdiff.sample(backbones(kind), PROMPTS[:1], SEEDS[:1], methods.tome(2))
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.tome(ratio=0.8), "ratio must be above 0 and at most 0.75 for cells of 2x2, got 0.8"),
        (lambda: methods.tome(sx=0), "sx must be a whole number of 1 or more, got 0"),
        (lambda: methods.tome(sx=1, sy=1), "a cell of 1x1 has nothing to merge"),
        (lambda: methods.tome(max_downsample=3), "max_downsample must be 1, 2, 4 or 8, got 3"),
        (lambda: methods.tome(attention=False), "at least one of attention, cross_attention and mlp"),
        (lambda: methods.todo(factor=0), "factor must be a whole number of 1 or more, got 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
