"""Fewer tokens inside transformer blocks: merged around a layer and copied back after it (ToMe), or fewer keys and
values of self-attention alone (ToDo). A plan's `tokens` says which.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from diffusers.models.attention import BasicTransformerBlock

from postdiff.plan import Plan
from postdiff.reduction import Downsample, Merge

Draw = Callable[[torch.Generator], torch.Tensor]
Drawn = Callable[[int, str, Draw], torch.Tensor]  # step, name -> what each image draws from its stream, [B, ...]


@dataclass(frozen=True)
class Matching:
    """Which of N tokens are merged: row numbers of the flattened [B * N, C], and of the merged [B * (N - r), C].

    kept, sources, destinations: the B * N tokens, split into those that stay, the B * r that are merged, and those that
        others are merged into.
    into: the place of each source's destination among the destinations.
    size: of each destination, how many tokens it becomes the mean of.
    back: for each of the B * N tokens, its row of the merged tokens.
    """

    kept: torch.Tensor
    sources: torch.Tensor
    destinations: torch.Tensor
    into: torch.Tensor
    size: torch.Tensor
    back: torch.Tensor


def match(
    x: torch.Tensor, grid: tuple[int, int], cells: torch.Tensor, merge: Merge, count: int | None = None
) -> Matching | None:
    """Match the tokens `x` [B, N, C] of a `grid` (h, w) as ToMe does; None where nothing would be merged.

    In every cell of sy x sx tokens one is a destination: `cells` [B, h // sy, w // sx] says which, counted along rows.
    All others are sources: the int(ratio * N) that are most like a destination (cosine) are merged into it. With a
    threshold, as many as any of the B has above it; or `count`, if it is known.
    """
    batch, n, _ = x.shape
    rows, columns = cells.shape[1:]
    r = min(int(n * merge.ratio), n - rows * columns)
    if r <= 0 or not rows * columns:  # a cell may be larger than a small grid
        return None
    device = x.device
    top = torch.arange(rows, device=device)[:, None] * merge.sy + cells // merge.sx
    left = torch.arange(columns, device=device) * merge.sx + cells % merge.sx
    chosen = torch.zeros(batch, n, dtype=torch.int64, device=device)
    chosen.scatter_(1, (top * grid[1] + left).flatten(1), -1)
    order = chosen.argsort(dim=1)  # as tomesd sorts: another order of the same tokens is another last bit
    destination, source = order[:, : rows * columns], order[:, rows * columns :]

    image = torch.arange(batch, device=device)[:, None]
    first = image * n  # in the flattened tokens
    unit = (x / x.norm(dim=-1, keepdim=True)).flatten(0, 1)
    likeness = pick(unit, source + first) @ pick(unit, destination + first).transpose(1, 2)
    best, nearest = likeness.max(dim=-1)
    if merge.threshold is not None:
        r = min(r, int((best >= merge.threshold).sum(dim=1).max()) if count is None else count)
        if not r:
            return None
    ranked = best.argsort(dim=-1, descending=True)
    merged, kept = ranked[:, :r], ranked[:, r:]
    into = nearest.gather(1, merged)
    merged, kept = source.gather(1, merged), source.gather(1, kept)

    count = kept.shape[1]
    back = torch.empty(batch, n, dtype=torch.int64, device=device)
    back.scatter_(1, kept, torch.arange(count, device=device).expand(batch, -1))
    back.scatter_(1, destination, torch.arange(count, n - r, device=device).expand(batch, -1))
    back.scatter_(1, merged, into + count)
    place = into + image * destination.shape[1]
    size = torch.ones(destination.numel(), dtype=torch.float32, device=device)  # counts stall at 256 in bfloat16
    size.index_add_(0, place.flatten(), torch.ones(place.numel(), dtype=torch.float32, device=device))
    return Matching(kept + first, merged + first, destination + first, place, size, back + image * (n - r))


def pick(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows [R, C] by `index` [B, n] -> [B, n, C]."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


def merge_tokens(x: torch.Tensor, how: Matching) -> torch.Tensor:
    """[B, N, C] -> [B, N - r, C]: those that stay, then the destinations, each the mean of all merged into it."""
    rows = x.flatten(0, 1)
    into = pick(rows, how.destinations)
    sources = rows.index_select(0, how.sources.flatten()).float()
    means = into.flatten(0, 1).float().index_add(0, how.into.flatten(), sources) / how.size[:, None]
    return torch.cat([pick(rows, how.kept), means.to(x.dtype).view_as(into)], dim=1)


def unmerge_tokens(y: torch.Tensor, how: Matching) -> torch.Tensor:
    """[B, N - r, C] -> [B, N, C]: merged tokens get a copy of what became of them."""
    return pick(y.flatten(0, 1), how.back)


class Merger:
    """Wraps blocks and layers so that layers see merged tokens; keeps nothing from one block to the next."""

    def __init__(self, plan: Plan, merge: Merge, blocks: dict[str, int]):
        self.plan, self.merge, self.blocks = plan, merge, blocks
        self.known = dict(plan.merged)
        self.how: list[Matching | None] = []  # of the block that runs: one for all images, or one each

    def begin(
        self, index: int, size: tuple[int, int], drawn: Drawn, stored: dict[str, list], merged: dict[str, dict]
    ) -> None:
        """Before a forward pass of step `index` on latents of `size` (h, w).

        drawn: where random partitions come from. stored: matchings, by block. merged: share of the tokens that a
        block merges, by block and step, which is written where there is a threshold.
        """
        self.step, self.index, self.size, self.drawn = self.plan.steps[index], index, size, drawn
        self.stored, self.merged = stored, merged
        self.runs = self._runs(index)

    def _runs(self, index: int) -> bool:
        step = self.plan.steps[index]
        return self.merge.runs(step.self_attention != "reuse", step.cross_attention != "reuse")

    def draws(self, index: int, size: tuple[int, int]) -> Iterator[tuple[str, Draw]]:
        """(name of a stream, what an image draws from it) of step `index` on latents of `size`: a partition a block."""
        if self.merge.random and self._runs(index) and self.plan.steps[index].matching != "reuse":
            for block, shrunk in self.blocks.items():
                yield f"tokens-{block}", partial(self._draw, grid=shrink(size, shrunk))

    def _draw(self, generator: torch.Generator, grid: tuple[int, int]) -> torch.Tensor:
        """Which token of every cell is its destination: [h // sy, w // sx]."""
        merge, (h, w) = self.merge, grid
        shape = h // merge.sy, w // merge.sx, 1
        return torch.randint(merge.sx * merge.sy, shape, generator=generator, device="cpu")[..., 0]

    def wrap_block(self, name: str, forward):
        def block(hidden_states, *args, **kwargs):
            if self.runs:
                self.how = self.stored[name] if self.step.matching == "reuse" else self._match(name, hidden_states)
            if self.step.matching == "store":
                self.stored[name] = self.how
            try:
                return forward(hidden_states, *args, **kwargs)
            finally:
                self.how = []

        return block

    def wrap_layer(self, name: str, forward):
        def layer(hidden_states, *args, **kwargs):
            parts = self._images(hidden_states) if len(self.how) > 1 else [hidden_states]
            outputs = [
                _through(forward, x, how, *args, **kwargs) for x, how in zip(parts, self.how or [None], strict=True)
            ]
            return torch.stack(outputs, dim=1).flatten(0, 1) if len(outputs) > 1 else outputs[0]

        return layer

    def _images(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[rows, N, C] -> for each image its rows: one, or both halves of guidance."""
        return list(x.unflatten(0, (1 + self.step.guided, -1)).unbind(1))

    def _match(self, name: str, x: torch.Tensor) -> list[Matching | None]:
        grid = token_grid(self.size, x.shape[1])
        cells = self._cells(name, grid, x)
        if self.merge.threshold is None:
            return [match(x, grid, cells, self.merge)]
        # How many are merged is an image's own: with the batch's maximum, as in the authors' code, it would depend on
        # what else is in the batch.
        count = round(self.known[name][self.index] * x.shape[1]) if x.is_meta else None
        parts = zip(self._images(x), self._images(cells), strict=True)
        found = [match(image, grid, own, self.merge, count) for image, own in parts]
        counts = [0 if how is None else how.sources.shape[1] for how in found]
        self.merged.setdefault(name, {})[self.index] = sum(counts) / len(counts) / x.shape[1]
        return found

    def _cells(self, block: str, grid: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
        merge = self.merge
        if not merge.random:
            return torch.zeros(len(x), grid[0] // merge.sy, grid[1] // merge.sx, dtype=torch.int64, device=x.device)
        # Both halves of guidance share an image's partition, which is its own, whatever else is in the batch.
        cells = self.drawn(self.index, f"tokens-{block}", partial(self._draw, grid=grid))
        return cells.repeat(len(x) // len(cells), 1, 1)


def _through(forward, x: torch.Tensor, how: Matching | None, *args, **kwargs) -> torch.Tensor:
    if how is None:
        return forward(x, *args, **kwargs)
    return unmerge_tokens(forward(merge_tokens(x, how), *args, **kwargs), how)


class Thinner:
    """Wraps self-attention so that its keys and values are of fewer tokens."""

    def begin(self, index: int, size: tuple[int, int], *_) -> None:
        """Before a forward pass on latents of `size` (h, w)."""
        self.size = size

    def draws(self, index: int, size: tuple[int, int]) -> Iterator[tuple[str, Draw]]:
        """Nothing is left to chance."""
        return iter(())

    def wrap_attention(self, factor: int, name: str, forward):
        def attention(hidden_states, *args, **kwargs):
            grid = token_grid(self.size, hidden_states.shape[1])
            fewer = hidden_states.unflatten(1, grid)[:, ::factor, ::factor].flatten(1, 2)
            return forward(hidden_states, *args, **{**kwargs, "encoder_hidden_states": fewer})

        return attention


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


def reached(denoiser: torch.nn.Module, tokens: Merge | Downsample) -> dict[str, int]:
    """{name of a transformer block that is reached: how often smaller its grid is than the latents' (1, 2, 4, ...)}.

    Raises: ValueError if no block is: SDXL has no attention at the latents' own grid, nor has PixArt.
    """
    blocks = {
        name: _shrunk(denoiser, name)
        for name, module in denoiser.named_modules()
        if isinstance(module, BasicTransformerBlock)
    }
    found = {name: factor for name, factor in blocks.items() if tokens.reaches(factor)}
    if not found:
        raise ValueError(
            f"{tokens} changes nothing in a {type(denoiser).__name__} whose attention has grids "
            f"{', '.join(map(str, sorted(set(blocks.values()))))} times smaller than the latents'"
        )
    return found


def _shrunk(denoiser: torch.nn.Module, block: str) -> int:
    part, level, *_ = block.split(".")
    if part == "down_blocks":
        return 2 ** int(level)
    if part == "mid_block":
        return 2 ** (len(denoiser.down_blocks) - 1)
    if part == "up_blocks":
        return 2 ** (len(denoiser.up_blocks) - 1 - int(level))
    return denoiser.config.patch_size


def wrappers(denoiser: torch.nn.Module, plan: Plan) -> tuple[Merger | Thinner, list[tuple[str, Callable]]]:
    """What must be told of every pass, and (module, wrapper of its forward) for every module that has fewer tokens."""
    tokens = plan.tokens
    if tokens is None:
        raise ValueError(f"{plan.name} has no fewer tokens")
    found = reached(denoiser, tokens)
    if isinstance(tokens, Downsample):
        thinner = Thinner()
        return thinner, [
            (f"{name}.attn1", partial(thinner.wrap_attention, tokens.factor_at(at))) for name, at in found.items()
        ]
    merger = Merger(plan, tokens, found)
    layers = {"attn1": tokens.attention, "attn2": tokens.cross_attention, "ff": tokens.mlp}
    return merger, [
        *[(name, merger.wrap_block) for name in found],
        *[(f"{name}.{layer}", merger.wrap_layer) for name in found for layer, on in layers.items() if on],
    ]
