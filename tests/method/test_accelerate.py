"""accelerate(): the pipeline's own call under a plan. Dense gives its bytes; every argument is honoured or raises."""

import copy
import inspect
import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import FAMILIES as TRAINED
from conftest import KINDS, PROMPTS, with_parts
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import postdiff
from postdiff import advice, methods
from postdiff.call_arguments import ARGUMENTS, table
from postdiff.models.families import FAMILIES
from postdiff.pricing import count_macs

PROMPT, NEGATIVE = PROMPTS[0], "a blue ring"
DOCS = Path(__file__).parents[2] / "docs" / "own_pipeline.md"


@pytest.fixture(params=KINDS)
def pipe(request, random_backbones):
    return random_backbones(request.param).pipe


@pytest.fixture
def sd(random_backbones):
    return random_backbones("sd").pipe


def plain(pipe):
    """What every call here says: PixArt's bins are of large images, and the minis know short prompts."""
    takes = inspect.signature(pipe.__call__).parameters
    every = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20}
    return {"output_type": "np", **{name: value for name, value in every.items() if name in takes}}


def guided(pipe):
    return "negative_prompt" in inspect.signature(pipe.__call__).parameters


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def both(pipe, plan, **options):
    """The images of the pipeline's own call, and those of the same call under `plan`."""
    generator = options.pop("generator", seeded)
    options = {"prompt": PROMPT, **plain(pipe), **options}
    if options.get("prompt_embeds") is not None:
        del options["prompt"]
    own = pipe(**options, generator=generator(), num_inference_steps=len(plan)).images
    return own, postdiff.accelerate(pipe, plan)(**options, generator=generator()).images


def same(pipe, plan=None, **options):
    own, fast = both(pipe, plan or methods.dense(3), **options)
    np.testing.assert_array_equal(fast, own)
    return own


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 160)], ids=["square", "high", "wide"])
def test_dense_gives_the_bytes_of_the_pipeline(pipe, size):
    negative = {"negative_prompt": NEGATIVE} if guided(pipe) else {}
    images = same(pipe, height=size[0], width=size[1], num_images_per_prompt=2, **negative)
    assert images.shape == (2, *size, 3)
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize("kind", ["sd", *(kind for kind, name in TRAINED.items() if kind != "sigma")])
def test_dense_gives_the_bytes_of_the_trained_pipelines(kind, backbone, backbones):
    pipe = (backbone if kind == "sd" else backbones(kind)).pipe
    same(pipe, height=96, width=64)


def test_after_the_with_the_pipeline_gives_the_bytes_that_it_gave_before(pipe):
    options = {"prompt": PROMPT, **plain(pipe), "height": 64, "width": 64, "num_inference_steps": 3}
    before = pipe(**options, generator=seeded()).images
    settings = dict(FAMILIES[postdiff.wrap(pipe).spec.family].settings)
    with postdiff.accelerate(pipe, methods.postdiff(**{**settings, "steps": 5})) as fast:
        first = fast(**{**options, "num_inference_steps": 5}, generator=seeded()).images
        again = fast(**{**options, "num_inference_steps": None}, generator=seeded()).images
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(pipe(**options, generator=seeded()).images, before)
    assert (first != before).any()


def lora(module):
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    return inject_adapter_in_model(config, copied(module)).eval()  # as diffusers' loader does


