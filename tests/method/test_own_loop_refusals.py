"""What `attach` refuses, and when: before anything is changed, or before the denoiser runs."""

import copy
import gc

import diffusers
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from test_own_loop import STEPS, call, denoiser_of, dense_with, pipes  # noqa: F401

import postdiff
from postdiff import Plan, Step, attach, low_first, methods
from postdiff.mechanisms import AttentionCache, DeepCache, EncoderPropagation, KeyDownsampling, ScheduledModules
from postdiff.models.anatomy import anatomy


@pytest.fixture
def pipe(pipes):  # noqa: F811
    return pipes("StableDiffusionPipeline")


@pytest.fixture
def late(pipes):  # noqa: F811
    return pipes("StableDiffusionImg2ImgPipeline")


REFUSED = {
    "steps 0 to 3 are at low resolution, and it has one size; expected .* DeepCache would be honoured": low_first(
        methods.deepcache(8), 0.5, 0.5
    ),
    "guidance is dropped from step 6 on, .* AttentionCache would be honoured": methods.tgate(8, 6),
    "low resolution, .*; guidance is dropped from step 6 on, .* DeepCache, AttentionCache would be honoured": (
        methods.postdiff(8)
    ),
    "0.003 of the initial noise is added .* EncoderPropagation would be honoured": methods.faster_diffusion(8, (0, 4)),
    "steps are computed ahead, as one batch, .* EncoderPropagation would be honoured": methods.faster_diffusion(
        8, (0, 4), prior_noise=0.0, ahead=True
    ),
    "the unconditional half runs alone, .* nothing would be honoured": Plan(
        "a", (Step(guided=False),) * 4, half="uncond"
    ),
    "draws from each image's own stream, .* expected seeds=": methods.tome(8),
    "plan must be a Plan, got 'deepcache'": "deepcache",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_needs_another_loop_is_refused_in_one_line_before_anything_is_changed(pipe, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        attach(pipe, REFUSED[reason])
    assert "\n" not in str(refused.value)
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert not any("forward" in vars(module) for module in pipe.unet.modules())
    attach(pipe, methods.deepcache(STEPS)).detach()  # its owner is nobody


def test_what_has_nothing_to_wrap_is_refused(pipes):  # noqa: F811
    for name, plan in {
        "PixArtAlphaPipeline": dense_with(DeepCache("S.S.")),
        "LatentConsistencyModelPipeline": dense_with(DeepCache("S.S.")),
        "StableDiffusionXLPipeline": dense_with(KeyDownsampling((2,))),  # it has no attention at the latents' grid
    }.items():
        with pytest.raises(ValueError, match=r"cannot cache deep features|changes nothing in a UNet2DConditionModel"):
            attach(pipes(name), plan)


def test_seeds_are_for_what_draws(pipe):
    with pytest.raises(ValueError, match="seeds are for mechanisms that draw, and deepcache has none"):
        attach(pipe, methods.deepcache(STEPS), seeds=[1])
    with (
        attach(pipe, methods.tome(STEPS), seeds=[1, 2]),
        pytest.raises(ValueError, match="seeds: expected one an image of the call, 1, got 2"),
    ):
        call(pipe)
    with attach(pipe, methods.tome(STEPS), seeds=[1]):
        one = call(pipe)
    with attach(pipe, methods.tome(STEPS), seeds=[2]):
        assert not torch.equal(call(pipe), one)


class Mine(diffusers.StableDiffusionPipeline):
    """A pipeline of the user's: its loop may be any."""


@pytest.mark.parametrize("kind", [Mine, diffusers.StableDiffusionInstructPix2PixPipeline])
def test_a_loop_that_is_not_known_is_refused(pipe, kind):
    parts = {**pipe.components, "requires_safety_checker": False}
    with pytest.raises(ValueError, match=f"pipe must be one of .* whose loops are known, got {kind.__name__}"):
        attach(kind(**parts), methods.deepcache(STEPS))


def runs(pipe):
    counted = []
    return counted, denoiser_of(pipe).register_forward_hook(lambda *_: counted.append(1))


@pytest.mark.parametrize("name", postdiff.own_loop.LOOPS)
def test_another_number_of_runs_than_the_plan_has_steps_is_refused_before_the_first(pipes, name):  # noqa: F811
    pipe = pipes(name)
    counted, hook = runs(pipe)
    with attach(pipe, dense_with(AttentionCache(own="S.S."))):
        for steps in (STEPS - 1, STEPS + 1):
            with pytest.raises(ValueError, match=rf"expected 4 runs of the \w+, got {steps}: a plan has a step for"):
                call(pipe, steps)
        assert not counted
        call(pipe)  # the next is a new one
        assert len(counted) == STEPS
    hook.remove()


def test_img2img_runs_fewer_steps_than_it_is_told(late):
    with attach(late, methods.deepcache(3)), pytest.raises(ValueError, match="expected 3 runs of the unet, got 6"):
        call(late, num_inference_steps=8, strength=0.75)
    with attach(late, methods.deepcache(6)):
        call(late, num_inference_steps=8, strength=0.75)


@pytest.mark.parametrize(
    ("scheduler", "calls"), [(HeunDiscreteScheduler, 7), (PNDMScheduler, 5), (EulerDiscreteScheduler, 4)]
)
def test_a_plan_has_a_step_for_each_run_whatever_the_scheduler_makes_of_them(pipe, scheduler, calls):
    kind = copy.copy(pipe)
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    kind.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    before = call(kind)
    with attach(kind, methods.dense(calls)):
        assert torch.equal(call(kind), before)
    with attach(kind, methods.deepcache(calls + 1)), pytest.raises(ValueError, match=f"got {calls}: "):
        call(kind)


def at(step, do):
    """A callback that does something at the end of one step."""

    def callback(pipe, i, t, tensors):
        if i == step:
            tensors = do(pipe, tensors) or tensors
        return tensors

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


def test_guidance_that_ends_on_the_way_is_refused(pipe):
    """As diffusers' documentation has it done, by a callback: it would be combined with what both halves stored."""

    def end(pipe, tensors):
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}

    with attach(pipe, methods.deepcache(STEPS)):
        with pytest.raises(RuntimeError, match="guidance ends at step 2: expected the same halves at every step"):
            call(pipe, **at(1, end))
        whole = call(pipe)
    with attach(pipe, methods.deepcache(STEPS)):
        assert torch.equal(call(pipe), whole)


def test_who_interrupts_a_call_asked_for_fewer_steps(pipe):
    with attach(pipe, methods.deepcache(STEPS)):
        whole = call(pipe)
        call(pipe, **at(1, lambda pipe, _: setattr(pipe, "_interrupt", True)))
        assert torch.equal(call(pipe), whole)


def test_runs_that_are_none_of_the_loop_are_refused(pipe):
    def runs_it(pipe, tensors):
        pipe.unet(torch.zeros(2, 4, 8, 12), 7, encoder_hidden_states=tensors["prompt_embeds"])

    with attach(pipe, methods.deepcache(STEPS)):
        with pytest.raises(RuntimeError, match="run 1 of the unet is at timestep 7, which is not the scheduler's next"):
            call(pipe, **at(0, runs_it))
        with pytest.raises(RuntimeError, match="the unet runs outside of the StableDiffusionPipeline that a plan"):
            pipe.unet(torch.zeros(2, 4, 8, 12), 7, encoder_hidden_states=torch.zeros(2, 20, 96))


def test_a_call_that_ends_early_is_an_error(pipe, monkeypatch):
    """Nothing known does; a loop that changed would."""
    monkeypatch.setattr(type(pipe), "num_timesteps", property(lambda self: STEPS + 1))
    with (
        attach(pipe, methods.dense(STEPS + 1)),
        pytest.raises(RuntimeError, match="expected 5 runs of the unet, got 4"),
    ):
        call(pipe)


def test_without_guidance(pipe):
    """A call without it runs one half: caches are of that half; what shares halves has nothing to share."""
    name = anatomy(pipe.unet).layers("self-attention")[0]
    shared = dense_with(ScheduledModules([(name, "#c##")]))
    before = call(pipe, guidance_scale=1.0)
    with attach(pipe, shared):
        assert not torch.equal(call(pipe), before)
        with pytest.raises(ValueError, match="has one half without guidance, so 'c' cannot share it"):
            call(pipe, guidance_scale=1.0)
    with attach(pipe, methods.no_cfg(STEPS)):
        assert torch.equal(call(pipe, guidance_scale=1.0), before)
        with pytest.raises(
            ValueError, match=r"no_cfg has no guidance .* expected guidance_scale of 1 or less, got 7.5"
        ):
            call(pipe)
    alone = methods.no_cfg(STEPS).plus(DeepCache("S.S."))
    with attach(pipe, methods.deepcache(STEPS)):
        saved = call(pipe, guidance_scale=1.0)
    with attach(pipe, alone):
        assert torch.equal(call(pipe, guidance_scale=1.0), saved)


def test_a_handle_without_a_with(pipe):
    before = call(pipe)
    handle = attach(pipe, methods.deepcache(STEPS))
    saved = call(pipe)
    with pytest.raises(RuntimeError, match="this StableDiffusionPipeline has a plan attached: expected detach"):
        attach(pipe, methods.deepcache(STEPS))
    with pytest.raises(RuntimeError, match=r"in the middle of a call: expected detach\(\) after it"):
        call(pipe, **at(0, lambda *_: handle.detach()))
    with pytest.raises(RuntimeError, match="in the middle of a call: expected the next one after it"):
        call(pipe, **at(0, lambda pipe, _: call(pipe)))
    assert torch.equal(call(pipe), saved)
    handle.detach()
    handle.detach()
    assert torch.equal(call(pipe), before)
    assert not torch.equal(saved, before)


def test_a_handle_that_nobody_keeps_stays(pipe):
    before = call(pipe)
    attach(pipe, methods.deepcache(STEPS))
    gc.collect()
    assert not torch.equal(call(pipe), before)
    type(pipe).attached.detach()
    assert torch.equal(call(pipe), before)


def test_one_pipeline_and_its_denoiser(pipe, late):
    """Pipelines share parts: what is attached to one must not act in another without a word."""
    assert pipe.unet is late.unet
    another = copy.deepcopy(pipe.unet)
    with attach(pipe, methods.deepcache(STEPS)):
        with pytest.raises(RuntimeError, match="the unet runs outside of the StableDiffusionPipeline that a plan is"):
            call(late)
        with pytest.raises(RuntimeError, match="in the middle of a run of this thread"):
            attach(late, methods.deepcache(STEPS))
        with pytest.raises(RuntimeError, match="this is a copy of the StableDiffusionPipeline"):
            call(copy.copy(pipe))
        unet, pipe.unet = pipe.unet, another
        with pytest.raises(RuntimeError, match="the unet is another than the plan was attached to"):
            call(pipe)
        pipe.unet = unet


def test_what_was_changed_since_is_looked_at_again(pipe):
    with attach(pipe, dense_with(EncoderPropagation("S.S."))):
        pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
        with pytest.raises(ValueError, match="FreeU scales what"):
            call(pipe)
        pipe.disable_freeu()
        call(pipe)


def test_our_loop_waits_for_the_pipelines(random_backbones):
    backbone = random_backbones("sd")
    with (
        attach(backbone.pipe, methods.deepcache(STEPS)),
        pytest.raises(RuntimeError, match="in the middle of a run of this thread"),
    ):
        postdiff.sample(backbone, ["a star"], [0], methods.dense(2))
    assert postdiff.sample(backbone, ["a star"], [0], methods.dense(2)).shape == (1, 64, 64, 3)
