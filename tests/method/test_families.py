"""One sampler, one plan, one cost model for four families: each equals its own diffusers pipeline where it must."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, pipeline_images
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from sentencepiece import SentencePieceTrainer
from transformers import T5Tokenizer

import postdiff
from postdiff import decoding, methods, sampling
from postdiff.models import families, lcm
from postdiff.models.checkpoints import HUB
from postdiff.models.loading import float32_vae
from postdiff.models.spec import Sampling, settle
from postdiff.pricing import cost
from postdiff.resolution import upsample

GUIDED = ("sdxl", "pixart", "sigma", "tiny")


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        ("lcm", "lcm"),
        ("sdxl", "euler"),
        ("sdxl", "dpm"),
        ("pixart", "dpm"),
        ("pixart", "ddim"),
        ("sigma", "dpm"),
        ("tiny", "dpm"),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_dense_equals_the_familys_pipeline_bit_for_bit(backbones, kind, solver, n):
    backbone = backbones(kind)
    ours = postdiff.sample(backbone, PROMPTS[:n], SEEDS[:n], methods.dense(4), solver=solver, guidance=3.0)
    np.testing.assert_array_equal(ours, pipeline_images(backbone, n, solver, guidance=3.0))
    assert ours.std() > 1


@pytest.mark.parametrize("name", ["sd15", "pixart-sigma"])
def test_an_image_that_is_no_square_costs_what_its_pixels_do(name):
    wide, tall, square = (
        cost(methods.dense(1), HUB[name], size).macs_paper for size in ((512, 1024), (1024, 512), 768)
    )
    assert wide == tall
    assert wide / square == pytest.approx(512 * 1024 / 768**2, rel=0.02)


@pytest.mark.parametrize("kind", GUIDED)
def test_guidance_dropped_from_step_0_equals_the_pipeline_at_guidance_1(backbones, kind):
    backbone = backbones(kind)
    ours = postdiff.sample(backbone, PROMPTS, SEEDS, methods.no_cfg(4), solver="dpm", guidance=3.0)
    np.testing.assert_array_equal(ours, pipeline_images(backbone, 3, "dpm", guidance=1.0))


@pytest.mark.parametrize("kind", GUIDED)
def test_after_guidance_the_denoiser_is_told_the_conditional_half_alone(backbones, kind):
    backbone, told = backbones(kind), []

    def keep(_, args, kwargs):
        added = kwargs.get("added_cond_kwargs") or {}
        rows = {"text": kwargs["encoder_hidden_states"], "mask": kwargs.get("encoder_attention_mask"), **added}
        told.append({name: value for name, value in rows.items() if value is not None})

    handle = backbone.denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    postdiff.sample(backbone, PROMPTS, SEEDS, methods.cfg_drop(3, m=1))
    handle.remove()
    both, *alone = told
    assert len(both) == {"tiny": 1, "sdxl": 3, "pixart": 4, "sigma": 2}[kind]
    assert not torch.equal(both["text"][:3], both["text"][3:])
    for rows in alone:
        assert rows.keys() == both.keys()
        assert all(torch.equal(value, both[name][3:]) for name, value in rows.items())


def test_guidance_goes_into_lcm_as_in_its_pipeline():
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([6.5]), embedding_dim=256)
    assert torch.equal(lcm.guidance_embedding(7.5, 256), theirs)


def test_lcms_guidance_changes_its_images(backbones):
    plan = methods.dense(4)
    low, high = (postdiff.sample(backbones("lcm"), PROMPTS, SEEDS, plan, guidance=w) for w in (1.0, 8.0))
    assert (low != high).any()


def test_lcm_ends_where_a_knowing_denoiser_leads_it_through_the_switch(backbones):
    """x0 comes out blended with c_skip of the noisy latents: at t = 19, the last of 8 steps, that is below 1e-4."""
    torch.manual_seed(0)
    backbone, low = backbones("lcm"), torch.randn(2, 8, 8, 8)
    x0 = upsample(low, (16, 16))
    alphas = backbone.pipe.scheduler.alphas_cumprod

    def know(x, timestep, return_dict, **_):
        clean = x0 if x.shape == x0.shape else low
        return ((x - alphas[timestep[0]].sqrt() * clean) / (1 - alphas[timestep[0]]).sqrt(),)

    know.config, know.parameters = backbone.denoiser.config, lambda: iter(())
    know.modules = lambda: iter(())
    pipe = SimpleNamespace(
        unet=know, _execution_device=torch.device("cpu"), dtype=torch.float32, scheduler=backbone.pipe.scheduler
    )
    knowing = postdiff.Backbone(backbone.spec, pipe)
    text = postdiff.encode(backbone, PROMPTS[:2], 2).batch(0, 2, guided=False)
    for s in (0.0, 0.25, 0.5, 0.75):
        plan = families.adapt(methods.mixed_resolution(8, s=s), "lcm")
        state = sampling.begin(knowing, text, [1, 2], plan, Sampling(7.5, "lcm", (64, 64)))
        torch.testing.assert_close(sampling.denoise(knowing, state), x0, atol=2e-4, rtol=0)


def test_bytes_do_not_depend_on_batch_or_order_with_lcms_noise(backbones):
    backbone, plan = backbones("lcm"), methods.postdiff(**HUB["lcm"].settings)
    together = postdiff.sample(backbone, PROMPTS, SEEDS, plan, batch_size=3)
    alone = [postdiff.sample(backbone, [p], [s], plan, batch_size=3)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("batch", "size", "slices"), [(8, 64, [8]), (8, 512, [8]), (8, 768, [2] * 4), (3, 2048, [1] * 3)]
)
def test_large_images_are_decoded_in_equal_slices(backbones, batch, size, slices, monkeypatch):
    backbone, seen = backbones("sdxl"), []

    def decode(latents, **_):
        seen.append(len(latents))
        return (torch.zeros(len(latents), 3, 2, 2),)

    monkeypatch.setattr(backbone.pipe.vae, "decode", decode)
    latents = torch.zeros(1, 8, size // 4, size // 4).expand(batch, -1, -1, -1)
    assert decoding.decode(backbone, latents).shape == (batch, 2, 2, 3)
    assert seen == slices


def test_a_t5_tokenizer_loads_from_its_sentencepiece_model_alone(tmp_path):
    """As PixArt's repository ships it: spiece.model, and no tokenizer.json."""
    (tmp_path / "words.txt").write_text("a big red star on snow left of a small blue ring\n" * 20)
    SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=40, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    pieces = T5Tokenizer.from_pretrained(tmp_path)
    assert pieces.decode(pieces("a red star").input_ids, skip_special_tokens=True) == "a red star"


