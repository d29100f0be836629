"""CA-ToMe: what is alike enough is merged, as much as an image has of it, and matchings are reused."""

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, flops_of_run, latents

import postdiff
from postdiff import Plan, Step, methods, search
from postdiff.mechanisms import TokenMerging, matching
from postdiff.plan import strip

ALIKE = 0.9  # a cosine that some of mini-SD's tokens reach


def test_the_schedule_of_matching():
    text = strip(methods.ca_tome(10, match_steps=(0, 4, 5)))
    assert text.splitlines()[2].split() == ["matching", "S...#S...."]


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
