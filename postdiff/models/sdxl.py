"""SDXL: a U-Net with two text encoders, which is told the size of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postdiff.models.configs import check_pooled
from postdiff.models.family import Arguments, Conditions, Size, Text, halves
from postdiff.models.sd import CLIP, NO_IMAGES, StableDiffusion


class StableDiffusionXL(StableDiffusion):
    pipeline = "StableDiffusionXLPipeline"
    output = "StableDiffusionXLPipelineOutput"
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

    def encode(
        self, pipe: Any, prompts: Sequence[str] | None, guided: bool, text_tokens: int, asked: Arguments | None = None
    ) -> Text:
        arguments = {"prompt": prompts and list(prompts), **(asked or {})}
        cond, uncond, pooled, uncond_pooled = pipe.encode_prompt(
            device=pipe._execution_device, do_classifier_free_guidance=guided, **arguments
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

    def called_conditions(self, pipe: Any, call: Arguments, text: Text, size: Size, images: int) -> Conditions | None:
        """Original size, crop and target size as a call has them; those of the negative prompt where it has both sizes,
        as in the pipeline."""
        import torch

        from postdiff.transfer import send

        cond = [*(call["original_size"] or size), *call["crops_coords_top_left"], *(call["target_size"] or size)]
        uncond, negative = cond, (call["negative_original_size"], call["negative_target_size"])
        if None not in negative:
            uncond = [*negative[0], *call["negative_crops_coords_top_left"], *negative[1]]
        if any(len(numbers) != 6 for numbers in (cond, uncond)):
            raise ValueError("sizes and crops must be pairs of numbers, (height, width) and (top, left)")
        if cond == uncond == [*size, 0, 0, *size]:
            return None
        rows = len(text["text"])
        if rows > images > 1 and uncond != cond:
            raise ValueError(
                "negative sizes must be given for one image a call: the pipeline gives those of several images to both "
                f"halves in turn, got {images} images"
            )
        numbers = [uncond] * (rows - images) + [cond] * images
        ids = torch.tensor(numbers, dtype=text["text"].dtype)
        return {"time_ids": send(ids, text["text"].device)}

    def inputs(self, text: Text, conditions: Conditions) -> dict[str, Any]:
        added = {"text_embeds": text["pooled"], "time_ids": conditions["time_ids"]}
        return {**super().inputs(text, conditions), "added_cond_kwargs": added}