def test_sdxls_own_autoencoder_decodes_in_float32_from_one_copy(backbones):
    whole = backbones("sdxl")
    half = copy.deepcopy(whole.pipe.vae).half()
    pipe = SimpleNamespace(vae=half, unet=copy.deepcopy(whole.pipe.unet).half())
    upcast = postdiff.Backbone(whole.spec, pipe, float32_vae(whole.spec, half))
    latents = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    wide = copy.deepcopy(half).float()
    expected = decoding.decode(postdiff.Backbone(whole.spec, SimpleNamespace(vae=wide, unet=pipe.unet)), latents)
    np.testing.assert_array_equal(decoding.decode(upcast, latents), expected)
    assert half.dtype == torch.float16  # the pipeline's own is as it was
    half.register_to_config(force_upcast=False)  # one that bears it
    assert float32_vae(whole.spec, half) is None
    assert float32_vae(whole.spec, wide) is None


@pytest.mark.parametrize("kind", ["sdxl", "pixart"])
def test_the_size_condition_acts_at_low_resolution_only(backbones, kind):
    backbone = backbones(kind)
    target, current = (
        postdiff.sample(backbone, PROMPTS, SEEDS, methods.mixed_resolution(4, size_condition=which))
        for which in ("target", "current")
    )
    assert (target != current).any()
    assert methods.mixed_resolution(4, size_condition="current").id != methods.mixed_resolution(4).id
    assert methods.mixed_resolution(4, s=0, size_condition="current").id == methods.dense(4).id


@pytest.mark.parametrize("family", ["sd", "lcm", "pixart-sigma"])
def test_a_family_that_is_told_no_size_takes_no_size_condition(family):
    with pytest.raises(ValueError, match=f"{family} is told no size; expected size_condition target, got current"):
        families.adapt(methods.mixed_resolution(4, size_condition="current"), family)


