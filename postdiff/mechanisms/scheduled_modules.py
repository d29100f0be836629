"""Modules with schedules of their own: blocks and self-attentions that reuse what they gave before (block caching),
attention in a window, or one half of guidance for both (DiTFastAttn).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from postdiff.arguments import by_module, number, put, shown
from postdiff.mechanisms.attach import Forward, Retrace, Runner, Wrap
from postdiff.models.anatomy import anatomy, check_processor, kind_of
from postdiff.plan import Mechanism, Plan

if TYPE_CHECKING:
    import torch

WINDOW = 0.125
MARKS = {
    "#": "computes",
    "S": "computes, and stores what a window leaves out of self-attention",
    "w": "computes self-attention in a window, and adds what was stored",
    "c": "computes the conditional half, and uses it for both",
    "x": "both of these",
    ".": "reuses its last output",
}


@dataclass(frozen=True)
class ScheduledModules(Mechanism):
    """modules: (name, one of `MARKS` a step): a self-attention, or a block: what it adds to its input is stored.
    window: tokens to either side that a window holds, as a share of all.
    """

    modules: tuple[tuple[str, str], ...]
    window: float = WINDOW
    layer: ClassVar[int] = 2
    legend: ClassVar[dict[str, str]] = {"w": "window, and stored rest", "c": "one half for both", "x": "both"}

    def __post_init__(self) -> None:
        modules = by_module("modules", self.modules)
        for name, marks in modules:
            if not isinstance(marks, str) or set(marks) - set(MARKS):
                raise ValueError(f"{name}: expected marks, each one of {' '.join(MARKS)}, got {shown(marks)}")
            if kind_of(name) != "self-attention" and set(marks) - set("#."):
                raise ValueError(f"{name}: only self-attention takes marks other than # and ., got {marks!r}")
        # What always computes needs no schedule, and what no window is used by needs none: one computation has one id.
        modules = tuple(sorted((name, marks) for name, marks in modules if set(marks) != {"#"}))
        windowed = any(set(marks) & set("wx") for _, marks in modules)
        window = number("window", self.window, "(0, 1]")
        put(self, modules=modules, window=window if windowed else WINDOW)
        for outer, inner in pairwise(sorted(f"{name}." for name, _ in modules)):  # what is within, comes next
            if inner.startswith(outer):
                raise ValueError(f"a module within another has no schedule of its own, got {outer[:-1]}, {inner[:-1]}")

    @property
    def active(self) -> bool:
        return bool(self.modules)

    def check(self, plan: Plan) -> None:
        for name, marks in self.modules:
            _check(name, marks, plan)
        if any(plan.reuses(i) & {"deep", "encoder", "self-attention"} for i in range(len(plan))):
            raise ValueError("modules with schedules of their own may not be skipped by what else the plan reuses")
        kinds = {type(mechanism).__name__ for mechanism in plan.mechanisms}
        used = {mark for _, marks in self.modules for mark in marks}
        if used & set("Swx") and kinds & {"TokenMerging", "KeyDownsampling"}:
            raise ValueError("attention in windows needs all tokens, in their order: it does not go with fewer tokens")
        if "c" in used and "TokenMerging" in kinds:
            raise ValueError("tokens are merged in both halves of guidance: it does not go with one half for both")

    def restarted(self, at: int) -> ScheduledModules:
        return replace(self, modules=tuple((name, _restarted(marks, at)) for name, marks in self.modules))

    def rows(self) -> dict[str, str]:
        return dict(self.modules)

    @property
    def thin(self) -> str:
        attention = kind_of(self.modules[0][0]) == "self-attention"
        return f"{len(self.modules)} {'self-attentions' if attention else 'blocks'}"

    def runner(self, denoiser: torch.nn.Module, plan: Plan) -> Runner:
        anatomy(denoiser)  # raises if the names of its modules are not known
        submodules = dict(denoiser.named_modules())
        for name, marks in self.modules:
            if name not in submodules:
                raise ValueError(
                    f"{plan.name} has a schedule of {name}, which a {type(denoiser).__name__} of this size lacks"
                )
            if set(marks) & set("Swx"):
                if not _is_plain(submodules[name]):
                    raise ValueError(f"{name} must be plain self-attention to be split into windows")
                check_processor(name, submodules[name])
        return _ScheduledRunner(self, denoiser)


def _check(name: str, marks: str, plan: Plan) -> None:
    """Raise ValueError if a module's marks use what is not stored at that step."""
    output = residual = False
    for i, (mark, step) in enumerate(zip(marks, plan.steps, strict=True)):
        if i and step != plan.steps[i - 1]:
            output = residual = False
        if (mark == "." and not output) or (mark in "wx" and not residual):
            raise ValueError(f"step {i}: nothing of {name} is stored that {mark!r} could use")
        if mark in "cx" and not step.guided:
            raise ValueError(f"step {i}: {name} has one half without guidance, so {mark!r} cannot share it")
        output, residual = True, residual or mark == "S"


