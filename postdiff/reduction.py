"""What makes fewer tokens inside transformer blocks, as settings that a plan holds; `tokens.py` and `duca.py` carry
them out.
"""

from dataclasses import dataclass
from typing import Literal

from postdiff.arguments import flag, number, one_of, put, whole_number, whole_numbers


@dataclass(frozen=True)
class Merge:
    """Tokens that are alike are merged around a layer of each transformer block (ToMe).

    ratio: share of the tokens that are merged away; at most 1 - 1 / (sx * sy).
    sx, sy: one token of every cell of sx x sy is what others may be merged into.
    random: which one, drawn for every image, block and step; otherwise the upper left.
    max_downsample: only in blocks whose grid is at most so many times smaller than the latents' (1, 2, 4, 8).
    attention, cross_attention, mlp: the layers.
    threshold: merge those alone that are at least so alike (cosine), `ratio` of them at most (CA-ToMe); how many
        depends on the image.
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

    def __post_init__(self) -> None:
        put(
            self,
            ratio=number("ratio", self.ratio, "(0, 1)"),
            threshold=None if self.threshold is None else number("threshold", self.threshold, "[-1, 1]"),
            **{name: whole_number(name, getattr(self, name)) for name in ("sx", "sy", "max_downsample")},
            **{name: flag(name, getattr(self, name)) for name in ("random", "attention", "cross_attention", "mlp")},
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
        if not (self.attention or self.cross_attention or self.mlp):
            raise ValueError(
                "expected at least one of attention, cross_attention and mlp to merge tokens around, got none"
            )

    def reaches(self, downsample: int) -> bool:
        return downsample <= self.max_downsample

    def runs(self, self_attention: bool, cross_attention: bool) -> bool:
        """Does any layer that tokens are merged around run, where these do? Otherwise they need not be matched."""
        return (self.attention and self_attention) or (self.cross_attention and cross_attention) or self.mlp


@dataclass(frozen=True)
class Downsample:
    """Self-attention sees every f-th row and column of its tokens as keys and values (ToDo).

    factors: f in blocks whose grid is 1, 2, 4, ... times smaller than the latents'; 1 beyond, which is off.
    """

    factors: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        factors = whole_numbers("factors", self.factors, 1)
        while factors and factors[-1] == 1:  # off, as beyond the end: one computation has one value, and so one id
            factors = factors[:-1]
        if not factors:
            raise ValueError(f"factors must be whole numbers of 1 or more, one above 1, got {tuple(self.factors)}")
        put(self, factors=factors)

    def factor_at(self, downsample: int) -> int:
        level = downsample.bit_length() - 1
        return self.factors[level] if level < len(self.factors) else 1

    def reaches(self, downsample: int) -> bool:
        return self.factor_at(downsample) > 1


@dataclass(frozen=True)
class Refresh:
    """Which tokens a step computes that refreshes some of them (ToCa, DuCa).

    ratio: about what share of them, R; it falls over the steps and with depth, and is larger for feed-forward layers.
    score: what chooses them: the entropy of their cross-attention, or chance, which needs no attention map.
    soft: weight of the refreshing steps since a token was computed, over `interval`, the steps between full ones.
    """

    ratio: float = 0.3
    score: Literal["entropy", "random"] = "entropy"
    soft: float = 0.25
    interval: int = 3

    def __post_init__(self) -> None:
        put(
            self,
            ratio=number("ratio", self.ratio, "[0, 1]"),
            score=one_of("score", self.score, ("entropy", "random")),
            soft=number("soft", self.soft, "[0, inf)"),
            interval=whole_number("interval", self.interval),
        )

    def share(self, step: int, steps: int, depth: int, blocks: int, layer: str) -> float:
        """The share of the tokens that a layer (attn2 or ff) of block `depth` computes at `step`; ToCa's rule."""
        by_step, by_depth = 1.9 - 1.8 * step / steps, 1.6 - 1.2 * depth / max(1, blocks - 1)
        return min(1.0, self.ratio * by_step * by_depth * (0.6 if layer == "attn2" else 1.6))
