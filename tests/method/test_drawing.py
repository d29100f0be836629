"""sample(): what people pass to a pipeline gives the pipeline's bytes here too, or raises before any work."""

import inspect
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import KINDS, PROMPTS, SEEDS, with_parts
from PIL import Image

import postdiff
from postdiff import drawing, methods, sampling
from postdiff.models.families import FAMILIES

DENSE = methods.dense(3)
NEGATIVE = ["a blue ring", "", "a green heart on sand"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def own(backbone, prompts=PROMPTS, steps=3, **options):
    """The pipeline's own images of a call, uint8."""
    pipe = backbone.pipe
    takes = inspect.signature(pipe.__call__).parameters
    every = {
        "use_resolution_binning": False, "clean_caption": False, "max_sequence_length": backbone.spec.text_tokens,
        "height": 64, "width": 64, "guidance_scale": backbone.spec.guidance, "num_inference_steps": steps,
    }  # fmt: skip
    plain = {name: value for name, value in every.items() if name in takes}
    images = pipe(prompts, **{**plain, "output_type": "np", **options}).images
    return images if options.get("output_type") == "latent" else (images * 255).round().astype(np.uint8)


def seeded(*seeds):
    each = [torch.Generator().manual_seed(seed) for seed in seeds]
    return each if len(each) > 1 else each[0]


def scheduled(backbone, name, **changes):
    """The same pipeline with another scheduler, wrapped."""
    pipe = with_parts(backbone.pipe)
    plain = {"clip_sample": False} if name == "DDIMScheduler" else {}
    pipe.scheduler = getattr(diffusers, name).from_config({**pipe.scheduler.config, **plain, **changes})
    return postdiff.wrap(pipe, size=64)


def test_a_generator_gives_the_pipelines_images(kind, random_backbones):
    backbone = random_backbones(kind)
    images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5))
    np.testing.assert_array_equal(images, own(backbone, generator=seeded(5)))
    each = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(*SEEDS))
    np.testing.assert_array_equal(each, own(backbone, generator=seeded(*SEEDS)))
    assert (images != each).any()


def test_a_generator_is_drawn_from_batch_by_batch(random_backbones):
    for kind in ("sd", "lcm"):
        backbone, one = random_backbones(kind), seeded(5)
        pairs = [own(backbone, PROMPTS[:2], generator=one), own(backbone, PROMPTS[2:], generator=one)]
        images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), batch_size=2)
        assert (
            np.abs(images.astype(int) - np.concatenate(pairs)).max() <= 2
        )  # the last batch is padded: other last bits
        np.testing.assert_array_equal(images[:2], pairs[0])
        each = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(*SEEDS), batch_size=2)
        alone = postdiff.sample(backbone, PROMPTS[2:], None, DENSE, generator=[seeded(SEEDS[2])], batch_size=2)
        np.testing.assert_array_equal(each[2:], alone)


def test_latents_are_the_noise_and_seeds_say_what_else_is_drawn(random_backbones):
    backbone = random_backbones("lcm")
    noise = torch.randn(3, 8, 16, 16, generator=seeded(9))
    by_seed = postdiff.sample(backbone, PROMPTS, SEEDS, DENSE)
    drawn = sampling.draw(SEEDS, "initial", 8, (16, 16))
    np.testing.assert_array_equal(postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, latents=drawn), by_seed)
    assert (postdiff.sample(backbone, PROMPTS, [1, 2, 3], DENSE, latents=drawn) != by_seed).any()
    alone, again = (postdiff.sample(backbone, PROMPTS, None, DENSE, latents=noise) for _ in range(2))
    np.testing.assert_array_equal(alone, again)
    both = postdiff.sample(backbone, PROMPTS, None, DENSE, latents=noise, generator=seeded(3))
    np.testing.assert_array_equal(both, own(backbone, latents=noise, generator=seeded(3)))
    low = postdiff.low_first(methods.dense(4), 0.5, 0.5)
    sd, small = random_backbones("sd"), torch.randn(3, 8, 8, 8, generator=seeded(9))
    parts = [postdiff.sample(sd, PROMPTS, None, low, latents=small, batch_size=n)[:2] for n in (3, 2)]
    assert np.abs(parts[0].astype(int) - parts[1]).max() <= 2


