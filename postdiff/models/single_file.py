"""A checkpoint in one safetensors file, as Stable Diffusion and SDXL were first published: U-Net, text encoders and
autoencoder under the names of the original code. diffusers renames its tensors; the configs are another model's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import warn

from postdiff.models.additions import SUFFIX, elements, header
from postdiff.models.families import FAMILIES
from postdiff.models.spec import Spec

UNET, VAE = "model.diffusion_model.", "first_stage_model."
# Of each text encoder the names of its tensors begin so, in SD1, in SD2 (OpenCLIP's), and in SDXL.
WORDS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model.")},
    2: {
        "text_encoder": ("conditioner.embedders.0.transformer.",),
        "text_encoder_2": ("conditioner.embedders.1.model.",),
    },
}
AVERAGED = "model_ema."
# What training left, of the noise schedule that the config tells.
LEFT_OVER = re.compile(r"(model_ema\.|(sqrt_)?(recip_?m?1?_?)?alphas_cumprod|betas$|sqrt_one_minus_|log_one_minus_|"
                       r"sqrt_recip|posterior_|logvar$|lvlb_weights$|denoiser\.sigmas$|global_step$)")  # fmt: skip


def single_spec(file: str, config: Spec) -> Spec:
    """The spec of a checkpoint in the file `file`, read by the configs of the model `config`: how that is run.

    Raises: ValueError, in one line, if the file is not of that kind, lacks a part, or holds what would not be read.
        Warns (UserWarning) of averaged weights beside the others, which diffusers leaves out.
    """
    rules = FAMILIES[config.family]
    if rules.denoiser != "unet" or not rules.guided:
        raise ValueError(f"{file} cannot be read by the configs of {config.name}: expected a model of SD or SDXL")
    if not file.endswith(SUFFIX):
        raise ValueError(f"a single file must be {SUFFIX} (others hold code), got {file!r}")
    shapes, words = header(file), WORDS[len(rules.text_encoders)]
    wanted: dict[str, tuple[str, ...]] = {"unet": (UNET,), "vae": (VAE,), **words}
    if config.vae:
        del wanted["vae"]
    for part, prefixes in wanted.items():
        if not any(elements(shapes, prefix) for prefix in prefixes):
            raise ValueError(
                f"{file} must hold the {part} of {config.name} in the original layout, tensors named "
                f"{' or '.join(prefix + '*' for prefix in prefixes)}, got none"
            )
    known = (UNET, VAE, *(prefix for prefixes in words.values() for prefix in prefixes))
    if other := next((key for key in shapes if not key.startswith(known) and not LEFT_OVER.match(key)), None):
        raise ValueError(f"{file} must hold nothing beside {', '.join(wanted)}, got the tensor {other!r}")
    if elements(shapes, AVERAGED):
        warn(f"{file} holds averaged weights ({AVERAGED}*) beside the others: they are not used", stacklevel=4)
    return replace(config, file=file)


def components(spec: Spec, folder: Path, kinds: Mapping[str, str], dtype: Any) -> dict[str, Any]:
    """The models of `kinds`, {component: class}, of the file of `spec`, in `dtype`.

    folder: of the configs. Raises: ValueError if the file has not all of a model's tensors, or more of them.
    """
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, load_single_file_checkpoint

    from postdiff.models.family import class_of
    from postdiff.models.loading import as_value_error

    file = spec.file or ""
    checkpoint, options = load_single_file_checkpoint(file, local_files_only=True), {"local_files_only": True}
    for part, kind in kinds.items():
        _check_whole(file, part, kind, folder / part)
    made = {}
    for part, kind in kinds.items():
        with as_value_error(f"{part} of {file} cannot be read by the config in {folder / part}"):
            if kind.startswith("CLIP"):
                make, where = create_diffusers_clip_model_from_ldm, {"subfolder": part, "config": str(folder)}
                made[part] = make(class_of(kind, "transformers"), checkpoint, torch_dtype=dtype, **where, **options)
            else:
                make = class_of(kind).from_single_file
                made[part] = make(checkpoint, config=str(folder), subfolder=part, dtype=dtype, **options)
    return made


def _check_whole(file: str, part: str, kind: str, folder: Path) -> None:
    """Raise ValueError if a model has not as many numbers as the file has for it: diffusers leaves out what is too
    much, and says so in a log, or not at all."""
    import torch

    from postdiff.models.family import class_of
    from postdiff.models.loading import as_value_error

    shapes = {key: shape for key, shape in header(file).items() if not key.endswith("position_ids")}
    prefixes = {"unet": (UNET,), "vae": (VAE,)}.get(part) or [
        p for words in WORDS.values() for p in words.get(part, ())
    ]
    prefix = next(p for p in prefixes if elements(shapes, p))
    model_class = class_of(kind, "transformers" if kind.startswith("CLIP") else "diffusers")
    with as_value_error(f"{part} cannot be built from the config in {folder}"), torch.device("meta"):
        if kind.startswith("CLIP"):
            model = model_class(model_class.config_class.from_pretrained(folder))
        else:
            model = model_class.from_config(model_class.load_config(folder))
    if prefix.endswith(".model."):  # OpenCLIP's. SD2 leaves out its last layer, and what scores images.
        held = len({match[1] for key in shapes if (match := re.match(rf"{re.escape(prefix)}.*resblocks\.(\d+)", key))})
        layers = model.config.num_hidden_layers
        if held not in (layers, layers + 1):
            raise ValueError(f"{part} in {file} must have the {layers} layers that its config tells, got {held}")
        return
    held, expected = elements(shapes, prefix), sum(tensor.numel() for tensor in model.state_dict().values())
    if held != expected:
        raise ValueError(f"{part} in {file} must be as its config tells, of {expected} numbers, got {held}")
