"""accelerate(): a pipeline's own call, run under a plan by the sampler here.

Text, noise, decoding, safety checker and output are made by the pipeline's own functions, with the arguments of the
call; what a plan cannot honour is refused (`call_arguments`). A dense plan gives the pipeline's own bits.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from postdiff import arguments, methods
from postdiff.adapters import scaled
from postdiff.advice import within
from postdiff.called import Call, read
from postdiff.decoding import check_finite
from postdiff.expected import Expected, expected
from postdiff.models.families import FAMILIES
from postdiff.models.family import Size, Text
from postdiff.models.loading import Backbone, overflows
from postdiff.models.wrapping import backbone_of, family_of
from postdiff.noise import begin_drawn
from postdiff.offloading import rest
from postdiff.ownership import owned
from postdiff.plan import Plan
from postdiff.sampling import check_told, denoise, grid_at, ready
from postdiff.solvers import SOLVERS
from postdiff.state import State

# Attributes that a pipeline sets while it runs, by the argument that they hold; callbacks read them.
WHILE_RUNNING = ("guidance_scale", "guidance_rescale", "clip_skip", "cross_attention_kwargs", "denoising_end")


def accelerate(pipe: Any, plan: Plan | None = None, *, share: float | None = None) -> Accelerated:
    """A function with the call of `pipe`, a diffusers pipeline in memory, that runs it under `plan`.

        fast = postdiff.accelerate(pipe, share=0.5)
        images = fast("a big red star on snow", height=512, width=768).images

    It can be the object of a `with`, too. Nothing of the pipeline is changed at any time.

    Args:
        pipe: as `wrap` takes it; a safety checker and a watermark are run.
        plan: of `methods`, or a file's (`load_plan`).
        share: in place of a plan: the one that `postdiff advise` tells (`advice.within`), at the most steps that cost
            at most this share, in (0, 1], of the FLOPs of the dense plan of the family's steps.

    Raises: ValueError, in one line, as `wrap` does, or if the pipeline cannot run the plan.
    """
    signature = inspect.signature(type(pipe).__call__).parameters
    rules = FAMILIES[family_of(pipe)]
    # Said, so that a scheduler which distilled models have too is no question: a call says its guidance.
    backbone = backbone_of(pipe, guidance=max(1.0, signature["guidance_scale"].default))
    if rules.most_tokens:
        tokens = signature["max_sequence_length"].default
        backbone = replace(backbone, spec=replace(backbone.spec, text_tokens=tokens))
    if (plan is None) == (share is None):
        got = "neither" if plan is None else "both"
        raise ValueError(f"expected a plan or a share of the dense plan's cost, got {got}")
    dense_steps = backbone.spec.settings["steps"]
    if plan is None:
        most = SOLVERS[backbone.spec.solver].most_steps(pipe.scheduler.config)
        plan = methods.postdiff(**within(backbone.spec, arguments.number("share", share, "(0, 1]"), most))
    else:
        dense_steps = len(arguments.instance("plan", plan, Plan))
    if len(plan) < rules.fewest_steps:
        fewest = f"a plan for {backbone.spec.name} must have at least {rules.fewest_steps} steps"
        raise ValueError(f"{fewest}, got {len(plan)}")
    if plan.switches and plan.switch != "fresh":
        raise ValueError(f"{plan.name} has switch {plan.switch}, which `sample` runs alone: expected fresh")
    ready(backbone, plan)
    return Accelerated(backbone, plan, dense_steps)


class Accelerated:
    """A pipeline's call under a plan; made by `accelerate`.

    backbone: the pipeline and what it is (`.spec`). plan: as it was given, or found for the share. dense_steps: of the
        dense plan that `summary` holds it against: as many, or those of which it costs a share.
    """

    def __init__(self, backbone: Backbone, plan: Plan, dense_steps: int):
        self.backbone, self.plan, self.dense_steps = backbone, plan, dense_steps
        self._denoiser = backbone.denoiser
        self.__signature__ = inspect.signature(backbone.pipe.__call__)

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is to be undone: modules are wrapped while a call runs, and not after it."""

    def summary(self, size: int | Size | None = None) -> Expected:
        """What an image costs, and the speed-up that this lets expect: nothing is measured. `print` it.

        size: (height, width) in pixels that are drawn (PixArt draws its bins), or one number; else the pipeline's.
        """
        return expected(self.plan, self.backbone.spec, self.dense_steps, size)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline's own call returns, for its own arguments.

        Raises: ValueError, before any work, for what a plan cannot honour and what the pipeline refuses;
            ArithmeticError if an image is not finite.
        """
        pipe = self.backbone.pipe
        backbone = self._as_it_is()
        call = read(backbone, self.plan, self.__signature__.bind(*args, **kwargs))
        text = _encode(backbone, call)
        state = _start(backbone, call, text)
        with _as_running(pipe, call), pipe.progress_bar(total=call.values["num_inference_steps"]) as bar:
            latents = _denoise(backbone, state, call, bar)
        return _finish(backbone, call, latents, text)

    def _as_it_is(self) -> Backbone:
        """The backbone with the scheduler that the pipeline has now. Raises ValueError if its denoiser is another."""
        spec, scheduler = self.backbone.spec, self.backbone.pipe.scheduler
        if self.backbone.denoiser is not self._denoiser:
            raise ValueError(f"the denoiser of {spec.name} was replaced: call accelerate again")
        now = {**scheduler.config, "_class_name": type(scheduler).__name__}
        return replace(self.backbone, spec=replace(spec, scheduler=now))


def _encode(backbone: Backbone, call: Call) -> Text:
    """The text by the pipeline's own function."""
    pipe, rules = backbone.pipe, FAMILIES[backbone.spec.family]
    takes = inspect.signature(pipe.encode_prompt).parameters
    asked = {name: value for name, value in call.values.items() if name in takes}
    with ExitStack() as stack:
        if pipe.text_encoder is not None:
            stack.enter_context(owned(pipe.text_encoder))
        for name in rules.text_encoders:
            if getattr(pipe, name) is not None:
                stack.enter_context(scaled(getattr(pipe, name), call.adapter_scale))
        return rules.encode(pipe, None, call.plan.needs_both_texts, backbone.spec.text_tokens, asked)


