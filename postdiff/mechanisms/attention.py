"""Outputs of attention stored and reused: PostDiff's cached cross-attention (sec. 2.5), and both of T-GATE's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from postdiff.arguments import one_of, put
from postdiff.mechanisms.attach import Forward, Runner, Wrap
from postdiff.models.anatomy import anatomy, token_grid
from postdiff.plan import Mechanism, Plan, marks_text, restarted

if TYPE_CHECKING:
    import torch

Mode = Literal["ave", "cond", "uncond", "cfg"]
MODES: tuple[Mode, ...] = ("ave", "cond", "uncond", "cfg")
CROSS, SELF = "cross-attention", "self-attention"


@dataclass(frozen=True)
class AttentionCache(Mechanism):
    """The outputs of every attention module, before the residual.

    cross, own: marks of cross-attention and of self-attention; "" computes always. Stored cross-attention outlives a
        switch of resolution: it is resized.
    mode: what attention stored with guidance gives to steps without: the mean of both halves, the conditional, the
        unconditional, or their guided combination.
    """

    cross: str = ""
    own: str = ""
    mode: Mode = "cond"
    layer: ClassVar[int] = 5

    def __post_init__(self) -> None:
        rows = {name: marks_text(name, getattr(self, name)) for name in ("cross", "own")}
        put(self, mode=one_of("mode", self.mode, MODES), **{k: row if "." in row else "" for k, row in rows.items()})

    @property
    def active(self) -> bool:
        return bool(self.cross or self.own)

    def check(self, plan: Plan) -> None:
        for title, marks in self.rows().items():
            stored = 0  # halves of guidance
            for i, mark in enumerate(marks):
                if title == SELF and i and plan.steps[i].scale != plan.steps[i - 1].scale:
                    stored = 0
                stored = _stored(plan, i, mark, title, stored)

    def reuses(self, i: int) -> frozenset[str]:
        return frozenset(title for title, marks in self.rows().items() if marks[i] == ".")

    def restarted(self, at: int) -> AttentionCache:
        return replace(self, own=restarted(self.own, at))

    def rows(self) -> dict[str, str]:
        return {title: marks for title, marks in ((CROSS, self.cross), (SELF, self.own)) if marks}

    def runner(self, denoiser: torch.nn.Module, plan: Plan) -> Runner:
        parts = anatomy(denoiser)
        return _AttentionRunner(
            self.mode, {name: marks for title, marks in self.rows().items() for name in parts.layers(title)}
        )


def _stored(plan: Plan, i: int, mark: str, title: str, stored: int) -> int:
    """Halves of guidance that are stored after step i, where `stored` were before it. Raises ValueError if step i
    reuses more than that."""
    run = 2 if plan.steps[i].guided else 1
    if mark == "." and not stored:
        raise ValueError(f"step {i}: no {title} is stored before it at its scale")
    if mark == "." and run > stored:
        raise ValueError(f"step {i}: stored {title} is of one half, so the step must be unguided")
    if mark == "#":
        return stored
    # A step that skips whole blocks runs only a part of the attentions: it cannot fill the store.
    return run if mark == "S" and not plan.partial(i) else min(stored, run)


@dataclass(frozen=True)
class Stored:
    """An attention module's output [rows, N, C], the latents' size that it belongs to, and if it has both halves."""

    output: torch.Tensor
    size: tuple[int, int]
    guided: bool


class _AttentionRunner(Runner):
    def __init__(self, mode: Mode, marks: dict[str, str]):
        self.mode, self.marks = mode, marks

    def wrappers(self) -> list[tuple[str, Wrap]]:
        return [(name, self._wrap) for name in self.marks]

    def skipped(self, i: int) -> list[str]:
        return [name for name, marks in self.marks.items() if marks[i] == "."]

    def _wrap(self, name: str, forward: Forward) -> Forward:
        def attention(hidden_states, *args, **kwargs):
            now, mark = self.now, self.marks[name][self.now.index]
            if mark == ".":
                stored = self.store[name]
                output, guided = stored.output, stored.guided
                if guided and not now.guided:
                    output, guided = merge_guidance(output, self.mode, now.guidance), False
                output = resize_tokens(output, stored.size, now.size, hidden_states.shape[1])
                self.store[name] = Stored(output, now.size, guided)  # once: no later step is smaller
                return output
            output = forward(hidden_states, *args, **kwargs)
            if mark == "S":
                self.store[name] = Stored(output, now.size, now.guided)
            return output

        return attention


def merge_guidance(output: torch.Tensor, mode: Mode, w: float) -> torch.Tensor:
    """[2B, N, C], unconditional half first -> [B, N, C]: the four choices of sec. 2.5."""
    uncond, cond = output.chunk(2)
    if mode == "ave":
        return (uncond + cond) / 2
    if mode == "cfg":
        return uncond + w * (cond - uncond)
    return (cond if mode == "cond" else uncond).clone()  # a copy, so that the other half is not kept alive


def resize_tokens(tokens: torch.Tensor, stored: tuple[int, int], size: tuple[int, int], n: int) -> torch.Tensor:
    """[B, N, C] on the token grid of latents `stored` -> [B, n, C] on that of latents `size`, bilinear in fp32."""
    from torch.nn.functional import interpolate

    if stored == size:
        return tokens
    grid = token_grid(stored, tokens.shape[1])
    image = tokens.float().transpose(1, 2).unflatten(2, grid)
    image = interpolate(image, size=token_grid(size, n), mode="bilinear", align_corners=False)
    return image.flatten(2).transpose(1, 2).to(tokens.dtype)
