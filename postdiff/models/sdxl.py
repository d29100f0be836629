"""SDXL: a U-Net with two text encoders, which is told the size of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postdiff.models.configs import check_pooled
from postdiff.models.family import Conditions, Size, Text, halves
from postdiff.models.sd import CLIP, NO_IMAGES, StableDiffusion


class StableDiffusionXL(StableDiffusion):
    pipeline = "StableDiffusionXLPipeline"
    options: Mapping[str, Any] = {**NO_IMAGES, "add_watermarker": False}
    text_encoders: Mapping[str, str] = {**CLIP, "text_encoder_2": "CLIPTextModelWithProjection"}
    solver = "euler"
    guidance = 5.0
    settings: Mapping[str, Any] = {"steps": 20, "beta": 0.75, "s": 0.2, "k": 2, "m": 0.75}
    size_conditioned = True
    upcast_vae = True
    addition_embed_type = "text_time"

    def check_text(self, denoiser: Mapping[str, Any], encoders: Mapping[str, Mapping[str, Any]], name: str) -> None:
        super().check_text(denoiser, encoders, name)
        check_pooled(denoiser, encoders, name)

    def text_shapes(self, config: Mapping[str, Any], tokens: int) -> dict[str, tuple[int, ...]]:
        # What is projected is the pooled text beside six numbers of size and crop.
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return {**super().text_shapes(config, tokens), "pooled": (pooled,)}

    def encode(self, pipe, prompts: Sequence[str], guided: bool, text_tokens: int) -> Text:
        cond, uncond, pooled, uncond_pooled = pipe.encode_prompt(
            list(prompts), device=pipe.device, do_classifier_free_guidance=guided
        )
        if not guided:
            uncond = uncond_pooled = None
        return {"text": halves(uncond, cond), "pooled": halves(uncond_pooled, pooled)}

    def conditions(self, text: Text, size: Size, guidance: float, config: Mapping[str, Any]) -> Conditions:
        """Original size, crop (none) and target size."""
        import torch

        from postdiff.transfer import send

        ids = send(torch.tensor([[*size, 0, 0, *size]], dtype=text["text"].dtype), text["text"].device)
        return {"time_ids": ids.expand(len(text["text"]), -1)}

    def inputs(self, text: Text, conditions: Conditions) -> dict[str, Any]:
        added = {"text_embeds": text["pooled"], "time_ids": conditions["time_ids"]}
        return {**super().inputs(text, conditions), "added_cond_kwargs": added}