def _start(backbone: Backbone, call: Call, text: Text) -> State:
    """The first latents, of the call's own generator or latents, and what is told to the denoiser."""
    values, plan, rules = call.values, call.plan, FAMILIES[backbone.spec.family]
    conditions = rules.called_conditions(backbone.pipe, values, text, call.sampling.size, call.images)
    if conditions is not None:
        check_told(plan)
    latents = values["latents"]
    state = begin_drawn(
        backbone, text, plan, call.sampling, call.details, call.images, values["generator"], latents, conditions
    )
    state.adapter_scale = call.adapter_scale
    return state


class _Interrupted(Exception):
    """A callback asked for the end of the loop."""


def _denoise(backbone: Backbone, state: State, call: Call, bar: Any) -> torch.Tensor:
    """Clean latents, or those at which a callback stopped."""
    pipe, plan, values = backbone.pipe, call.plan, call.values
    at_end, each = values.get("callback_on_step_end"), values.get("callback")

    def on_step(done: int, _: torch.Tensor) -> None:
        i = done - 1
        timestep = state.timesteps[i]
        if at_end is not None:
            tensors = {"latents": state.latents} if _wants_latents(at_end, values) else {}
            latents = _returned(at_end(pipe, i, timestep, tensors), state.latents)
            # A consistency model's pipeline returns what its last step predicts, not what a callback made of it.
            state.latents = state.latents if state.solver.predicts_clean and done == len(plan) else latents
            if pipe._guidance_scale != values["guidance_scale"]:
                raise ValueError("a callback must leave guidance as it is: its end is the plan's (cfg_drop, m)")
        # Of a solver that runs the denoiser more often than it takes steps, the pipelines' rule for what is a step.
        order = state.solver.scheduler.order
        first = len(plan) - values["num_inference_steps"] * order
        if done == len(plan) or (done > first and done % order == 0):
            bar.update()
            if each is not None and i % values["callback_steps"] == 0:
                each(i // order, timestep, state.latents)
        if getattr(pipe, "_interrupt", False):
            raise _Interrupted

    try:
        latents = denoise(backbone, state, on_step)
    except _Interrupted:
        latents = state.latents
        if latents.shape[2:] != grid_at(backbone.spec, call.sampling, plan.steps[-1]):
            warnings.warn("interrupted at low resolution: the images are smaller than asked for", stacklevel=3)
    return latents.clone()  # an ordinary tensor, that may be changed in place, and not one of inference mode


def _wants_latents(callback: Any, values: Mapping[str, Any]) -> bool:
    wanted = getattr(callback, "tensor_inputs", values["callback_on_step_end_tensor_inputs"])
    return "latents" in wanted


def _returned(result: Any, latents: torch.Tensor) -> torch.Tensor:
    """The latents that a callback returned, or those that there were."""
    changed = dict(arguments.instance("what callback_on_step_end returns", result, dict))
    after = changed.pop("latents", latents)
    if changed:
        raise ValueError(f"callback_on_step_end may return latents alone, got {', '.join(map(str, changed))}")
    if after.shape != latents.shape or after.dtype != latents.dtype:
        raise ValueError(f"callback_on_step_end must return latents of {list(latents.shape)}, got {list(after.shape)}")
    return after


@contextmanager
def _as_running(pipe: Any, call: Call) -> Iterator[None]:
    """Set what the pipeline's own call sets, for callbacks to read, and put back what was there."""
    values = {f"_{name}": call.values[name] for name in WHILE_RUNNING if name in call.values}
    values |= {"_num_timesteps": len(call.plan), "_interrupt": False}
    before = {name: pipe.__dict__[name] for name in values if name in pipe.__dict__}
    try:
        pipe.__dict__.update(values)
        yield
    finally:
        for name in values:
            del pipe.__dict__[name]
        pipe.__dict__.update(before)


def _finish(backbone: Backbone, call: Call, latents: torch.Tensor, text: Text) -> Any:
    """What the pipeline returns for clean latents."""
    pipe, rules, kind = backbone.pipe, FAMILIES[backbone.spec.family], call.values["output_type"]
    checks, images, flagged = hasattr(pipe, "run_safety_checker"), latents, None
    if kind != "latent":
        images = _decode(backbone, latents)
        check_finite(backbone, sum(not bool(image.isfinite().all()) for image in images), len(images))
        if checks:
            images, flagged = pipe.run_safety_checker(images, backbone.device, text["text"].dtype)
        if call.size != call.sampling.size:
            images = pipe.image_processor.resize_and_crop_tensor(images, call.size[1], call.size[0])
        if getattr(pipe, "watermark", None) is not None:
            images = pipe.watermark.apply_watermark(images)
        shown = None if flagged is None else [not flag for flag in flagged]
        images = pipe.image_processor.postprocess(images, output_type=kind, do_denormalize=shown)
    rest(pipe)
    fields = (images, flagged) if checks else (images,)
    if not call.values["return_dict"]:
        return fields
    return getattr(importlib.import_module(type(pipe).__module__), rules.output)(*fields)


def _decode(backbone: Backbone, latents: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in about [-1, 1], by the pipeline's autoencoder, which is in float32 meanwhile where it must be."""
    vae, rules = backbone.pipe.vae, FAMILIES[backbone.spec.family]
    if not overflows(backbone.spec, vae):
        return rules.decode(vae, latents)
    vae.to(dtype=torch.float32)
    try:
        return rules.decode(vae, latents)
    finally:
        vae.to(dtype=torch.float16)
