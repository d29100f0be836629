"""What the configs of a checkpoint may say, checked before any weights are read.

A setting of a model changes what its forward pass needs or gives, or it does not. Those that do must be what the
pipeline of the family passes on; a setting that is not known here is refused, whatever it is. So a checkpoint runs as
it was made to, or not at all. Names and numbers only: neither torch nor diffusers is imported.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postdiff.arguments import printable

if TYPE_CHECKING:
    from postdiff.models.family import Family

# Settings that a model is built from and that ask for nothing beside its latents, timestep and text.
BUILT_FROM = {
    "UNet2DConditionModel": {
        "act_fn", "addition_embed_type_num_heads", "attention_head_dim", "block_out_channels", "center_input_sample",
        "conv_in_kernel", "conv_out_kernel", "downsample_padding", "dropout", "flip_sin_to_cos", "freq_shift",
        "layers_per_block", "mid_block_scale_factor", "norm_eps", "norm_num_groups", "resnet_out_scale_factor",
        "resnet_skip_time_act", "resnet_time_scale_shift", "reverse_transformer_layers_per_block",
        "time_embedding_act_fn", "time_embedding_dim", "time_embedding_type", "timestep_post_act",
        "transformer_layers_per_block", "upcast_attention", "use_linear_projection",
    },
    "PixArtTransformer2DModel": {
        "activation_fn", "attention_bias", "attention_head_dim", "cross_attention_dim", "dropout",
        "interpolation_scale", "norm_elementwise_affine", "norm_eps", "norm_num_groups", "num_attention_heads",
        "num_embeds_ada_norm", "num_layers", "upcast_attention",
    },
    "AutoencoderKL": {
        "act_fn", "block_out_channels", "down_block_types", "force_upcast", "layers_per_block",
        "mid_block_add_attention", "norm_num_groups", "sample_size", "scaling_factor", "up_block_types",
        "use_post_quant_conv", "use_quant_conv",
    },
}  # fmt: skip
# Settings that have one right value here, and why.
ASKS_FOR: dict[str, dict[str, tuple[Any, str]]] = {
    "UNet2DConditionModel": {
        "attention_type": ("default", "boxes (GLIGEN) are not passed on"),
        "class_embed_type": (None, "class labels are not passed on"),
        "class_embeddings_concat": (False, "class labels are not passed on"),
        "cross_attention_norm": (None, "its cross-attention is not the one that methods cache"),
        "dual_cross_attention": (False, "two texts are not passed on"),
        "encoder_hid_dim": (None, "its text or image is projected, which is not passed on (IP-Adapter)"),
        "encoder_hid_dim_type": (None, "image embeddings are not passed on (IP-Adapter)"),
        "mid_block_only_cross_attention": (None, "its self-attention is not the one that methods cache"),
        "num_attention_heads": (None, "diffusers reads attention_head_dim"),
        "num_class_embeds": (None, "class labels are not passed on"),
        "only_cross_attention": (False, "its self-attention is not the one that methods cache"),
    },
    "PixArtTransformer2DModel": {
        "attention_type": ("default", "boxes (GLIGEN) are not passed on"),
        "norm_type": ("ada_norm_single", "another is not PixArt's"),
    },
    "AutoencoderKL": {
        "in_channels": (3, "images are RGB"),
        "latents_mean": (None, "latents with a mean of their own are not offered"),
        "latents_std": (None, "latents with a deviation of their own are not offered"),
        "out_channels": (3, "images are RGB"),
        "shift_factor": (None, "shifted latents are not offered"),
    },
}
# Settings that are checked beside others, or by the family.
CHECKED = {
    "UNet2DConditionModel": {
        "addition_embed_type", "addition_time_embed_dim", "cross_attention_dim", "down_block_types", "in_channels",
        "mid_block_type", "out_channels", "projection_class_embeddings_input_dim", "sample_size", "time_cond_proj_dim",
        "up_block_types",
    },
    "PixArtTransformer2DModel": {
        "caption_channels", "in_channels", "out_channels", "patch_size", "sample_size", "use_additional_conditions",
    },
    "AutoencoderKL": {"latent_channels"},
}  # fmt: skip
# The default of `out_channels`, and what it may be beside the channels of the latents and twice as many.
OUT_CHANNELS: dict[str, tuple[int | None, ...]] = {"UNet2DConditionModel": (4,), "PixArtTransformer2DModel": (8, None)}
# What trainers leave in a config: of the moving average of weights, which is over.
LEFT_OVER = {
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
}  # fmt: skip
BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file of a checkpoint holds.

    Raises: ValueError with the file's name if it is no regular file, or holds anything else; OSError if it cannot be
        read.
    """
    if not file.is_file():
        raise ValueError(f"{file} must be a regular file, got {'another kind' if file.exists() else 'none'}")
    try:
        value = json.loads(file.read_bytes())
    except RecursionError:
        raise ValueError(f"{file} must hold a JSON object, got one that is nested too deep") from None
    except ValueError as error:  # JSON's and Unicode's errors are ValueErrors
        raise ValueError(f"{file} must hold a JSON object: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(value).__name__}")
    return value


