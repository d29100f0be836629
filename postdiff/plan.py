"""What each denoising step computes, reuses, and at which scale: pure data, checked when it is made.

A method, its ablations and every baseline differ in nothing else, so a method is a function to a `Plan`
(`methods.py`), one sampler runs it (`sampling.py`) and one cost model prices it (`cost.py`).
"""

import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Literal

from postdiff.arguments import by_module, flag, instance, listed, number, one_of, put, shown, whole_number
from postdiff.reduction import Downsample, Merge, Refresh

Action = Literal["compute", "store", "reuse"]
BlockAction = Literal["compute", "store", "tokens", "reuse"]
Mode = Literal["ave", "cond", "uncond", "cfg"]
Half = Literal["cond", "uncond"]
SizeCondition = Literal["target", "current"]
ACTIONS: tuple[Action, ...] = ("compute", "store", "reuse")
BLOCK_ACTIONS: tuple[BlockAction, ...] = (*ACTIONS, "tokens")
PARTS = ("deep", "cross_attention", "self_attention", "encoder", "matching")  # of a step: one of `ACTIONS` each
MODES: tuple[Mode, ...] = ("ave", "cond", "uncond", "cfg")
HALVES: tuple[Half, ...] = ("cond", "uncond")
SIZE_CONDITIONS: tuple[SizeCondition, ...] = ("target", "current")
PIXELS = 2  # counts changes of this package that change the pixels of a plan
MAX_STEPS = 10_000  # ten times the training schedule of all models here; a typo must not fill the memory
MARKS = {  # what a module with a schedule of its own does at a step
    "#": "computes",
    "S": "computes, and stores what a window leaves out of self-attention",
    "w": "computes self-attention in a window, and adds what was stored",
    "c": "computes the conditional half, and uses it for both",
    "x": "both of these",
    ".": "reuses its last output",
}


@dataclass(frozen=True)
class StepPlan:
    """One evaluation of the denoiser.

    scale: side of the latents over their full side, in (0, 1].
    guided: classifier-free guidance, both halves; otherwise the plan's `half` only.
    deep: what lies beyond the skip branch, as in DeepCache. On `reuse` it is not executed.
    cross_attention: outputs of every cross-attention module (`attn2`), before the residual.
    self_attention: the same of every self-attention module (`attn1`).
    encoder: all of a U-Net before its decoder. On `reuse` only the decoder is executed.
    blocks: all of a transformer between its first and last layer. On `reuse` none is executed; on `tokens`
        self-attention is reused, and a few tokens of the other layers are computed and stored.
    matching: which tokens are merged, where the plan's `tokens` merges any. On `reuse` they are not matched anew.
    """

    scale: float = 1.0
    guided: bool = True
    deep: Action = "compute"
    cross_attention: Action = "compute"
    self_attention: Action = "compute"
    encoder: Action = "compute"
    blocks: BlockAction = "compute"
    matching: Action = "compute"

    def __post_init__(self) -> None:
        put(
            self,
            scale=number("scale", self.scale, "(0, 1]"),
            guided=flag("guided", self.guided),
            blocks=one_of("blocks", self.blocks, BLOCK_ACTIONS),
            **{part: one_of(part, getattr(self, part), ACTIONS) for part in PARTS},
        )


