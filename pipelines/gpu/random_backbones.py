"""The real architectures with random weights, made where they run, and random text: what a run takes in time and memory
depends on no checkpoint.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

import postdiff
from postdiff.models.families import FAMILIES
from postdiff.models.family import Text, class_of
from postdiff.models.loading import float32_vae
from postdiff.models.spec import Spec
from postdiff.text import Embeddings

# The autoencoder of all checkpoints of `backbones.HUB`; only its scaling and its dtype differ.
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
THIN_VAE = {**VAE, "block_out_channels": (32,) * 4}
SCALING = {"sdxl": 0.13025}  # and SD's 0.18215
NOISE = {
    "pixart": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    "sd": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},  # and of its relatives
}
THIN_SIZE = 64  # pixels
WORDS = 24  # tokens of a prompt that are no padding


def thin(spec: Spec) -> Spec:
    """`spec` with the same kinds of blocks, so narrow and small that a CPU runs it: for rehearsals alone."""
    if FAMILIES[spec.family].denoiser == "transformer":
        narrow: dict[str, Any] = {"num_layers": 3, "num_attention_heads": 4, "cross_attention_dim": 4 * 72}
    else:
        channels = spec.denoiser.get("block_out_channels", (320, 640, 1280, 1280))
        narrow = {
            "block_out_channels": tuple(c // 10 for c in channels),
            "norm_num_groups": 8,
            "attention_head_dim": 4,
        }
        if "transformer_layers_per_block" in spec.denoiser:
            narrow["transformer_layers_per_block"] = (1, 1, 2)
    return replace(spec, size=(THIN_SIZE, THIN_SIZE), denoiser={**spec.denoiser, **narrow})


def random_backbone(spec: Spec, device: str, dtype: torch.dtype, vae: dict[str, Any] = VAE) -> postdiff.Backbone:
    """A backbone without text encoders, its random weights the same every time on one kind of device.

    vae: config of the autoencoder. Weights are drawn in float32, then cast: SDXL takes 10 GB on the way.
    """
    rules = FAMILIES[spec.family]
    torch.manual_seed(0)
    with torch.device(device):
        denoiser = class_of(rules.model).from_config(spec.denoiser)
        # Of SDXL's two autoencoders, its own must decode in float32.
        autoencoder = AutoencoderKL(
            **vae, scaling_factor=SCALING.get(spec.family, 0.18215), force_upcast=spec.vae is None
        )
    for module in (denoiser, autoencoder):
        module.eval().requires_grad_(False).to(device, dtype)  # what numpy computed (PixArt's positions) is on the host
    pipe = SimpleNamespace(
        device=torch.device(device),
        dtype=dtype,
        vae=autoencoder,
        text_encoder=None,
        tokenizer=None,
        scheduler=DPMSolverMultistepScheduler(**NOISE.get(spec.family, NOISE["sd"])),
        **{rules.denoiser: denoiser},
    )
    return postdiff.Backbone(spec, pipe, float32_vae(spec, autoencoder))


def random_text(backbone: postdiff.Backbone, n: int) -> Embeddings:
    """Of `n` prompts in one batch: standard normal embeddings, in the backbone's dtype and on its device."""
    spec, generator = backbone.spec, torch.Generator().manual_seed(1)
    rules = FAMILIES[spec.family]
    shapes = rules.text_shapes(backbone.denoiser.config, spec.text_tokens)

    def rows(words: int) -> Text:
        drawn = {
            name: torch.randn(n, *shape, generator=generator).to(backbone.device, backbone.dtype)
            for name, shape in shapes.items()
            if name != "mask"
        }
        if "mask" in shapes:
            mask = (torch.arange(spec.text_tokens) < words).long()
            drawn["mask"] = mask.repeat(n, 1).to(backbone.device)
        return drawn

    return Embeddings(rows(WORDS), rows(1) if rules.guided else {})
