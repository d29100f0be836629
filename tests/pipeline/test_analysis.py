"""The profile and the trajectory measure what they say, and change nothing."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import FAMILIES, PROMPTS, SEEDS

import postdiff
from pipelines.engine.records import Prompt
from pipelines.stages import analysis, generation, trajectories
from postdiff import methods


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_last_prediction_is_the_image(backbones, kind):
    backbone, plan = backbones(kind), methods.mixed_resolution(4, beta=0.75, s=0.5)
    steps = analysis.trajectory(backbone, PROMPTS, SEEDS, plan)
    assert [step.shape[1] for step in steps] == [48, 48, 64, 64]
    # The solver's last step is the same sum in another order: a level of one value differs on some processors.
    np.testing.assert_allclose(steps[-1], postdiff.sample(backbone, PROMPTS, SEEDS, plan), rtol=0, atol=1)


@pytest.mark.parametrize("kind", FAMILIES)
def test_profiles_name_every_block_and_layer_type(backbones, kind):
    backbone, plan = backbones(kind), methods.dense(3)
    before = {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}
    found = analysis.profile(backbone, PROMPTS, SEEDS, plan, batch_size=2)
    assert before == {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}
    assert not any(module._forward_hooks for module in backbone.denoiser.modules())
    blocks = {
        "lcm": 9,
        "sdxl": 7,
        "pixart": 6,
        "sigma": 2,  # of the tests
        "tiny": 6,
    }  # 4 + mid + 4, 3 + mid + 3, transformer blocks twice, 3 + 3
    assert len(found.blocks) == blocks[kind]
    attention = {"self-attention", "cross-attention", "feed-forward"}
    assert set(found.layers) == attention if kind in ("pixart", "sigma") else attention | {"convolution"}
    assert all(values.shape == (2,) and (values > 0).all() for values in (found.blocks | found.layers).values())
    assert found.n == 3


def test_distances_are_those_of_the_formula(backbones):
    backbone, seen = backbones("tiny"), []
    handle = backbone.denoiser.up_blocks[1].register_forward_hook(lambda *_: seen.append(_[2].clone()))
    found = analysis.profile(backbone, PROMPTS[:1], SEEDS[:1], methods.no_cfg(3))
    handle.remove()
    expected = [float((b - a).abs().sum() / a.abs().sum()) for a, b in pairwise(seen)]
    np.testing.assert_allclose(found.blocks["up_blocks.1"], expected, rtol=1e-5)


def test_what_is_reused_does_not_move_and_a_switch_cannot_be_compared(backbones):
    backbone = backbones("tiny")
    cached = analysis.profile(backbone, PROMPTS, SEEDS, methods.deepcache(4, k=2, branch=1))
    deep = cached.blocks["down_blocks.2"]
    assert deep[0] == 0
    assert deep[1] > 0
    switched = analysis.profile(backbone, PROMPTS, SEEDS, methods.mixed_resolution(4))
    assert np.isnan(switched.blocks["up_blocks.2"]).tolist() == [False, True, False]


def test_constant_features_have_distance_0():
    watch = analysis._Watch(("mid_block",))
    for step in (1, 2):
        watch.now["mid_block"] = torch.ones(2, 3)
        watch.end_step(step, torch.empty(0))
    assert watch.distances == {"mid_block": [0.0]}


def test_watching_leaves_weights_that_can_be_trained(backbones):
    backbone = backbones("sdxl")
    analysis.trajectory(backbone, PROMPTS[:1], SEEDS[:1], methods.dense(2))
    assert not any(p.is_inference() for p in backbone.pipe.vae.parameters())


def test_a_trajectory_is_named_by_the_weights_that_score_it(monkeypatch):
    of = generation.configure("mini-sd", methods.dense(4))
    prompts = (Prompt("0", "a big red star on snow"),)
    named = {kind: trajectories.Recording(kind, of, prompts, "mini-clip").name for kind in ("profile", "trajectory")}
    monkeypatch.setattr(trajectories.encoders, "fingerprint", lambda encoder: f"{encoder}-of-other-weights")
    changed = {kind: trajectories.Recording(kind, of, prompts, "mini-clip").name for kind in named}
    assert changed["profile"] == named["profile"]  # nothing scores it
    assert changed["trajectory"] != named["trajectory"]
