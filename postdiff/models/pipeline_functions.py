"""Backbones that a function of the user's makes: `pipeline:MODULE:FUNCTION`, which returns a diffusers pipeline.

The module is the user's own code, imported by the name that a command line or a call gives it, as Python would: from
the working directory too. Nothing that is read (a checkpoint, a plan, a store) names one.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from os import getcwd
from typing import Any

import torch

from postdiff.arguments import as_dtype, printable, shown
from postdiff.models.checkpoints import FUNCTION
from postdiff.models.loading import Backbone, as_value_error, float32_vae
from postdiff.models.pipeline_identity import identity
from postdiff.models.spec import Spec
from postdiff.models.wrapping import wrap
from postdiff.offloading import offloaded

NAME = re.compile(rf"{FUNCTION}([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)(?:@([0-9a-f]{{12}}))?")


@dataclass(frozen=True)
class Described:
    """What a function's pipeline is, without it. identity: of `pipeline_identity`. tokenizer: of its prompts."""

    spec: Spec
    identity: str
    tokenizer: Any


def describe(name: str) -> Described:
    """The function is called once a process, and its pipeline is let go. Raises ValueError as `load` does."""
    module, function, pinned = _parse(name)
    described = _described(f"{FUNCTION}{module}:{function}")
    _check_pin(name, pinned, described.identity)
    return described


@cache
def _described(name: str) -> Described:
    backbone = _make(name)
    return Described(backbone.spec, identity(backbone.pipe), backbone.pipe.tokenizer)


def load(
    name: str, device: str | None, dtype: torch.dtype | str | None, channels_last: bool, compiled: bool
) -> Backbone:
    """Call the function, and take its pipeline to `device`, as `postdiff.load` does; whole, in the dtype that it has.

    Raises: ValueError, in one line, if there is no such module or function, it needs arguments, fails, or returns
        what `postdiff.wrap` refuses; if its pipeline is of another dtype; if the name ends with @ and 12 hex digits,
        and they are not those of the pipeline.
    """
    module, function, pinned = _parse(name)
    backbone = _make(f"{FUNCTION}{module}:{function}")
    own = as_dtype(backbone.spec.dtype or "")
    if dtype is not None and as_dtype(dtype) != own:
        raise ValueError(
            f"{name} makes its pipeline in {shown(own)}: expected that dtype, got {shown(as_dtype(dtype))}"
        )
    if pinned:
        _check_pin(name, pinned, identity(backbone.pipe))
    pipe = backbone.pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipe.set_progress_bar_config(disable=True)
    backbone = Backbone(backbone.spec, pipe, float32_vae(backbone.spec, pipe.vae), compiled)
    if channels_last:
        for model in (backbone.denoiser, backbone.decoder):
            model.to(memory_format=torch.channels_last)
    return backbone


def _parse(name: str) -> tuple[str, str, str | None]:
    if match := NAME.fullmatch(name):
        return match[1], match[2], match[3]
    raise ValueError(f"a pipeline of your own must be named {FUNCTION}MODULE:FUNCTION, got {printable(name)!r}")


def _check_pin(name: str, pinned: str | None, got: str) -> None:
    if pinned and pinned != got:
        raise ValueError(
            f"{name.partition('@')[0]} must make the same pipeline each time: expected {pinned}, got {got} (weights, "
            "adapters and their scales, scheduler, tokenizers)"
        )


def _make(name: str) -> Backbone:
    """What the function of `name` returns, wrapped; on the device where it is."""
    module, function, _ = _parse(name)
    make = _function(name, module, function)
    with as_value_error(f"{name} fails"):
        made = make()
    if isinstance(made, Backbone) and made.spec.source:
        raise ValueError(f"{name} must return a pipeline, or postdiff.wrap of one; got the loaded {made.spec.name}")
    try:
        backbone = made if isinstance(made, Backbone) else wrap(made)
    except ValueError as error:
        raise ValueError(f"{name} must return a pipeline that postdiff.wrap takes: {error}") from error
    if any(offloaded(part) for part in backbone.pipe.components.values() if isinstance(part, torch.nn.Module)):
        raise ValueError(f"{name} must return a pipeline that is not offloaded: a worker moves it to its own GPU")
    dtype = str(backbone.dtype).removeprefix("torch.")
    return replace(backbone, spec=replace(backbone.spec, name=name, source=name, dtype=dtype))


def _function(name: str, module: str, function: str) -> Callable[[], Any]:
    if getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(getcwd())  # last: no file there takes the place of an installed module
    try:
        with as_value_error(f"{name}: {module} cannot be imported"):
            imported = importlib.import_module(module)
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{module}.".startswith(f"{cause.name}."):
            raise ValueError(f"{name}: no module {cause.name!r}, neither in {getcwd()!r} nor installed") from error
        raise
    where = getattr(imported, "__file__", None) or module
    make = getattr(imported, function, None)
    if not callable(make):
        got = "none" if make is None else shown(make)
        raise ValueError(f"{name}: expected a function {function!r} in {where}, got {got}")
    needed = [
        key
        for key, parameter in inspect.signature(make).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ValueError(f"{name} must take no arguments, got a function that needs {', '.join(needed)}")
    return make
