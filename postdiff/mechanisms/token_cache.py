"""DuCa (arXiv 2412.18911), on ToCa's choice of tokens (arXiv 2410.05317), written from their descriptions: steps that
compute everything, steps that refresh a few tokens, and steps that skip all transformer blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from postdiff.arguments import number, one_of, put, whole_number
from postdiff.mechanisms.attach import Draw, Forward, Retrace, Runner, Wrap
from postdiff.models.anatomy import Anatomy, anatomy, check_processor, shrink
from postdiff.plan import Mechanism, Plan, check_marks, marks_text, restarted

if TYPE_CHECKING:
    import torch

    from postdiff.mechanisms.token_scores import Layer

REFRESH = "t"
_ALONE = "what the blocks store is of all that they compute: it goes with no other mechanism"


@dataclass(frozen=True)
class TokenCache(Mechanism):
    """marks: of all of a transformer between its first and last layer. On "." no block is run; on "t" self-attention
        is reused, and a few tokens of the other layers are computed and stored.
    ratio: about what share of them; it falls over the steps and with depth, and is larger for feed-forward layers.
    score: what chooses them: the entropy of their cross-attention, or chance, which needs no attention map.
    soft: weight of the refreshing steps since a token was computed, over `interval`, the steps between full ones.
    """

    marks: str
    ratio: float = 0.3
    score: Literal["entropy", "random"] = "entropy"
    soft: float = 0.25
    interval: int = 3
    layer: ClassVar[int] = 3
    legend: ClassVar[dict[str, str]] = {REFRESH: "a few tokens computed and stored"}
    excludes: ClassVar[dict[str, str]] = dict.fromkeys(
        ("AttentionCache", "DeepCache", "EncoderPropagation", "KeyDownsampling", "ScheduledModules", "TokenMerging"),
        _ALONE,
    )

    def __post_init__(self) -> None:
        put(
            self,
            marks=marks_text("blocks", self.marks, REFRESH),
            ratio=number("ratio", self.ratio, "[0, 1]"),
            score=one_of("score", self.score, ("entropy", "random")),
            soft=number("soft", self.soft, "[0, inf)"),
            interval=whole_number("interval", self.interval),
        )
        if REFRESH not in self.marks:  # what chooses tokens changes nothing: one computation has one id
            put(self, ratio=0.3, score="entropy", soft=0.25, interval=3)

    @property
    def active(self) -> bool:
        return bool(set(self.marks) & {".", REFRESH})

    def check(self, plan: Plan) -> None:
        check_marks("blocks", self.marks, plan, partly=REFRESH)

    def reuses(self, i: int) -> frozenset[str]:
        return frozenset({"blocks"} if self.marks[i] == "." else ())

    def restarted(self, at: int) -> TokenCache:
        return replace(self, marks=restarted(self.marks, at, partly=REFRESH))

    def rows(self) -> dict[str, str]:
        return {"blocks": self.marks}

    def runner(self, denoiser: torch.nn.Module, plan: Plan) -> Runner:
        parts = anatomy(denoiser)
        if parts.encoder:
            raise ValueError(f"token caching needs a transformer, got {type(denoiser).__name__}")
        if REFRESH in self.marks and self.score == "entropy":
            for name in parts.layers("cross-attention"):
                check_processor(name, denoiser.get_submodule(name))
        return _TokenRunner(self, denoiser, parts)

    def share(self, step: int, depth: int, blocks: int, layer: str) -> float:
        """The share of the tokens that a layer of block `depth` computes at `step`; ToCa's rule."""
        by_step, by_depth = 1.9 - 1.8 * step / len(self.marks), 1.6 - 1.2 * depth / max(1, blocks - 1)
        return min(1.0, self.ratio * by_step * by_depth * (0.6 if layer == "cross-attention" else 1.6))


