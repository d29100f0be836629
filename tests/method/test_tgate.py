"""T-GATE: equal to the authors' package bit for bit, in three families, with and without reused self-attention."""

import copy

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, latents

import postdiff
from postdiff import methods, sampling

STEPS = 12
VERSIONS = {  # settings of ours and of theirs
    "v1, gate 5": {"gate_step": 5, "sp_interval": 1, "fi_interval": 1, "warm_up": 0},
    "v1, gate 10": {"gate_step": 10, "sp_interval": 1, "fi_interval": 1, "warm_up": 0},
    "v2": {"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warm_up": 2},
    "v2, both phases": {"gate_step": 5, "sp_interval": 2, "fi_interval": 3, "warm_up": 1},
}


def authors_latents(backbone, settings):
    """The package never unpatches what it patches, so it gets a copy of the pipeline."""
    import tgate

    loaders = {"sd": tgate.TgateSDLoader, "sdxl": tgate.TgateSDXLLoader, "pixart": tgate.TgatePixArtAlphaLoader}
    family = backbone.spec.family
    pipe = loaders[family](copy.deepcopy(backbone.pipe))
    theirs = settings | ({"use_resolution_binning": False, "clean_caption": False} if family == "pixart" else {})
    noise = sampling.draw(SEEDS[:2], "initial", 8, (16, 16))
    return pipe.tgate(
        PROMPTS[:2], num_inference_steps=STEPS, guidance_scale=backbone.spec.guidance, latents=noise,
        output_type="latent", height=64, width=64, **theirs,
    ).images  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart"])
def test_tgate_equals_the_authors_package(backbone, backbones, kind, version):
    under_test = backbone if kind == "sd" else backbones(kind)
    plan = methods.tgate(STEPS, **VERSIONS[version])
    ours = latents(under_test, PROMPTS[:2], SEEDS[:2], plan)
    assert torch.equal(ours, authors_latents(under_test, VERSIONS[version]))


def test_where_guidance_is_distilled_into_the_model_there_are_no_halves(backbones):
    plan = methods.tgate(4, 2)
    images = postdiff.sample(backbones("lcm"), PROMPTS[:1], SEEDS[:1], plan)
    as_is = methods.cross_attention_cache(4, m=2)
    np.testing.assert_array_equal(images, postdiff.sample(backbones("lcm"), PROMPTS[:1], SEEDS[:1], as_is))
