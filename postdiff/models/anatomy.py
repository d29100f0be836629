"""Where things are in a denoiser: the only file that knows the names of diffusers' modules, by class of denoiser.

A mechanism asks for blocks, attentions, an encoder, what lies beyond a skip connection; a denoiser whose class is not
here has none of them, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from postdiff.arguments import whole_number

if TYPE_CHECKING:
    import torch

# Kinds of layers, by a word of their names in diffusers.
IN_BLOCKS = {"attn1": "self-attention", "attn2": "cross-attention", "ff": "feed-forward"}
KINDS = {"resnets": "convolution", **IN_BLOCKS}


@dataclass(frozen=True)
class Block:
    """A transformer block.

    name: of its module, whose output [B, N, C] is the image's tokens.
    shrunk: its grid of tokens is so many times smaller than the latents' (1, 2, 4, ...).
    layers: {kind of layer, of `IN_BLOCKS`: name of its module}.
    """

    name: str
    shrunk: int
    layers: dict[str, str]


@dataclass(frozen=True)
class Anatomy:
    """The parts of one denoiser, by the names of their modules.

    blocks: transformer blocks, in the order they run.
    encoder: what runs before the decoder of a U-Net; () in a model that has none.
    stages: modules whose outputs are feature maps, in the order they run (Fig. 7).
    transformers: what block caching caches: whole transformers, for convolutions change too much from step to step.
    convolutions: residual blocks of convolutions; () in a model that has none.
    beyond: (skip branch) -> what a step through that skip connection does not run; None where there are no skips.
    """

    blocks: tuple[Block, ...]
    stages: tuple[str, ...]
    transformers: tuple[str, ...]
    convolutions: tuple[str, ...] = ()
    encoder: tuple[str, ...] = ()
    beyond: Callable[[int], list[str]] | None = None

    def layers(self, kind: str) -> list[str]:
        """The modules of one kind of layer."""
        return [block.layers[kind] for block in self.blocks]


def anatomy(denoiser: torch.nn.Module) -> Anatomy:
    """The parts of `denoiser`. Raises ValueError if the names of its class's modules are not known."""
    describe = KNOWN.get(type(denoiser).__name__)
    if describe is None:
        raise ValueError(f"the denoiser must be one of {', '.join(KNOWN)}, got {type(denoiser).__name__}")
    return describe(denoiser)


def _unet(unet: torch.nn.Module) -> Anatomy:
    names = [name for name, _ in unet.named_modules()]
    middle = ["mid_block"] if unet.mid_block is not None else []
    down = [f"down_blocks.{b}" for b in range(len(unet.down_blocks))]
    up = [f"up_blocks.{b}" for b in range(len(unet.up_blocks))]

    def shrunk(block: str) -> int:
        part, level, *_ = block.split(".")
        if part == "down_blocks":
            return 2 ** int(level)
        return 2 ** (len(up) - 1 - int(level) if part == "up_blocks" else len(down) - 1)

    blocks = [name for name in names if re.search(r"\.transformer_blocks\.\d+$", name)]
    return Anatomy(
        blocks=tuple(_block(name, shrunk(name)) for name in blocks),
        stages=(*down, *middle, *up),
        transformers=tuple(name for name in names if re.search(r"(^|\.)attentions\.\d+$", name)),
        convolutions=tuple(name for name in names if kind_of(name) == "convolution"),
        encoder=("conv_in", *down, *middle),
        beyond=lambda branch: _beyond_skip(unet, branch),
    )


def _transformer(transformer: torch.nn.Module) -> Anatomy:
    names = [f"transformer_blocks.{i}" for i in range(len(transformer.transformer_blocks))]
    patch = transformer.config.patch_size
    return Anatomy(tuple(_block(name, patch) for name in names), stages=tuple(names), transformers=tuple(names))


def _block(name: str, shrunk: int) -> Block:
    return Block(name, shrunk, {kind: f"{name}.{end}" for end, kind in IN_BLOCKS.items()})


KNOWN: dict[str, Callable[[torch.nn.Module], Anatomy]] = {
    "UNet2DConditionModel": _unet,
    "PixArtTransformer2DModel": _transformer,
}


PLAIN = ("AttnProcessor", "AttnProcessor2_0", "FusedAttnProcessor2_0")  # projections and softmax


