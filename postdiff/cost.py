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

from postdiff import caching
from postdiff.backbones import Spec
from postdiff.families import FAMILIES, adapt
from postdiff.plan import Downsample, Merge, Plan, StepPlan
from postdiff.resolution import latent_size

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


def cost(plan: Plan, spec: Spec, size: int | None = None) -> Cost:
    """Price `plan` on the denoiser of `spec` for one image of `size` pixels (the backbone's own by default).

    Raises: ValueError if the family cannot run the plan, or `size` is no size of its images.
    """
    return costs([plan], spec, size)[0]


def costs(plans: Sequence[Plan], spec: Spec, size: int | None = None) -> list[Cost]:
    """Price many plans: the denoiser is traced once a resolution and kind of tokens; what a step skips is off."""
    plans = [adapt(plan, spec.family) for plan in plans]
    with torch.device("meta"):
        denoiser = FAMILIES[spec.family].model.from_config(spec.denoiser).eval()
    full = spec.latents(spec.size if size is None else size)
    kinds = {(step.scale, _tokens(plan, step)) for plan in plans for step in plan.steps}
    passes = {
        (scale, tokens): _trace(denoiser, latent_size(full, scale, spec.patch), spec, tokens) for scale, tokens in kinds
    }
    priced = []
    for plan in plans:
        skips = any(step.deep == "reuse" for step in plan.steps)
        deep = caching.deep_modules(denoiser, plan.branch) if skips else []
        attention = caching.attention_modules(denoiser, plan)
        known = {s: _step_cost(passes[s.scale, _tokens(plan, s)], s, deep, attention) for s in set(plan.steps)}
        priced.append(Cost(tuple(known[step] for step in plan.steps)))
    return priced


def _tokens(plan: Plan, step: StepPlan) -> Merge | Downsample | None:
    """What makes fewer tokens at `step`. Where every layer that tokens are merged around is reused, nothing does."""
    if not isinstance(plan.tokens, Merge):
        return plan.tokens
    return replace(plan.tokens, random=False) if plan.tokens.runs(step) else None  # chance changes which, not how many


def _step_cost(traced: _Pass, step: StepPlan, deep: list[str], attention: dict[str, list[str]]) -> StepCost:
    halves = 2 if step.guided else 1
    beyond = _inside(deep) if step.deep == "reuse" else lambda name: False
    run = {name: n for name, n in traced.macs.items() if not beyond(name)}
    flops = traced.flops[""] - (sum(traced.flops.get(name, 0) for name in deep) if step.deep == "reuse" else 0)
    printed = sum(run.values())
    for kind, action in (("attn1", step.self_attention), ("attn2", step.cross_attention)):
        if action != "reuse":
            continue
        cached = _inside(attention[kind])
        printed -= sum(n for name, n in traced.macs.items() if cached(name))
        run = {name: n for name, n in run.items() if not cached(name)}
        flops -= sum(traced.flops.get(name, 0) for name in attention[kind] if not beyond(name))
    layers: Counter[str] = Counter()
    for name, n in run.items():
        layers[layer_of(name)] += halves * n
    return StepCost(layers.total(), halves * printed, halves * flops, dict(layers))


def _inside(modules: list[str]) -> Callable[[str], bool]:
    """Is a name one of `modules`, or below one?"""
    roots = tuple(f"{name}." for name in modules)
    return lambda name: f"{name}.".startswith(roots)


def layer_of(name: str) -> str:
    return next((layer for layer in LAYERS if f".{layer}." in f".{name}."), "other")


def _trace(denoiser: torch.nn.Module, latents: tuple[int, int], spec: Spec, tokens: Merge | Downsample | None) -> _Pass:
    rules, config = FAMILIES[spec.family], denoiser.config
    x = torch.empty(1, config.in_channels, *latents, device="meta")
    shapes = rules.text_shapes(config, spec.text_tokens)
    text = {name: torch.empty(1, *shape, device="meta") for name, shape in shapes.items()}
    inputs = rules.inputs(text, torch.empty((), device="meta"), (spec.size, spec.size), spec.guidance, config)
    step, counter = StepPlan(), FlopCounterMode(display=False)
    with (
        torch.no_grad(),
        caching.attach(denoiser, Plan("trace", (step,), tokens=tokens)) as replay,
        count_macs(denoiser) as macs,
        counter,
    ):
        replay.begin(step, latents, caching.Cache(), spec.guidance, lambda name: [])
        denoiser(x, return_dict=False, **inputs)
    root = type(denoiser).__name__
    flops = {name.removeprefix(root).lstrip("."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return _Pass(dict(macs), {**flops, "": counter.get_total_flops()})


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