def test_several_images_a_prompt(kind, random_backbones):
    backbone, seeds = random_backbones(kind), range(6)
    images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), num_images_per_prompt=2)
    np.testing.assert_array_equal(images, own(backbone, generator=seeded(5), num_images_per_prompt=2))
    small = postdiff.sample(backbone, PROMPTS, seeds, DENSE, num_images_per_prompt=2, batch_size=3)
    twice = postdiff.sample(backbone, [p for p in PROMPTS for _ in range(2)], seeds, DENSE, batch_size=3)
    assert np.abs(small.astype(int) - twice).max() <= 2


def test_negative_prompts(kind, random_backbones):
    backbone = random_backbones(kind)
    if not FAMILIES[backbone.spec.family].guided:
        with pytest.raises(ValueError, match=r"negative must be None, got 'x': guidance was distilled into"):
            postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, negative="x")
        return
    plain = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5))
    for negative in ("a blue ring", NEGATIVE):
        images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), negative=negative)
        theirs = [negative] * 3 if isinstance(negative, str) else negative
        np.testing.assert_array_equal(images, own(backbone, generator=seeded(5), negative_prompt=theirs))
        assert (images != plain).any()
    two = postdiff.sample(
        backbone, PROMPTS, None, DENSE, generator=seeded(5), negative=NEGATIVE, num_images_per_prompt=2
    )
    theirs = own(backbone, generator=seeded(5), negative_prompt=NEGATIVE, num_images_per_prompt=2)
    np.testing.assert_array_equal(two, theirs)


def test_negatives_of_each_prompt_go_with_it_in_any_batch(random_backbones):
    backbone = random_backbones("sd")
    whole = postdiff.encode(backbone, PROMPTS, 2, NEGATIVE)
    assert whole.each
    assert len(whole.uncond["text"]) == 3
    images = postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, batch_size=2, embeddings=whole)
    np.testing.assert_array_equal(
        images, postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, batch_size=2, negative=NEGATIVE)
    )
    last = postdiff.sample(backbone, None, SEEDS[2:], DENSE, batch_size=2, embeddings=whole.rows(slice(2, 3)))
    np.testing.assert_array_equal(last, images[2:])
    short = postdiff.Embeddings(whole.cond, {"text": whole.uncond["text"][:2]}, each=True)
    with pytest.raises(ValueError, match=r"one row of embeddings a prompt \(3\), got 3 and 2"):
        postdiff.sample(backbone, None, SEEDS, DENSE, embeddings=short)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sigma"])
def test_embeddings_of_ones_own_need_no_prompts(kind, random_backbones):
    backbone = random_backbones(kind)
    made = postdiff.encode(backbone, PROMPTS, 3, "a blue ring")
    images = postdiff.sample(backbone, None, None, DENSE, embeddings=made, generator=seeded(5))
    np.testing.assert_array_equal(
        images, postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), negative="a blue ring")
    )
    again = postdiff.sample(
        backbone, None, None, DENSE, embeddings=made, generator=seeded(5), num_images_per_prompt=2, batch_size=6
    )
    assert again.shape == (6, 64, 64, 3)


def test_rows_of_ones_own_go_with_their_images():
    rows, negative = torch.arange(3.0)[:, None, None], torch.arange(10.0, 12)[:, None, None]
    made = postdiff.Embeddings({"text": rows}, {"text": negative})
    assert made.batch(2, 4, True, copies=2)["text"].flatten().tolist() == [10, 10, 11, 11, 1, 1, 2, 2]
    each = postdiff.Embeddings({"text": rows}, {"text": rows + 10}, each=True)
    assert each.batch(4, 4, True, copies=2)["text"].flatten().tolist() == [12, 12, 12, 12, 2, 2, 2, 2]
    with pytest.raises(ValueError, match="made for batches of 1, got ones for batches of 2"):
        made.batch(0, 2, True, copies=2)


def test_without_guidance_as_the_pipeline(kind, random_backbones):
    backbone = random_backbones(kind)
    if not FAMILIES[backbone.spec.family].guided:
        with pytest.raises(ValueError, match="guidance must be 1 or more"):
            postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, guidance=0)
        return
    expected = own(backbone, generator=seeded(5), guidance_scale=0)
    for guidance in (0, 0.5, 1.0):
        images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), guidance=guidance)
        np.testing.assert_array_equal(images, expected)
    with pytest.raises(ValueError, match="negative cannot be honoured: no step of dense is guided"):
        postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, guidance=0, negative="x")
    for plan, options in ((DENSE, {"guidance": 1}), (methods.no_cfg(3), {})):
        with pytest.raises(ValueError, match="guidance_rescale cannot be honoured: no step of"):
            postdiff.sample(backbone, PROMPTS, SEEDS, plan, guidance_rescale=0.5, **options)


