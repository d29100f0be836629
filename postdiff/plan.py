"""What each denoising step computes, reuses, and at which scale: pure data, checked when it is made.

A method, its ablations and every baseline differ in nothing else, so a method is a function to a `Plan`
(`methods.py`), one sampler runs it (`sampling.py`) and one cost model prices it (`cost.py`).
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Literal

Action = Literal["compute", "store", "reuse"]
Mode = Literal["ave", "cond", "uncond", "cfg"]
Half = Literal["cond", "uncond"]
SizeCondition = Literal["target", "current"]
ACTIONS: tuple[Action, ...] = ("compute", "store", "reuse")
MODES: tuple[Mode, ...] = ("ave", "cond", "uncond", "cfg")
HALVES: tuple[Half, ...] = ("cond", "uncond")
SIZE_CONDITIONS: tuple[SizeCondition, ...] = ("target", "current")


@dataclass(frozen=True)
class StepPlan:
    """One evaluation of the denoiser.

    scale: side of the latents over their full side, in (0, 1].
    guided: classifier-free guidance, both halves; otherwise the plan's `half` only.
    deep: what lies beyond the skip branch, as in DeepCache. On `reuse` it is not executed.
    cross_attention: outputs of every cross-attention module (`attn2`), before the residual.
    self_attention: the same of every self-attention module (`attn1`).
    """

    scale: float = 1.0
    guided: bool = True
    deep: Action = "compute"
    cross_attention: Action = "compute"
    self_attention: Action = "compute"


@dataclass(frozen=True)
class Merge:
    """Tokens that are alike are merged around a layer of each transformer block (ToMe).

    ratio: share of the tokens that are merged away; at most 1 - 1 / (sx * sy).
    sx, sy: one token of every cell of sx x sy is what others may be merged into.
    random: which one, drawn for every image, block and step; otherwise the upper left.
    max_downsample: only in blocks whose grid is at most so many times smaller than the latents' (1, 2, 4, 8).
    attention, cross_attention, mlp: the layers.
    """

    ratio: float = 0.5
    sx: int = 2
    sy: int = 2
    random: bool = True
    max_downsample: int = 1
    attention: bool = True
    cross_attention: bool = False
    mlp: bool = False

    def __post_init__(self) -> None:
        for name, value in (("sx", self.sx), ("sy", self.sy)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
        if self.max_downsample not in (1, 2, 4, 8):
            raise ValueError(f"max_downsample must be 1, 2, 4 or 8, got {self.max_downsample!r}")
        if self.sx * self.sy == 1:
            raise ValueError("a cell of 1x1 has nothing to merge; expected sx or sy of 2 or more")
        most = 1 - 1 / (self.sx * self.sy)
        if not 0 < self.ratio <= most:
            raise ValueError(
                f"ratio must be above 0 and at most {most:g} for cells of {self.sx}x{self.sy}, got {self.ratio}"
            )
        if not (self.attention or self.cross_attention or self.mlp):
            raise ValueError(
                "expected at least one of attention, cross_attention and mlp to merge tokens around, got none"
            )

    def reaches(self, downsample: int) -> bool:
        return downsample <= self.max_downsample

    def runs(self, step: StepPlan) -> bool:
        """Does any layer that tokens are merged around run at `step`? Otherwise they need not be matched."""
        attention = self.attention and step.self_attention != "reuse"
        return attention or (self.cross_attention and step.cross_attention != "reuse") or self.mlp


@dataclass(frozen=True)
class Downsample:
    """Self-attention sees every f-th row and column of its tokens as keys and values (ToDo).

    factors: f in blocks whose grid is 1, 2, 4, ... times smaller than the latents'; 1 beyond, which is off.
    """

    factors: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        factors = tuple(self.factors)
        while factors and factors[-1] == 1:  # off, as beyond the end: one computation has one value, and so one id
            factors = factors[:-1]
        object.__setattr__(self, "factors", factors)
        if not all(isinstance(f, int) and f >= 1 for f in self.factors) or not self.factors:
            raise ValueError(f"factors must be whole numbers of 1 or more, one above 1, got {self.factors}")

    def factor_at(self, downsample: int) -> int:
        level = downsample.bit_length() - 1
        return self.factors[level] if level < len(self.factors) else 1

    def reaches(self, downsample: int) -> bool:
        return self.factor_at(downsample) > 1


@dataclass(frozen=True)
class Plan:
    """A tuple of steps and the few settings that they share. Illegal plans raise ValueError and say why.

    branch: skip connections 0..branch are run on a step that reuses the deep part (0 is the outermost).
    mode: what attention stored with guidance gives to steps without (paper, sec. 2.5): the mean of both halves, the
        conditional, the unconditional, or their guided combination.
    half: which half a step without guidance evaluates: the conditional (the paper), or the unconditional (T-GATE).
    tokens: what makes fewer tokens inside transformer blocks, at every step.
    size_condition: the size that a low-resolution step tells a model which is conditioned on size (SDXL, PixArt):
        that of the finished image, or that of its own latents.
    """

    name: str
    steps: tuple[StepPlan, ...]
    branch: int = 1
    mode: Mode = "cond"
    size_condition: SizeCondition = "target"
    half: Half = "cond"
    tokens: Merge | Downsample | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a plan has at least 1 step, got 0")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.size_condition not in SIZE_CONDITIONS:
            raise ValueError(f"size_condition must be one of {', '.join(SIZE_CONDITIONS)}, got {self.size_condition!r}")
        if self.half not in HALVES:
            raise ValueError(f"half must be one of {', '.join(HALVES)}, got {self.half!r}")
        if self.branch < 0:
            raise ValueError(f"branch must be 0 or more, got {self.branch}")
        for i, step in enumerate(self.steps):
            if not 0 < step.scale <= 1:
                raise ValueError(f"step {i}: scale must be in (0, 1], got {step.scale}")
            if {step.deep, step.cross_attention, step.self_attention} - set(ACTIONS):
                raise ValueError(f"step {i}: an action is one of {', '.join(ACTIONS)}, got {step}")
        for i, (before, after) in enumerate(pairwise(self.steps), 1):
            if after.scale < before.scale:
                raise ValueError(f"step {i}: scale falls from {before.scale} to {after.scale}; it may only rise")
        if self.steps[-1].scale != 1:
            raise ValueError(f"the last step must be at full resolution, got scale {self.steps[-1].scale}")
        self._check_stores()

    def _check_stores(self) -> None:
        deep = False  # is something stored that this step could reuse?
        halves = {"cross": 0, "self": 0}  # how many halves of guidance each attention's store holds
        for i, step in enumerate(self.steps):
            before = self.steps[i - 1] if i else step
            # Deep features fit one grid and one batch. Cross-attention outlives a switch: it is resized.
            deep = deep and (step.scale, step.guided) == (before.scale, before.guided)
            if step.scale != before.scale:
                halves["self"] = 0
            if step.deep == "reuse" and not deep:
                raise ValueError(f"step {i}: nothing deep is stored at scale {step.scale}, guided={step.guided}")
            deep = deep or step.deep == "store"
            for kind, action in (("cross", step.cross_attention), ("self", step.self_attention)):
                halves[kind] = self._attention_stored(i, kind, action, halves[kind])

    def _attention_stored(self, i: int, kind: str, action: Action, stored: int) -> int:
        """Halves of guidance that are stored after step i, where `stored` were before it."""
        step = self.steps[i]
        run = 2 if step.guided else 1
        if action == "reuse" and not stored:
            raise ValueError(f"step {i}: no {kind}-attention is stored before it at its scale")
        if action == "reuse" and run > stored:
            raise ValueError(f"step {i}: stored {kind}-attention is of one half, so the step must be unguided")
        if action == "compute":
            return stored
        # A step that skips the deep part runs only a part of the attentions: it cannot fill the store.
        return run if action == "store" and step.deep != "reuse" else min(stored, run)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return f"{self.name}: {len(self)} steps\n{strip(self)}"

    @property
    def switches(self) -> tuple[int, ...]:
        """Steps that begin at another scale than the step before them ended."""
        return tuple(i for i in range(1, len(self)) if self.steps[i].scale != self.steps[i - 1].scale)

    @property
    def needs_both_texts(self) -> bool:
        """Is any step given the unconditional text?"""
        return self.half == "uncond" or any(step.guided for step in self.steps)

    @cached_property
    def id(self) -> str:
        """12 hex digits of everything that changes pixels; two names for the same computation share it."""
        value = asdict(self)
        del value["name"]
        if all(step.deep == "compute" for step in self.steps):
            del value["branch"]
        if all(step.cross_attention == step.self_attention == "compute" for step in self.steps):
            del value["mode"]
        if all(step.self_attention == "compute" for step in self.steps):  # the ids of before there was such a thing
            value["steps"] = [{k: v for k, v in step.items() if k != "self_attention"} for step in value["steps"]]
        if self.half == "cond" or all(step.guided for step in self.steps):
            del value["half"]
        if self.tokens is None:
            del value["tokens"]
        if self.size_condition == "target" or not self.switches:
            del value["size_condition"]
        return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def strip(plan: Plan) -> str:
    """The plan as a few lines of text, one column a step."""
    marks = {"compute": "#", "store": "S", "reuse": "."}
    one = "1" if plan.half == "cond" else "u"
    rows = {
        "resolution": "".join("#" if step.scale == 1 else "-" for step in plan.steps),
        "guidance": "".join("2" if step.guided else one for step in plan.steps),
        "deep": "".join(marks[step.deep] for step in plan.steps),
        "attn2": "".join(marks[step.cross_attention] for step in plan.steps),
    }
    if any(step.self_attention == "reuse" for step in plan.steps):
        rows["attn1"] = "".join(marks[step.self_attention] for step in plan.steps)
    legend = f"# full/computed   S computed and stored   . reused   - low resolution   2/{one} halves of guidance"
    tokens = f"\n  tokens     {plan.tokens}" if plan.tokens else ""
    return "\n".join(f"  {name:<11}{row}" for name, row in rows.items()) + f"{tokens}\n  ({legend})"
