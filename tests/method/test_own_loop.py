"""Plans inside the loops of diffusers' pipelines: equal to the authors' packages and to our own loop, bit for bit; what
such a loop cannot do is refused; afterwards the pipeline is what it was."""

import copy
import inspect

import diffusers
import pytest
import torch
from conftest import PROMPTS, SEEDS, pipeline_images, random_pipeline
from diffusers import ControlNetModel, HeunDiscreteScheduler, PNDMScheduler

import postdiff
from pipelines.training import mini
from postdiff import Plan, Step, attach, methods, sampling, state
from postdiff.mechanisms import (
    AttentionCache,
    DeepCache,
    EncoderPropagation,
    KeyDownsampling,
    ScheduledModules,
    TokenCache,
    TokenMerging,
)
from postdiff.models.anatomy import anatomy
from postdiff.models.families import adapt
from postdiff.models.spec import settle
from postdiff.own_loop import LOOPS

STEPS, SIZE = 4, (32, 48)
U_NETS = [name for name, family in LOOPS.items() if family in ("sd", "sdxl")]
KIND_OF = {"pixart-sigma": "sigma"}  # a family's name in conftest


def small_unet():
    """Two levels of one layer each: an equality of bits needs no more."""
    return mini._unet(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        cross_attention_dim=mini.TEXT_WIDTH,
    )


def small_pipeline():
    words = mini.tokenizer()
    return mini.stable_diffusion(mini.autoencoder(), mini.text_encoder(words, layers=1), small_unet(), words)


def without_zeros(module):
    """What starts at 0 would hide what goes in."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


@pytest.fixture(scope="module")
def pipes():
    """A function: a class of LOOPS -> such a pipeline with random weights. Those of a family share its parts."""
    bases, made = {}, {}

    def base(family):
        if family not in bases:
            torch.manual_seed(0)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(mini, "LATENT_CHANNELS", 4)  # those that inpainting takes
                bases[family] = small_pipeline() if family == "sd" else random_pipeline(KIND_OF.get(family, family))
            without_zeros(getattr(bases[family], "unet", None) or bases[family].transformer)
            without_zeros(bases[family].vae)
        return bases[family]

    def get(name):
        if name not in made:
            kind, parts = getattr(diffusers, name), dict(base(LOOPS[name]).components)
            if "ControlNet" in name:
                torch.manual_seed(1)
                # Its pictures are 4 times as large as the latents here, diffusers' own 8 times.
                control = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(16, 32, 32))
                parts["controlnet"] = without_zeros(control)
            if "requires_safety_checker" in inspect.signature(kind.__init__).parameters:
                parts["requires_safety_checker"] = False
            made[name] = kind(**parts)
            made[name].set_progress_bar_config(disable=True)
        return made[name]

    return get


def picture(seed, channels=3):
    return torch.rand(1, channels, *SIZE, generator=torch.Generator().manual_seed(seed))


def call(pipe, steps=STEPS, **changes):
    """Latents of one image, of so many runs of the denoiser."""
    name = type(pipe).__name__
    late = "Img2Img" in name or "Inpaint" in name
    arguments = {"prompt": PROMPTS[0], "num_inference_steps": steps, "output_type": "latent"}
    arguments["generator"] = torch.Generator().manual_seed(0)
    if late:
        arguments |= {"image": picture(1), "strength": 0.5}
        arguments["num_inference_steps"] *= 1 if LOOPS[name] == "lcm" else 2  # LCM's strength leaves out no steps
    if "Inpaint" in name:
        arguments["mask_image"] = picture(2, 1).round()
    if "ControlNet" in name:
        arguments["control_image" if late else "image"] = picture(3)
    if not late or "Inpaint" in name:
        arguments |= {"height": SIZE[0], "width": SIZE[1]}
    if LOOPS[name].startswith("pixart"):
        arguments |= {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20}
    return pipe(**{**arguments, **changes}).images


def dense_with(*mechanisms, steps=STEPS):
    return methods.dense(steps).plus(*mechanisms)


def denoiser_of(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


@pytest.mark.parametrize("name", LOOPS)
def test_a_dense_plan_changes_nothing_a_cache_does_and_after_it_all_is_as_before(pipes, name):
    pipe = pipes(name)
    modules = list(denoiser_of(pipe).modules())
    kind, attributes = type(pipe), [set(vars(module)) for module in modules]
    before = call(pipe)
    assert before.isfinite().all()
    with attach(pipe, methods.dense(STEPS)):
        assert torch.equal(call(pipe), before)
    with attach(pipe, dense_with(AttentionCache(own="S.S."))):
        saved = call(pipe)
        assert isinstance(pipe, kind)
        assert type(pipe).__name__ == name
        assert inspect.signature(pipe.__call__) == inspect.signature(kind(**pipe.components).__call__)
        assert not torch.equal(saved, before)
        assert torch.equal(call(pipe), saved)  # a second image starts anew
    assert torch.equal(call(pipe), before)
    assert type(pipe) is kind
    assert [set(vars(module)) for module in modules] == attributes
    assert not any(module._forward_pre_hooks for module in modules)


@pytest.mark.parametrize("name", LOOPS)
def test_the_loops_run_their_denoiser_in_one_place(name):
    """What LOOPS says of them; a new version of diffusers may change it."""
    source = inspect.getsource(getattr(diffusers, name).__call__)
    assert source.count("self.unet(") + source.count("self.transformer(") == 1
    assert "guidance_scale" in inspect.signature(getattr(diffusers, name).__call__).parameters


def authors_deepcache(pipe, k, branch, **changes):
    """The package leaves attributes behind, so it gets a copy."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=copy.deepcopy(pipe))
    helper.set_params(cache_interval=k, cache_branch_id=branch)
    helper.enable()
    return call(helper.pipe, **changes)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", U_NETS)
def test_deepcache_equals_the_authors_package(pipes, name, k):
    pipe = pipes(name)
    with attach(pipe, methods.deepcache(5, k=k)):
        ours = call(pipe, 5)
    assert torch.equal(ours, authors_deepcache(pipe, k, 1, steps=5))
    assert not torch.equal(ours, call(pipe, 5))


@pytest.mark.parametrize("branch", [0, 2])
def test_so_it_does_on_other_branches(pipes, branch):
    pipe = pipes("StableDiffusionControlNetInpaintPipeline")
    with attach(pipe, methods.deepcache(5, k=2, branch=branch)):
        ours = call(pipe, 5)
    # They number three layers a block, this U-Net has two.
    assert torch.equal(ours, authors_deepcache(pipe, 2, {0: 0, 2: 3}[branch], steps=5))