class _TokenRunner(Runner):
    def __init__(self, settings: TokenCache, denoiser: torch.nn.Module, parts: Anatomy):
        self.settings, self.denoiser, self.blocks = settings, denoiser, parts.blocks

    def wrappers(self) -> list[tuple[str, Wrap]]:
        layers = [
            (name, partial(self._wrap_layer, depth, layer))
            for depth, block in enumerate(self.blocks)
            for layer, name in block.layers.items()
        ]
        return [*layers, *((block.name, self._wrap_block) for block in self.blocks)]

    def draws(self, i: int, size: tuple[int, int]) -> Iterator[tuple[str, Draw]]:
        """A score a token."""
        from postdiff.mechanisms.token_scores import uniform

        if self.settings.score == "random" and self.settings.marks[i] == REFRESH:
            for depth, block in enumerate(self.blocks):
                h, w = shrink(size, block.shrunk)
                for layer in ("cross-attention", "feed-forward"):
                    if self._count(i, h * w, depth, layer):
                        yield f"tokens-{block.layers[layer]}", partial(uniform, n=h * w)

    def skipped(self, i: int) -> list[str]:
        return [block.name for block in self.blocks] if self.settings.marks[i] == "." else []

    def retraced(self, i: int) -> dict[str, Retrace]:
        mark, steps = self.settings.marks[i], len(self.settings.marks)
        if mark not in ("S", REFRESH):
            return {}
        alone = replace(self.settings, marks="S" + REFRESH * (steps - 1))  # each step computes so many
        return {"": Retrace(alone, steps, (0,) if mark == "S" else (0, i))}

    def _count(self, i: int, n: int, depth: int, layer: str) -> int:
        """How many of `n` tokens a layer computes at step i."""
        return int(n * self.settings.share(i, depth, len(self.blocks), layer))

    def _wrap_block(self, name: str, forward: Forward) -> Forward:
        last = self.blocks[-1].name

        def block(hidden_states, *args, **kwargs):
            mark = self.settings.marks[self.now.index]
            if mark == ".":  # what the last one gave is all that is read
                return self.store["last"] if name == last else hidden_states
            output = forward(hidden_states, *args, **kwargs)
            if mark != "#" and name == last:
                self.store["last"] = output
            return output

        return block

    def _wrap_layer(self, depth: int, layer: str, name: str, forward: Forward) -> Forward:
        from postdiff.mechanisms.token_scores import stored

        def run(x, *args, **kwargs):
            mark = self.settings.marks[self.now.index]
            if mark == "#":
                return forward(x, *args, **kwargs)
            if mark == "S":
                output, entropy = self._compute(layer, name, forward, x, *args, **kwargs)
                self.store[name] = stored(output, entropy, 1 + self.now.guided)
            elif layer != "self-attention":  # its errors spread to every token: it is reused as a whole
                self.store[name] = self._refreshed(depth, layer, name, forward, x, *args, **kwargs)
            return self.store[name].output

        return run

    def _compute(self, layer: str, name: str, forward: Forward, x: torch.Tensor, *args, **kwargs):
        """The layer's output, and of cross-attention the entropies [B, N] if they choose tokens, else None."""
        from postdiff.mechanisms.token_scores import attend

        if layer != "cross-attention" or self.settings.score != "entropy":
            return forward(x, *args, **kwargs), None
        output, entropy = attend(self.denoiser.get_submodule(name), x, **kwargs)
        return output, entropy.unflatten(0, (1 + self.now.guided, -1)).mean(0)

    def _refreshed(
        self, depth: int, layer: str, name: str, forward: Forward, x: torch.Tensor, *args, **kwargs
    ) -> Layer:
        """What is stored, with the tokens that matter most computed anew."""
        from postdiff.mechanisms.token_scores import put_back, score, uniform

        before: Layer = self.store[name]
        before = replace(before, age=before.age + 1)
        count = self._count(self.now.index, x.shape[1], depth, layer)
        if not count:
            return before
        if self.settings.score == "random":
            draw = partial(uniform, n=x.shape[1])
            importance = self.now.drawn(self.now.index, f"tokens-{name}", draw)
        else:
            importance = self.store[self.blocks[depth].layers["cross-attention"]].entropy
        scores = score(importance, self.settings, before.age, self.now.size)
        chosen = scores.topk(count, dim=1).indices
        rows = chosen.repeat(1 + self.now.guided, 1)
        index = rows[..., None].expand(-1, -1, x.shape[2])
        fresh, entropies = self._compute(layer, name, forward, x.gather(1, index), *args, **kwargs)
        return put_back(before, chosen, rows, fresh, entropies)
