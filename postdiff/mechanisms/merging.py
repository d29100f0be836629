"""Tokens that are alike are merged around layers of transformer blocks, and copied back after (ToMe, CA-ToMe)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from postdiff.arguments import by_module, flag, listed, number, put, whole_number
from postdiff.mechanisms.attach import Draw, Forward, Retrace, Runner, Wrap
from postdiff.mechanisms.keys import grids
from postdiff.models.anatomy import Block, anatomy, shrink, token_grid
from postdiff.plan import MEASURED, Mechanism, Plan, check_marks, marks_text, restarted

if TYPE_CHECKING:
    import torch

    from postdiff.mechanisms.matching import Matching

AROUND = {"attention": "self-attention", "cross_attention": "cross-attention", "mlp": "feed-forward"}
SHARES = "shares"  # key of the store: {block: {step: share of its tokens that were merged}}


@dataclass(frozen=True)
class TokenMerging(Mechanism):
    """Around a layer of each transformer block, tokens become the mean of those they are most like.

    ratio: share of the tokens that are merged away; at most 1 - 1 / (sx * sy).
    sx, sy: one token of every cell of sx x sy is what others may be merged into.
    random: which one, drawn for every image, block and step; otherwise the upper left.
    max_downsample: only in blocks whose grid is at most so many times smaller than the latents' (1, 2, 4, 8).
    attention, cross_attention, mlp: the layers.
    threshold: merge those alone that are at least so alike (cosine), `ratio` of them at most (CA-ToMe); how many
        depends on the image.
    matching: marks of which tokens are merged into which: "." uses the last that was stored; "" matches at every step.
    merged: (block, share of the tokens that it merges at each step), where there is a threshold: measured by
        `search.ca_tome`, for costs alone. It changes no image, and is not in a plan's id.
    """

    ratio: float = 0.5
    sx: int = 2
    sy: int = 2
    random: bool = True
    max_downsample: int = 1
    attention: bool = True
    cross_attention: bool = False
    mlp: bool = False
    threshold: float | None = None
    matching: str = ""
    merged: tuple[tuple[str, tuple[float, ...]], ...] = field(default=(), metadata=MEASURED)
    layer: ClassVar[int] = 1

    def __post_init__(self) -> None:
        matching = marks_text("matching", self.matching)
        put(
            self,
            ratio=number("ratio", self.ratio, "(0, 1)"),
            threshold=None if self.threshold is None else number("threshold", self.threshold, "[-1, 1]"),
            matching=matching if "." in matching else "",
            merged=tuple((name, _shares(name, row)) for name, row in by_module("merged", self.merged)),
            **{name: whole_number(name, getattr(self, name)) for name in ("sx", "sy", "max_downsample")},
            **{name: flag(name, getattr(self, name)) for name in ("random", *AROUND)},
        )
        if self.max_downsample not in (1, 2, 4, 8):
            raise ValueError(f"max_downsample must be 1, 2, 4 or 8, got {self.max_downsample}")
        if self.sx * self.sy == 1:
            raise ValueError("a cell of 1x1 has nothing to merge; expected sx or sy of 2 or more")
        most = 1 - 1 / (self.sx * self.sy)
        if self.ratio > most:
            raise ValueError(
                f"ratio must be above 0 and at most {most:g} for cells of {self.sx}x{self.sy}, got {self.ratio}"
            )
        if self.threshold is not None and self.cross_attention:
            raise ValueError("a threshold goes with self-attention and mlp alone, got cross_attention=True")
        if not self.around:
            raise ValueError(
                "expected at least one of attention, cross_attention and mlp to merge tokens around, got none"
            )

    @property
    def around(self) -> frozenset[str]:
        """The kinds of layers that tokens are merged around."""
        return frozenset(kind for name, kind in AROUND.items() if getattr(self, name))

    @property
    def varies(self) -> bool:
        return self.threshold is not None

    def check(self, plan: Plan) -> None:
        for name, row in self.merged:
            if len(row) != len(plan):
                raise ValueError(f"merged, {name}: expected {len(plan)} shares in [0, 1), got {len(row)}")
        if self.threshold is not None and any(plan.ahead(i) > 1 for i in range(len(plan))):
            raise ValueError("steps that are computed ahead are one batch: it does not go with a merging threshold")
        if self.matching:
            check_marks("matching", self.matching, plan)
        for i, mark in enumerate(self.matching):
            if mark != "#" and (plan.partial(i) or "self-attention" in plan.reuses(i)):
                raise ValueError(f"step {i}: matching is stored and reused where every block runs, got a step in part")

    def restarted(self, at: int) -> TokenMerging:
        return replace(self, matching=restarted(self.matching, at), merged=())  # what was measured was at full size

    def rows(self) -> dict[str, str]:
        return {"matching": self.matching} if self.matching else {}

    def note(self) -> str:
        if self.threshold is not None:
            return f"tokens merged around layers: those more alike than {self.threshold:g}"
        return f"tokens merged around layers: {self.ratio:g} of them"

    def runner(self, denoiser: torch.nn.Module, plan: Plan) -> Runner:
        blocks = anatomy(denoiser).blocks
        reached = [block for block in blocks if block.shrunk <= self.max_downsample]
        if not reached:  # SDXL has no attention at the latents' own grid, nor has PixArt
            settings = ", ".join(
                f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name not in ("matching", "merged")
            )
            raise ValueError(
                f"TokenMerging({settings}) changes nothing in a {type(denoiser).__name__} whose attention has grids "
                f"{grids(blocks)} times smaller than the latents'"
            )
        return _MergingRunner(self, plan, reached)


def _shares(block: str, row: Any) -> tuple[float, ...]:
    return tuple(number(f"merged, {block}", share, "[0, 1)") for share in listed("merged", row, "shares"))


class _MergingRunner(Runner):
    def __init__(self, settings: TokenMerging, plan: Plan, blocks: list[Block]):
        self.settings, self.plan, self.blocks, self.known = settings, plan, blocks, dict(settings.merged)
        self.how: list[Matching | None] = []  # of the block that runs: one for all images, or one each

    def wrappers(self) -> list[tuple[str, Wrap]]:
        layers = [name for block in self.blocks for kind, name in block.layers.items() if kind in self.settings.around]
        return [*((block.name, self._wrap_block) for block in self.blocks), *((name, self._wrap) for name in layers)]

    def draws(self, i: int, size: tuple[int, int]) -> Iterator[tuple[str, Draw]]:
        """A partition a block."""
        if self.settings.random and self._runs(i) and self._mark(i) != ".":
            for block in self.blocks:
                yield f"tokens-{block.name}", partial(self._draw, grid=shrink(size, block.shrunk))

    def retraced(self, i: int) -> dict[str, Retrace]:
        if not self._runs(i):
            return {}
        if self.settings.threshold is not None and not self.known:
            raise ValueError(
                f"{self.plan.name} merges what is alike in an image: `postdiff search ca_tome` measures its cost"
            )
        marks = "S." if self._mark(i) == "." else "#"
        shares = tuple((name, (row[i],) * len(marks)) for name, row in self.known.items())
        # Chance changes which tokens are merged, not how many.
        alone = replace(self.settings, random=False, matching=marks, merged=shares)
        return {"": Retrace(alone, len(marks), tuple(range(len(marks))))}

    def _mark(self, i: int) -> str:
        return self.settings.matching[i] if self.settings.matching else "#"

    def _runs(self, i: int) -> bool:
        """Does any layer that tokens are merged around run at step i? Otherwise they need not be matched."""
        return bool(self.settings.around - self.plan.reuses(i))

    def _wrap_block(self, name: str, forward: Forward) -> Forward:
        def block(hidden_states, *args, **kwargs):
            mark = self._mark(self.now.index)
            if self._runs(self.now.index):
                self.how = self.store[name] if mark == "." else self._match(name, hidden_states)
            if mark == "S":
                self.store[name] = self.how
            try:
                return forward(hidden_states, *args, **kwargs)
            finally:
                self.how = []

        return block

    def _wrap(self, name: str, forward: Forward) -> Forward:
        from postdiff.mechanisms.matching import through

        def layer(hidden_states, *args, **kwargs):
            parts = self._images(hidden_states) if len(self.how) > 1 else [hidden_states]
            return through(forward, parts, self.how or [None], *args, **kwargs)

        return layer

    def _images(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[rows, N, C] -> for each image its rows: one, or both halves of guidance."""
        return list(x.unflatten(0, (1 + self.now.guided, -1)).unbind(1))

    def _match(self, name: str, x: torch.Tensor) -> list[Matching | None]:
        from postdiff.mechanisms.matching import match

        grid, i = token_grid(self.now.size, x.shape[1]), self.now.index
        cells = self._cells(name, grid, x)
        if self.settings.threshold is None:
            return [match(x, grid, cells, self.settings)]
        # How many are merged is an image's own: with the batch's maximum, as in the authors' code, it would depend on
        # what else is in the batch.
        count = round(self.known[name][i] * x.shape[1]) if x.is_meta else None
        matchings = [
            match(image, grid, image_cells, self.settings, count)
            for image, image_cells in zip(self._images(x), self._images(cells), strict=True)
        ]
        counts = [0 if matching is None else matching.sources.shape[1] for matching in matchings]
        self.store.setdefault(SHARES, {}).setdefault(name, {})[i] = sum(counts) / len(counts) / x.shape[1]
        return matchings

    def _cells(self, block: str, grid: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
        if not self.settings.random:
            return x.new_zeros(len(x), grid[0] // self.settings.sy, grid[1] // self.settings.sx).long()
        # Both halves of guidance share an image's partition, which is its own, whatever else is in the batch.
        cells = self.now.drawn(self.now.index, f"tokens-{block}", partial(self._draw, grid=grid))
        return cells.repeat(len(x) // len(cells), 1, 1)

    def _draw(self, generator: torch.Generator, grid: tuple[int, int]) -> torch.Tensor:
        """Which token of every cell is its destination: [h // sy, w // sx]."""
        import torch

        shape = grid[0] // self.settings.sy, grid[1] // self.settings.sx, 1
        return torch.randint(self.settings.sx * self.settings.sy, shape, generator=generator, device="cpu")[..., 0]
