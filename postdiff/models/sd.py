"""Stable Diffusion 1.x and its relatives (BK-SDM): a U-Net and CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postdiff.models.configs import check_unet
from postdiff.models.family import Arguments, Family, Text, halves

CLIP = {"text_encoder": "CLIPTextModel"}
# An image encoder is of IP-Adapter alone, which is refused.
NO_IMAGES = {"image_encoder": None, "feature_extractor": None}


class StableDiffusion(Family):
    pipeline = "StableDiffusionPipeline"
    output = "StableDiffusionPipelineOutput"
    options: Mapping[str, Any] = {**NO_IMAGES, "safety_checker": None, "requires_safety_checker": False}
    denoiser = "unet"
    model = "UNet2DConditionModel"
    text_encoders: Mapping[str, str] = CLIP
    tokenizer = "CLIPTokenizer"
    text_width = "hidden_size", "cross_attention_dim"
    settings: Mapping[str, Any] = {"steps": 20, "beta": 0.5, "s": 0.5, "k": 2, "m": 0.75}
    addition_embed_type: str | None = None  # what the U-Net is told beside the text

    def check(self, config: Mapping[str, Any], where: str) -> None:
        check_unet(self, config, where, self.addition_embed_type)

    def text_shapes(self, config: Mapping[str, Any], tokens: int) -> dict[str, tuple[int, ...]]:
        return {"text": (tokens, config["cross_attention_dim"])}

    def encode(
        self, pipe: Any, prompts: Sequence[str] | None, guided: bool, text_tokens: int, asked: Arguments | None = None
    ) -> Text:
        arguments = {"prompt": prompts and list(prompts), "num_images_per_prompt": 1, **(asked or {})}
        cond, uncond = pipe.encode_prompt(
            device=pipe._execution_device, do_classifier_free_guidance=guided, **arguments
        )
        return {"text": halves(uncond if guided else None, cond)}