def copied(module):
    other = type(module).from_config(module.config).to(module.dtype)
    other.load_state_dict(module.state_dict())
    return other.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_stays(kind, random_backbones):
    pytest.importorskip("peft")
    pipe = random_backbones(kind).pipe
    name = FAMILIES[postdiff.wrap(pipe).spec.family].denoiser
    adapted = with_parts(pipe, **{name: lora(getattr(pipe, name))})
    assert (same(adapted, height=64, width=64) != same(pipe, height=64, width=64)).any()
    plan = methods.cross_attention_cache(4, m=2)
    with_it, without = (postdiff.accelerate(each, plan)(PROMPT, height=64, width=64, generator=seeded(), **plain(each))
                        for each in (adapted, pipe))  # fmt: skip
    assert (with_it.images != without.images).any()


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_bit_for_bit(kind, random_backbones):
    pipe = random_backbones(kind).pipe
    modules = {part: m for part, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    half = with_parts(pipe, **{part: type(m)(m.config) if hasattr(m.config, "to_dict") else copied(m)
                               for part, m in modules.items()})  # fmt: skip
    for part, module in modules.items():
        getattr(half, part).load_state_dict(module.state_dict())
        getattr(half, part).eval()
    half.to(dtype=torch.bfloat16)
    same(half, height=64, width=64)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
        ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    ],
)
def test_the_users_scheduler_runs_even_if_it_is_set_later(sd, name, changes):
    other = with_parts(sd)
    fast = postdiff.accelerate(other, methods.dense(4))
    other.scheduler = getattr(diffusers, name).from_config({**sd.scheduler.config, **changes})
    own = other(PROMPT, num_inference_steps=4, generator=seeded(), output_type="np").images
    np.testing.assert_array_equal(fast(PROMPT, generator=seeded(), output_type="np").images, own)
    other.scheduler = diffusers.KDPM2DiscreteScheduler.from_config(sd.scheduler.config)
    with pytest.raises(ValueError, match="KDPM2DiscreteScheduler, StableDiffusionPipeline's scheduler, is not offered"):
        fast(PROMPT)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lcm"])  # LCM's scheduler has none
def test_karras_levels_are_bit_for_bit(kind, random_backbones):
    pipe = random_backbones(kind).pipe
    other = with_parts(pipe)
    other.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    plain_levels = with_parts(pipe)
    plain_levels.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    size = {"height": 64, "width": 64}
    assert (same(other, **size) != same(plain_levels, **size)).any()


def test_freeu_and_a_sliced_and_tiled_autoencoder_stay(sd):
    other = with_parts(sd, unet=copied(sd.unet), vae=copied(sd.vae))
    other.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    other.vae.enable_slicing()
    other.vae.tile_latent_min_size, other.vae.tile_sample_min_size = 8, 32
    other.vae.enable_tiling()
    other.unet.to(memory_format=torch.channels_last)
    assert (same(other, num_images_per_prompt=2) != same(sd, num_images_per_prompt=2)).any()


def test_a_textual_inversion_stays(sd):
    words = copy.deepcopy(sd.tokenizer), copy.deepcopy(sd.text_encoder)
    other = with_parts(sd, tokenizer=words[0], text_encoder=words[1])
    other.load_textual_inversion({"<mine>": torch.randn(2, 96, generator=seeded(3))}, token="<mine>")
    asked = {"prompt": "a big <mine> on snow"}
    assert (same(other, **asked) != same(sd, **asked)).any()