def regular_files(folder: Path) -> list[Path]:
    """All files below a model's folder, sorted; what is in hidden folders only where it is a regular file.

    Raises: ValueError if one is none: reading a FIFO waits for ever.
    """
    files = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            files.append(file)
        elif not file.is_dir() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            kind = _KINDS.get(stat.S_IFMT(file.stat().st_mode), "another kind") if file.exists() else "a broken link"
            raise ValueError(f"{folder} must hold regular files alone, got {kind}: {printable(str(file))}")
    return files


_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def check_components(folder: Path, index: Mapping[str, Any], rules: Family) -> None:
    """Check the classes that model_index.json (`index`) names: others have other settings, or code of their own.

    Raises: ValueError with the component's name if one is not the family's.
    """
    expected: dict[str, tuple[str, str | None]] = {
        rules.denoiser: ("diffusers", rules.model),
        "vae": ("diffusers", "AutoencoderKL"),
        "scheduler": ("diffusers", None),
        **{part: ("transformers", kind) for part, kind in rules.text_encoders.items()},
        **dict.fromkeys(rules.tokenizers, ("transformers", None)),
    }
    for part, (library, kind) in expected.items():
        got = index.get(part)
        if not (
            isinstance(got, list)
            and len(got) == 2
            and got[0] == library
            and isinstance(got[1], str)
            and kind in (None, got[1])
        ):
            raise ValueError(
                f"{part} in {folder / 'model_index.json'} must be {kind or 'a class'} of {library}, got {got!r}"
            )


def text_tokens(lengths: Sequence[Any], rules: Family, encoders: Mapping[str, Mapping[str, Any]], where: str) -> int:
    """Length of a padded prompt: at most what the family was trained with.

    lengths: `model_max_length` of each tokenizer. where: whose they are.
    Raises: ValueError if it is no number, is not one number, or is more than a text encoder has positions.
    """
    tokens, name = lengths[0], f"model_max_length of {' and '.join(rules.tokenizers)} of {where}"
    if not all(isinstance(n, int | float) and n == tokens and n >= 2 for n in lengths):
        raise ValueError(f"{name} must be one number, got {', '.join(map(repr, lengths))}")
    if rules.most_tokens:  # T5's positions are relative
        return int(min(tokens, rules.most_tokens))
    for part, config in encoders.items():
        if tokens > (most := _whole(config, "max_position_embeddings", 77, f"{part} of {where}")):
            raise ValueError(f"{name} must be at most max_position_embeddings of {part}, {most}, got {tokens}")
    return int(tokens)


def check_denoiser(rules: Family, config: Mapping[str, Any], name: str = "the model") -> None:
    """Check that a denoiser gets all the inputs that its config asks for, and that its output is what is expected.

    config: as JSON or diffusers has it; a key that is missing has the class's default.
    Raises: ValueError, which names `name`, with what was expected and what was given.
    """
    where = f"{rules.denoiser} of {name}"
    rules.check(config, where)
    _check_known(rules.model, config, where)
    channels = _whole(config, "in_channels", 4, where)
    given = config.get("out_channels", OUT_CHANNELS[rules.model][0])
    if given not in (channels, 2 * channels, *OUT_CHANNELS[rules.model][1:]):
        raise ValueError(
            f"out_channels of {where} must be its in_channels, {channels}, or twice as many, got {given!r}: "
            "a model of inpainting, depth, editing or upscaling is told an image, which is not passed on"
        )


def check_unet(rules: Family, config: Mapping[str, Any], where: str, added: str | None) -> None:
    """Check a U-Net's config: in a guided family it takes no w, and its `addition_embed_type` must be `added`."""
    width = config.get("time_cond_proj_dim")
    if not rules.guided:
        if type(width) is not int or width < 4 or width % 2:
            raise ValueError(f"time_cond_proj_dim of {where} must be an even number from 4, got {width!r}")
    elif width is not None:
        raise ValueError(
            f"time_cond_proj_dim of {where} must be None, got {width!r}: guidance was distilled into the model, which "
            f"is told w; models of {rules.pipeline} run guided here"
        )
    if (addition := config.get("addition_embed_type")) != added:
        raise ValueError(f"addition_embed_type of {where} must be {added}, got {addition!r}: nothing else is passed on")
    for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        if added:
            _whole(config, key, None, where)
        elif config.get(key) is not None:
            raise ValueError(f"{key} of {where} must be None without addition_embed_type, got {config[key]!r}")
    for key, known in BLOCKS.items():
        blocks = config.get(key, known[0])
        if bad := [b for b in (blocks if isinstance(blocks, list | tuple) else [blocks]) if b not in known]:
            raise ValueError(f"{key} of {where} must be among {', '.join(map(str, known))}, got {bad[0]!r}")
    _whole(config, "cross_attention_dim", 1280, where)


