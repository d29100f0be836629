"""CA-ToMe: equal to its authors' package; what is alike enough is merged, as much as an image has of it, and matchings
are reused."""

import copy

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, flops_of_run, latents

import postdiff
from postdiff import Plan, Step, methods, sampling, search, state
from postdiff.mechanisms import TokenMerging, matching
from postdiff.plan import strip

ALIKE = 0.9  # a cosine that some of mini-SD's tokens reach


def test_the_schedule_of_matching():
    text = strip(methods.ca_tome(10, match_steps=(0, 4, 5)))
    assert text.splitlines()[2].split() == ["matching", "S...#S...."]


def authors_latents(backbone, plan, match_steps, monkeypatch, skip_none=False):
    """Latents by ca_tome, whose random partitions are drawn from the image's own streams: its own come from torch's
    global state. skip_none: where it would merge none, it does nothing."""
    from ca_tome import apply_CA_ToMe, merge

    pipe, tokens, theirs = copy.deepcopy(backbone.pipe), plan.get(TokenMerging), merge.bipartite_soft_matching_random2d
    apply_CA_ToMe(pipe, [step + 1 for step in match_steps], tokens.threshold)  # it counts steps from 1
    pipe.unet._ca_tome_info["args"]["use_rand"] = tokens.random
    blocks = {id(m._cache_info): name for name, m in pipe.unet.named_modules() if hasattr(m, "_cache_info")}

    def match(x, w, h, sx, sy, threshold, cache, step, no_rand, generator):
        own = state.generator(SEEDS[0], f"tokens-{blocks[id(cache)]}-{step - 1}")
        both = theirs(x, w, h, sx, sy, threshold, cache, step, no_rand, own)
        if skip_none and both[0](x).shape == x.shape:
            cache["merge"] = cache["unmerge"] = merge.do_nothing
        return cache["merge"], cache["unmerge"]

    with monkeypatch.context() as patch:
        patch.setattr(merge, "bipartite_soft_matching_random2d", match)
        return pipe.call(  # it patches `call`, not `__call__`
            PROMPTS[:1], num_inference_steps=len(plan), guidance_scale=backbone.spec.guidance,
            latents=sampling.draw(SEEDS[:1], "initial", 8, (16, 16)), output_type="latent",
        ).images  # fmt: skip


@pytest.fixture
def ca_tome():
    """`pip install --no-deps ca-tome==0.1.3`: it asks for numpy < 2 and torch < 2.2.2, so no extra can have it."""
    pytest.importorskip("ca_tome", reason="its pins are old: pip install --no-deps ca-tome==0.1.3")


@pytest.mark.parametrize("random", [False, True], ids=["deterministic", "seeded"])
@pytest.mark.parametrize("match_steps", [(0, 3, 4), (0,), tuple(range(6))], ids=str)
def test_ca_tome_equals_the_authors_package(ca_tome, backbone, monkeypatch, match_steps, random):
    """At its own threshold."""
    plan = methods.ca_tome(6, match_steps=match_steps, random=random)
    ours = latents(backbone, PROMPTS[:1], SEEDS[:1], plan)
    assert torch.equal(ours, authors_latents(backbone, plan, match_steps, monkeypatch))
    assert (ours - latents(backbone, PROMPTS[:1], SEEDS[:1], methods.dense(6))).abs().max() > 1e-2


@pytest.mark.parametrize("random", [False, True], ids=["deterministic", "seeded"])
def test_where_no_token_is_alike_the_authors_package_reorders_them(ca_tome, backbone, monkeypatch, random):
    """It merges none of them, and so attends to the same tokens in another order (merge.py, lines 140 to 165): the last
    bits are others. Here nothing is done, as in its own branch for a threshold of 1."""
    plan = methods.ca_tome(6, ALIKE, (0, 3), random)
    ours = latents(backbone, PROMPTS[:1], SEEDS[:1], plan)
    assert torch.equal(ours, authors_latents(backbone, plan, (0, 3), monkeypatch, skip_none=True))
    torch.testing.assert_close(ours, authors_latents(backbone, plan, (0, 3), monkeypatch), rtol=0, atol=1e-4)