def text_of(pipe, prompt=PROMPT):
    """The pipeline's embeddings of a prompt, by the names of its arguments."""
    options = {"device": pipe.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": guided(pipe)}
    rows = pipe.encode_prompt(prompt, **options)
    if "max_sequence_length" in inspect.signature(pipe.__call__).parameters:
        names = "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"
    else:
        names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    takes = inspect.signature(pipe.__call__).parameters
    given = {name: row.detach() for name, row in zip(names, rows, strict=False) if name in takes}
    return {**given, "negative_prompt": None} if guided(pipe) else given


def noise(pipe, images=1):
    return torch.randn(images, 8, 16, 16, generator=seeded(9))


def brighter(pipe, i, t, tensors):
    return {"latents": tensors["latents"] * 1.1}


# Of each argument that is honoured: calls that ask for it, each of which must give the pipeline's bytes, and other ones
# than a call without it.
HONOURED = {
    "prompt": lambda pipe: {"prompt": [PROMPTS[1], PROMPTS[2]]},
    "prompt_2": lambda pipe: {"prompt_2": PROMPTS[1]},
    "negative_prompt": lambda pipe: {"negative_prompt": NEGATIVE},
    "negative_prompt_2": lambda pipe: {"negative_prompt": NEGATIVE, "negative_prompt_2": PROMPTS[1]},
    "prompt_embeds": lambda pipe: text_of(pipe, PROMPTS[1]),
    "negative_prompt_embeds": lambda pipe: text_of(pipe, PROMPTS[1]),
    "pooled_prompt_embeds": lambda pipe: text_of(pipe, PROMPTS[1]),
    "negative_pooled_prompt_embeds": lambda pipe: text_of(pipe, PROMPTS[1]),
    "prompt_attention_mask": lambda pipe: text_of(pipe, PROMPTS[1]),
    "negative_prompt_attention_mask": lambda pipe: text_of(pipe, PROMPTS[1]),
    "num_images_per_prompt": lambda pipe: {"prompt": PROMPTS[:2], "num_images_per_prompt": 2},
    "clean_caption": lambda pipe: {"clean_caption": True},
    "max_sequence_length": lambda pipe: {"max_sequence_length": 5},
    "height": lambda pipe: {"height": 48, "width": 64},
    "width": lambda pipe: {"height": 64, "width": 48},
    "guidance_scale": lambda pipe: {"guidance_scale": 3.0},
    "guidance_rescale": lambda pipe: {"guidance_rescale": 0.7},
    "generator": lambda pipe: {"generator": lambda: [seeded(1), seeded(2)], "num_images_per_prompt": 2},
    "latents": lambda pipe: {"latents": noise(pipe)},
    "original_size": lambda pipe: {"original_size": (32, 40)},
    "crops_coords_top_left": lambda pipe: {"crops_coords_top_left": (8, 4)},
    "target_size": lambda pipe: {"target_size": (128, 96)},
    "negative_original_size": lambda pipe: {"negative_original_size": (32, 40), "negative_target_size": (48, 56)},
    "negative_crops_coords_top_left": lambda pipe: {
        "negative_original_size": (64, 64), "negative_target_size": (64, 64), "negative_crops_coords_top_left": (9, 5)
    },
    "negative_target_size": lambda pipe: {"negative_original_size": (64, 64), "negative_target_size": (48, 56)},
    "callback_on_step_end": lambda pipe: {"callback_on_step_end": brighter},
    "callback_on_step_end_tensor_inputs": lambda pipe: {
        "callback_on_step_end": lambda *a: {}, "callback_on_step_end_tensor_inputs": []
    },
    "output_type": lambda pipe: {"output_type": "latent"},
}  # fmt: skip
# Tests below are of these.
ELSEWHERE = {"num_inference_steps", "return_dict", "callback", "callback_steps", "use_resolution_binning", "clip_skip"}
ELSEWHERE |= {"timesteps", "sigmas", "original_inference_steps", "eta"}  # test_drawing.py
ELSEWHERE |= {"cross_attention_kwargs"}  # test_adapters.py
UNCHANGED = {"callback_on_step_end_tensor_inputs", "clean_caption"}  # of calls that are legal, and change no pixel
WITHOUT = {}  # images of calls that ask for nothing, by kind
REFUSED = {
    "denoising_end": 0.8,
    "ip_adapter_image": np.zeros((8, 8, 3)),
    "ip_adapter_image_embeds": [torch.zeros(1, 1, 8)],
}


def call_of(kind):
    """The arguments of the call of a family's pipeline."""
    family = {"tiny": "sd", "sigma": "pixart-sigma"}.get(kind, kind)
    pipeline = getattr(diffusers, FAMILIES[family].pipeline)
    return [name for name in inspect.signature(pipeline.__call__).parameters if name not in ("self", "kwargs")]


ALL = [(kind, name) for kind in ("sd", "sdxl", "lcm", "pixart", "sigma") for name in call_of(kind)]


def test_every_argument_of_every_family_is_in_the_table_and_tested():
    assert {name for _, name in ALL} == ARGUMENTS.keys()
    assert REFUSED.keys() == {name for name, rule in ARGUMENTS.items() if rule.only}
    assert HONOURED.keys() | ELSEWHERE == ARGUMENTS.keys() - REFUSED.keys()
    assert table() in DOCS.read_text()


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_argument_is_honoured_to_the_bit_or_raises(kind, name, random_backbones):
    pipe = random_backbones(kind).pipe
    size = {"height": 64, "width": 64}
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"^{name} must be (None|0)") as refused:
            postdiff.accelerate(pipe, methods.dense(2))(PROMPT, **{**size, **plain(pipe), name: REFUSED[name]})
        assert "\n" not in str(refused.value)
    elif name not in ELSEWHERE:
        plan = methods.dense(2)
        asked = both(pipe, plan, **{**size, **HONOURED[name](pipe)})
        np.testing.assert_array_equal(*asked)
        if kind not in WITHOUT:
            WITHOUT[kind] = both(pipe, plan, **size)[1]
        without = WITHOUT[kind]
        assert name in UNCHANGED or asked[1].shape != without.shape or (np.asarray(asked[1]) != without).any()


