"""What differs between the four families: how prompts are encoded, what the denoiser is told beside the latents, how
latents become pixels, and what cannot be done. The loop, the plan and the cost model are the same for all.

Text is a dict of tensors, one row an image (unconditional half first, then the conditional one, where guided):
    text    [B, L, D]  token embeddings
    pooled  [B, P]     SDXL: one embedding a prompt
    mask    [B, L]     PixArt: 1 where a token is, 0 where padding is
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import TYPE_CHECKING, Any

from postdiff.models.schedulers import ODE
from postdiff.plan import Plan

if TYPE_CHECKING:
    import torch

Text = dict[str, "torch.Tensor"]
CLIP = {"text_encoder": "CLIPTextModel"}


@dataclass(frozen=True)
class Family:
    """One family. Classes are named, so that neither torch nor diffusers is imported before one is needed.

    pipeline: diffusers' class; denoiser: the pipeline's attribute; model: the denoiser's class, diffusers' too.
    encode: (pipe, prompts, guided, text_tokens) -> Text, as the pipeline itself encodes.
    inputs: (Text, (height, width) in pixels, w, config) -> what the denoiser takes beside latents and timesteps.
    text_shapes: (config, text_tokens) -> the shape of each tensor of Text for one row, for costs without weights.
    text_encoders: the pipeline's components that encode prompts, with their classes, of transformers.
    guided: classifier-free guidance runs two halves.
    no_deep: why deep features cannot be cached, or "".
    told_size: the denoiser is told the size of the image.
    """

    pipeline: str
    options: dict[str, Any]  # of from_pretrained
    denoiser: str
    model: str
    encode: Callable[..., Text]
    inputs: Callable[..., dict[str, Any]]
    text_shapes: Callable[[dict, int], dict[str, tuple[int, ...]]]
    text_encoders: dict[str, str] = field(default_factory=lambda: CLIP)
    solvers: tuple[str, ...] = ODE
    guided: bool = True
    no_deep: str = ""
    told_size: bool = False
    upcast_vae: bool = False  # decode in fp32 if the autoencoder's config asks for it

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return tuple(name.replace("text_encoder", "tokenizer") for name in self.text_encoders)


def class_of(name: str, library: str = "diffusers") -> Any:
    """The class called `name` of diffusers or transformers, which are imported here: seconds, the first time."""
    return getattr(importlib.import_module(library), name)


def _halves(uncond: torch.Tensor | None, cond: torch.Tensor) -> torch.Tensor:
    import torch

    return cond if uncond is None else torch.cat([uncond, cond])


def _encode_sd(pipe, prompts: Sequence[str], guided: bool, text_tokens: int) -> Text:
    cond, uncond = pipe.encode_prompt(list(prompts), pipe.device, 1, guided)
    return {"text": _halves(uncond if guided else None, cond)}


def _encode_sdxl(pipe, prompts: Sequence[str], guided: bool, text_tokens: int) -> Text:
    cond, uncond, pooled, uncond_pooled = pipe.encode_prompt(
        list(prompts), device=pipe.device, do_classifier_free_guidance=guided
    )
    if not guided:
        uncond = uncond_pooled = None
    return {"text": _halves(uncond, cond), "pooled": _halves(uncond_pooled, pooled)}


def _encode_pixart(pipe, prompts: Sequence[str], guided: bool, text_tokens: int) -> Text:
    # The pipeline's default cleans captions of HTML if two optional packages are there. A result must not depend on
    # what else is installed, so ours never does.
    cond, mask, uncond, uncond_mask = pipe.encode_prompt(
        list(prompts), guided, device=pipe.device, clean_caption=False, max_sequence_length=text_tokens
    )
    if not guided:
        uncond = uncond_mask = None
    return {"text": _halves(uncond, cond), "mask": _halves(uncond_mask, mask)}


def _inputs_sd(text: Text, size: tuple[int, int], guidance: float, config) -> dict:
    return {"encoder_hidden_states": text["text"]}


def _inputs_lcm(text: Text, size: tuple[int, int], guidance: float, config) -> dict:
    """Guidance was distilled into the model: it is told w, and runs once."""
    w = guidance_embedding(guidance, config["time_cond_proj_dim"]).to(text["text"])
    return {**_inputs_sd(text, size, guidance, config), "timestep_cond": w.expand(len(text["text"]), -1)}


def guidance_embedding(guidance: float, width: int) -> torch.Tensor:
    """[1, width] float32 of w - 1, sinusoidal (Imagen's w, which is LCM's plus 1)."""
    import torch

    w = torch.tensor([guidance - 1], dtype=torch.float32) * 1000
    frequencies = torch.exp(torch.arange(width // 2, dtype=torch.float32) * -(log(10_000) / (width // 2 - 1)))
    angles = w[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _inputs_sdxl(text: Text, size: tuple[int, int], guidance: float, config) -> dict:
    """Original size, crop (none) and target size go in beside the pooled text."""
    import torch

    ids = torch.tensor([[*size, 0, 0, *size]], dtype=text["text"].dtype, device=text["text"].device)
    added = {"text_embeds": text["pooled"], "time_ids": ids.expand(len(text["text"]), -1)}
    return {**_inputs_sd(text, size, guidance, config), "added_cond_kwargs": added}


def _inputs_pixart(text: Text, size: tuple[int, int], guidance: float, config) -> dict:
    import torch

    rows, dtype, device = len(text["text"]), text["text"].dtype, text["text"].device
    added: dict[str, torch.Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if config["sample_size"] == 128:  # the checkpoints that were trained at many sizes (1024-MS) know theirs
        added["resolution"] = torch.tensor([size], dtype=dtype, device=device).expand(rows, -1)
        added["aspect_ratio"] = torch.tensor([[size[0] / size[1]]], dtype=dtype, device=device).expand(rows, -1)
    return {
        "encoder_hidden_states": text["text"],
        "encoder_attention_mask": text["mask"],
        "added_cond_kwargs": added,
    }


def _shapes_sd(config: dict, tokens: int) -> dict[str, tuple[int, ...]]:
    return {"text": (tokens, config["cross_attention_dim"])}


def _shapes_sdxl(config: dict, tokens: int) -> dict[str, tuple[int, ...]]:
    # What is projected is the pooled text beside six numbers of size and crop.
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {**_shapes_sd(config, tokens), "pooled": (pooled,)}


def _shapes_pixart(config: dict, tokens: int) -> dict[str, tuple[int, ...]]:
    return {"text": (tokens, config["caption_channels"]), "mask": (tokens,)}


# An image encoder is of IP-Adapter alone, which is refused.
_NO_IMAGES = {"image_encoder": None, "feature_extractor": None}
_UNCHECKED = {**_NO_IMAGES, "safety_checker": None, "requires_safety_checker": False}
_UNET = ("unet", "UNet2DConditionModel")

FAMILIES = {
    "sd": Family("StableDiffusionPipeline", _UNCHECKED, *_UNET, _encode_sd, _inputs_sd, _shapes_sd),
    "lcm": Family(
        "LatentConsistencyModelPipeline",
        _UNCHECKED,
        *_UNET,
        _encode_sd,
        _inputs_lcm,
        _shapes_sd,
        solvers=("lcm",),
        guided=False,
        no_deep="a consistency model's few steps are too far apart for features to be alike (paper, sec. 3.1)",
    ),
    "sdxl": Family(
        "StableDiffusionXLPipeline",
        {**_NO_IMAGES, "add_watermarker": False},
        *_UNET,
        _encode_sdxl,
        _inputs_sdxl,
        _shapes_sdxl,
        text_encoders={**CLIP, "text_encoder_2": "CLIPTextModelWithProjection"},
        told_size=True,
        upcast_vae=True,
    ),
    "pixart": Family(
        "PixArtAlphaPipeline",
        {},
        "transformer",
        "PixArtTransformer2DModel",
        _encode_pixart,
        _inputs_pixart,
        _shapes_pixart,
        text_encoders={"text_encoder": "T5EncoderModel"},
        no_deep="a transformer has no skip connections between shallow and deep blocks",
        told_size=True,
    ),
}


def adapt(plan: Plan, family: str) -> Plan:
    """`plan` as `family` runs it: where guidance is distilled into the model, every step runs one half.

    Raises: ValueError with the reason if the family cannot run it.
    """
    rules = FAMILIES[family]
    if rules.no_deep and any("deep" in plan.reuses(i) for i in range(len(plan))):
        raise ValueError(f"{family} cannot cache deep features: {rules.no_deep}; expected k=1, got {plan.name}")
    if plan.size_condition != "target" and not rules.told_size:
        raise ValueError(f"{family} is told no size; expected size_condition target, got {plan.size_condition}")
    if rules.guided:
        return plan
    return replace(plan, steps=tuple(replace(step, guided=False) for step in plan.steps), half="cond")
