"""wrap(): a pipeline in memory is the backbone that its folder is, with its own scheduler, or is refused by name."""

import json
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import KINDS, PROMPTS, SEEDS, with_parts
from diffusers.hooks import HookRegistry, ModelHook

import postdiff
from postdiff import methods, sampling
from postdiff.models import schedulers
from postdiff.models.checkpoints import fingerprint


@pytest.fixture
def pipe(random_backbones):
    return random_backbones("sd").pipe


def scheduled(pipe, name, **changes):
    """The same pipeline with another scheduler."""
    scheduler = getattr(diffusers, name)
    plain = {"clip_sample": False} if name == "DDIMScheduler" else {}
    config = {**pipe.scheduler.config, **plain, **changes}
    other = with_parts(pipe)
    other.scheduler = scheduler.from_config(config)  # set later: SD's constructor changes steps_offset and clip_sample
    return other


def own_images(pipe, steps, **options):
    noise = sampling.draw(SEEDS, "initial", 8, (16, 16))
    images = pipe(PROMPTS, num_inference_steps=steps, latents=noise, output_type="np", **options).images
    return (images * 255).round().astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_of_the_pipeline_what_load_reads_of_its_folder(kind, random_backbones):
    loaded = random_backbones(kind)
    wrapped = postdiff.wrap(loaded.pipe, size=64)
    assert wrapped.pipe is loaded.pipe
    for key in ("family", "size", "solver", "vae_factor", "text_tokens", "train_steps", "guidance", "settings"):
        assert getattr(wrapped.spec, key) == getattr(loaded.spec, key), key
    plan = methods.postdiff(**{**loaded.spec.settings, "steps": 5})
    assert postdiff.cost(plan, wrapped.spec, (96, 64)) == postdiff.cost(plan, loaded.spec, (96, 64))
    args = PROMPTS[:2], SEEDS[:2], plan
    np.testing.assert_array_equal(postdiff.sample(wrapped, *args), postdiff.sample(loaded, *args))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
        ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
        ("UniPCMultistepScheduler", {"use_beta_sigmas": True}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        (
            "DDIMScheduler",
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        ),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": False}),
    ],
)
def test_a_scheduler_that_is_offered_is_kept_with_its_settings_bit_for_bit(pipe, name, changes):
    own = scheduled(pipe, name, **changes)
    images = postdiff.sample(postdiff.wrap(own, size=64), PROMPTS, SEEDS, methods.dense(4))
    np.testing.assert_array_equal(images, own_images(own, 4))
    assert (images != own_images(scheduled(pipe, name), 4)).any()


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("KDPM2DiscreteScheduler", {}, "KDPM2DiscreteScheduler, StableDiffusionPipeline's scheduler, is not offered"),
        (
            "LMSDiscreteScheduler",
            {},
            r"expected DDIM\w+ \(ddim\) or DPMSolverMultistepScheduler \(dpm, dpm_3m, dpm_sde\)",
        ),
        ("LCMScheduler", {}, "LCMScheduler"),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 3, "euler_at_final": True},
            "to be dpm_3m, euler_at_final False, got True",
        ),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
            "to be dpm_sde, solver_type 'midpoint', got 'heun'",
        ),
        ("DEISMultistepScheduler", {"solver_order": 3}, "to be deis, solver_order 2, got 3"),
        ("HeunDiscreteScheduler", {"clip_sample": True}, "to be heun, clip_sample False, got True"),
        ("HeunDiscreteScheduler", {"rescale_betas_zero_snr": True}, "heun of .* has no zero terminal SNR"),
        ("PNDMScheduler", {"timestep_spacing": "linspace"}, "timestep_spacing 'trailing', got 'linspace'"),
        (
            "PNDMScheduler",
            {"prediction_type": "sample"},
            "pndm of .* needs prediction_type epsilon or v_prediction, got",
        ),
        ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "euler_a of .* needs prediction_type"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type 'bh2', got 'bh1'"),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, "timestep_spacing 'trailing', got 'linspace'"),
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample False, got True"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "of Turbo and Lightning models"),
    ],
)
def test_another_is_refused_by_name_with_what_is_offered(pipe, name, changes, told):
    with pytest.raises(ValueError, match=told) as refused:
        postdiff.wrap(scheduled(pipe, name, **changes))
    assert "\n" not in str(refused.value)


def test_why_a_scheduler_is_not_offered_is_told(pipe):
    config = pipe.scheduler.config
    brownian = type("DPMSolverSDEScheduler", (), {"config": config, "__module__": "diffusers.schedulers"})()
    with pytest.raises(ValueError, match=r"is not offered \(its noise is a Brownian tree of torchsde.*dpm_sde has"):
        schedulers.kept_solver("mine", brownian, schedulers.GENERAL)


def test_a_solver_that_is_asked_for_takes_over_its_noise_schedule(pipe):
    own = scheduled(pipe, "PNDMScheduler")
    images = postdiff.sample(postdiff.wrap(own, solver="euler", size=64), PROMPTS, SEEDS, methods.dense(4))
    np.testing.assert_array_equal(images, own_images(scheduled(own, "EulerDiscreteScheduler"), 4))
    trailing = scheduled(pipe, "EulerDiscreteScheduler", timestep_spacing="trailing")
    assert postdiff.wrap(trailing, guidance=7.5).spec.solver == "euler"