@pytest.mark.parametrize("kind", ["sd", "sdxl", "lcm"])
def test_clip_skip_is_the_pipelines_own_and_so_are_its_errors(kind, random_backbones):
    """diffusers 0.42 asks transformers 5 for a layer that is no more where it is: SD's and LCM's own calls fail."""
    pipe = random_backbones(kind).pipe
    if kind == "sdxl":
        same(pipe, clip_skip=0)
    skipping = {"clip_skip": 1 if kind == "sdxl" else 0}
    with pytest.raises((AttributeError, IndexError)) as own:
        pipe(PROMPT, num_inference_steps=2, **skipping)
    with pytest.raises(own.type, match=re.escape(str(own.value))):
        postdiff.accelerate(pipe, methods.dense(2))(PROMPT, **skipping)


def test_steps_are_the_plans(sd):
    fast = postdiff.accelerate(sd, methods.dense(3))
    named, positional, absent = (
        fast(PROMPT, num_inference_steps=3, generator=seeded(), output_type="np"),
        fast(PROMPT, None, None, 3, generator=seeded(), output_type="np"),
        fast(PROMPT, generator=seeded(), output_type="np"),
    )
    np.testing.assert_array_equal(named.images, absent.images)
    np.testing.assert_array_equal(named.images, positional.images)
    for wrong, told in ((50, "got 50"), (3.5, "got 3.5")):
        with pytest.raises(ValueError, match=rf"num_inference_steps must be .*, {told}"):
            fast(PROMPT, num_inference_steps=wrong)


def test_outputs_are_of_the_pipelines_own_classes(pipe):
    fast, options = postdiff.accelerate(pipe, methods.dense(2)), {**plain(pipe), "height": 64, "width": 64}
    for kind in ("pil", "np", "pt", "latent"):
        asked = {**options, "output_type": kind}
        ours, own = (
            fast(PROMPT, **asked, generator=seeded()),
            pipe(PROMPT, **asked, generator=seeded(), num_inference_steps=2),
        )
        assert type(ours) is type(own)
        assert ours.keys() == own.keys()
        assert type(ours.images) is type(own.images)
        np.testing.assert_array_equal(np.asarray(ours.images), np.asarray(own.images))
        as_tuple = fast(PROMPT, **asked, generator=seeded(), return_dict=False)
        assert len(as_tuple) == len(pipe(PROMPT, **asked, num_inference_steps=1 + 1, return_dict=False))
    as_tuple[0].mul_(2)  # no tensor of inference mode
    with pytest.raises(ValueError, match="output_type must be one of pil, np, pt, latent, got 'numpy'"):
        fast(PROMPT, **{**options, "output_type": "numpy"})


@pytest.mark.parametrize("kind", ["pixart", "sigma"])
def test_pixarts_callback_and_bins(kind, random_backbones):
    pipe = random_backbones(kind).pipe
    fast, calls, options = (
        postdiff.accelerate(pipe, methods.dense(4)),
        ([], []),
        {**plain(pipe), "height": 64, "width": 64},
    )
    for run, seen in zip((fast, pipe), calls, strict=True):
        run(PROMPT, **options, num_inference_steps=4, generator=seeded(), callback_steps=2,
            callback=lambda i, t, latents, seen=seen: seen.append((i, int(t), latents.clone())))  # fmt: skip
    assert [step[:2] for step in calls[0]] == [step[:2] for step in calls[1]]
    assert [step[0] for step in calls[0]] == [0, 2]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(*calls, strict=True))

    transformer = copied(pipe.transformer)
    small = with_parts(pipe, transformer=type(transformer).from_config(transformer.config, sample_size=32,
                                                                       use_additional_conditions=False))  # fmt: skip
    same(small, methods.dense(2), use_resolution_binning=True, height=200, width=120)
    other = type(transformer).from_config(transformer.config, sample_size=16, use_additional_conditions=False)
    fast = postdiff.accelerate(with_parts(pipe, transformer=other), methods.dense(2))
    with pytest.raises(ValueError, match="use_resolution_binning must be False for a transformer of sample_size"):
        fast(PROMPT)


