"""A call of a pipeline, read and checked before any work: what it asks for, and whether a plan can honour it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from postdiff import arguments, call_arguments
from postdiff.models.evaluations import inference_steps
from postdiff.models.families import FAMILIES, unguided
from postdiff.models.family import Family, Size
from postdiff.models.loading import Backbone
from postdiff.models.schedulers import kept_solver
from postdiff.models.spec import Sampling
from postdiff.models.wrapping import check_in_place
from postdiff.plan import Plan
from postdiff.sampling import ready

OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Call:
    """A call, checked.

    values: of all its arguments; its num_inference_steps are the solver's own. images: how many. size: of those that
    are returned, `sampling.size` of those that are drawn. plan: without guidance, where the call has none.
    """

    values: Mapping[str, Any]
    images: int
    size: Size
    plan: Plan
    sampling: Sampling
    rescale: float


def read(backbone: Backbone, plan: Plan, bound: inspect.BoundArguments) -> Call:
    """The call with the arguments `bound`. Raises ValueError for what cannot be honoured under `plan`."""
    pipe, name, rules = backbone.pipe, backbone.spec.name, FAMILIES[backbone.spec.family]
    check_in_place(pipe, name)
    if unknown := bound.arguments.pop("kwargs", {}):
        raise ValueError(f"{', '.join(unknown)}: no argument of {name}'s call, which ignores others or will lose them")
    given = {key for key, value in bound.arguments.items() if value is not None}
    bound.apply_defaults()
    values = {key: value for key, value in bound.arguments.items() if key != "kwargs"}
    call_arguments.refuse(values, given, name)
    solver = kept_solver(name, pipe.scheduler, rules.solvers)
    values["num_inference_steps"] = _own_steps(values["num_inference_steps"], given, plan, solver)
    arguments.one_of("output_type", values["output_type"], OUTPUTS)
    size = _size(backbone, values)
    drawn = rules.called_size(pipe, size, values)
    _check_by_pipeline(pipe, {**values, "height": drawn[0], "width": drawn[1]})
    _check_callback(values)
    guidance = arguments.number("guidance_scale", values["guidance_scale"], "[0, inf)")
    if rules.guided and guidance <= 1:
        plan, guidance = unguided(plan), 1.0
    rescale = arguments.number("guidance_rescale", values.get("guidance_rescale", 0.0), "[0, 1]")
    plan, sampling = ready(backbone, plan, guidance=guidance, solver=solver, size=drawn)
    if not plan.needs_both_texts:
        _check_unguided(rules, plan, values, given)
    return Call(values, _count(values), size, plan, sampling, rescale)


def _own_steps(asked: Any, given: set[str], plan: Plan, solver: str) -> int:
    """Steps that the solver takes in as many runs of the denoiser as the plan has steps; no others may be asked for."""
    steps = inference_steps(solver, len(plan))
    if "num_inference_steps" in given and arguments.whole_number("num_inference_steps", asked) != steps:
        why = "" if steps == len(plan) else f" ({solver} runs the denoiser {len(plan)} times for {steps} steps)"
        whose = f"the plan's {steps}" if steps == len(plan) else f"{steps} for the plan's {len(plan)}"
        raise ValueError(f"num_inference_steps must be {whose}{why}, or not be given, got {asked}")
    return steps


def _size(backbone: Backbone, values: Mapping[str, Any]) -> Size:
    """(height, width) of the images that are asked for."""
    sides = values["height"], values["width"]
    if sides == (None, None):
        return backbone.spec.size
    if None in sides:
        raise ValueError(f"expected height and width, or neither, got height={sides[0]!r} and width={sides[1]!r}")
    return arguments.size(sides)


def _check_by_pipeline(pipe: Any, values: Mapping[str, Any]) -> None:
    """The pipeline's own checks of its prompts, embeddings and sizes. Raises ValueError or TypeError as it does."""
    takes = inspect.signature(pipe.check_inputs).parameters
    pipe.check_inputs(**{name: values.get(name) for name in takes})


def _check_callback(values: Mapping[str, Any]) -> None:
    """Raise ValueError if a callback wants other tensors than the latents."""
    callback = arguments.callback("callback_on_step_end", values.get("callback_on_step_end"))
    wanted = getattr(callback, "tensor_inputs", values.get("callback_on_step_end_tensor_inputs") or [])
    if others := [tensor for tensor in wanted if tensor != "latents"]:
        why = call_arguments.ARGUMENTS["callback_on_step_end_tensor_inputs"].note
        raise ValueError(f"callback_on_step_end_tensor_inputs must hold {why}, got {', '.join(map(str, others))}")


def _check_unguided(rules: Family, plan: Plan, values: Mapping[str, Any], given: set[str]) -> None:
    """Raise ValueError if a call of which no step is guided says something of guidance."""
    negative = [name for name in sorted(given) if name.startswith("negative_")]
    empty = [name for name in negative if isinstance(values[name], str | list | tuple) and not any(values[name])]
    asks = [name for name in negative if name not in empty]
    asks += ["guidance_rescale"] * bool(values.get("guidance_rescale"))
    if rules.guided and "guidance_scale" in given and values["guidance_scale"] > 1:
        asks.append("guidance_scale")
    if asks:
        raise ValueError(f"{', '.join(asks)} cannot be honoured: no step of {plan.name} is guided in this call")


def _count(values: Mapping[str, Any]) -> int:
    """Images of a call."""
    prompt, each = values["prompt"], arguments.whole_number("num_images_per_prompt", values["num_images_per_prompt"])
    prompts = len(values["prompt_embeds"]) if prompt is None else 1 if isinstance(prompt, str) else len(prompt)
    return arguments.whole_number("images", prompts * each, 1, arguments.LARGEST_BATCH)
