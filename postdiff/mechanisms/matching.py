"""Which tokens are alike, merged and copied back: tensors alone (ToMe, arXiv 2303.17604; CA-ToMe)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from postdiff.mechanisms.attach import Forward
    from postdiff.mechanisms.merging import TokenMerging


@dataclass(frozen=True)
class Matching:
    """Which of N tokens are merged: row numbers of the flattened [B * N, C], and of the merged [B * (N - r), C].

    unmerged, sources, destinations: the B * N tokens, split into those that stay, the B * r that are merged, and those
        that others are merged into.
    into: the place of each source's destination among the destinations.
    size: of each destination, how many tokens it becomes the mean of.
    back: for each of the B * N tokens, its row of the merged tokens.
    """

    unmerged: torch.Tensor
    sources: torch.Tensor
    destinations: torch.Tensor
    into: torch.Tensor
    size: torch.Tensor
    back: torch.Tensor


def match(
    x: torch.Tensor, grid: tuple[int, int], cells: torch.Tensor, merge: TokenMerging, count: int | None = None
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
    merged, unmerged = ranked[:, :r], ranked[:, r:]
    into = nearest.gather(1, merged)
    merged, unmerged = source.gather(1, merged), source.gather(1, unmerged)

    count = unmerged.shape[1]
    back = torch.empty(batch, n, dtype=torch.int64, device=device)
    back.scatter_(1, unmerged, torch.arange(count, device=device).expand(batch, -1))
    back.scatter_(1, destination, torch.arange(count, n - r, device=device).expand(batch, -1))
    back.scatter_(1, merged, into + count)
    place = into + image * destination.shape[1]
    size = torch.ones(destination.numel(), dtype=torch.float32, device=device)  # counts stall at 256 in bfloat16
    size.index_add_(0, place.flatten(), torch.ones(place.numel(), dtype=torch.float32, device=device))
    return Matching(unmerged + first, merged + first, destination + first, place, size, back + image * (n - r))


def pick(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows [R, C] by `index` [B, n] -> [B, n, C]."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


def merge_tokens(x: torch.Tensor, how: Matching) -> torch.Tensor:
    """[B, N, C] -> [B, N - r, C]: those that stay, then the destinations, each the mean of all merged into it."""
    rows = x.flatten(0, 1)
    into = pick(rows, how.destinations)
    sources = rows.index_select(0, how.sources.flatten()).float()
    means = into.flatten(0, 1).float().index_add(0, how.into.flatten(), sources) / how.size[:, None]
    return torch.cat([pick(rows, how.unmerged), means.to(x.dtype).view_as(into)], dim=1)


def unmerge_tokens(y: torch.Tensor, how: Matching) -> torch.Tensor:
    """[B, N - r, C] -> [B, N, C]: merged tokens get a copy of what became of them."""
    return pick(y.flatten(0, 1), how.back)


def through(
    forward: Forward, parts: Sequence[torch.Tensor], matchings: Sequence[Matching | None], *args, **kwargs
) -> torch.Tensor:
    """What a layer gives [rows, N, C] where its tokens are merged before it, and copied back after it.

    parts: its input, whole or for each image its rows [1 or 2, N, C]; matchings: of each, None where none are merged.
    """

    def run(x: torch.Tensor, how: Matching | None) -> torch.Tensor:
        if how is None:
            return forward(x, *args, **kwargs)
        return unmerge_tokens(forward(merge_tokens(x, how), *args, **kwargs), how)

    outputs = [run(x, how) for x, how in zip(parts, matchings, strict=True)]
    return torch.stack(outputs, dim=1).flatten(0, 1) if len(outputs) > 1 else outputs[0]