def check_processor(name: str, attention: torch.nn.Module) -> None:
    """Raise ValueError if an attention does more than project and attend: a mechanism that computes it itself would
    leave out what a processor of the user's, or an adapter's, adds."""
    processor = type(attention.processor)
    if processor.__name__ not in PLAIN or not processor.__module__.startswith("diffusers."):
        raise ValueError(
            f"{name} would be computed without its processor: expected one of {', '.join(PLAIN)} of diffusers, got "
            f"{processor.__name__}"
        )


FREEU = ("s1", "s2", "b1", "b2")  # attributes of blocks


def scaled_in_place(denoiser: torch.nn.Module) -> tuple[str, ...]:
    """Blocks of a U-Net's decoder that scale what they are given, where it lies (FreeU); () where that is off."""
    blocks = enumerate(denoiser.up_blocks[:2])
    return tuple(f"up_blocks.{b}" for b, block in blocks if all(getattr(block, key, 0) for key in FREEU))


def kind_of(name: str) -> str:
    """The kind of layer that a module of this name is; "" if it is none."""
    *_, before, last = ("", *name.split("."))
    return KINDS.get(before if before == "resnets" else last, "")


def word_of(kind: str) -> str:
    """The word of diffusers' names that a kind of layer is known by."""
    return next(word for word, layer in KINDS.items() if layer == kind)


def layer_of(name: str) -> str:
    """The kind of layer that a module of this name is, or belongs to; "other" if to none."""
    words = name.split(".")
    return next((kind for word, kind in KINDS.items() if word in words), "other")


def _skip_count(unet: torch.nn.Module) -> int:
    """How many skip connections a diffusers U-Net has: 12 in SD1.5."""
    return 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in unet.down_blocks)


def _beyond_skip(unet: torch.nn.Module, branch: int) -> list[str]:
    """Names of the modules that a step through skip connection `branch` does not run, in the order they run.

    Skips are numbered from the outside: 0 is conv_in's output, each layer and each downsampler of the encoder
    produces the next, and the decoder's layers consume them in reverse. Whole blocks are named as one.

    Raises: ValueError if the denoiser has no such branch.
    """
    whole_number("branch", branch, 0, _skip_count(unet) - 2)
    names, skip = [], 0
    for b, block in enumerate(unet.down_blocks):
        layers, down = len(block.resnets), bool(block.downsamplers)
        units = [(skip + 1 + i, _layer(block, f"down_blocks.{b}", i)) for i in range(layers)]
        units += [(skip + layers + 1, [f"down_blocks.{b}.downsamplers.0"])] if down else []
        names += _past(units, branch, f"down_blocks.{b}")
        skip += layers + down
    names += ["mid_block"] if unet.mid_block is not None else []
    for b, block in enumerate(unet.up_blocks):
        layers = len(block.resnets)
        units = [(skip - i, _layer(block, f"up_blocks.{b}", i)) for i in range(layers)]
        if block.upsamplers:  # belongs to the block's last layer
            units[-1][1].append(f"up_blocks.{b}.upsamplers.0")
        names += _past(units, branch, f"up_blocks.{b}")
        skip -= layers
    return names


def _layer(block: torch.nn.Module, name: str, i: int) -> list[str]:
    attention = [f"{name}.attentions.{i}"] if getattr(block, "attentions", None) else []
    return [f"{name}.resnets.{i}", *attention]


def _past(units: list[tuple[int, list[str]]], branch: int, block: str) -> list[str]:
    if all(skip > branch for skip, _ in units):
        return [block]
    return [name for skip, names in units if skip > branch for name in names]


def token_grid(latent: tuple[int, int], tokens: int) -> tuple[int, int]:
    """(h, w) of `tokens` tokens: a U-Net's level halves the latents' sides, rounding up, zero or more times."""
    h, w = latent
    while h * w > tokens:
        h, w = shrink((h, w), 2)
    if h * w != tokens:
        raise ValueError(f"{tokens} tokens are no level of a U-Net on latents of {latent[0]}x{latent[1]}")
    return h, w


def shrink(latent: tuple[int, int], times: int) -> tuple[int, int]:
    """(h, w) of a grid that is 1, 2, 4, ... times smaller than the latents', halved so often and rounded up."""
    h, w = latent
    while times > 1:
        h, w, times = -(-h // 2), -(-w // 2), times // 2
    return h, w
