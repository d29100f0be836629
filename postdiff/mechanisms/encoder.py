"""Faster Diffusion (NeurIPS 2024): the encoder's features change slowly, and are propagated to the next steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from postdiff.arguments import flag, number, put
from postdiff.mechanisms.attach import Forward, Runner, Wrap
from postdiff.models.anatomy import anatomy, scaled_in_place
from postdiff.plan import Mechanism, Plan, check_marks, marks_text, restarted

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EncoderPropagation(Mechanism):
    """All of a U-Net before its decoder: on a step that reuses it, only the decoder runs.

    parallel: steps in a row that reuse the encoder are one pass: nothing in them depends on the latents.
    """

    marks: str
    parallel: bool = False
    prior_noise: float = 0.0
    layer: ClassVar[int] = 3

    def __post_init__(self) -> None:
        put(
            self,
            marks=marks_text("encoder", self.marks),
            parallel=flag("parallel", self.parallel) and "." in self.marks,
            prior_noise=number("prior_noise", self.prior_noise, "[0, inf)"),
        )

    @property
    def active(self) -> bool:
        return "." in self.marks or self.prior_noise > 0

    def check(self, plan: Plan) -> None:
        check_marks("encoder", self.marks, plan)
        for other in plan.mechanisms:
            for title, row in other.rows().items() if other is not self else ():
                if any(self.ahead(i) and mark != "#" for i, mark in enumerate(row)):
                    raise ValueError(f"steps that are computed ahead compute all that they run, got {title} {row}")

    def reuses(self, i: int) -> frozenset[str]:
        return frozenset({"encoder"} if self.marks[i] == "." else ())

    def ahead(self, i: int) -> bool:
        return self.parallel and self.marks[i] == "."

    def restarted(self, at: int) -> EncoderPropagation:
        return replace(self, marks=restarted(self.marks, at))

    def rows(self) -> dict[str, str]:
        return {"encoder": self.marks}

    def note(self) -> str:
        ahead = "steps between two runs of the encoder: one batch" if self.parallel else ""
        noise = f"{self.prior_noise:g} of the initial noise is added late" if self.prior_noise else ""
        return ";  ".join(note for note in (ahead, noise) if note)

    def runner(self, denoiser: torch.nn.Module, plan: Plan) -> Runner:
        names = anatomy(denoiser).encoder
        if not names:
            raise ValueError(f"encoder propagation needs a U-Net, got {type(denoiser).__name__}")
        if scaled := scaled_in_place(denoiser):
            raise ValueError(
                f"FreeU scales what {scaled[0]} is given where it lies, and the encoder's output is stored: expected "
                "disable_freeu() first"
            )
        return _EncoderRunner(self.marks, names)


class _EncoderRunner(Runner):
    def __init__(self, marks: str, names: tuple[str, ...]):
        self.marks, self.names = marks, names

    def wrappers(self) -> list[tuple[str, Wrap]]:
        return [(name, self._wrap) for name in self.names]

    def skipped(self, i: int) -> list[str]:
        return list(self.names) if self.marks[i] == "." else []

    def _wrap(self, name: str, forward: Forward) -> Forward:
        def part(*args, **kwargs):
            mark = self.marks[self.now.index]
            if mark == ".":
                return repeat(self.store[name], self.now.copies)
            output = forward(*args, **kwargs)
            if mark == "S":
                self.store[name] = output
            return output

        return part


def repeat(features: Any, copies: int) -> Any:
    """A tensor [B, ...], or tuples and dicts of such, `copies` times along the batch. None stays None."""
    import torch

    if copies == 1 or features is None:
        return features
    if isinstance(features, tuple):
        return tuple(repeat(part, copies) for part in features)
    if isinstance(features, dict):
        return {name: repeat(part, copies) for name, part in features.items()}
    return torch.cat([features] * copies)
