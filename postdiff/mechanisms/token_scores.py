"""Which tokens are computed anew, and where they are put: tensors alone (ToCa, arXiv 2410.05317)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from postdiff.models.anatomy import token_grid

if TYPE_CHECKING:
    from postdiff.mechanisms.token_cache import TokenCache

CELL, BONUS = 4, 0.4  # the best token of each 4x4 cell of the grid gets so much of the best score besides


@dataclass(frozen=True)
class Layer:
    """What a layer gave last [rows, N, C], how many refreshing steps ago each token was computed [B, N], and, of
    cross-attention, the entropy of each token's attention [B, N]."""

    output: torch.Tensor
    age: torch.Tensor
    entropy: torch.Tensor | None = None


def stored(output: torch.Tensor, entropy: torch.Tensor | None, halves: int) -> Layer:
    """A layer whose tokens were all computed now. output: [halves * B, N, C]."""
    age = torch.zeros(len(output) // halves, output.shape[1], dtype=torch.float32, device=output.device)
    return Layer(output, age, entropy)


def put_back(
    before: Layer, chosen: torch.Tensor, rows: torch.Tensor, fresh: torch.Tensor, entropies: torch.Tensor | None
) -> Layer:
    """`before` with the tokens `chosen` [B, n] of each image (`rows` [halves * B, n] of the batch) as `fresh`."""
    entropy = before.entropy
    if entropies is not None and entropy is not None:
        entropy = entropy.scatter(1, chosen, entropies)
    output = before.output.scatter(1, rows[..., None].expand_as(fresh), fresh)
    return Layer(output, before.age.scatter(1, chosen, 0.0), entropy)


def score(importance: torch.Tensor, settings: TokenCache, age: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, N]: what attends widely, was not computed for long, or is the best of its neighbourhood.

    importance: [B, N], the entropy of each token's cross-attention, or numbers of chance. size: of the latents.
    """
    if settings.score == "entropy":
        importance = F.normalize(1 + importance, dim=1)
    total = importance + settings.soft * age / settings.interval
    grid = total.unflatten(1, token_grid(size, total.shape[1]))[:, None]
    _, best = F.max_pool2d(grid, CELL, ceil_mode=True, return_indices=True)
    bonus = BONUS * total.amax(dim=1, keepdim=True)
    return total.scatter_add(1, best.flatten(1), bonus.expand(-1, best[0].numel()))


def uniform(generator: torch.Generator, n: int) -> torch.Tensor:
    """What an image draws: a score in [0, 1) for each of n tokens."""
    return torch.rand(n, generator=generator, dtype=torch.float32, device="cpu")


def attend(
    module: torch.nn.Module, x: torch.Tensor, encoder_hidden_states: torch.Tensor, attention_mask=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-attention spelled out, for its map: the output [rows, N, C], and the entropy [rows, N] of each token's
    attention to the text, averaged over heads."""
    text = encoder_hidden_states
    q, k, v = (
        project(tokens).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for project, tokens in ((module.to_q, x), (module.to_k, text), (module.to_v, text))
    )
    likeness = q @ k.transpose(-1, -2) * module.scale
    if attention_mask is not None:  # a bias [rows, 1, L]
        likeness = likeness + attention_mask[:, None]
    probabilities = likeness.float().softmax(dim=-1)
    mean = probabilities.mean(dim=1)
    heads = probabilities.to(v.dtype) @ v
    return module.to_out[0](heads.transpose(1, 2).flatten(2)), torch.special.entr(mean).sum(dim=-1)
