"""Weights that are elsewhere until a module runs: accelerate's hooks (models, or layers), diffusers' groups."""

from __future__ import annotations

from typing import Any

import torch


def offloaded(model: torch.nn.Module) -> bool:
    """Are weights of `model` moved when it runs? Then where they lie does not tell where it computes."""
    return hasattr(model, "_hf_hook") or bool(_groups(model))


def targets(model: torch.nn.Module) -> set[torch.device]:
    """Where an offloaded model computes, by its hooks."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    named = {getattr(hook, "execution_device", None) for hook in hooks} - {None}
    return {torch.device(device) for device in named} | {config.onload_device for config in _groups(model)}


def check_groups(model: torch.nn.Module) -> None:
    """Raise ValueError if a module of `model` that is not run would leave another's weights where they are.

    In diffusers' groups the first module of several loads all of them, and with streams each group loads the next.
    """
    for config in _groups(model):
        if config.stream is not None or (config.num_blocks_per_group or 1) > 1:
            raise ValueError(
                "group offloading has modules load each other's weights, and a plan does not run all of them: expected "
                f"use_stream=False and one block a group, got use_stream={config.stream is not None} and "
                f"{config.num_blocks_per_group} blocks"
            )


def rest(pipe: Any) -> None:
    """Send the pipeline's models back to where they rest, as its own call does at its end."""
    if getattr(pipe, "_all_hooks", None):
        pipe.maybe_free_model_hooks()


def _groups(model: torch.nn.Module) -> list[Any]:
    """The settings of diffusers' group offloading, of each of its hooks."""
    registries = (vars(module).get("_diffusers_hook") for module in model.modules())
    hooks = (registry.get_hook("group_offloading") for registry in registries if registry)
    return [hook.config for hook in hooks if hook]
