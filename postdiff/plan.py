"""A plan: the steps of a run, and the mechanisms that save work in them. Pure data, checked when it is made.

A method, its ablations and every baseline differ in nothing else, so a method is a function to a `Plan` (`methods/`),
one sampler runs it (`sampling.py`) and one cost model prices it (`pricing.py`). A plan is a sum: each mechanism
(`mechanisms/`, a file each) says for itself what it computes, stores and reuses at each step. What is off is not in the
plan, so one computation has one id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from postdiff import notebook
from postdiff.arguments import flag, instance, listed, number, one_of, put, shown

if TYPE_CHECKING:
    import torch

    from postdiff.mechanisms.attach import Runner

Half = Literal["cond", "uncond"]
SizeCondition = Literal["target", "current"]
Switch = Literal["fresh", "same-noise", "kept", "literal"]
HALVES: tuple[Half, ...] = ("cond", "uncond")
SIZE_CONDITIONS: tuple[SizeCondition, ...] = ("target", "current")
SWITCHES: tuple[Switch, ...] = ("fresh", "same-noise", "kept", "literal")
PIXELS = 2  # counts changes of this package that change the pixels of a plan
MAX_STEPS = 10_000  # ten times the training schedule of all models here; a typo must not fill the memory
MEASURED = {"measured": True}  # metadata of a mechanism's field that was measured, and changes no pixel

Some = TypeVar("Some", bound="Mechanism")


@dataclass(frozen=True)
class Step:
    """One denoising step: one evaluation of the denoiser.

    scale: side of the latents over their full side, in (0, 1].
    guided: with classifier-free guidance, which evaluates both halves; otherwise the plan's `half` alone.
    """

    scale: float = 1.0
    guided: bool = True

    def __post_init__(self) -> None:
        put(self, scale=number("scale", self.scale, "(0, 1]"), guided=flag("guided", self.guided))


class Mechanism:
    """One way to save work, for the whole of a plan: its own settings, and what it does at each step.

    A subclass is a frozen dataclass. Most say what they do with marks, a character a step: "#" computes, "S" computes
    and stores, "." reuses what was stored. A row of `mechanisms.MECHANISMS` makes it known to plan files and tests.

    layer: mechanisms of lower layers wrap a module first, and are inside.
    excludes: {another mechanism's class name: why the two do not go together}.
    legend: what its marks other than # S . mean.
    prior_noise: so much of the initial noise is added to the latents before each step of the solver in the second half
        of the schedule (t < T/2).
    """

    layer: ClassVar[int] = 0
    excludes: ClassVar[Mapping[str, str]] = {}
    legend: ClassVar[Mapping[str, str]] = {}
    prior_noise: float = 0.0

    @property
    def thin(self) -> str:
        """What its rows are of, if they are so many that a picture draws them thin; else ""."""
        return ""

    @property
    def varies(self) -> bool:
        """Do the shapes that the denoiser's layers see depend on the image?"""
        return False

    @property
    def active(self) -> bool:
        """Does it change anything? A mechanism that does not is left out of a plan."""
        return True

    def check(self, plan: Plan) -> None:
        """Raise ValueError if it cannot be carried out in this plan."""

    def reuses(self, i: int) -> frozenset[str]:
        """Parts of the denoiser that step i does not run: of deep, encoder, blocks, self-attention, cross-attention."""
        return frozenset()

    def ahead(self, i: int) -> bool:
        """Can step i be computed in one pass with the step before it, since nothing it runs depends on the latents?"""
        return False

    def restarted(self: Some, at: int) -> Some:
        """The same for a plan whose resolution changes at step `at`: from it on, nothing stored before is reused."""
        return self

    def rows(self) -> dict[str, str]:
        """{title: its marks, one a step} for texts and pictures."""
        return {}

    def note(self) -> str:
        """What the rows do not show, in a few words; "" for nothing."""
        return ""

    def runner(self, denoiser: torch.nn.Module, plan: Plan) -> Runner:
        """What carries it out on `denoiser`. Raises ValueError if that lacks what it needs. May import torch."""
        raise NotImplementedError


@dataclass(frozen=True)
class Plan:
    """What each denoising step computes: a tuple of steps, and the mechanisms that save work in them. Immutable.

    name: letters, digits, spaces and _ . , + -, 100 at most: it becomes part of file names.
    steps: 10,000 at most; a model takes no more than its training schedule has (1000).
    mechanisms: in any order, each kind once.
    half: which half a step without guidance evaluates: the conditional (the paper), or the unconditional (T-GATE).
    size_condition: the size that a low-resolution step gives to a model which is conditioned on size (SDXL, PixArt):
        that of the finished image ("target"), or that of its own latents ("current").
    switch: how latents get to another scale (postdiff/switching.py): "fresh", or an ablation of that.

    Raises: ValueError, with what was expected and what was given, if the plan cannot be carried out: the scale falls or
        does not end at 1, a step reuses what no step stored, or two mechanisms exclude each other.
    """

    name: str
    steps: tuple[Step, ...]
    mechanisms: tuple[Mechanism, ...] = ()
    half: Half = "cond"
    size_condition: SizeCondition = "target"
    switch: Switch = "fresh"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w .,+-]{,99}", self.name):
            raise ValueError(
                "a plan's name is made of 1 to 100 letters, digits, spaces and _ . , + -, the first a letter, a digit "
                f"or _, got {shown(self.name)}"
            )
        steps, mechanisms = listed("steps", self.steps, "Steps"), listed("mechanisms", self.mechanisms, "Mechanisms")
        if not 1 <= len(steps) <= MAX_STEPS:
            raise ValueError(f"a plan must have from 1 to {MAX_STEPS} steps, got {len(steps)}")
        for i, mechanism in enumerate(mechanisms):  # of all: what a check asks of the others, and what is off
            for title, marks in instance(f"mechanisms[{i}]", mechanism, Mechanism).rows().items():
                if len(marks) != len(steps):
                    raise ValueError(f"{title}: expected {len(steps)} marks, one a step, got {shown(marks)}")
        active = [mechanism for mechanism in mechanisms if mechanism.active]
        put(
            self,
            steps=tuple(instance(f"steps[{i}]", step, Step) for i, step in enumerate(steps)),
            mechanisms=tuple(sorted(active, key=lambda m: (m.layer, kind(m)))),
            half=one_of("half", self.half, HALVES),
            size_condition=one_of("size_condition", self.size_condition, SIZE_CONDITIONS),
            switch=one_of("switch", self.switch, SWITCHES),
        )
        for i, (before, after) in enumerate(pairwise(self.steps), 1):
            if after.scale < before.scale:
                raise ValueError(f"step {i}: scale falls from {before.scale} to {after.scale}; it may only rise")
        if self.steps[-1].scale != 1:
            raise ValueError(f"the last step must be at full resolution, got scale {self.steps[-1].scale}")
        if self.switch == "literal" and len(self.switches) > 1:
            raise ValueError(f"a literal switch repeats a timestep once, got {len(self.switches)} switches")
        self._check_mechanisms()

    def _check_mechanisms(self) -> None:
        kinds = [kind(m) for m in self.mechanisms]
        for mechanism in self.mechanisms:
            if kinds.count(kind(mechanism)) > 1:
                raise ValueError(f"a plan has each mechanism once, got {kind(mechanism)} twice")
            for other in kinds:
                if other in mechanism.excludes:
                    raise ValueError(f"{kind(mechanism)} and {other}: {mechanism.excludes[other]}")
            mechanism.check(self)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return f"{self.name}: {len(self)} steps\n{strip(self)}"

    _repr_png_ = notebook.png
    _repr_html_ = notebook.html

    @property
    def switches(self) -> tuple[int, ...]:
        """Indices of the steps that run at another scale than the step before them."""
        return tuple(i for i in range(1, len(self)) if self.steps[i].scale != self.steps[i - 1].scale)

    @property
    def needs_both_texts(self) -> bool:
        """Is any step given the unconditional text?"""
        return self.half == "uncond" or any(step.guided for step in self.steps)

    @property
    def prior_noise(self) -> float:
        """Share of the initial noise that is added before each step of the second half of the schedule."""
        return sum(mechanism.prior_noise for mechanism in self.mechanisms)

    def get(self, mechanism_class: type[Some]) -> Some | None:
        """The plan's mechanism of that class, or None."""
        return next((mechanism for mechanism in self.mechanisms if type(mechanism) is mechanism_class), None)

    def plus(self, *mechanisms: Mechanism, **changes: Any) -> Plan:
        """The plan with `mechanisms`, each in place of one of its own kind, and other `changes` of its fields."""
        others = tuple(m for m in self.mechanisms if type(m) not in map(type, mechanisms))
        return replace(self, mechanisms=others + mechanisms, **changes)

    def reuses(self, i: int) -> frozenset[str]:
        """Parts of the denoiser that step i does not run (`Mechanism.reuses`)."""
        return frozenset().union(*(mechanism.reuses(i) for mechanism in self.mechanisms))

    def partial(self, i: int) -> bool:
        """Does step i leave out whole blocks?"""
        return bool(self.reuses(i) & {"deep", "encoder", "blocks"})

    def ahead(self, i: int) -> int:
        """How many steps from i on may be one pass, since nothing in the later ones depends on the latents."""
        end = i + 1
        if any(mechanism.ahead(i) for mechanism in self.mechanisms):
            while end < len(self) and self.steps[end] == self.steps[i] and self.reuses(end) == self.reuses(i):
                end += 1
        return end - i

    @cached_property
    def id(self) -> str:
        """12 hex digits of everything that changes pixels; two names for the same computation share it."""
        value: dict[str, Any] = {
            "steps": [asdict(step) for step in self.steps],
            "mechanisms": [as_json(mechanism, measured=False) for mechanism in self.mechanisms],
        }
        if self.half != "cond" and not all(step.guided for step in self.steps):
            value["half"] = self.half
        at_switches = {"size_condition": (self.size_condition, "target"), "switch": (self.switch, "fresh")}
        value |= {name: own for name, (own, usual) in at_switches.items() if own != usual and self.switches}
        return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def kind(mechanism: Mechanism) -> str:
    """The name that plan files and error messages call it by."""
    return type(mechanism).__name__