def test_what_is_no_pipeline_of_a_family_is_refused(pipe):
    own_loop = type("Mine", (diffusers.StableDiffusionPipeline,), {})(**pipe.components, requires_safety_checker=False)
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    for wrong in (own_loop, other, "mini-sd", None):
        with pytest.raises(ValueError, match=r"pipe must be one of diffusers' StableDiffusionPipeline, .*, got"):
            postdiff.wrap(wrong)


def test_parts_of_another_kind_are_refused(pipe):
    inpaint = type(pipe.unet).from_config(pipe.unet.config, in_channels=17)
    told = type(pipe.unet).from_config(pipe.unet.config, time_cond_proj_dim=32)
    for parts, expected in (
        ({"unet": inpaint}, "out_channels of unet of StableDiffusionPipeline must be its in_channels"),
        ({"unet": told}, "time_cond_proj_dim of unet"),
        ({"unet": torch.compile(pipe.unet)}, "must be a UNet2DConditionModel, and no subclass, got OptimizedModule"),
        ({"vae": diffusers.AutoencoderTiny()}, "vae of StableDiffusionPipeline must be a AutoencoderKL"),
    ):
        with pytest.raises(ValueError, match=expected) as refused:
            postdiff.wrap(with_parts(pipe, **parts))
        assert "\n" not in str(refused.value)
    checked = with_parts(pipe)
    checked.safety_checker = torch.nn.Identity()
    with pytest.raises(ValueError, match="safety_checker of StableDiffusionPipeline must be None"):
        postdiff.wrap(checked)


def copied(module):
    return type(module).from_config(module.config)


def test_hooks_of_others_other_dtypes_and_several_devices_are_refused(pipe):
    skipping, stored, elsewhere = copied(pipe.unet), copied(pipe.unet).to(torch.float64), copied(pipe.unet).to("meta")
    HookRegistry.check_if_exists_or_initialize(skipping).register_hook(ModelHook(), "faster_cache_denoiser")
    two, one = copied(pipe.unet), copied(pipe.vae)
    cpu_offload(two, execution_device=torch.device("cuda:0"))
    cpu_offload(one, execution_device=torch.device("cuda:1"))
    for parts, expected in (
        ({"unet": skipping}, "must have no hooks but of offloading and casting, got faster_cache_denoiser"),
        ({"unet": stored}, "must hold its weights in one of float32, float16, bfloat16, got float64"),
        ({"unet": elsewhere}, "must be on one device, got cpu, meta"),
        ({"unet": two, "vae": one}, "must be on one device, got cuda:0, cuda:1"),
    ):
        with pytest.raises(ValueError, match=expected):
            postdiff.wrap(with_parts(pipe, **parts))


def test_nothing_of_the_pipeline_is_changed(pipe):
    def now():
        modules = {part: m for part, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
        inside = {(part, name): set(m.__dict__) for part, top in modules.items() for name, m in top.named_modules()}
        return inside, dict(pipe.__dict__), json.dumps(pipe.scheduler.config, default=str)

    before = now()
    postdiff.sample(postdiff.wrap(pipe, size=64), PROMPTS[:1], SEEDS[:1], methods.postdiff(4))
    assert now() == before


def test_it_has_no_fingerprint_for_what_it_is_is_known_to_memory_alone(pipe):
    with pytest.raises(ValueError, match="StableDiffusionPipeline is in memory alone"):
        fingerprint(postdiff.wrap(pipe).spec)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart"])
def test_a_negative_prompt_is_encoded_as_the_pipeline_does(kind, random_backbones):
    wrapped = postdiff.wrap(random_backbones(kind).pipe, size=64)
    words = postdiff.encode(wrapped, PROMPTS, 3, negative="a blue ring")
    images = postdiff.sample(wrapped, PROMPTS, SEEDS, methods.dense(2), embeddings=words)
    fast = postdiff.accelerate(wrapped.pipe, methods.dense(2))
    more = (
        {"use_resolution_binning": False, "max_sequence_length": wrapped.spec.text_tokens} if kind == "pixart" else {}
    )
    own = fast(PROMPTS, negative_prompt=["a blue ring"] * 3, latents=sampling.draw(SEEDS, "initial", 8, (16, 16)),
               guidance_scale=wrapped.spec.guidance, height=64, width=64, output_type="np", **more).images  # fmt: skip
    np.testing.assert_array_equal(images, (own * 255).round().astype(np.uint8))
    assert (images != postdiff.sample(wrapped, PROMPTS, SEEDS, methods.dense(2))).any()


def test_a_negative_prompt_where_nothing_is_guided_is_refused(random_backbones):
    with pytest.raises(ValueError, match="negative must be None"):
        postdiff.encode(random_backbones("lcm"), PROMPTS, 3, negative="x")


def test_sizes_and_settings_that_are_none_are_refused(pipe):
    for wrong in ({"size": 63}, {"guidance": 0.5}, {"solver": "rk45"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            postdiff.wrap(pipe, **wrong)
    assert postdiff.wrap(pipe, size=(96, 64)).spec.size == (96, 64)
    assert postdiff.wrap(pipe).spec.size == (64, 64)
    assert SimpleNamespace(**vars(postdiff.wrap(pipe, guidance=3).spec)).guidance == 3