def test_padding_is_masked_in_pixart(backbones):
    """What stands at masked positions does not change a byte."""
    backbone, plan = backbones("pixart"), methods.dense(2)
    text = postdiff.encode(backbone, PROMPTS, 3).batch(0, 3, guided=True)
    states = [sampling.begin(backbone, text, SEEDS, plan, settle(backbone.spec, 3.0, size=64)) for _ in "ab"]
    hidden = states[1].text["mask"] == 0
    assert hidden.any()
    states[1].text["text"] = torch.where(hidden[..., None], 7.0, text["text"])
    clean, filled = (sampling.denoise(backbone, state) for state in states)
    assert torch.equal(clean, filled)


@pytest.mark.parametrize(
    ("kind", "plan", "reason"),
    [
        ("lcm", methods.deepcache(4), "lcm cannot cache deep features: a consistency model"),
        ("pixart", methods.postdiff(4), "pixart cannot cache deep features: a transformer has no skip connections"),
        ("tiny", methods.deepcache(4, branch=5), "branch must be a whole number from 0 to 4"),
    ],
)
def test_what_a_family_cannot_do_raises_and_says_why(backbones, kind, plan, reason):
    with pytest.raises(ValueError, match=reason):
        postdiff.sample(backbones(kind), PROMPTS, SEEDS, plan)
    with pytest.raises(ValueError, match=reason):
        cost(plan, backbones(kind).spec)


def test_solvers_of_another_family_are_refused(backbones):
    for kind, solver in (("lcm", "dpm"), ("sdxl", "lcm")):
        with pytest.raises(ValueError, match="solver must be one of"):
            postdiff.sample(backbones(kind), PROMPTS, SEEDS, methods.dense(2), solver=solver)


def own(name, **changes):
    return methods.postdiff(**{**HUB[name].settings, **changes})


@pytest.mark.parametrize(
    ("name", "plan", "teras", "tolerance"),
    [
        ("sd15", methods.dense(20), 30.420, 1e-4),
        ("sd15", methods.deepcache(20), 17.787, 1e-4),
        ("sd15", methods.mixed_resolution(20), 19.035, 1e-4),
        ("lcm", methods.dense(4), 3.042, 1e-4),
        ("lcm", methods.dense(8), 6.084, 1e-4),
        ("lcm", methods.mixed_resolution(8), 3.807, 1e-4),
        ("lcm", own("lcm"), 3.686, 1e-4),
        ("sdxl", methods.dense(20), 119.641, 5e-4),
        ("sdxl", methods.mixed_resolution(20, beta=0.75, s=0.2), 109.264, 5e-4),
        ("sdxl", own("sdxl"), 52.682, 5e-4),
        ("pixart", methods.dense(8), 34.256, 1e-4),
        ("pixart", methods.dense(16), 68.512, 1e-4),
        ("pixart", methods.dense(20), 85.640, 1e-4),
        ("pixart", methods.mixed_resolution(20, beta=0.75, s=0.5), 66.990, 1e-4),
        ("pixart", own("pixart"), 54.718, 1e-4),
    ],
)
def test_the_papers_rows(name, plan, teras, tolerance):
    assert cost(plan, HUB[name]).macs_paper / 1e12 == pytest.approx(teras, rel=tolerance)


@pytest.mark.parametrize(
    ("name", "teras"), [("sd15", 2.148), ("sdxl", 6.761), ("pixart", 6.510), ("pixart-sigma", 6.634)]
)
def test_flops_of_a_pass_are_torchs_flop_counters(name, teras):
    assert cost(methods.no_cfg(1), HUB[name]).flops / 1e12 == pytest.approx(teras, rel=5e-4)


def test_bk_sdm_tinys_topology():
    with torch.device("meta"):
        tiny = UNet2DConditionModel.from_config(HUB["bk-sdm-tiny"].denoiser)
    assert tiny.mid_block is None
    assert sum(p.numel() for p in tiny.parameters()) == pytest.approx(323.4e6, rel=2e-3)  # BK-SDM, Table 1: 0.33 B
