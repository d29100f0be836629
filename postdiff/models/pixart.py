"""PixArt: a transformer and T5. Alpha is told the size of the image, Sigma is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from postdiff.models.configs import check_pixart
from postdiff.models.family import Arguments, Conditions, Family, Size, Text, halves


class PixArtAlpha(Family):
    pipeline = "PixArtAlphaPipeline"
    output = "ImagePipelineOutput"
    denoiser = "transformer"
    model = "PixArtTransformer2DModel"
    text_encoders: Mapping[str, str] = {"text_encoder": "T5EncoderModel"}
    tokenizer = "T5Tokenizer"
    text_width = "d_model", "caption_channels"
    most_tokens = 120  # as it was trained; T5 takes 512
    guidance = 4.5
    settings: Mapping[str, Any] = {"steps": 20, "beta": 0.75, "s": 0.5, "k": 1, "m": 0.75}
    size_conditioned = True
    no_deep = "a transformer has no skip connections between shallow and deep blocks"
    no_lora = "diffusers' pipelines of PixArt read none"
    fewest_steps = 2  # of one step, its pipeline takes what the solver predicts
    # sample_size of a transformer: pixels of the shapes that it was trained at
    bins: ClassVar[dict[int, int]] = {128: 1024, 64: 512, 32: 256}

    def check(self, config: Mapping[str, Any], where: str) -> None:
        check_pixart(config, where, self.is_size_conditioned(config))

    def is_size_conditioned(self, config: Mapping[str, Any]) -> bool:
        """Is a model told the size? As the pipeline has it: those that were trained at many sizes (1024-MS) are."""
        return config.get("sample_size", 128) == 128

    def text_shapes(self, config: Mapping[str, Any], tokens: int) -> dict[str, tuple[int, ...]]:
        return {"text": (tokens, config["caption_channels"]), "mask": (tokens,)}

    def encode(
        self, pipe: Any, prompts: Sequence[str] | None, guided: bool, text_tokens: int, asked: Arguments | None = None
    ) -> Text:
        # The pipeline's default cleans captions of HTML if two optional packages are there. A result must not depend on
        # what else is installed, so ours never does.
        plain = {"prompt": prompts and list(prompts), "clean_caption": False, "max_sequence_length": text_tokens}
        arguments = {**plain, **(asked or {})}
        cond, mask, uncond, uncond_mask = pipe.encode_prompt(
            do_classifier_free_guidance=guided, device=pipe._execution_device, **arguments
        )
        if not guided:
            uncond = uncond_mask = None
        return {"text": halves(uncond, cond), "mask": halves(uncond_mask, mask)}

    def token_lengths(self, spec, texts: Sequence[str]) -> list[int]:
        return super().token_lengths(spec, [text.lower().strip() for text in texts])  # as its pipeline

    def conditions(self, text: Text, size: Size, guidance: float, config: Mapping[str, Any]) -> Conditions:
        import torch

        from postdiff.transfer import send

        if not self.is_size_conditioned(config):
            return {}
        rows, dtype, device = len(text["text"]), text["text"].dtype, text["text"].device
        sizes = {"resolution": [size], "aspect_ratio": [[size[0] / size[1]]]}
        return {key: send(torch.tensor(row, dtype=dtype), device).expand(rows, -1) for key, row in sizes.items()}

    def called_size(self, pipe: Any, size: Size, call: Arguments) -> Size:
        """The size of those that the model was trained at that is nearest in its shape, where the call asks for it."""
        if not call["use_resolution_binning"]:
            return size
        side = pipe.transformer.config.sample_size
        if side not in self.bins:
            raise ValueError(
                f"use_resolution_binning must be False for a transformer of sample_size {side}: there are bins for "
                f"{', '.join(map(str, self.bins))} alone"
            )
        from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as tables

        ratios = getattr(tables, f"ASPECT_RATIO_{self.bins[side]}_BIN")
        height, width = pipe.image_processor.classify_height_width_bin(*size, ratios=ratios)
        return height, width

    def inputs(self, text: Text, conditions: Conditions) -> dict[str, Any]:
        added = {"resolution": None, "aspect_ratio": None, **conditions}
        return {**super().inputs(text, conditions), "encoder_attention_mask": text["mask"], "added_cond_kwargs": added}


class PixArtSigma(PixArtAlpha):
    """No paper of ours ran it: its settings are PixArt-alpha's."""

    pipeline = "PixArtSigmaPipeline"
    most_tokens = 300
    size_conditioned = False
    fewest_steps = 1
    bins: ClassVar[dict[int, int]] = {256: 2048, **PixArtAlpha.bins}

    def is_size_conditioned(self, config: Mapping[str, Any]) -> bool:
        return False