def test_guidance_is_rescaled_as_in_the_pipeline(random_backbones):
    for kind in ("sd", "sdxl"):
        backbone = random_backbones(kind)
        images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), guidance_rescale=0.7)
        np.testing.assert_array_equal(images, own(backbone, generator=seeded(5), guidance_rescale=0.7))
        assert (images != postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5))).any()


# A scheduler, and what a call may give it.
SCHEDULES = [
    ("DPMSolverMultistepScheduler", {"timesteps": [950, 400, 60]}),
    ("EulerDiscreteScheduler", {"timesteps": [950, 400, 60]}),
    ("EulerDiscreteScheduler", {"sigmas": [12.0, 3.0, 0.4, 0.0]}),
    ("EulerDiscreteScheduler", {"sigmas": [12.0, 3.0, 0.4, 0.05]}),
    ("DDIMScheduler", {"eta": 0.6}),
    ("DDIMScheduler", {"eta": 1.0, "set_alpha_to_one": False, "timestep_spacing": "leading", "steps_offset": 1}),
]


def of_scheduler(options):
    """The call's own options, and the scheduler's."""
    asks = {key: value for key, value in options.items() if key in ("timesteps", "sigmas", "eta")}
    return asks, {key: value for key, value in options.items() if key not in asks}


@pytest.mark.parametrize(("name", "options"), SCHEDULES)
@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart"])
def test_a_schedule_of_ones_own_is_bit_for_bit(kind, name, options, random_backbones):
    asks, changes = of_scheduler(options)
    backbone = scheduled(random_backbones(kind), name, **changes)
    images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), **asks)
    np.testing.assert_array_equal(images, own(backbone, generator=seeded(5), **asks))
    assert (images != postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5))).any()
    takes = inspect.signature(backbone.pipe.__call__).parameters
    size = {"height": 64, "width": 64, "guidance_scale": backbone.spec.guidance, "output_type": "np"}
    every = {"use_resolution_binning": False, "max_sequence_length": 20, "clean_caption": False}
    size |= {key: value for key, value in every.items() if key in takes}
    fast = postdiff.accelerate(backbone.pipe, DENSE)(PROMPTS, generator=seeded(5), **size, **asks).images
    theirs = backbone.pipe(PROMPTS, generator=seeded(5), num_inference_steps=3, **size, **asks).images
    np.testing.assert_array_equal(fast, theirs)


@pytest.mark.parametrize("asks", [{"timesteps": [999, 499, 259]}, {"original_inference_steps": 20}])
def test_lcm_takes_timesteps_and_its_original_steps(asks, random_backbones):
    backbone = random_backbones("lcm")
    images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), **asks)
    np.testing.assert_array_equal(images, own(backbone, generator=seeded(5), **asks))
    assert (images != postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5))).any()
    options = {"height": 64, "width": 64, "output_type": "np", **asks}
    fast = postdiff.accelerate(backbone.pipe, DENSE)(PROMPTS, generator=seeded(5), **options).images
    np.testing.assert_array_equal(
        fast, backbone.pipe(PROMPTS, generator=seeded(5), num_inference_steps=3, **options).images
    )


def test_a_solvers_noise_is_each_images_own(random_backbones):
    """Its own stream of each step, the last included: an image does not depend on those beside it."""
    backbone = scheduled(random_backbones("sd"), "DDIMScheduler", set_alpha_to_one=False, timestep_spacing="leading")
    together = postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, eta=1)
    other = postdiff.sample(backbone, [PROMPTS[0]] * 3, [SEEDS[0], 7, 8], DENSE, eta=1)
    np.testing.assert_array_equal(other[0], together[0])
    low = postdiff.low_first(methods.dense(4), 0.5, 0.5)
    assert postdiff.sample(backbone, PROMPTS, SEEDS, low, eta=1).shape == (3, 64, 64, 3)