def test_nothing_alike_is_dense(backbone):
    """No two tokens have a cosine of 1."""
    plan = methods.ca_tome(3, threshold=1.0)
    assert torch.equal(
        latents(backbone, PROMPTS[:1], SEEDS[:1], plan), latents(backbone, PROMPTS[:1], SEEDS[:1], methods.dense(3))
    )


def test_all_alike_is_tome(backbone):
    """With a threshold that every token passes, the ratio says how many are merged."""
    match_always = tuple(range(4))
    plan = methods.ca_tome(4, threshold=-1.0, match_steps=match_always)
    tome = methods.tome(4, ratio=0.75)
    assert torch.equal(*(latents(backbone, PROMPTS[:1], SEEDS[:1], p) for p in (plan, tome)))
    cached = methods.ca_tome(4, threshold=-1.0, match_steps=(0,))
    assert not torch.equal(*(latents(backbone, PROMPTS[:1], SEEDS[:1], p) for p in (cached, tome)))


def test_a_matching_is_reused_until_the_next(backbone, monkeypatch):
    """ToMe matched once equals ToMe whose matching is taken from the first step by force."""
    calls, match = [], matching.match
    monkeypatch.setattr(matching, "match", lambda *args: calls.append(1) or match(*args))
    latents(backbone, PROMPTS[:1], SEEDS[:1], methods.ca_tome(6, ALIKE, match_steps=(0, 3)))
    assert len(calls) == 2 * 5  # two of the encoder's and three of the decoder's blocks are at full resolution


def test_how_much_is_merged_is_an_images_own(backbone):
    for plan in (methods.ca_tome(6, ALIKE), methods.ca_tome(6, ALIKE, random=False, beta=0.5, s=0.5)):
        images = postdiff.sample(backbone, PROMPTS, SEEDS, plan, batch_size=3)
        np.testing.assert_array_equal(images, postdiff.sample(backbone, PROMPTS[::-1], SEEDS[::-1], plan)[::-1])
        again = postdiff.sample(backbone, PROMPTS, SEEDS, plan, batch_size=3)
        np.testing.assert_array_equal(images, again)  # nothing is left of the run before
    shares = [
        np.mean(
            [row for _, row in search.ca_tome(backbone, [p], [s], methods.ca_tome(3, ALIKE)).get(TokenMerging).merged]
        )
        for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    assert 0 < min(shares) < max(shares) < 0.75


@pytest.mark.parametrize("plan", [methods.ca_tome(4, ALIKE, (0, 2)), methods.ca_tome(4, ALIKE, beta=0.5, s=0.5)])
def test_flops_of_a_real_run_equal_what_was_measured(backbone, plan):
    found = search.ca_tome(backbone, PROMPTS[:1], SEEDS[:1], plan)
    assert found.id == plan.id
    assert flops_of_run(backbone, plan) == postdiff.cost(found, backbone.spec).flops
    with pytest.raises(ValueError, match="`postdiff search ca_tome` measures its cost"):
        postdiff.cost(plan, backbone.spec)


def test_tome_may_reuse_its_matching_too(backbone):
    plan, fresh = (Plan("a", (Step(),) * 3, (TokenMerging(0.5, matching=marks),)) for marks in ("S.#", ""))
    assert postdiff.cost(plan, backbone.spec).flops < postdiff.cost(fresh, backbone.spec).flops
    assert not torch.equal(*(latents(backbone, PROMPTS[:1], SEEDS[:1], p) for p in (plan, fresh)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.ca_tome(threshold=2.0), r"threshold must be in \[-1, 1\], got 2.0; it is a cosine"),
        (lambda: methods.ca_tome(match_steps=(1, 2)), "match_steps must be rising numbers of steps from 0 on"),
        (
            lambda: TokenMerging(0.5, threshold=0.5, cross_attention=True),
            "a threshold goes with self-attention and mlp",
        ),
        (
            lambda: methods.faster_diffusion(4, (0,), ahead=True).plus(TokenMerging(threshold=0.5)),
            "does not go with a merging thresh",
        ),
        (lambda: Plan("a", (Step(),), (TokenMerging(matching="."),)), "nothing matching is stored"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_a_threshold_needs_measuring(backbone):
    with pytest.raises(ValueError, match="expected a plan that merges tokens by a threshold"):
        search.ca_tome(backbone, PROMPTS[:1], SEEDS[:1], methods.tome(2))