@pytest.mark.parametrize("guidance", [0, 0.5, 1.0])
def test_without_guidance_every_step_runs_one_half(sd, guidance):
    same(sd, guidance_scale=guidance)
    fast = postdiff.accelerate(sd, methods.cfg_drop(3, m=2))
    fast(PROMPT, guidance_scale=guidance, negative_prompt="")
    for asks in (
        {"negative_prompt": "x"},
        {"guidance_rescale": 0.5},
        {"negative_prompt_embeds": torch.ones(1, 20, 96)},
    ):
        with pytest.raises(ValueError, match=rf"{next(iter(asks))} cannot be honoured: no step of cfg_drop is guided"):
            fast(PROMPT, guidance_scale=guidance, **asks)
    never = postdiff.accelerate(sd, methods.no_cfg(3))
    calls = ((never, {}), (fast, {"guidance_scale": 0}))
    images = [run(PROMPT, generator=seeded(), output_type="np", **options).images for run, options in calls]
    np.testing.assert_array_equal(*images)
    with pytest.raises(ValueError, match="guidance_scale cannot be honoured: no step of no_cfg is guided"):
        never(PROMPT, guidance_scale=7.5)


def test_a_callback_sees_the_steps_and_can_interrupt(sd):
    other, seen = with_parts(sd), ([], [])

    def watch(steps):
        def at_end(pipe, i, t, tensors):
            steps.append((i, int(t), pipe.guidance_scale, pipe.num_timesteps, tensors["latents"].clone()))
            pipe._interrupt = i == 1
            return tensors

        return at_end

    fast = postdiff.accelerate(other, methods.dense(4))
    options = {"generator": seeded(), "guidance_scale": 3.0, "output_type": "np"}
    ours = fast(PROMPT, **options, callback_on_step_end=watch(seen[0])).images
    assert not {"_interrupt", "_guidance_scale", "_num_timesteps"} & other.__dict__.keys()
    own = other(
        PROMPT, **{**options, "generator": seeded()}, num_inference_steps=4, callback_on_step_end=watch(seen[1])
    )
    np.testing.assert_array_equal(ours, own.images)
    assert [step[:4] for step in seen[0]] == [step[:4] for step in seen[1]]
    assert len(seen[0]) == 2
    assert all(torch.equal(a[4], b[4]) for a, b in zip(*seen, strict=True))
    before = dict(other.__dict__)
    fast(PROMPT, guidance_scale=2.0, callback_on_step_end=lambda *call: {})
    assert other.__dict__ == before
    low = postdiff.accelerate(other, methods.mixed_resolution(8))
    with pytest.warns(UserWarning, match="interrupted at low resolution"):
        assert low(PROMPT, output_type="np", callback_on_step_end=watch([])).images.shape == (1, 32, 32, 3)


def change_guidance(pipe, i, t, tensors):
    pipe._guidance_scale = 0.0
    return tensors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]},
            "must hold `latents` alone.* got prompt_e",
        ),
        ({"callback_on_step_end": lambda *a: None}, "what callback_on_step_end returns must be a dict, got None"),
        ({"callback_on_step_end": lambda *a: {"prompt_embeds": 1}}, "may return latents alone, got prompt_embeds"),
        ({"callback_on_step_end": lambda *a: {"latents": torch.zeros(1)}}, r"must return latents of \[1, 8, 16, 16\]"),
        ({"callback_on_step_end": change_guidance}, "a callback must leave guidance as it is"),
        ({"callback": print}, "callback: no argument of StableDiffusionPipeline's call"),
        ({"negative": "x"}, "negative: no argument of StableDiffusionPipeline's call"),
        ({"height": 64}, "expected height and width, or neither"),
        ({"height": 65, "width": 64}, "height"),
        ({"guidance_scale": -1}, "guidance_scale must be 0 or more"),
        ({"guidance_rescale": 2}, r"guidance_rescale must be in \[0, 1\]"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number"),
        ({"latents": torch.zeros(1, 8, 8, 8)}, r"latents must be of the plan's first step, \[1, 8, 16, 16\]"),
        ({"latents": torch.zeros(1, 8, 16, 16).double()}, "torch.float64"),
        ({"generator": [torch.Generator()] * 3}, "generator must be one, or a list of one an image"),
        ({"prompt_embeds": torch.zeros(1, 20, 96)}, "Cannot forward both"),
    ],
)
def test_what_cannot_be_meant_raises(sd, options, expected):
    with pytest.raises(ValueError, match=expected):
        postdiff.accelerate(sd, methods.dense(2))(PROMPT, **options)