def test_a_schedule_of_ones_own_goes_through_the_switch(random_backbones):
    """After the switch the latents are at the level of the next of the caller's own timesteps."""
    backbone = scheduled(random_backbones("sd"), "EulerDiscreteScheduler")
    levels, low = [], postdiff.low_first(methods.dense(4), 0.5, 0.5)
    times = [950, 700, 300, 60]
    images = postdiff.sample(
        backbone, PROMPTS, SEEDS, low, timesteps=times, on_step=lambda i, x: levels.append(float(x.std()))
    )
    alphas = backbone.pipe.scheduler.alphas_cumprod
    sigma = ((1 - alphas[300]) / alphas[300]) ** 0.5
    assert images.shape == (3, 64, 64, 3)
    assert levels[1] > float(sigma) * 0.9  # of latents whose noise has this spread


def test_sizes_and_crops_are_told_to_sdxl(random_backbones):
    backbone = random_backbones("sdxl")
    asks = {"original_size": (32, 40), "crops_coords_top_left": (8, 4), "target_size": (128, 96)}
    plain = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5))
    for name, pair in asks.items():
        images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), **{name: pair})
        np.testing.assert_array_equal(images, own(backbone, generator=seeded(5), **{name: pair}))
        assert (images != plain).any()
    current = methods.mixed_resolution(4, size_condition="current")
    with pytest.raises(ValueError, match="sizes and crops cannot be told: mixed_resolution"):
        postdiff.sample(backbone, PROMPTS, SEEDS, current, original_size=(8, 8))
    with pytest.raises(ValueError, match=r"original_size must be None: .* is told no sizes and crops"):
        postdiff.sample(random_backbones("sd"), PROMPTS, SEEDS, DENSE, original_size=(8, 8))


def test_outputs(kind, random_backbones):
    backbone = random_backbones(kind)
    arrays, pictures, latents = (
        postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), batch_size=2, output=output)
        for output in ("uint8", "pil", "latent")
    )
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), arrays)
    assert latents.shape == (3, 8, 16, 16)
    latents.mul_(1)  # no tensor of inference mode
    whole = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), output="latent")
    theirs = own(backbone, generator=seeded(5), output_type="latent")
    torch.testing.assert_close(whole, theirs, rtol=0, atol=0)


def test_a_callback_sees_the_latents_and_a_bar_the_steps(random_backbones, capsys):
    backbone, steps = random_backbones("sd"), []
    plan = postdiff.low_first(methods.dense(4), 0.5, 0.5)
    pipe = with_parts(backbone.pipe)
    pipe.set_progress_bar_config(disable=False)
    images = postdiff.sample(
        postdiff.Backbone(backbone.spec, pipe), PROMPTS, SEEDS, plan, batch_size=2, progress=True,
        on_step=lambda i, latents: steps.append((i, tuple(latents.shape))),
    )  # fmt: skip
    assert steps == 2 * [(1, (2, 8, 8, 8)), (2, (2, 8, 16, 16)), (3, (2, 8, 16, 16)), (4, (2, 8, 16, 16))]
    assert "8/8" in capsys.readouterr().err
    np.testing.assert_array_equal(images, postdiff.sample(backbone, PROMPTS, SEEDS, plan, batch_size=2))
    assert "8/8" not in capsys.readouterr().err


def test_a_bar_that_is_asked_for_is_shown_where_load_has_switched_the_pipelines_off(random_backbones, capsys):
    backbone = random_backbones("sd")
    pipe = with_parts(backbone.pipe)
    pipe.set_progress_bar_config(disable=True, desc="drawing")
    postdiff.sample(postdiff.Backbone(backbone.spec, pipe), PROMPTS[:1], [1], DENSE, progress=True)
    told = capsys.readouterr().err
    assert "drawing" in told
    assert "3/3" in told
    assert pipe._progress_bar_config["disable"]


def test_sizes_are_told_in_the_denoisers_dtype_whatever_the_embeddings_have(random_backbones):
    backbone = random_backbones("sdxl")
    made = postdiff.encode(backbone, PROMPTS, 3)

    def told(*dtypes):
        parts = [dict(part) for part in (made.cond, made.uncond)]
        for dtype in (torch.bfloat16, *dtypes):
            parts = [{name: rows.to(dtype) for name, rows in part.items()} for part in parts]
        embeddings = postdiff.Embeddings(*parts)
        return postdiff.sample(backbone, None, SEEDS, DENSE, embeddings=embeddings, original_size=(257, 1001))

    np.testing.assert_array_equal(told(), told(torch.float32))


