"""ToDo (arXiv 2402.13573): self-attention sees every f-th row and column of its tokens as keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from postdiff.arguments import put, whole_numbers
from postdiff.mechanisms.attach import Forward, Retrace, Runner, Wrap
from postdiff.models.anatomy import Block, anatomy, token_grid
from postdiff.plan import Mechanism, Plan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class KeyDownsampling(Mechanism):
    """factors: f in blocks whose grid is 1, 2, 4, ... times smaller than the latents'; 1 beyond. A 1 is off."""

    factors: tuple[int, ...] = (2,)
    layer: ClassVar[int] = 1
    excludes: ClassVar[dict[str, str]] = {"TokenMerging": "both make fewer tokens of self-attention; expected one"}

    def __post_init__(self) -> None:
        factors = whole_numbers("factors", self.factors, 1)
        while factors and factors[-1] == 1:  # off, as beyond the end: one computation has one value, and so one id
            factors = factors[:-1]
        put(self, factors=factors)

    @property
    def active(self) -> bool:
        return bool(self.factors)

    def note(self) -> str:
        return f"keys and values: every f-th row and column, f = {', '.join(map(str, self.factors))}"

    def factor(self, block: Block) -> int:
        """Every how many rows and columns of a block's tokens are keys."""
        level = block.shrunk.bit_length() - 1
        return self.factors[level] if level < len(self.factors) else 1

    def runner(self, denoiser: torch.nn.Module, plan: Plan) -> Runner:
        blocks = anatomy(denoiser).blocks
        factors = {b.layers["self-attention"]: self.factor(b) for b in blocks if self.factor(b) > 1}
        if not factors:
            raise ValueError(
                f"{self} changes nothing in a {type(denoiser).__name__} whose attention has grids {grids(blocks)} "
                "times smaller than the latents'"
            )
        for name in factors:
            if "Fused" in type(denoiser.get_submodule(name).processor).__name__:
                raise ValueError(
                    f"{name} projects queries, keys and values at once, and fewer keys need them apart: expected "
                    "unfuse_qkv_projections() first"
                )
        return _KeyRunner(self, factors)


class _KeyRunner(Runner):
    def __init__(self, settings: KeyDownsampling, factors: dict[str, int]):
        self.settings, self.factors = settings, factors

    def wrappers(self) -> list[tuple[str, Wrap]]:
        return [(name, self._wrap) for name in self.factors]

    def retraced(self, i: int) -> dict[str, Retrace]:
        return {"": Retrace(self.settings)}

    def _wrap(self, name: str, forward: Forward) -> Forward:
        def attention(hidden_states, *args, **kwargs):
            f, grid = self.factors[name], token_grid(self.now.size, hidden_states.shape[1])
            fewer = hidden_states.unflatten(1, grid)[:, ::f, ::f].flatten(1, 2)
            return forward(hidden_states, *args, **{**kwargs, "encoder_hidden_states": fewer})

        return attention


def grids(blocks: tuple[Block, ...]) -> str:
    """How often smaller than the latents' the grids of these blocks are, for an error message."""
    return ", ".join(map(str, sorted({block.shrunk for block in blocks})))