def as_json(mechanism: Mechanism, measured: bool = True) -> dict[str, Any]:
    """A mechanism as JSON has it. measured: with what was measured, which changes no pixel."""
    value = asdict(mechanism)  # type: ignore[call-overload]
    left_out = {f.name for f in fields(mechanism) if f.metadata.get("measured") and not measured}  # type: ignore[arg-type]
    return {"kind": kind(mechanism), **{name: part for name, part in value.items() if name not in left_out}}


def marks_text(what: str, marks: Any, partly: str = "") -> str:
    """`marks` as a str. Raises ValueError if it is none, or holds others than # S . and `partly`."""
    expected = f"#S.{partly}"
    if isinstance(marks, str) and not set(marks) - set(expected):
        return marks
    raise ValueError(f"{what}: expected marks, each one of {' '.join(expected)}, got {shown(marks)}")


def check_marks(what: str, marks: str, plan: Plan, partly: str = "") -> None:
    """Raise ValueError if `marks` are others than # S . or `partly` (which needs what is stored too), or if a step
    reuses what no step before it stored: features fit one resolution and one batch."""
    marks_text(what, marks, partly)
    stored = False
    for i, (mark, step) in enumerate(zip(marks, plan.steps, strict=True)):
        stored = stored and step == plan.steps[i - 1]
        if mark in f".{partly}" and not stored:
            raise ValueError(f"step {i}: nothing {what} is stored at scale {step.scale}, guided={step.guided}")
        stored = stored or mark == "S"


