"""What a plan costs, by step and by layer type, without weights: the denoiser is run on torch's meta device.

Two units, never mixed (1 MAC is 2 FLOPs):
    macs_paper  multiply-accumulates of convolutions, linear layers and norms, attention products left out. This is
                what the paper's "FLOPs (T)" columns hold; the rule was found by counting its published backbones.
    flops       everything, as torch.utils.flop_counter counts: 2 x MAC, attention included.
Only the denoiser counts (no text encoder, no autoencoder), for one image.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from postdiff import arguments
from postdiff.arguments import instance
from postdiff.mechanisms.attach import Cache, Draw, Pass, Retrace, Runner, attach, runners
from postdiff.models.anatomy import layer_of
from postdiff.models.families import FAMILIES, adapt
from postdiff.models.family import Size
from postdiff.models.loading import outline
from postdiff.models.spec import Spec
from postdiff.plan import Plan, Step
from postdiff.resolution import latent_size


@dataclass(frozen=True)
class StepCost:
    """What one step costs for one image, both halves of guidance where it has them.

    macs_paper, flops: in the two units at the top of this file.
    macs_printed: macs_paper as the paper's Table 1 (SD1.5) was printed: on a step that reuses both the deep part and
        the cross-attention, it subtracts the cross-attention of the whole net, though only a part of it would run.
        (SDXL's row of Table 2 is `macs_paper`: its shallow pass has no cross-attention.)
    layers: macs_paper by kind of layer (`anatomy.layer_of`).
    """

    macs_paper: int
    macs_printed: int
    flops: int
    layers: dict[str, int]


@dataclass(frozen=True)
class Cost:
    """What a plan costs for one image: each step, and the sums over all steps in MACs or FLOPs (`StepCost`)."""

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
class _Traced:
    """One full forward pass, one half: macs of every leaf module, flops of every module with its children."""

    macs: dict[str, int]
    flops: dict[str, int]


def cost(plan: Plan, spec: Spec, size: int | Size | None = None) -> Cost:
    """Count what `plan` costs on a denoiser, for one image, without weights and without running it.

    Args:
        plan: of at most as many steps as the model was trained with.
        spec: of the backbone: `backbone.spec`, or `postdiff.models.checkpoints.resolve(name)`.
        size: of the image in pixels, (height, width) or one number for a square; the backbone's own by default.

    Returns: the MACs and FLOPs of each step and of all (`Cost`).
    Raises: ValueError if the family cannot run the plan, a mechanism's cost is not known, or `size` is no size of its
        images.
    """
    return costs([plan], spec, size)[0]


def costs(plans: Sequence[Plan], spec: Spec, size: int | Size | None = None) -> list[Cost]:
    """The cost of each of `plans`, as `cost` counts it; faster, since they share the traces of the denoiser.

    It is traced once a resolution and kind of attention, and what a step skips is subtracted.
    """
    spec = instance("spec", spec, Spec)
    plans = [adapt(instance("plan", plan, Plan), spec.family) for plan in plans]
    longest = max(map(len, plans), default=0)
    if longest > spec.train_steps:
        raise ValueError(
            f"steps must be at most {spec.train_steps}, all that {spec.name} was trained with, got {longest}"
        )
    full = spec.latents(arguments.size(spec.size if size is None else size))
    denoiser = outline(spec)
    traces: dict[tuple[float, Retrace], _Traced] = {}

    def traced(scale: float, how: Retrace) -> _Traced:
        key = scale, replace(how, halves=None)
        if key not in traces:
            traces[key] = _trace(denoiser, latent_size(full, scale, spec.patch), spec, how)
        return traces[key]

    return [Cost(tuple(_steps(plan, runners(denoiser, plan).values(), traced))) for plan in plans]


def _steps(plan: Plan, parts: Iterable[Runner], traced: Callable[[float, Retrace], _Traced]) -> Iterator[StepCost]:
    """The cost of each step; those of steps that are alike are computed once."""
    prices: dict[tuple, StepCost] = {}
    for i, step in enumerate(plan.steps):
        skipped = [tuple(part.skipped(i)) for part in parts]
        retraced = _retraced(plan, parts, i)
        key = step, *skipped, *retraced.items()
        if key not in prices:
            whole = traced(step.scale, retraced.pop("", Retrace()))
            changed = {
                name: (traced(step.scale, how) if how.mechanism else whole, how.halves)
                for name, how in retraced.items()
            }
            prices[key] = _step_cost(whole, 2 if step.guided else 1, skipped, changed)
        yield prices[key]


def _retraced(plan: Plan, parts: Iterable[Runner], i: int) -> dict[str, Retrace]:
    """How each module runs that runs otherwise at step i. Raises ValueError if two mechanisms change the same one."""
    by_module: dict[str, Retrace] = {}
    for part in parts:
        for name, how in part.retraced(i).items():
            if name in by_module:
                raise ValueError(
                    f"{plan.name}: two mechanisms change how {name or 'the denoiser'} runs: its cost is unknown"
                )
            by_module[name] = how
    return by_module


def _step_cost(
    whole: _Traced, halves: int, skipped: Sequence[Sequence[str]], changed: dict[str, tuple[_Traced, int | None]]
) -> StepCost:
    """skipped: by mechanism, the modules that are not run. others: {module: (a pass in which it runs as at this step,
    the halves that it runs, None for those of the step)}."""
    macs = {name: halves * n for name, n in whole.macs.items()}
    printed = sum(macs.values()) - sum(n for names in skipped for name, n in macs.items() if _inside(names)(name))
    gone = _outermost([name for names in skipped for name in names])
    run = {name: n for name, n in macs.items() if not _inside(gone)(name)}
    flops = halves * (whole.flops[""] - sum(whole.flops.get(name, 0) for name in gone))
    for name, (changed_pass, halves_run) in changed.items():
        rows = halves if halves_run is None else halves_run
        flops += rows * changed_pass.flops.get(name, 0) - halves * whole.flops.get(name, 0)
        run |= {inner: rows * n for inner, n in whole.macs.items() if rows < halves and _inside([name])(inner)}
    layers: Counter[str] = Counter()
    for name, n in run.items():
        layers[layer_of(name)] += n
    return StepCost(layers.total(), printed, flops, dict(layers))


def _outermost(modules: Sequence[str]) -> list[str]:
    """Those that are not inside another."""
    within = _inside(modules)
    return [name for name in modules if not within(name.rpartition(".")[0] or " ")]


def _inside(modules: Sequence[str]) -> Callable[[str], bool]:
    """Is a name one of `modules`, or below one?"""
    roots = tuple(f"{name}." for name in modules)
    return lambda name: f"{name}.".startswith(roots)


def _trace(denoiser: torch.nn.Module, latents: tuple[int, int], spec: Spec, how: Retrace) -> _Traced:
    """The last of the steps that `how` runs, after the others."""
    plan = Plan("trace", (Step(guided=False),) * how.steps, (how.mechanism,) if how.mechanism else ())
    rules, config = FAMILIES[spec.family], denoiser.config
    x = torch.empty(1, rules.latent_channels(config), *latents, device="meta")
    shapes = rules.text_shapes(config, spec.text_tokens)
    text = {name: torch.empty(1, *shape, device="meta") for name, shape in shapes.items()}
    conditions = rules.conditions(text, spec.size, spec.guidance, config)
    t = torch.empty(1, device="meta")
    cache: Cache = {}
    with torch.no_grad(), attach(denoiser, plan) as running:
        for i in how.runs:
            counter = FlopCounterMode(display=False)
            running.begin(Pass(i, False, latents, spec.guidance, _drawn_on_meta), cache)
            with count_macs(denoiser) as macs, counter:
                rules.predict(denoiser, x, t, text, conditions)
    root = type(denoiser).__name__
    flops = {name.removeprefix(root).lstrip("."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return _Traced(dict(macs), {**flops, "": counter.get_total_flops()})


def _drawn_on_meta(index: int, name: str, draw: Draw) -> torch.Tensor:
    """What one image draws, without its values: chance changes which tokens are chosen, not how many."""
    return draw(torch.Generator())[None].to("meta")


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
