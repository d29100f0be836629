"""What a plan costs, by step and by layer type, without weights: the denoiser is run on torch's meta device.

Two units, never mixed (1 MAC is 2 FLOPs):
    macs_paper  multiply-accumulates of convolutions, linear layers and norms, attention products left out. This is
                what the paper's "FLOPs (T)" columns hold; the rule was found by counting its published backbones.
    flops       everything, as torch.utils.flop_counter counts: 2 x MAC, attention included.
Only the denoiser counts (no text encoder, no autoencoder), for one image.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from postdiff import caching
from postdiff.backbones import Spec
from postdiff.plan import Plan, StepPlan
from postdiff.resolution import latent_size

LAYERS = ("attn1", "attn2", "ff", "resnets")  # and "other"


@dataclass(frozen=True)
class StepCost:
    """One step, both halves of guidance where it has them.

    macs_printed: macs_paper as the paper's Tables 1 and 2 were printed: on a step that reuses both the deep part and
        the cross-attention, they subtract the cross-attention of the whole net, though only a part of it would run.
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


def cost(plan: Plan, spec: Spec, size: int | None = None) -> Cost:
    """Price `plan` on the denoiser of `spec` for one image of `size` pixels (the backbone's own by default)."""
    with torch.device("meta"):
        denoiser = UNet2DConditionModel.from_config(spec.denoiser).eval()
    side = (size or spec.size) // spec.vae_factor
    full = (side, side)
    cache, known = caching.Cache(), {}

    def passed(step: StepPlan, replay: caching.Replay) -> tuple[Counter, int]:
        """(macs by layer, flops) of one half; a step like one before it is not run again."""
        step = replace(step, guided=False)
        if step not in known:
            latents = latent_size(full, step.scale)
            replay.begin(step, latents, cache, 1.0)
            known[step] = _count(denoiser, latents, spec.text_tokens)
        return known[step]

    steps = []
    with caching.attach(denoiser, plan) as replay:
        for step in plan.steps:
            halves = 2 if step.guided else 1
            macs, flops = passed(step, replay)
            printed = macs.total()
            if step.deep == step.cross_attention == "reuse":
                shallow = passed(replace(step, cross_attention="compute"), replay)[0].total()
                whole = passed(replace(step, deep="compute", cross_attention="compute"), replay)[0]["attn2"]
                printed = shallow - whole
            layers = {name: halves * n for name, n in macs.items()}
            steps.append(StepCost(halves * macs.total(), halves * printed, halves * flops, layers))
    return Cost(tuple(steps))


def _count(denoiser: torch.nn.Module, latents: tuple[int, int], text_tokens: int) -> tuple[Counter, int]:
    x = torch.empty(1, denoiser.config.in_channels, *latents, device="meta")
    text = torch.empty(1, text_tokens, denoiser.config.cross_attention_dim, device="meta")
    flops = FlopCounterMode(display=False)
    with torch.no_grad(), count_macs(denoiser) as macs, flops:
        denoiser(x, torch.empty((), device="meta"), encoder_hidden_states=text, return_dict=False)
    return macs, flops.get_total_flops()


@contextmanager
def count_macs(denoiser: torch.nn.Module) -> Iterator[Counter]:
    """Count `macs_paper` by layer type of whatever runs inside the `with`: a Counter that fills as it runs."""
    macs, handles = Counter(), []
    for name, module in denoiser.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.GroupNorm, torch.nn.LayerNorm)):
            layer = next((layer for layer in LAYERS if f".{layer}." in f".{name}."), "other")

            def hook(module, args, output, layer=layer):
                macs[layer] += module_macs(module, args[0], output)

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