def test_latents_that_are_not_finite_are_an_error(random_backbones, monkeypatch):
    latents = torch.zeros(2, 8, 16, 16)
    latents[1, 0, 0, 0] = float("nan")  # the last one pads the batch
    monkeypatch.setattr(sampling, "denoise", lambda *_: latents)
    options = {"batch_size": 2, "output": "latent"}
    assert postdiff.sample(random_backbones("sd"), PROMPTS[:1], [1], DENSE, **options).shape == (1, 8, 16, 16)
    with pytest.raises(ArithmeticError, match="1 of 2 images are not finite"):
        postdiff.sample(random_backbones("sd"), PROMPTS[:2], [1, 2], DENSE, **options)


def test_noise_of_the_same_seed_needs_seeds(random_backbones):
    backbone = random_backbones("sd")
    plan = replace(methods.mixed_resolution(4, 0.5, 0.5), switch="same-noise")
    low = torch.zeros(3, 8, 8, 8)
    postdiff.sample(backbone, PROMPTS, SEEDS, plan)
    for asks, got in (({"generator": seeded(5)}, "generator"), ({"latents": low}, "latents")):
        with pytest.raises(ValueError, match=f"of the same seed: expected seeds, got {got}"):
            postdiff.sample(backbone, PROMPTS, None, plan, **asks)


def test_pixarts_bins_on_request(random_backbones):
    backbone, transformer = random_backbones("sigma"), random_backbones("sigma").pipe.transformer
    parts = {side: type(transformer).from_config(transformer.config, sample_size=side) for side in (16, 32)}
    for part in parts.values():
        part.load_state_dict(transformer.state_dict(), strict=False)
    small, binned = (postdiff.wrap(with_parts(backbone.pipe, transformer=part.eval())) for part in parts.values())
    with pytest.raises(ValueError, match="use_resolution_binning must be False for a transformer of sample_size"):
        postdiff.sample(small, PROMPTS, SEEDS, DENSE, use_resolution_binning=True)
    with pytest.raises(ValueError, match="use_resolution_binning must be False, got True: a StableDiffusionPipeline"):
        postdiff.sample(random_backbones("sd"), PROMPTS, SEEDS, DENSE, use_resolution_binning=True)
    images = postdiff.sample(
        binned, PROMPTS[:1], None, DENSE, size=(200, 120), generator=seeded(5), use_resolution_binning=True
    )
    options = {"use_resolution_binning": True, "height": 200, "width": 120}
    np.testing.assert_array_equal(images, own(binned, PROMPTS[:1], generator=seeded(5), **options))
    assert images.shape == (1, 200, 120, 3)


def test_clip_skip_is_the_pipelines_own(random_backbones):
    backbone = random_backbones("sdxl")
    images = postdiff.sample(backbone, PROMPTS, None, DENSE, generator=seeded(5), clip_skip=0)
    np.testing.assert_array_equal(images, own(backbone, generator=seeded(5), clip_skip=0))
    with pytest.raises(ValueError, match=r"clip_skip must be None, got 1: .* has no CLIP"):
        postdiff.sample(random_backbones("pixart"), PROMPTS, SEEDS, DENSE, clip_skip=1)
    with pytest.raises(ValueError, match=r"^clip_skip=99 cannot be honoured by .*IndexError.*") as refusal:
        postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, clip_skip=99)
    assert str(refusal.value).isprintable()
    calls = []
    pipe = with_parts(random_backbones("sd").pipe)
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, clip_skip=None, **kwargs: calls.append(clip_skip) or encode(*args, **kwargs)
    postdiff.sample(postdiff.wrap(pipe, size=64), PROMPTS, SEEDS, DENSE, clip_skip=2)
    assert calls == [2]


