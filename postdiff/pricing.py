"""What a plan costs, by step and by layer type, without weights: the denoiser is run on torch's meta device.

Two units, never mixed (1 MAC is 2 FLOPs):
    macs_paper  multiply-accumulates of convolutions, linear layers and norms, attention products left out. This is
                what the paper's "FLOPs (T)" columns hold; the rule was found by counting its published backbones.
    flops       everything, as torch.utils.flop_counter counts: 2 x MAC, attention included.
Only the denoiser counts (no text encoder, no autoencoder), for one image.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from postdiff import arguments, caching, duca
from postdiff.arguments import instance
from postdiff.models.families import FAMILIES, adapt
from postdiff.models.family import Size
from postdiff.models.loading import outline
from postdiff.models.spec import Spec
from postdiff.plan import Plan, StepPlan
from postdiff.reduction import Downsample, Merge
from postdiff.resolution import latent_size
from postdiff.tokens import Draw

LAYERS = ("attn1", "attn2", "ff", "resnets")  # and "other"


@dataclass(frozen=True)
class StepCost:
    """One step, both halves of guidance where it has them.

    macs_printed: macs_paper as the paper's Table 1 (SD1.5) was printed: on a step that reuses both the deep part and
        the cross-attention, it subtracts the cross-attention of the whole net, though only a part of it would run.
        (SDXL's row of Table 2 is `macs_paper`: its shallow pass has no cross-attention.)
    layers: macs_paper by layer type.
    """

    macs_paper: int
    macs_printed: int
    flops: int
    layers: dict[str, int]


@dataclass(frozen=True)
class Cost:
    steps: tuple[StepCost, ...]

    @property
    def macs_paper(self) -> int:
        return sum(step.macs_paper for step in self.steps)

    @property
    def macs_printed(self) -> int:
        return sum(step.macs_printed for step in self.steps)

    @property
    def flops(self) -> int:
        return sum(step.flops for step in self.steps)


@dataclass(frozen=True)
class _Pass:
    """One full forward pass, one half, traced: macs of every leaf module, flops of every module with its children."""

    macs: dict[str, int]
    flops: dict[str, int]


def cost(plan: Plan, spec: Spec, size: int | Size | None = None) -> Cost:
    """Price `plan` on the denoiser of `spec` for one image of `size` pixels, (height, width) or one number for a square
    (the backbone's own by default).

    Raises: ValueError if the family cannot run the plan, or `size` is no size of its images.
    """
    return costs([plan], spec, size)[0]


def costs(plans: Sequence[Plan], spec: Spec, size: int | Size | None = None) -> list[Cost]:
    """Price many plans: the denoiser is traced once a resolution and kind of attention; what a step skips is off."""
    spec = instance("spec", spec, Spec)
    plans = [adapt(instance("plan", plan, Plan), spec.family) for plan in plans]
    longest = max(map(len, plans), default=0)
    if longest > spec.train_steps:
        raise ValueError(
            f"steps must be at most {spec.train_steps}, all that {spec.name} was trained with, got {longest}"
        )
    full = spec.latents(arguments.size(spec.size if size is None else size))
    denoiser = outline(spec)
    attentions = [name for name, _ in denoiser.named_modules() if name.endswith(".attn1")]
    passes: dict[tuple, _Pass] = {}

    def traced(scale: float, plan: Plan, *runs: int) -> _Pass:
        key = scale, plan, runs
        if key not in passes:
            passes[key] = _trace(denoiser, latent_size(full, scale, spec.patch), spec, plan, runs)
        return passes[key]

    def windowed(scale: float, kind: str, window: float) -> _Pass:
        marks = {"S": "S", "w": "Sw"}[kind]  # a window needs what a step before it stored
        modules = tuple((name, marks) for name in attentions)
        steps = (StepPlan(),) * len(marks)
        return traced(scale, Plan("trace", steps, modules=modules, window=window), *range(len(marks)))

    def refreshed(scale: float, plan: Plan, i: int) -> _Pass:
        """Step i of DuCa, whose number of tokens is its own, after one that stored."""
        stored = StepPlan(guided=False, blocks="store")  # one half is traced
        if plan.steps[i].blocks == "store":
            return traced(scale, Plan("trace", (stored,), refresh=plan.refresh), 0)
        steps = (stored, *(replace(stored, blocks="tokens"),) * (len(plan) - 1))
        return traced(scale, Plan("trace", steps, refresh=plan.refresh), 0, i)

    def fewer(scale: float, plan: Plan, i: int) -> _Pass:
        """Step i with fewer tokens, if any; how many CA-ToMe merges was measured."""
        tokens = _tokens(plan, plan.steps[i])
        if not isinstance(tokens, Merge):
            return traced(scale, Plan("trace", (StepPlan(),), tokens=tokens), 0)
        if tokens.threshold is not None and not plan.merged:
            raise ValueError(
                f"{plan.name} merges what is alike in an image: `postdiff search ca_tome` measures its cost"
            )
        step = StepPlan(guided=False, matching="store")
        steps = (step, replace(step, matching="reuse")) if plan.steps[i].matching == "reuse" else (step,)
        shares = tuple((name, (row[i],) * len(steps)) for name, row in plan.merged)
        return traced(scale, Plan("trace", steps, tokens=tokens, merged=shares), *range(len(steps)))

    priced = []
    for plan in plans:
        caching.check(denoiser, plan)
        known: dict[tuple, StepCost] = {}
        steps = []
        for i, step in enumerate(plan.steps):
            key = step, plan.column(i), i if step.blocks == "tokens" or plan.merged else None
            if key not in known:
                stored = step.blocks in ("store", "tokens")
                split = {"#": refreshed(step.scale, plan, i) if stored else fewer(step.scale, plan, i)}
                for kind in {_KIND[mark] for _, mark in plan.column(i)} - {"#"}:
                    split[kind] = windowed(step.scale, kind, plan.window)
                attention = caching.attention_modules(denoiser, plan)
                known[key] = _step_cost(split, step, plan.column(i), _skipped(denoiser, plan, step), attention)
            steps.append(known[key])
        priced.append(Cost(tuple(steps)))
    return priced


# What self-attention computes at each mark of a schedule: all, all and a window, a window. Reused, it is not there.
_KIND = {"#": "#", "c": "#", ".": "#", "S": "S", "w": "w", "x": "w"}


def _skipped(denoiser: torch.nn.Module, plan: Plan, step: StepPlan) -> list[str]:
    """Modules that `step` does not run."""
    if step.deep == "reuse":
        return caching.deep_modules(denoiser, plan.branch)
    if step.blocks == "reuse":
        return duca.blocks(denoiser)
    return caching.encoder_modules(denoiser) if step.encoder == "reuse" else []


def _tokens(plan: Plan, step: StepPlan) -> Merge | Downsample | None:
    """What makes fewer tokens at `step`. Where every layer that tokens are merged around is reused, nothing does."""
    if not isinstance(plan.tokens, Merge):
        return plan.tokens
    runs = plan.tokens.runs(step.self_attention != "reuse", step.cross_attention != "reuse")
    return replace(plan.tokens, random=False) if runs else None  # chance changes which, not how many


def _step_cost(
    split: dict[str, _Pass],
    step: StepPlan,
    column: tuple[tuple[str, str], ...],
    skipped: list[str],
    attention: dict[str, list[str]],
) -> StepCost:
    """split: the pass by `_KIND` of self-attention; column: marks of modules with schedules of their own."""
    base, halves = split["#"], 2 if step.guided else 1
    gone = [*skipped, *[name for name, mark in column if mark == "."]]
    beyond = _inside(gone)
    run = {name: halves * n for name, n in base.macs.items() if not beyond(name)}
    flops = halves * (base.flops[""] - sum(base.flops.get(name, 0) for name in gone))
    printed = sum(run.values())
    for kind, action in (("attn1", step.self_attention), ("attn2", step.cross_attention)):
        if action != "reuse":
            continue
        cached = _inside(attention[kind])
        printed -= sum(halves * n for name, n in base.macs.items() if cached(name))
        run = {name: n for name, n in run.items() if not cached(name)}
        flops -= sum(halves * base.flops.get(name, 0) for name in attention[kind] if not beyond(name))
    for name, mark in column:
        if mark != ".":
            rows = 1 if mark in "cx" else halves
            flops += rows * split[_KIND[mark]].flops.get(name, 0) - halves * base.flops.get(name, 0)
            run |= {inner: rows * n for inner, n in base.macs.items() if rows < halves and _inside([name])(inner)}
    layers: Counter[str] = Counter()
    for name, n in run.items():
        layers[layer_of(name)] += n
    return StepCost(layers.total(), printed, flops, dict(layers))


def _inside(modules: list[str]) -> Callable[[str], bool]:
    """Is a name one of `modules`, or below one?"""
    roots = tuple(f"{name}." for name in modules)
    return lambda name: f"{name}.".startswith(roots)


def layer_of(name: str) -> str:
    return next((layer for layer in LAYERS if f".{layer}." in f".{name}."), "other")


def _trace(denoiser: torch.nn.Module, latents: tuple[int, int], spec: Spec, plan: Plan, runs: tuple[int, ...]) -> _Pass:
    """The last of these steps of `plan`, after the others."""
    rules, config = FAMILIES[spec.family], denoiser.config
    x = torch.empty(1, rules.latent_channels(config), *latents, device="meta")
    shapes = rules.text_shapes(config, spec.text_tokens)
    text = {name: torch.empty(1, *shape, device="meta") for name, shape in shapes.items()}
    told = rules.tell(text, spec.size, spec.guidance, config)
    t = torch.empty(1, device="meta")
    cache = caching.Cache()
    with torch.no_grad(), caching.attach(denoiser, plan) as replay:
        for i in runs:
            counter = FlopCounterMode(display=False)
            replay.begin(i, latents, cache, spec.guidance, _drawn_on_meta)
            with count_macs(denoiser) as macs, counter:
                rules.predict(denoiser, x, t, text, told)
    root = type(denoiser).__name__
    flops = {name.removeprefix(root).lstrip("."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return _Pass(dict(macs), {**flops, "": counter.get_total_flops()})


def _drawn_on_meta(index: int, name: str, one: Draw) -> torch.Tensor:
    """What one image draws, without its values: chance changes which tokens are chosen, not how many."""
    return one(torch.Generator())[None].to("meta")


@contextmanager
def count_macs(denoiser: torch.nn.Module) -> Iterator[Counter]:
    """Count `macs_paper` by module of whatever runs inside the `with`: a Counter that fills as it runs."""
    macs: Counter[str] = Counter()
    handles = []
    for name, module in denoiser.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.GroupNorm, torch.nn.LayerNorm)):

            def hook(module, args, output, name=name):
                macs[name] += module_macs(module, args[0], output)

            handles.append(module.register_forward_hook(hook))
    try:
        yield macs
    finally:
        for handle in handles:
            handle.remove()


def module_macs(module: torch.nn.Module, x: torch.Tensor, output: torch.Tensor) -> int:
    """`macs_paper` of one call. A linear layer's bias counts once an image, not once a token, as in the paper."""
    if isinstance(module, torch.nn.Conv2d):
        per_output = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        return output.numel() * (per_output + (module.bias is not None))
    if isinstance(module, torch.nn.Linear):
        return x.numel() * module.out_features + (module.bias is not None) * len(x) * module.out_features
    affine = module.affine if isinstance(module, torch.nn.GroupNorm) else module.elementwise_affine
    return x.numel() * (2 if affine else 1)