def restarted(marks: str, at: int, partly: str = "") -> str:
    """The marks, where nothing that was stored before step `at` can be reused, and nothing is stored in vain."""
    uses = f".{partly}"
    first = next((i for i in range(at, len(marks)) if marks[i] != "#"), None)
    if first is not None and marks[first] in uses:
        marks = f"{marks[:first]}S{marks[first + 1 :]}"

    def reused_later(i: int) -> bool:
        later = marks[i + 1 : at if i < at else None].lstrip("#")
        return later[:1] in tuple(uses)

    return "".join("#" if mark == "S" and not reused_later(i) else mark for i, mark in enumerate(marks))


def strip(plan: Plan) -> str:
    """The plan as a few lines of text, one column a step."""
    half = "1" if plan.half == "cond" else "u"
    rows = {
        "resolution": "".join("#" if step.scale == 1 else "-" for step in plan.steps),
        "guidance": "".join("2" if step.guided else half for step in plan.steps),
    }
    for mechanism in plan.mechanisms:
        rows |= mechanism.rows()
    width = max(map(len, rows)) + 2
    lines = [f"  {name:<{width}}{row}" for name, row in rows.items()]
    lines += [f"  {note}" for note in notes(plan)]
    legend = f"# full/computed   S computed and stored   . reused   - low resolution   2/{half} halves of guidance"
    if extra := extra_marks(plan):
        legend += "\n   " + "   ".join(f"{mark} {meaning}" for mark, meaning in extra)
    return "\n".join([*lines, f"  ({legend})"])


def notes(plan: Plan) -> Iterator[str]:
    """What the rows of marks do not show, a few words a mechanism."""
    own = f"at the switch: {plan.switch}" if plan.switch != "fresh" and plan.switches else ""
    return (note for note in (own, *(mechanism.note() for mechanism in plan.mechanisms)) if note)


def extra_marks(plan: Plan) -> list[tuple[str, str]]:
    """(mark, its meaning) of the marks other than # S . in the plan's rows."""
    extra = []
    for mechanism in plan.mechanisms:
        used = set().union(*mechanism.rows().values())
        extra += [(mark, meaning) for mark, meaning in mechanism.legend.items() if mark in used]
    return extra
