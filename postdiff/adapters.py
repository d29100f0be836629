"""Adapters (LoRA) in a model's layers: their scale for the length of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from postdiff import arguments


@contextmanager
def scaled(module: torch.nn.Module, scale: float | None) -> Iterator[None]:
    """Multiply the scale of all active adapters in `module` by `scale`; None is 1.

    diffusers divides by it afterwards, which changes the last bits of a scale, and after 0 sets it to 1. Here it is
    what it was.
    """
    layers = [] if scale is None else adapted_layers(module)
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scale_layer(scale)
        yield
    finally:
        for layer, scales in zip(layers, before, strict=True):
            layer.scaling.update(scales)


def adapted_layers(module: torch.nn.Module | None) -> list[Any]:
    """The layers of peft in a model."""
    return [layer for layer in module.modules() if hasattr(layer, "scale_layer")] if module is not None else []


def called_scale(pipe: Any, name: str, values: Mapping[str, Any]) -> float | None:
    """What a call of the pipeline scales adapters by, in the text encoders too.

    Raises: ValueError if cross_attention_kwargs has anything else, or nothing is adapted.
    """
    given = arguments.instance("cross_attention_kwargs", values.get("cross_attention_kwargs") or {}, dict)
    if others := [str(key) for key in given if key != "scale"]:
        raise ValueError(
            f"cross_attention_kwargs must hold scale alone, got {', '.join(others)}: no other is passed on"
        )
    if "scale" not in given:
        return None
    scale = arguments.number("cross_attention_kwargs['scale']", given["scale"], "(-inf, inf)")
    if not any(adapted_layers(module) for module in pipe.components.values() if isinstance(module, torch.nn.Module)):
        raise ValueError(f"cross_attention_kwargs must be None, got a scale of {scale:g}: {name} has no adapter (LoRA)")
    return scale
