"""LoRAs: added to the weights of a pipeline, once it is loaded.

Two matrices a layer, B [out, r] and A [r, in] (Hu et al., 2021), become W + scale * alpha / r * B A. So a LoRA costs
nothing, what a plan is said to cost is what runs, and no mechanism meets layers of another kind. Neither peft nor
the versions that it asks for are needed; its bits are those of diffusers' `fuse_lora`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch

from postdiff.arguments import printable
from postdiff.models.families import FAMILIES
from postdiff.models.spec import Spec

State = Mapping[str, torch.Tensor]
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def fuse(spec: Spec, pipe: Any) -> None:
    """Add the LoRAs of `spec`, in their order, to the weights of the denoiser and the text encoders that `pipe` has.

    The result is what `load_lora_weights`, `set_adapters` with the scales and `fuse_lora` make of the pipeline, bit for
    bit; but where a text encoder's layers have several alphas, of which diffusers 0.42 takes the most frequent for all
    (its names and those of transformers 5 differ), each layer has its own.

    Raises: ValueError, in one line, if a file holds tensors that the model has no place for, which diffusers leaves out
        and says so in a log; if weights become infinite or not a number.
    """
    rules = FAMILIES[spec.family]
    parts = (rules.denoiser, *rules.text_encoders)
    for file, scale in spec.loras:
        from postdiff.models.loading import as_value_error

        with as_value_error(f"the LoRA {file} cannot be read"):
            state, alphas, metadata = _read(spec, pipe, file)
        if other := next((key for key in state if key.split(".")[0] not in parts), None):
            raise ValueError(f"the LoRA {file} must be of {', '.join(parts)}, got the tensor {printable(other)}")
        for part in parts:
            own = {key.removeprefix(f"{part}."): tensor for key, tensor in state.items() if key.startswith(f"{part}.")}
            if own and (model := getattr(pipe, part)) is not None:
                where = f"the LoRA {file} must fit {part} of {spec.name}"
                of_part = {k.removeprefix(f"{part}."): alpha for k, alpha in alphas.items() if k.startswith(f"{part}.")}
                with as_value_error(f"{where}: its tensors cannot be named"):
                    own, own_alphas = (_named(values, part == rules.denoiser, model) for values in (own, of_part))
                _add(model, own, _alphas(own, own_alphas, metadata, part, where), scale, where)


def _read(spec: Spec, pipe: Any, file: str) -> tuple[State, Mapping[str, float], Mapping[str, Any]]:
    """Tensors by diffusers' names, alphas of other trainers' files, and the metadata of diffusers' own."""
    from postdiff.models.loading import outline

    # SDXL's pipeline hands on its U-Net's config, by which blocks that are numbered otherwise are named; SD's does not.
    config = {"unet_config": outline(spec).config} if len(FAMILIES[spec.family].text_encoders) > 1 else {}
    options = {"return_lora_metadata": True, "local_files_only": True, "use_safetensors": True}
    state, alphas, metadata = pipe.lora_state_dict(file, **options, **config)
    return state, alphas or {}, metadata or {}


def _named(state: Mapping[str, Any], denoiser: bool, model: torch.nn.Module) -> dict[str, Any]:
    """A part's tensors as LAYER.lora_A.weight and LAYER.lora_B.weight, whatever wrote them; its alphas as
    LAYER.lora_A.weight.alpha, or LAYER.alpha."""
    from diffusers.utils import state_dict_utils

    if denoiser or not state:
        peft = not state or any("lora_A" in key for key in state)
        return dict(state) if peft else state_dict_utils.convert_unet_state_dict_to_peft(dict(state))
    named = state_dict_utils.convert_state_dict_to_peft(state_dict_utils.convert_state_dict_to_diffusers(dict(state)))
    wrapped = hasattr(model, "text_model")  # transformers 5.6 and later: not around a CLIPTextModel
    return named if wrapped else {key.removeprefix("text_model."): tensor for key, tensor in named.items()}


def _alphas(
    state: State, alphas: Mapping[str, float], metadata: Mapping[str, Any], part: str, where: str
) -> dict[str, tuple[float, float]]:
    """{layer: (alpha, r)}, of which B A is scaled by the quotient; without an alpha it is 1."""
    own = {key.removeprefix(f"{part}."): value for key, value in metadata.items() if key.startswith(f"{part}.")}
    if asks := next((key for key in ("use_dora", "lora_bias", "fan_in_fan_out") if own.get(key)), None):
        raise ValueError(f"{where}: {asks} must be off in its metadata, got {own[asks]!r}")
    layers = {key.removesuffix(UP): tensor.shape[1] for key, tensor in state.items() if key.endswith(UP)}
    if own:
        patterns, default = own.get("alpha_pattern") or {}, own.get("lora_alpha", 8)  # peft's default
        chosen = {
            layer: next((a for key, a in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)
            for layer in layers
        }
        roots = own.get("use_rslora")
        return {layer: (chosen[layer], sqrt(r) if roots else r) for layer, r in layers.items()}
    by_layer = {key.removesuffix(".alpha").removesuffix(DOWN): alpha for key, alpha in alphas.items()}
    if not by_layer:
        return {layer: (r, r) for layer, r in layers.items()}
    if missing := next((layer for layer in layers if layer not in by_layer), None):
        raise ValueError(f"{where}: it must say an alpha for each layer or none, got none for {printable(missing)}")
    return {layer: (by_layer[layer], r) for layer, r in layers.items()}


def _add(
    model: torch.nn.Module, state: State, alphas: Mapping[str, tuple[float, float]], scale: float, where: str
) -> None:
    modules = dict(model.named_modules())
    for key in state:
        layer = key.removesuffix(DOWN).removesuffix(UP)
        if layer == key or not {layer + DOWN, layer + UP} <= state.keys() or layer not in modules:
            raise ValueError(f"{where}, which has no place for its tensor {printable(key)}")
    for layer, (alpha, r) in alphas.items():
        module, down, up = modules[layer], state[layer + DOWN], state[layer + UP]
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            raise ValueError(f"{where}, whose {layer} is neither linear nor a convolution: {type(module).__name__}")
        # As peft: the matrices in the weights' dtype, on a CPU multiplied in float32.
        weight = module.weight
        low = weight.dtype != torch.float32 and weight.device.type == "cpu"
        a, b = (t.to(weight.device, weight.dtype).to(torch.float32 if low else weight.dtype) for t in (down, up))
        try:
            delta = _product(module, a, b) * (scale * alpha / r)
            if delta.shape != weight.shape:
                raise ValueError(f"{tuple(delta.shape)}, not {tuple(weight.shape)}")
        except (RuntimeError, ValueError, IndexError) as error:
            cause = " ".join(str(error).split())
            raise ValueError(f"{where}, where {layer} has another shape: {cause}") from None
        weight.data += delta.to(weight.dtype)
        if not torch.isfinite(weight).all():
            raise ValueError(f"{where}, where it makes weights of {layer} infinite or no numbers")


def _product(module: torch.nn.Linear | torch.nn.Conv2d, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """B A, of the shape of the module's weight."""
    if isinstance(module, torch.nn.Linear):
        return b @ a
    if module.kernel_size == (1, 1):
        return (b.squeeze(3).squeeze(2) @ a.squeeze(3).squeeze(2)).unsqueeze(2).unsqueeze(3)
    return torch.nn.functional.conv2d(a.transpose(0, 1), b).transpose(0, 1)
