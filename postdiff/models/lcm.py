"""Latent consistency models: SD1.5's U-Net with guidance distilled into it. It is told w, and runs once."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import TYPE_CHECKING, Any

from postdiff.models.family import Conditions, Size, Text
from postdiff.models.sd import StableDiffusion

if TYPE_CHECKING:
    import torch


class LatentConsistency(StableDiffusion):
    pipeline = "LatentConsistencyModelPipeline"
    solvers = ("lcm",)
    solver = "lcm"
    settings: Mapping[str, Any] = {"steps": 8, "beta": 0.5, "s": 0.5, "k": 1, "m": 0.5}
    guided = False
    no_deep = "a consistency model's few steps are too far apart for features to be alike (paper, sec. 3.1)"

    def conditions(self, text: Text, size: Size, guidance: float, config: Mapping[str, Any]) -> Conditions:
        from postdiff.transfer import send

        w = guidance_embedding(guidance, config["time_cond_proj_dim"])
        w = send(w, text["text"].device, text["text"].dtype)
        return {"w": w.expand(len(text["text"]), -1)}

    def inputs(self, text: Text, conditions: Conditions) -> dict[str, Any]:
        return {**super().inputs(text, conditions), "timestep_cond": conditions["w"]}


def guidance_embedding(guidance: float, width: int) -> torch.Tensor:
    """[1, width] float32 of w - 1, sinusoidal (Imagen's w, which is LCM's plus 1)."""
    import torch

    w = torch.tensor([guidance - 1], dtype=torch.float32) * 1000
    frequencies = torch.exp(torch.arange(width // 2, dtype=torch.float32) * -(log(10_000) / (width // 2 - 1)))
    angles = w[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
