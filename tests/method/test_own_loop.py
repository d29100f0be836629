"""Plans inside the loops of diffusers' pipelines: equal to the authors' packages and to our own loop, bit for bit; what
such a loop cannot do is refused; afterwards the pipeline is what it was."""

import copy
import inspect

import diffusers
import pytest
import torch
from conftest import PROMPTS, SEEDS, pipeline_images, random_pipeline
from diffusers import ControlNetModel

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


def authors_deepcache(pipe, k, branch, kept=True, **changes):
    """The package leaves attributes behind, so it gets a copy, unless that is not `kept`."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=copy.deepcopy(pipe) if kept else pipe)
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


WINDOWS = {"sd": "Swx.", "sdxl": "Swx.", "pixart": "#Sw.", "lcm": "S#w."}
CACHES = {
    "AttentionCache": lambda parts: AttentionCache("S.S.", "#S.#"),
    "DeepCache": lambda parts: DeepCache("S.S."),
    "EncoderPropagation": lambda parts: EncoderPropagation("S.S."),
    "KeyDownsampling": lambda parts: KeyDownsampling((2, 2)),
    "ScheduledModules, of blocks": lambda parts: ScheduledModules([(name, "#.#.") for name in parts.transformers]),
    "TokenCache": lambda parts: TokenCache("St.S"),
    "TokenCache, by chance": lambda parts: TokenCache("St.S", score="random"),
    "TokenMerging": lambda parts: TokenMerging(max_downsample=2, random=False),
    "TokenMerging, by chance": lambda parts: TokenMerging(max_downsample=2),
    "TokenMerging, of what is alike": lambda parts: TokenMerging(
        0.75, max_downsample=2, random=False, threshold=0.2, matching="S.S."
    ),
}


def cached_plan(backbone, cache):
    """A plan with that mechanism, as the family runs it; None where its architecture has nothing for it."""
    parts = anatomy(backbone.denoiser)
    if cache == "windows":
        mechanism = ScheduledModules([(name, WINDOWS[backbone.spec.family]) for name in parts.layers("self-attention")])
    else:
        mechanism = CACHES[cache](parts)
    lacks = ("TokenCache",) if parts.encoder else ("DeepCache", "EncoderPropagation")
    if cache.split(",")[0] in lacks or (cache, backbone.spec.family) == ("DeepCache", "lcm"):
        return None
    if backbone.spec.family == "lcm":
        return Plan("cached", (Step(guided=False),) * STEPS, (mechanism,))
    return dense_with(mechanism)


def our_latents(backbone, plan, prompts=PROMPTS[:2]):
    n = len(prompts)
    text = postdiff.encode(backbone, prompts, n).batch(0, n, plan.needs_both_texts)
    start = sampling.begin(backbone, text, SEEDS[:n], plan, settle(backbone.spec, size=SIZE))
    return sampling.denoise(backbone, start)


def its_latents(backbone, steps=STEPS, n=2, **changes):
    """By the pipeline's own loop, from the noise that ours starts with."""
    noise = sampling.draw(SEEDS[:n], "initial", 8, (SIZE[0] // 4, SIZE[1] // 4))
    return call(
        backbone.pipe, steps, prompt=PROMPTS[:n], latents=noise, guidance_scale=backbone.spec.guidance, generator=None,
        **changes,
    )  # fmt: skip


@pytest.mark.parametrize("cache", [*CACHES, "windows"])
@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart", "lcm"])
def test_it_equals_our_own_loop(random_backbones, kind, cache):
    backbone = random_backbones(kind)
    plan = cached_plan(backbone, cache)
    if plan is None:
        return
    seeds = SEEDS[:2] if cache.endswith("by chance") else None
    dense = adapt(methods.dense(STEPS), backbone.spec.family)
    if kind == "lcm":  # whose solver draws: pixels, by the loop that gives it the streams
        with attach(backbone.pipe, plan, seeds=seeds):
            images = pipeline_images(backbone, 2, "lcm", STEPS, size=SIZE)
        ours = postdiff.sample(backbone, PROMPTS[:2], SEEDS[:2], plan, size=SIZE)
        assert (images == ours).all()
        assert (ours != postdiff.sample(backbone, PROMPTS[:2], SEEDS[:2], dense, size=SIZE)).any()
        return
    with attach(backbone.pipe, plan, seeds=seeds):
        images = its_latents(backbone)
    assert images.isfinite().all()
    assert torch.equal(images, our_latents(backbone, plan))
    assert not torch.equal(images, our_latents(backbone, dense))


# T-GATE's first phase is a cache: before the gate it reuses self-attention. From the gate on it drops guidance.
GATED = {"gate_step": 6, "sp_interval": 2, "fi_interval": 1, "warm_up": 1}


def authors_tgate(backbone, steps, **settings):
    """The package never unpatches what it patches, so it gets a copy of the pipeline."""
    import tgate

    loaders = {"sd": tgate.TgateSDLoader, "sdxl": tgate.TgateSDXLLoader, "pixart": tgate.TgatePixArtAlphaLoader}
    pipe = loaders[backbone.spec.family](copy.deepcopy(backbone.pipe))
    options = {"max_sequence_length": 20, "use_resolution_binning": False, "clean_caption": False}
    noise = sampling.draw(SEEDS[:2], "initial", 8, (SIZE[0] // 4, SIZE[1] // 4))
    return pipe.tgate(
        PROMPTS[:2], num_inference_steps=steps, guidance_scale=backbone.spec.guidance, latents=noise,
        output_type="latent", height=SIZE[0], width=SIZE[1], **settings,
        **(options if backbone.spec.family == "pixart" else {}),
    ).images  # fmt: skip


@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart"])
def test_tgate_equals_the_authors_package_on_images_that_are_not_square(random_backbones, kind):
    """All of it by our loop, what comes before its gate by the pipeline's own too."""
    backbone = random_backbones(kind)
    assert torch.equal(our_latents(backbone, methods.tgate(10, **GATED)), authors_tgate(backbone, 10, **GATED))
    before_the_gate = methods.tgate(6, **GATED)
    with attach(backbone.pipe, before_the_gate):
        images = its_latents(backbone, 6)
    assert torch.equal(images, authors_tgate(backbone, 6, **GATED))
    assert not torch.equal(images, its_latents(backbone, 6))


@pytest.mark.parametrize("random", [False, True], ids=["deterministic", "seeded"])
def test_tome_equals_the_authors_package_on_images_that_are_not_square(random_backbones, random, monkeypatch):
    import tomesd

    backbone, n = random_backbones("sd"), 1 if random else 2  # their random partition is a batch's, ours an image's
    plan = methods.tome(STEPS, ratio=0.6, max_downsample=2, mlp=True, random=random)
    names = [block.name for block in anatomy(backbone.denoiser).blocks if block.shrunk <= 2]
    names.sort(key=lambda name: name.startswith("up"))  # as they run
    with attach(backbone.pipe, plan, seeds=SEEDS[:1] if random else None):
        ours = its_latents(backbone, n=n)
    if random:  # theirs come from torch's global state
        match = tomesd.merge.bipartite_soft_matching_random2d
        drawn = iter([state.generator(SEEDS[0], f"tokens-{name}-{i}") for i in range(STEPS) for name in names])
        monkeypatch.setattr(
            tomesd.merge, "bipartite_soft_matching_random2d",
            lambda *args, generator, **kwargs: match(*args, generator=next(drawn), **kwargs),
        )  # fmt: skip
    assert not torch.equal(ours, its_latents(backbone, n=n))
    theirs = postdiff.Backbone(backbone.spec, copy.deepcopy(backbone.pipe))
    tomesd.apply_patch(theirs.pipe, ratio=0.6, max_downsample=2, use_rand=random, merge_mlp=True)
    assert torch.equal(ours, its_latents(theirs, n=n))


def test_with_an_ip_adapter_and_a_picture_as_prompt(pipes):
    pipe = copy.copy(pipes("StableDiffusionImg2ImgPipeline"))
    pipe.unet = copy.deepcopy(pipe.unet)
    pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet)])
    told = {"ip_adapter_image_embeds": [torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(5))]}
    before = call(pipe, **told)
    other = call(pipe, ip_adapter_image_embeds=[torch.zeros(2, 1, 24)])
    assert not torch.equal(before, other)
    with attach(pipe, methods.deepcache(STEPS)):
        saved = call(pipe, **told)
    assert torch.equal(saved, authors_deepcache(pipe, 2, 1, **told))
    assert not torch.equal(saved, before)
    with attach(pipe, dense_with(AttentionCache("S.S."))):  # the picture's attention with the words'
        assert not torch.equal(call(pipe, **told), before)
    assert torch.equal(call(pipe, **told), before)


def ip_adapter(unet):
    """The weights of one: a picture's embedding of 24 numbers becomes four tokens, which each cross-attention sees."""
    torch.manual_seed(3)
    width = unet.config.cross_attention_dim
    image = {"proj.weight": torch.randn(4 * width, 24), "proj.bias": torch.randn(4 * width)}
    image |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    seen, layers = {}, [module for name, module in unet.named_modules() if name.endswith("attn2")]
    for i, module in enumerate(layers):
        for projection in ("to_k", "to_v"):
            seen[f"{2 * i + 1}.{projection}_ip.weight"] = torch.randn(module.to_q.weight.shape[0], width) / width**0.5
    return {"image_proj": image, "ip_adapter": seen}
