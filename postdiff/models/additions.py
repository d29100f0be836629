"""What is loaded beside a model, or in place of a part of it, as the model's text says it:

    MODEL+lora=FILE.safetensors:0.8+vae=FOLDER+variant=fp16
    FILE.safetensors+config=MODEL

It is part of the text, and no flag of its own: so it belongs to its model where a job has several, and goes wherever a
model's name goes (a call of `load`, the console script, each job, a worker). Names and headers of files only: neither
torch nor diffusers is imported.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from postdiff.arguments import meant, printable
from postdiff.models.configs import check_vae, read_json
from postdiff.models.families import FAMILIES
from postdiff.models.spec import Spec

KEYS = ("lora", "vae", "variant", "config")
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")  # of the hub, at a commit
MOST_SCALE = 10
SUFFIX = ".safetensors"
_BEGINS = re.compile(r"\+([A-Za-z]\w*)=")
_KNOWN = re.compile(rf"\+(?:{'|'.join(KEYS)})=")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True)
class Additions:
    """What the text says beside the model. loras: (file, scale), in this order. vae: a folder or the hub's id, and its
    commit. variant: of weight files, `fp16` in `model.fp16.safetensors`. config: the model whose configs a single file
    is read by."""

    loras: tuple[tuple[str, float], ...] = ()
    vae: tuple[str, str | None] | None = None
    variant: str | None = None
    config: str | None = None


def split(text: str) -> tuple[str, Additions]:
    """The model that a text names, and what it says beside it.

    Raises: ValueError, in one line, for a word that is none of `KEYS`, one that is said twice (but `lora`), a value
        that is not what its word takes, or a file or folder that is there and has a word in its name.
    """
    marks = list(_BEGINS.finditer(text))
    if not marks or os.path.exists(text):  # False, where `Path.exists` raises, of what is too long for a name
        return text, Additions()
    _refuse_words_in_names(text, marks)
    model, values = text[: marks[0].start()], {}
    loras: list[tuple[str, float]] = []
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=True):
        key, value = mark[1], text[mark.end() : end]
        if key not in KEYS:
            known = ", ".join(f"+{known}=" for known in KEYS)
            raise ValueError(f"a model may be followed by {known}, got +{key}={meant(key, KEYS)}")
        if not value:
            raise ValueError(f"+{key}= of {text!r} must be followed by a value, got none")
        if key == "lora":
            loras.append(_lora(value))
        elif key in values:
            raise ValueError(f"{text!r} must say +{key}= once, got it twice")
        else:
            values[key] = value
    if not model:
        raise ValueError(f"a model must be named before +{marks[0][1]}=, got {text!r}")
    variant = values.get("variant")
    if variant is not None and not re.fullmatch(r"\w[\w-]*", variant):
        raise ValueError(f"+variant= must be a word, as fp16, got {variant!r}")
    vae = _vae(values["vae"]) if "vae" in values else None
    return model, Additions(tuple(loras), vae, variant, values.get("config"))


def _refuse_words_in_names(text: str, marks: Sequence[re.Match[str]]) -> None:
    """Raise ValueError if a piece of the text over one of its `marks` is the name of a file or folder."""
    begins, ends = [0, *(mark.end() for mark in marks)], [*(mark.start() for mark in marks), len(text)]
    for first, begin in enumerate(begins):
        for mark, end in zip(marks[first:], ends[first + 1 :], strict=True):
            name = _without_scale(text[begin:end])
            if os.path.exists(os.path.expanduser(name)):
                raise ValueError(
                    f"{printable(name)} cannot be said in a model's text, where {mark[0]} begins what is loaded beside "
                    "the model: rename it, or link to it by another name"
                )


def pieces(text: str) -> list[str]:
    """The model, files and folders that a text names, of which each may be a path; of any other text, itself."""
    return [_without_scale(piece) for piece in _KNOWN.split(text)]


def _without_scale(piece: str) -> str:
    return re.sub(rf"({re.escape(SUFFIX)}):[^:/]*$", r"\1", piece)


def _lora(value: str) -> tuple[str, float]:
    """(file, scale) of FILE.safetensors or FILE.safetensors:SCALE."""
    file, _, scale = value.rpartition(":")
    if not file.endswith(SUFFIX):
        file, scale = value, "1"
    if not file.endswith(SUFFIX):
        raise ValueError(f"a LoRA must be FILE{SUFFIX} or FILE{SUFFIX}:SCALE, got {value!r}")
    number = float(scale) if _NUMBER.fullmatch(scale) else 0.0
    if not 0 < abs(number) <= MOST_SCALE:
        must = f"a number from -{MOST_SCALE} to {MOST_SCALE} other than 0"
        raise ValueError(f"the scale of the LoRA {file!r} must be {must}, got {scale!r}")
    return os.path.expanduser(file), number


def _vae(value: str) -> tuple[str, str | None]:
    if repository := REPOSITORY.fullmatch(value):
        return repository[1], repository[2]
    folder = os.path.expanduser(value)  # of an unknown user it is left, and no folder
    if not os.path.isdir(folder):
        raise ValueError(f"an autoencoder must be a folder or ORG/REPOSITORY@COMMIT (40 hex digits), got {value!r}")
    return str(Path(folder)), None


def added(spec: Spec, name: str, additions: Additions) -> Spec:
    """`spec` with what is loaded beside it, and with this name. Headers and configs of the files are read.

    Raises: ValueError, in one line, if the model cannot take it.
    """
    rules = FAMILIES[spec.family]
    spec = replace(spec, name=name, loras=additions.loras, variant=additions.variant)
    if additions.vae:
        spec = replace(spec, vae=additions.vae)
        if additions.vae[1] is None:
            _check_folder_vae(spec, Path(additions.vae[0]))
    if additions.loras and rules.no_lora:
        raise ValueError(f"{name} cannot take a LoRA: {rules.no_lora}")
    for file, _ in additions.loras:
        check_lora(file)
    if spec.variant and not spec.revision:
        own_vae = () if spec.vae else ("vae",)
        for part in (rules.denoiser, *own_vae, *rules.text_encoders):
            if not has_weights(folder := Path(spec.source) / part, spec.variant):
                raise ValueError(f"{folder} must hold weights of the variant {spec.variant!r}, got none")
    return spec


def _check_folder_vae(spec: Spec, folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        inner = folder / "vae"
        instead = f"; expected {str(inner)!r}?" if (inner / "config.json").is_file() else ""
        raise ValueError(f"{folder} must hold the config.json of an autoencoder, got none{instead}")
    values = read_json(config)
    if (kind := values.get("_class_name")) != "AutoencoderKL":
        raise ValueError(f"_class_name in {config} must be 'AutoencoderKL', got {kind!r}")
    check_vae(values, FAMILIES[spec.family].latent_channels(spec.denoiser), spec.name)
    if (factor := 2 ** (len(values["block_out_channels"]) - 1)) != spec.vae_factor:
        raise ValueError(f"vae of {spec.name} must be of {spec.vae_factor} pixels a latent cell, got {factor}")
    if not has_weights(folder, None):
        raise ValueError(f"{folder} must hold weights ({SUFFIX}), got none")


def has_weights(folder: Path, variant: str | None) -> bool:
    """Are a component's weights there as safetensors, of this variant (None: as such)?"""
    middle = f".{variant}" if variant else ""
    return any(
        (folder / name).is_file()
        for stem in ("diffusion_pytorch_model", "model")
        for name in (f"{stem}{middle}{SUFFIX}", f"{stem}{SUFFIX}.index{middle}.json")
    )


