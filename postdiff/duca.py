"""DuCa (arXiv 2412.18911), on ToCa's choice of tokens (arXiv 2410.05317), written from their descriptions: steps that
compute everything, steps that refresh a few tokens, and steps that skip all transformer blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from postdiff.plan import Plan
from postdiff.reduction import Refresh
from postdiff.tokens import Draw, Drawn, shrink, token_grid

CELL, BONUS = 4, 0.4  # the best token of each 4x4 cell of the grid gets so much of the best score besides


@dataclass
class Layer:
    """What a layer gave last [rows, N, C], how many refreshing steps ago each token was computed [B, N], and, of
    cross-attention, the entropy of each token's attention [B, N]."""

    output: torch.Tensor
    age: torch.Tensor
    entropy: torch.Tensor | None = None


class TokenCache:
    """Wraps the transformer blocks of a denoiser and their layers. What is stored lives in the dict of `begin`."""

    def __init__(self, plan: Plan, denoiser: torch.nn.Module):
        self.plan, self.denoiser = plan, denoiser
        self.refresh = plan.refresh or Refresh()
        self.blocks = blocks(denoiser)

    def begin(self, index: int, size: tuple[int, int], cache: dict, drawn: Drawn) -> None:
        """Before a forward pass of step `index` on latents of `size`; `cache` belongs to the batch."""
        self.index, self.size, self.cache, self.drawn = index, size, cache, drawn
        self.action, self.guided = self.plan.steps[index].blocks, self.plan.steps[index].guided

    def draws(self, index: int, size: tuple[int, int]) -> Iterator[tuple[str, Draw]]:
        """(name of a stream, what an image draws from it) of step `index` on latents of `size`: a score a token."""
        if self.refresh.score == "random" and self.plan.steps[index].blocks == "tokens":
            h, w = shrink(size, self.denoiser.config.patch_size)
            for depth, name in enumerate(self.blocks):
                for layer in ("attn2", "ff"):
                    if self._count(index, h * w, depth, layer):
                        yield f"tokens-{name}.{layer}", partial(_uniform, n=h * w)

    def wrappers(self) -> list[tuple[str, Callable]]:
        layers = [
            (f"{name}.{layer}", partial(self._wrap_layer, depth, layer))
            for depth, name in enumerate(self.blocks)
            for layer in ("attn1", "attn2", "ff")
        ]
        return layers + [(name, self._wrap_block) for name in self.blocks]

    def _wrap_block(self, name: str, forward):
        def block(hidden_states, *args, **kwargs):
            if self.action == "reuse":  # what the last one gave is all that is read
                return self.cache["last"] if name == self.blocks[-1] else hidden_states
            output = forward(hidden_states, *args, **kwargs)
            if self.action != "compute" and name == self.blocks[-1]:
                self.cache["last"] = output
            return output

        return block

    def _wrap_layer(self, depth: int, layer: str, name: str, forward):
        def run(x, *args, **kwargs):
            if self.action == "compute":
                return forward(x, *args, **kwargs)
            if self.action == "store":
                output, entropy = self._compute(name, forward, x, *args, **kwargs)
                age = torch.zeros(len(x) // (1 + self.guided), x.shape[1], dtype=torch.float32, device=x.device)
                self.cache[name] = Layer(output, age, entropy)
                return output
            stored: Layer = self.cache[name]
            if layer != "attn1":  # errors of self-attention spread to every token: it is reused as a whole
                self._update(stored, depth, layer, name, forward, x, *args, **kwargs)
            return stored.output

        return run

    def _compute(self, name: str, forward, x, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layer's output, and of cross-attention the entropies if they choose tokens."""
        if not name.endswith("attn2") or self.refresh.score != "entropy":
            return forward(x, *args, **kwargs), None
        output, entropy = attend(self.denoiser.get_submodule(name), x, **kwargs)
        return output, entropy.unflatten(0, (1 + self.guided, -1)).mean(0)

    def _update(self, stored: Layer, depth: int, layer: str, name: str, forward, x, *args, **kwargs) -> None:
        """Compute the tokens that matter most, and put them where they were."""
        count = self._count(self.index, x.shape[1], depth, layer)
        stored.age = stored.age + 1
        if not count:
            return
        entropy = self.cache[name.replace(".ff", ".attn2")].entropy
        chosen = self._score(name, entropy, stored.age).topk(count, dim=1).indices
        rows = torch.cat([chosen] * (1 + self.guided))
        here = rows[..., None].expand(-1, -1, x.shape[2])
        fresh, entropies = self._compute(name, forward, x.gather(1, here), *args, **kwargs)
        stored.output = stored.output.scatter(1, rows[..., None].expand_as(fresh), fresh)
        stored.age = stored.age.scatter(1, chosen, 0.0)
        if entropies is not None and stored.entropy is not None:
            stored.entropy = stored.entropy.scatter(1, chosen, entropies)

    def _count(self, index: int, n: int, depth: int, layer: str) -> int:
        """How many of `n` tokens a layer computes at step `index`."""
        return int(n * self.refresh.share(index, len(self.plan), depth, len(self.blocks), layer))

    def _score(self, name: str, entropy: torch.Tensor | None, age: torch.Tensor) -> torch.Tensor:
        """[B, N]: what attends widely, was not computed for long, or is the best of its neighbourhood."""
        if entropy is None:
            importance = self.drawn(self.index, f"tokens-{name}", partial(_uniform, n=age.shape[1]))
        else:
            importance = F.normalize(1 + entropy, dim=1)
        score = importance + self.refresh.soft * age / self.refresh.interval
        grid = score.unflatten(1, token_grid(self.size, score.shape[1]))[:, None]
        _, best = F.max_pool2d(grid, CELL, ceil_mode=True, return_indices=True)
        bonus = BONUS * score.amax(dim=1, keepdim=True)
        return score.scatter_add(1, best.flatten(1), bonus.expand(-1, best[0].numel()))


def _uniform(generator: torch.Generator, n: int) -> torch.Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float32, device="cpu")


def attend(
    module: torch.nn.Module, x: torch.Tensor, encoder_hidden_states: torch.Tensor, attention_mask=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-attention spelled out, for its map: the output [rows, N, C], and the entropy [rows, N] of each token's
    attention to the text, averaged over heads."""
    text = encoder_hidden_states
    q, k, v = (
        project(of).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for project, of in ((module.to_q, x), (module.to_k, text), (module.to_v, text))
    )
    likeness = q @ k.transpose(-1, -2) * module.scale
    if attention_mask is not None:  # a bias [rows, 1, L]
        likeness = likeness + attention_mask[:, None]
    probabilities = likeness.float().softmax(dim=-1)
    mean = probabilities.mean(dim=1)
    heads = probabilities.to(v.dtype) @ v
    return module.to_out[0](heads.transpose(1, 2).flatten(2)), torch.special.entr(mean).sum(dim=-1)


def blocks(denoiser: torch.nn.Module) -> list[str]:
    """Names of a transformer's blocks. Raises ValueError if it is none."""
    if not hasattr(denoiser, "transformer_blocks"):
        raise ValueError(f"token caching needs a transformer, got {type(denoiser).__name__}")
    return [f"transformer_blocks.{i}" for i in range(len(denoiser.transformer_blocks))]
