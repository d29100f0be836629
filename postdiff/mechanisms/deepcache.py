"""DeepCache (CVPR 2024): what lies beyond a skip connection changes slowly, and is reused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from postdiff.arguments import put, whole_number
from postdiff.mechanisms.attach import Forward, Runner, Wrap
from postdiff.models.anatomy import anatomy, scaled_in_place
from postdiff.plan import Mechanism, Plan, check_marks, marks_text, restarted

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DeepCache(Mechanism):
    """Skip connections 0..branch are run on a step that reuses the deep part (0 is the outermost; the paper's is 1)."""

    marks: str
    branch: int = 1
    layer: ClassVar[int] = 4
    excludes: ClassVar[dict[str, str]] = {"EncoderPropagation": "the deep part is in the encoder; expected one of them"}

    def __post_init__(self) -> None:
        put(self, marks=marks_text("deep", self.marks), branch=whole_number("branch", self.branch, 0))

    @property
    def active(self) -> bool:
        return "." in self.marks

    def check(self, plan: Plan) -> None:
        check_marks("deep", self.marks, plan)

    def reuses(self, i: int) -> frozenset[str]:
        return frozenset({"deep"} if self.marks[i] == "." else ())

    def restarted(self, at: int) -> DeepCache:
        return replace(self, marks=restarted(self.marks, at))

    def rows(self) -> dict[str, str]:
        return {"deep part": self.marks}

    def runner(self, denoiser: torch.nn.Module, plan: Plan) -> Runner:
        beyond = anatomy(denoiser).beyond
        if beyond is None:
            raise ValueError(f"deep caching needs a U-Net with skip connections, got {type(denoiser).__name__}")
        names = beyond(self.branch)
        if split := [block for block in scaled_in_place(denoiser) if block not in names]:
            raise ValueError(
                f"FreeU scales what {split[0]} is given where it lies, and branch {self.branch} stores it: expected a "
                "smaller branch, or disable_freeu() first"
            )
        return _DeepRunner(self.marks, names)


class _DeepRunner(Runner):
    def __init__(self, marks: str, names: list[str]):
        self.marks, self.names = marks, names

    def wrappers(self) -> list[tuple[str, Wrap]]:
        return [(name, self._wrap) for name in self.names]

    def skipped(self, i: int) -> list[str]:
        return self.names if self.marks[i] == "." else []

    def _wrap(self, name: str, forward: Forward) -> Forward:
        def deep(*args, **kwargs):
            mark = self.marks[self.now.index]
            if mark == ".":
                return self.store[name]
            output = forward(*args, **kwargs)
            if mark == "S":
                self.store[name] = output
            return output

        return deep
