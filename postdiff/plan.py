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
SizeCondition = Literal["target", "current"]
ACTIONS: tuple[Action, ...] = ("compute", "store", "reuse")
MODES: tuple[Mode, ...] = ("ave", "cond", "uncond", "cfg")
SIZE_CONDITIONS: tuple[SizeCondition, ...] = ("target", "current")


@dataclass(frozen=True)
class StepPlan:
    """One evaluation of the denoiser.

    scale: side of the latents over their full side, in (0, 1].
    guided: classifier-free guidance, both halves; otherwise the conditional half only.
    deep: what lies beyond the skip branch, as in DeepCache. On `reuse` it is not executed.
    cross_attention: outputs of every cross-attention module (`attn2`), before the residual.
    """

    scale: float = 1.0
    guided: bool = True
    deep: Action = "compute"
    cross_attention: Action = "compute"


@dataclass(frozen=True)
class Plan:
    """A tuple of steps and the few settings that they share. Illegal plans raise ValueError and say why.

    branch: skip connections 0..branch are run on a step that reuses the deep part (0 is the outermost).
    mode: which guidance the stored cross-attention holds (paper, sec. 2.5): the mean of both halves, the
        conditional, the unconditional, or their guided combination.
    size_condition: the size that a low-resolution step tells a model which is conditioned on size (SDXL, PixArt):
        that of the finished image, or that of its own latents.
    """

    name: str
    steps: tuple[StepPlan, ...]
    branch: int = 1
    mode: Mode = "cond"
    size_condition: SizeCondition = "target"

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a plan has at least 1 step, got 0")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.size_condition not in SIZE_CONDITIONS:
            raise ValueError(f"size_condition must be one of {', '.join(SIZE_CONDITIONS)}, got {self.size_condition!r}")
        if self.branch < 0:
            raise ValueError(f"branch must be 0 or more, got {self.branch}")
        for i, step in enumerate(self.steps):
            if not 0 < step.scale <= 1:
                raise ValueError(f"step {i}: scale must be in (0, 1], got {step.scale}")
            if {step.deep, step.cross_attention} - set(ACTIONS):
                raise ValueError(f"step {i}: an action is one of {', '.join(ACTIONS)}, got {step}")
            if step.cross_attention == "reuse" and step.guided:
                raise ValueError(f"step {i}: stored cross-attention is of one half, so the step must be unguided")
        for i, (before, after) in enumerate(pairwise(self.steps), 1):
            if after.scale < before.scale:
                raise ValueError(f"step {i}: scale falls from {before.scale} to {after.scale}; it may only rise")
        if self.steps[-1].scale != 1:
            raise ValueError(f"the last step must be at full resolution, got scale {self.steps[-1].scale}")
        self._check_stores()

    def _check_stores(self) -> None:
        deep = attention = False  # is something stored that this step could reuse?
        for i, step in enumerate(self.steps):
            before = self.steps[i - 1] if i else step
            # Deep features fit one grid and one batch; cross-attention maps are resized, so they outlive a switch.
            deep = deep and (step.scale, step.guided) == (before.scale, before.guided)
            if step.deep == "reuse" and not deep:
                raise ValueError(f"step {i}: nothing deep is stored at scale {step.scale}, guided={step.guided}")
            if step.cross_attention == "reuse" and not attention:
                raise ValueError(f"step {i}: no cross-attention is stored before it")
            deep = deep or step.deep == "store"
            # A step that skips the deep part runs only a part of the cross-attentions: it cannot fill the store.
            attention = attention or (step.cross_attention == "store" and step.deep != "reuse")

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return f"{self.name}: {len(self)} steps\n{strip(self)}"

    @property
    def switches(self) -> tuple[int, ...]:
        """Steps that begin at another scale than the step before them ended."""
        return tuple(i for i in range(1, len(self)) if self.steps[i].scale != self.steps[i - 1].scale)

    @cached_property
    def id(self) -> str:
        """12 hex digits of everything that changes pixels; two names for the same computation share it."""
        value = asdict(self)
        del value["name"]
        if all(step.deep == "compute" for step in self.steps):
            del value["branch"]
        if all(step.cross_attention == "compute" for step in self.steps):
            del value["mode"]
        if self.size_condition == "target" or not self.switches:
            del value["size_condition"]
        return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def strip(plan: Plan) -> str:
    """The plan as four lines of text, one column a step."""
    marks = {"compute": "#", "store": "S", "reuse": "."}
    rows = {
        "resolution": "".join("#" if step.scale == 1 else "-" for step in plan.steps),
        "guidance": "".join("2" if step.guided else "1" for step in plan.steps),
        "deep": "".join(marks[step.deep] for step in plan.steps),
        "attn2": "".join(marks[step.cross_attention] for step in plan.steps),
    }
    legend = "# full/computed   S computed and stored   . reused   - low resolution   2/1 halves of guidance"
    return "\n".join(f"  {name:<11}{row}" for name, row in rows.items()) + f"\n  ({legend})"