def check_pixart(config: Mapping[str, Any], where: str, size_conditioned: bool) -> None:
    """Check the config of PixArt's transformer. size_conditioned: does its pipeline tell it the size of the image?"""
    _whole(config, "caption_channels", None, where)
    _whole(config, "patch_size", 2, where)
    side = config.get("sample_size", 128)
    asks = config.get("use_additional_conditions")
    if (side == 128 if asks is None else asks) != size_conditioned:
        raise ValueError(
            f"use_additional_conditions of {where} must be {size_conditioned} at sample_size {side!r}, got {asks!r}"
        )


def check_vae(config: Mapping[str, Any], channels: int, name: str = "the model") -> None:
    """Check that an autoencoder decodes the denoiser's latents of so many channels.

    Raises: ValueError, which says what of `name` was expected and what came.
    """
    where = f"vae of {name}"
    _check_known("AutoencoderKL", config, where)
    if _whole(config, "latent_channels", 4, where) != channels:
        raise ValueError(
            f"latent_channels of {where} must be the denoiser's in_channels, {channels}, got "
            f"{config.get('latent_channels', 4)}: a model of inpainting, depth or editing is told an image, which is "
            "not passed on"
        )
    blocks, factor = config.get("block_out_channels"), config.get("scaling_factor", 0.18215)
    if not isinstance(blocks, list | tuple) or not 1 <= len(blocks) <= 8:
        raise ValueError(f"block_out_channels of {where} must be a list of 1 to 8 numbers, got {blocks!r}")
    if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise ValueError(f"scaling_factor of {where} must be a number above 0, got {factor!r}")


def check_widths(
    rules: Family, denoiser: Mapping[str, Any], encoders: Mapping[str, Mapping[str, Any]], name: str
) -> None:
    """Check that text encoders give embeddings as wide as the denoiser takes.

    encoders: the config of each of `Family.text_encoders`. Raises: ValueError if they do not.
    """
    for part, config in encoders.items():
        check_quantization(config, f"{part} of {name}")
    key, takes = rules.text_width
    width = sum(_whole(config, key, 512, f"{part} of {name}") for part, config in encoders.items())
    if denoiser.get(takes, 1280) != width:
        parts = " and ".join(encoders)
        raise ValueError(f"{takes} of {name} must be {key} of {parts}, {width}, got {denoiser.get(takes, 1280)!r}")


def check_pooled(denoiser: Mapping[str, Any], encoders: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Check that SDXL's second text encoder gives pooled embeddings as wide as the U-Net takes beside the size."""
    pooled = _whole(encoders["text_encoder_2"], "projection_dim", 512, f"text_encoder_2 of {name}")
    takes, time = "projection_class_embeddings_input_dim", denoiser["addition_time_embed_dim"]
    if denoiser[takes] != pooled + 6 * time:
        raise ValueError(
            f"{takes} of {name} must be projection_dim of text_encoder_2 and six times addition_time_embed_dim, "
            f"{pooled + 6 * time}, got {denoiser[takes]!r}"
        )


def in_memory(module: Any) -> dict[str, Any]:
    """The config of a model that is loaded, of diffusers or of transformers. How its weights are quantised is theirs to
    know: what runs is the module that is here."""
    config = module.config
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in config.items() if key != "quantization_config"}


def check_quantization(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError if a config asks for quantised weights: they need other packages, and give other images."""
    if config.get("quantization_config"):
        raise ValueError(f"quantization_config of {where} must not be there: quantised weights are not offered")


def _check_known(model: str, config: Mapping[str, Any], where: str) -> None:
    check_quantization(config, where)
    for key, (value, why) in ASKS_FOR[model].items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} of {where} must be {value!r}, got {config[key]!r}: {why}")
    known = BUILT_FROM[model] | ASKS_FOR[model].keys() | CHECKED[model] | LEFT_OVER
    for key, value in config.items():
        if key not in known and not key.startswith("_") and value not in (None, False, "", [], {}, ()):
            raise ValueError(f"{printable(key)} of {where} is a setting that {model} does not have, got {value!r}")


def _whole(config: Mapping[str, Any], key: str, default: int | None, where: str) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} of {where} must be a whole number of 1 or more, got {value!r}")
    return value