def header(file: str) -> dict[str, tuple[int, ...]]:
    """{tensor: its shape} of a safetensors file, from its header alone.

    Raises: ValueError if it is no such file.
    """
    path, shown = Path(file), printable(file)
    if not os.path.isfile(path):
        raise ValueError(f"{shown} must be a regular file, got {'another kind' if os.path.exists(path) else 'none'}")
    try:
        with open(path, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError("its header is too long")
            values: Mapping[str, Any] = json.loads(opened.read(length))
        shapes = {key: tuple(value["shape"]) for key, value in values.items() if key != "__metadata__"}
        if not all(type(side) is int and side >= 0 for shape in shapes.values() for side in shape):
            raise ValueError("a shape must be made of whole numbers")
        return shapes
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{shown} must be a safetensors file: {' '.join(str(error).split())}") from None


def check_lora(file: str) -> None:
    """Check, from its header alone, that a file holds a LoRA of a kind that is read whole. Raises ValueError."""
    keys = list(header(file))
    if other := next((key for key in keys if re.search("hada_|lokr_|oft_|dora_scale|lora_mid", key)), None):
        raise ValueError(f"{file} must hold a LoRA, got a tensor of another kind of adapter: {printable(other)}")
    other = next((key for key in keys if "lora" not in key), None)
    if not keys or other:
        raise ValueError(f"{file} must hold a LoRA, got {printable(other) if other else 'no tensors'}")


def elements(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Numbers in the tensors whose names begin with `prefix`."""
    return sum(prod(shape) for key, shape in shapes.items() if key.startswith(prefix))