G = torch.Generator()
BAD = [
    ({"generator": G}, "expected seeds or a generator, got both"),
    ({"seeds": None}, "seeds must be a list of whole numbers, got None"),
    ({"seeds": None, "generator": 5}, "generator must be a torch.Generator, or a list of them, got 5"),
    ({"seeds": None, "generator": [G]}, r"generator must be one, or a list of one an image \(3\), got 1"),
    ({"latents": torch.zeros(3, 8, 8, 8)}, r"latents must be of the plan's first step, \[3, 8, 16, 16\]"),
    ({"latents": torch.zeros(3, 8, 16, 16).double()}, "torch.float64"),
    ({"num_images_per_prompt": 2}, "expected one seed an image, 6, got 3"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of 1 or more, got 0"),
    ({"negative": ["a"]}, r"negative must be one text, or a list of one a prompt \(3\), got 1"),
    ({"negative": 5}, "negative must be a list of strings, got 5"),
    ({"prompts": None}, "prompts must be a list of strings, got None"),
    ({"clip_skip": -1}, "clip_skip must be a whole number of 0 or more, got -1"),
    ({"guidance": -0.5}, "guidance must be 0 or more, got -0.5"),
    ({"guidance": float("nan")}, "guidance must be 0 or more, got nan"),
    ({"guidance_rescale": 2}, r"guidance_rescale must be in \[0, 1\], got 2"),
    ({"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
    ({"eta": 0.5}, "eta must be 0 for dpm, got 0.5: DDIM alone adds noise by it"),
    ({"timesteps": [900, 500]}, "timesteps must be 3 numbers for a plan of 3 steps, got 2"),
    ({"timesteps": [900, 500, 500]}, "timesteps must fall from each to the next"),
    ({"timesteps": [1000, 500, 1]}, "timesteps must be from 0 to 999, got 1000"),
    ({"timesteps": [900.5, 500, 1]}, r"timesteps\[0\] must be a whole number of 0 or more, got 900.5"),
    ({"timesteps": [900, 500, 1], "sigmas": [1, 0]}, "expected timesteps or sigmas, got both"),
    ({"timesteps": [900, 500, 1], "solver": "ddim"}, r"timesteps must be None: .* ddim \(DDIMScheduler\) takes none"),
    ({"timesteps": [900, 500, 1], "solver": "unipc"}, "timesteps must be None: the scheduler of unipc"),
    ({"sigmas": [3, 2, 1, 0]}, "sigmas must be None: the scheduler of dpm"),
    ({"sigmas": [3, 2, 1, 0], "solver": "unipc"}, "sigmas must be None: the scheduler of unipc"),
    ({"sigmas": [3, 2, 1], "solver": "euler"}, "sigmas must be 4 numbers .* a step each and the one it ends at, got 3"),
    ({"sigmas": [3, 1, 2, 0], "solver": "euler"}, "sigmas must fall from each to the next"),
    ({"sigmas": [900, 800, 1, 0], "solver": "euler"}, "sigmas must be of falling timesteps of the model"),
    ({"original_inference_steps": 20}, "original_inference_steps must be None for dpm, got 20: it is LCM's"),
    ({"timesteps": [900, 500, 1], "original_inference_steps": 20}, "expected timesteps or original_inference_steps"),
    ({"original_size": (8, 8, 8)}, "original_size must be None"),
    ({"output": "np"}, "output must be one of uint8, pil, latent, got 'np'"),
    ({"progress": 1}, "progress must be True or False, got 1"),
    ({"use_resolution_binning": 1}, "use_resolution_binning must be True or False, got 1"),
]


@pytest.mark.parametrize(
    ("change", "message"), BAD, ids=[f"{'-'.join(change)}-{i}" for i, (change, _) in enumerate(BAD)]
)
def test_what_cannot_be_meant_is_refused_before_any_work(random_backbones, monkeypatch, change, message):
    monkeypatch.setattr(drawing, "encode", None)  # the first work
    good = {"backbone": random_backbones("sd"), "prompts": PROMPTS, "seeds": SEEDS, "plan": DENSE}
    with pytest.raises(ValueError, match=message) as refusal:
        postdiff.sample(**{**good, **change})
    assert str(refusal.value).isprintable()


def test_what_embeddings_have_is_not_asked_again(random_backbones):
    backbone = random_backbones("sd")
    made = postdiff.encode(backbone, PROMPTS, 3)
    for name, value in (("negative", "x"), ("clip_skip", 1)):
        with pytest.raises(ValueError, match=f"{name} must be None, got .*: embeddings are given, which have it"):
            postdiff.sample(backbone, PROMPTS, SEEDS, DENSE, embeddings=made, **{name: value})
    karras = scheduled(backbone, "DPMSolverMultistepScheduler", use_karras_sigmas=True)
    with pytest.raises(ValueError, match="timesteps must be None where the scheduler has use_karras_sigmas"):
        postdiff.sample(karras, PROMPTS, SEEDS, DENSE, timesteps=[9, 5, 1])


def test_every_argument_of_sample_is_tested_here():
    source = Path(__file__).read_text()
    assert [name for name in inspect.signature(postdiff.sample).parameters if name not in source] == []