@dataclass(frozen=True)
class Plan:
    """A tuple of steps and the few settings that they share. Illegal plans raise ValueError and say why.

    name: letters, digits, spaces and _ . , + -, 100 at most: it becomes part of file names.
    steps: 10,000 at most; a model takes no more than its training schedule has (1000).
    branch: skip connections 0..branch are run on a step that reuses the deep part (0 is the outermost).
    mode: what attention stored with guidance gives to steps without (paper, sec. 2.5): the mean of both halves, the
        conditional, the unconditional, or their guided combination.
    half: which half a step without guidance evaluates: the conditional (the paper), or the unconditional (T-GATE).
    tokens: what makes fewer tokens inside transformer blocks, at every step.
    modules: (name, one of `MARKS` a step) of modules with a schedule of their own: a self-attention (`attn1`), or a
        block, of which what it adds to its input is stored.
    window: tokens to either side that a window holds, as a share of all.
    ahead: steps in a row that reuse the encoder are one pass: nothing in them depends on the latents.
    prior_noise: so much of the initial noise is added to the latents before each step of the solver in the second half
        of the schedule (t < T/2).
    refresh: which tokens are computed where a step's `blocks` says tokens.
    merged: (block, share of the tokens that it merges at each step), where `tokens` has a threshold: measured by
        `search.ca_tome`, for costs alone. It changes no image, and is not in the id.
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
    modules: tuple[tuple[str, str], ...] = ()
    window: float = 0.125
    ahead: bool = False
    prior_noise: float = 0.0
    refresh: Refresh | None = None
    merged: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w .,+-]{,99}", self.name):
            raise ValueError(
                "a plan's name is made of 1 to 100 letters, digits, spaces and _ . , + -, the first a letter, a digit "
                f"or _, got {shown(self.name)}"
            )
        steps = listed("steps", self.steps, "StepPlans")
        if not 1 <= len(steps) <= MAX_STEPS:
            raise ValueError(f"a plan must have from 1 to {MAX_STEPS} steps, got {len(steps)}")
        put(
            self,
            steps=tuple(instance(f"steps[{i}]", step, StepPlan) for i, step in enumerate(steps)),
            branch=whole_number("branch", self.branch, 0),
            mode=one_of("mode", self.mode, MODES),
            size_condition=one_of("size_condition", self.size_condition, SIZE_CONDITIONS),
            half=one_of("half", self.half, HALVES),
            modules=by_module("modules", self.modules),
            window=number("window", self.window, "(0, 1]"),
            ahead=flag("ahead", self.ahead),
            prior_noise=number("prior_noise", self.prior_noise, "[0, inf)"),
            merged=by_module("merged", self.merged),
        )
        if not isinstance(self.tokens, (Merge, Downsample, type(None))):
            raise ValueError(f"tokens must be a Merge, a Downsample or None, got {shown(self.tokens)}")
        if not isinstance(self.refresh, (Refresh, type(None))):
            raise ValueError(f"refresh must be a Refresh or None, got {shown(self.refresh)}")
        for i, step in enumerate(self.steps):
            others = {getattr(step, part) for part in PARTS}
            if step.blocks != "compute" and (others != {"compute"} or self.modules or self.tokens):
                raise ValueError(f"step {i}: stored blocks go with no other reuse and no fewer tokens, got {step}")
        for i, (before, after) in enumerate(pairwise(self.steps), 1):
            if after.scale < before.scale:
                raise ValueError(f"step {i}: scale falls from {before.scale} to {after.scale}; it may only rise")
        if self.steps[-1].scale != 1:
            raise ValueError(f"the last step must be at full resolution, got scale {self.steps[-1].scale}")
        self._check_stores()
        self._check_modules()

    def _check_stores(self) -> None:
        features = dict.fromkeys(("deep", "encoder", "blocks", "matching"), False)  # is it stored for this step?
        halves = {"cross": 0, "self": 0}  # how many halves of guidance each attention's store holds
        for i, step in enumerate(self.steps):
            before = self.steps[i - 1] if i else step
            # Features fit one grid and one batch. Cross-attention outlives a switch: it is resized.
            for part in features:
                action = getattr(step, part)
                features[part] = features[part] and (step.scale, step.guided) == (before.scale, before.guided)
                if action in ("reuse", "tokens") and not features[part]:
                    raise ValueError(f"step {i}: nothing {part} is stored at scale {step.scale}, guided={step.guided}")
                features[part] = features[part] or action == "store"
            if "compute" not in (step.deep, step.encoder):
                raise ValueError(f"step {i}: expected the deep part or the encoder to be stored or reused, got both")
            if self.ahead and step.encoder == "reuse" and {step.cross_attention, step.self_attention} != {"compute"}:
                raise ValueError(f"step {i}: a step that is computed ahead computes its attentions, got {step}")
            if step.matching != "compute" and not isinstance(self.tokens, Merge):
                raise ValueError(f"step {i}: no tokens are merged, so no matching can be stored or reused")
            if step.matching != "compute" and "reuse" in (step.deep, step.encoder, step.self_attention):
                raise ValueError(f"step {i}: matching is stored and reused where every block runs, got {step}")
            if step.scale != before.scale:
                halves["self"] = 0
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
        # A step that skips the deep part or the encoder runs only a part of the attentions: it cannot fill the store.
        return run if action == "store" and "reuse" not in (step.deep, step.encoder) else min(stored, run)

    def _check_modules(self) -> None:
        for name, marks in self.modules:
            if not isinstance(marks, str) or len(marks) != len(self) or set(marks) - set(MARKS):
                raise ValueError(
                    f"{name}: expected {len(self)} marks, each one of {' '.join(MARKS)}, got {shown(marks)}"
                )
            if not name.endswith(".attn1") and set(marks) - set("#."):
                raise ValueError(f"{name}: only self-attention (attn1) takes marks other than # and ., got {marks!r}")
            output = residual = False
            for i, (mark, step) in enumerate(zip(marks, self.steps, strict=True)):
                before = self.steps[i - 1] if i else step
                if (step.scale, step.guided) != (before.scale, before.guided):
                    output = residual = False
                if (mark == "." and not output) or (mark in "wx" and not residual):
                    raise ValueError(f"step {i}: nothing of {name} is stored that {mark!r} could use")
                if mark in "cx" and not step.guided:
                    raise ValueError(f"step {i}: {name} has one half without guidance, so {mark!r} cannot share it")
                output, residual = True, residual or mark == "S"
        # A module that always computes needs no schedule; their order says nothing: one computation has one id.
        put(self, modules=tuple(sorted((name, marks) for name, marks in self.modules if set(marks) != {"#"})))
        merged = []
        for name, row in self.merged:
            shares = tuple(number(f"merged, {name}", share, "[0, 1)") for share in listed("merged", row, "shares"))
            if len(shares) != len(self):
                raise ValueError(f"merged, {name}: expected {len(self)} shares in [0, 1), got {len(shares)}")
            merged.append((name, shares))
        put(self, merged=tuple(merged))
        if self.ahead and isinstance(self.tokens, Merge) and self.tokens.threshold is not None:
            raise ValueError("steps that are computed ahead are one batch: it does not go with a merging threshold")
        for outer, inner in pairwise(sorted(f"{name}." for name, _ in self.modules)):  # what is within, comes next
            if inner.startswith(outer):
                raise ValueError(f"a module within another has no schedule of its own, got {outer[:-1]}, {inner[:-1]}")
        others = {"reuse"} & {action for s in self.steps for action in (s.deep, s.encoder, s.self_attention)}
        if self.modules and others:
            raise ValueError("modules with schedules of their own may not be skipped by deep, encoder or attn1 actions")
        if self.tokens and any(set(marks) & set("Swx") for _, marks in self.modules):
            raise ValueError("attention in windows needs all tokens, in their order: it does not go with `tokens`")

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return f"{self.name}: {len(self)} steps\n{strip(self)}"

    @property
    def switches(self) -> tuple[int, ...]:
        """Steps that begin at another scale than the step before them ended."""
        return tuple(i for i in range(1, len(self)) if self.steps[i].scale != self.steps[i - 1].scale)

    def column(self, i: int) -> tuple[tuple[str, str], ...]:
        """(name, mark) of every module with a schedule of its own, at step i."""
        return tuple((name, marks[i]) for name, marks in self.modules)

    @property
    def needs_both_texts(self) -> bool:
        """Is any step given the unconditional text?"""
        return self.half == "uncond" or any(step.guided for step in self.steps)

    @cached_property
    def id(self) -> str:
        """12 hex digits of everything that changes pixels; two names for the same computation share it."""
        value = asdict(self)
        del value["name"], value["merged"]
        if all(step.deep == "compute" for step in self.steps):
            del value["branch"]
        if all(step.cross_attention == step.self_attention == "compute" for step in self.steps):
            del value["mode"]
        for kind in ("self_attention", "encoder", "blocks", "matching"):  # the ids of before there were such things
            if all(getattr(step, kind) == "compute" for step in self.steps):
                value["steps"] = [{k: v for k, v in step.items() if k != kind} for step in value["steps"]]
        if all(step.encoder == "compute" for step in self.steps):
            del value["ahead"]
        if all(step.blocks != "tokens" for step in self.steps):
            del value["refresh"]
        if self.half == "cond" or all(step.guided for step in self.steps):
            del value["half"]
        marks = set().union(*(marks for _, marks in self.modules))
        if not marks & set("wx"):
            del value["window"]
        if isinstance(self.tokens, Merge) and self.tokens.threshold is None:
            del value["tokens"]["threshold"]
        for name, off in (("tokens", None), ("modules", ()), ("prior_noise", 0.0)):
            if value[name] == off:
                del value[name]
        if self.size_condition == "target" or not self.switches:
            del value["size_condition"]
        return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def parts(plan: Plan) -> dict[str, list[str]]:
    """{name of a part: its action at each step}: the deep part and cross-attention, and what else is ever reused."""
    found: dict[str, list[str]] = {
        "deep": [step.deep for step in plan.steps],
        "attn2": [step.cross_attention for step in plan.steps],
    }
    others = {"attn1": "self_attention", "encoder": "encoder", "matching": "matching", "blocks": "blocks"}
    for name, kind in others.items():
        actions = [getattr(step, kind) for step in plan.steps]
        if {"reuse", "tokens"} & set(actions):
            found[name] = actions
    return found


def strip(plan: Plan) -> str:
    """The plan as a few lines of text, one column a step."""
    marks = {"compute": "#", "store": "S", "reuse": ".", "tokens": "t"}
    one = "1" if plan.half == "cond" else "u"
    rows = {
        "resolution": "".join("#" if step.scale == 1 else "-" for step in plan.steps),
        "guidance": "".join("2" if step.guided else one for step in plan.steps),
    }
    rows |= {name: "".join(marks[action] for action in actions) for name, actions in parts(plan).items()}
    legend = f"# full/computed   S computed and stored   . reused   - low resolution   2/{one} halves of guidance"
    if any(step.blocks == "tokens" for step in plan.steps):
        legend += "\n   t some tokens computed and stored"
    if plan.modules:
        legend += "\n   w window, and stored rest   c one half for both   x both"
    rows |= dict(plan.modules)
    width = max(map(len, rows)) + 2
    tokens = f"\n  {'tokens':<{width}}{plan.tokens}" if plan.tokens else ""
    return "\n".join(f"  {name:<{width}}{row}" for name, row in rows.items()) + f"{tokens}\n  ({legend})"