def test_negative_sizes_of_several_images_are_refused_for_the_pipeline_mixes_them_up(random_backbones):
    fast = postdiff.accelerate(random_backbones("sdxl").pipe, methods.dense(2))
    sizes = {"negative_original_size": (32, 32), "negative_target_size": (32, 32)}
    with pytest.raises(ValueError, match=r"negative sizes must be given for one image a call.*got 2 images"):
        fast(PROMPT, num_images_per_prompt=2, **sizes)
    told = postdiff.accelerate(fast.backbone.pipe, methods.mixed_resolution(4, size_condition="current"))
    with pytest.raises(ValueError, match=r"sizes and crops cannot be told: mixed_resolution .*size_condition current"):
        told(PROMPT, original_size=(32, 32))
    same(fast.backbone.pipe, num_images_per_prompt=2, original_size=(32, 40))


class Checker(torch.nn.Module):
    """A safety checker that blackens the first image."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, images, clip_input):
        images = images.clone()
        images[0] = 0
        return images, [i == 0 for i in range(len(images))]


class Extractor:
    def __call__(self, images, return_tensors):
        return self

    pixel_values = torch.zeros(1)

    def to(self, device):
        return self


def test_a_safety_checker_and_a_watermark_are_run(sd, random_backbones):
    checked = with_parts(sd)
    checked.safety_checker, checked.feature_extractor = Checker(), Extractor()
    same(checked, num_images_per_prompt=2)
    fast = postdiff.accelerate(checked, methods.dense(2))
    assert fast(PROMPT, num_images_per_prompt=2).nsfw_content_detected == [True, False]
    marked = with_parts(random_backbones("sdxl").pipe)
    marked.watermark = type("Mark", (), {"apply_watermark": lambda self, images: -images})()
    assert (same(marked) != same(random_backbones("sdxl").pipe)).any()


def test_float16_xl_is_decoded_in_float32_and_its_autoencoder_is_float16_again(random_backbones):
    pipe = random_backbones("sdxl").pipe
    half = with_parts(pipe, vae=copied(pipe.vae).to(torch.float16))
    half.vae.register_to_config(force_upcast=True)
    with pytest.warns(FutureWarning):
        own = half(PROMPT, num_inference_steps=2, generator=seeded(), output_type="np").images
    fast = postdiff.accelerate(half, methods.dense(2))(PROMPT, generator=seeded(), output_type="np").images
    np.testing.assert_array_equal(fast, own)
    assert half.vae.dtype == torch.float16


@pytest.mark.parametrize(("kind", "size"), [*((kind, (96, 64)) for kind in KINDS if kind != "tiny"), ("sd", (64, 160))])
def test_the_cost_of_any_size_is_what_is_executed(kind, size, random_backbones):
    pipe = random_backbones(kind).pipe
    settings = {**FAMILIES[postdiff.wrap(pipe).spec.family].settings, "steps": 5}
    fast = postdiff.accelerate(pipe, methods.postdiff(**settings))
    denoiser, counter, inside = fast.backbone.denoiser, FlopCounterMode(display=False), []
    handles = [
        denoiser.register_forward_pre_hook(lambda *_: inside.append(-counter.get_total_flops())),
        denoiser.register_forward_hook(lambda *_: inside.append(counter.get_total_flops())),
    ]
    tokens = {"max_sequence_length": fast.backbone.spec.text_tokens} if "max_sequence_length" in plain(pipe) else {}
    with sdpa_kernel(SDPBackend.MATH), counter, count_macs(denoiser) as macs:
        fast(PROMPT, **{**plain(pipe), **tokens, "output_type": "latent"}, height=size[0], width=size[1])
    for handle in handles:
        handle.remove()
    summary = fast.summary(size)
    assert (sum(inside), macs.total()) == (summary.flops, summary.macs)
    assert summary.ratio == summary.dense_flops / summary.flops > 1


def test_what_a_plan_draws_besides_depends_on_the_image_alone(random_backbones):
    """Noise at the switch, ToMe's partition and LCM's noise: of one image as of two, with its own generator."""
    for kind, plan in (("sd", postdiff.low_first(methods.tome(4), 0.5, 0.5)), ("lcm", methods.mixed_resolution(4))):
        fast = postdiff.accelerate(random_backbones(kind).pipe, plan)
        pair = fast(PROMPT, generator=[seeded(1), seeded(2)], num_images_per_prompt=2, output_type="np").images
        for image, seed in zip(pair, (1, 2), strict=True):
            alone = fast(PROMPT, generator=[seeded(seed)], output_type="np").images[0]
            assert np.abs(alone - image).max() < 1e-3
        assert np.abs(pair[0] - pair[1]).max() > 0.05
    with pytest.raises(
        ValueError, match=r"latents must be of the plan's first step, \[1, 8, 8, 8\] .*got \[1, 8, 16, 16\]"
    ):
        fast(PROMPT, latents=noise(fast.backbone.pipe))


@pytest.mark.parametrize("kind", ["sd", "lcm", "pixart"])
def test_the_plan_for_a_share_costs_no_more_and_one_step_more_would(kind, random_backbones):
    pipe = random_backbones(kind).pipe
    spec = postdiff.wrap(pipe).spec
    settings = advice.within(spec, 0.4, 1000)
    small = advice.low_side(spec, spec.settings["beta"]) < advice.SMALLEST
    assert (settings["s"] == 0) == small  # so small a model is not asked to draw at half its size
    assert {**settings, "steps": 0, "beta": 0, "s": 0} == {**spec.settings, "steps": 0, "beta": 0, "s": 0}
    fast = postdiff.accelerate(pipe, share=0.4)
    summary = fast.summary()
    assert summary.dense_steps == spec.settings["steps"]
    assert 1 / 0.4 <= summary.ratio < 1 / 0.25
    longer = methods.postdiff(**{**settings, "steps": len(fast.plan) + 1})
    assert postdiff.cost(longer, fast.backbone.spec).flops > 0.4 * summary.dense_flops
    assert fast.plan == methods.postdiff(**settings)
    told = str(summary)
    assert "nothing was measured" in told
    assert f"dense plan of {spec.settings['steps']} steps" in told
    assert f"{summary.ratio:.2f} times fewer FLOPs" in told


def test_what_accelerate_cannot_do_raises_at_once(sd, random_backbones):
    for arguments, expected in (
        ({}, "expected a plan or a share .*, got neither"),
        ({"plan": methods.dense(3), "share": 0.5}, "got both"),
        ({"share": 0}, r"share must be in \(0, 1\]"),
        ({"share": 0.001}, "share must be at least"),
        ({"plan": "dense"}, "plan must be a Plan"),
        ({"plan": methods.dense}, "plan must be a Plan.*call it"),
        ({"plan": methods.dense(1001)}, "steps must be at most 1000"),
    ):
        with pytest.raises(ValueError, match=expected):
            postdiff.accelerate(sd, **arguments)
    with pytest.raises(ValueError, match="cannot cache deep features"):
        postdiff.accelerate(random_backbones("lcm").pipe, methods.deepcache(4))
    with pytest.raises(ValueError, match="a plan for PixArtAlphaPipeline must have at least 2 steps, got 1"):
        postdiff.accelerate(random_backbones("pixart").pipe, methods.dense(1))
    fast = postdiff.accelerate(other := with_parts(sd), methods.dense(2))
    other.unet = copied(sd.unet)
    with pytest.raises(ValueError, match="the denoiser of StableDiffusionPipeline was replaced"):
        fast(PROMPT)