def _restarted(marks: str, at: int) -> str:
    """The marks, where nothing that was stored before step `at` can be reused."""
    output = residual = False
    after = ""
    for mark in marks[at:]:
        if mark == "." and not output:
            mark = "#"
        elif mark in "wx" and not residual:
            mark = "S"
        output, residual = True, residual or mark == "S"
        after += mark
    return marks[:at] + after


def _is_plain(module: torch.nn.Module) -> bool:
    """Is a self-attention no more than projections and softmax?"""
    extras = ("residual_connection", "norm_q", "group_norm", "spatial_norm", "is_cross_attention")
    return not any(getattr(module, name) for name in extras) and module.rescale_output_factor == 1


class _ScheduledRunner(Runner):
    def __init__(self, settings: ScheduledModules, denoiser: torch.nn.Module):
        self.window, self.schedules, self.denoiser = settings.window, dict(settings.modules), denoiser

    def wrappers(self) -> list[tuple[str, Wrap]]:
        attention = {name: partial(self._wrap_attention, self.denoiser.get_submodule(name)) for name in self.schedules}
        return [
            (name, attention[name] if kind_of(name) == "self-attention" else self._wrap_block)
            for name in self.schedules
        ]

    def skipped(self, i: int) -> list[str]:
        return [name for name, marks in self.schedules.items() if marks[i] == "."]

    def retraced(self, i: int) -> dict[str, Retrace]:
        retraces = {}
        for name, marks in self.schedules.items():
            mark, halves = marks[i], 1 if marks[i] in "cx" else None
            if mark == "c":
                retraces[name] = Retrace(halves=halves)
            elif mark in "Swx":  # a window needs what a step before it stored
                every = tuple((attention, "Sw") for attention in anatomy(self.denoiser).layers("self-attention"))
                runs = (0,) if mark == "S" else (0, 1)
                retraces[name] = Retrace(ScheduledModules(every, self.window), 2, runs, halves)
        return retraces

    def _keeps(self, name: str) -> bool:
        """Is this step's output reused by the next?"""
        return self.schedules[name][self.now.index + 1 : self.now.index + 2] == "."

    def _wrap_block(self, name: str, forward: Forward) -> Forward:
        def block(hidden_states, *args, **kwargs):
            if self.schedules[name][self.now.index] == ".":
                output = hidden_states + self.store[name]
                return output if kwargs.get("return_dict", True) else (output,)
            output = forward(hidden_states, *args, **kwargs)
            if self._keeps(name):
                self.store[name] = (output[0] if isinstance(output, tuple) else output) - hidden_states
            return output

        return block

    def _wrap_attention(self, module: torch.nn.Module, name: str, forward: Forward) -> Forward:
        import torch

        from postdiff.mechanisms.windows import split_attention

        residual = f"{name} beyond its window"

        def attention(hidden_states, *args, **kwargs):
            mark = self.schedules[name][self.now.index]
            if mark == ".":
                return self.store[name]
            x = hidden_states.chunk(2)[1] if mark in "cx" else hidden_states
            if mark in "#c":
                output = forward(x, *args, **kwargs)
            elif mark == "S":
                output, self.store[residual] = split_attention(module, x, self.window)
            else:
                output, _ = split_attention(module, x, self.window, self.store[residual][-len(x) :])
            if mark in "cx":
                output = torch.cat([output] * 2)
            if self._keeps(name):
                self.store[name] = output
            return output

        return attention
