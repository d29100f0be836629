"""Store and replay module outputs as the plan says; afterwards the model is exactly what it was.

    with attach(unet, plan) as replay:
        replay.begin(index, size, cache, guidance, drawn)   # before every forward pass
        unet(...)

The wrappers keep no state of their own: what is stored lives in a `Cache`, which belongs to one batch of images. The
denoiser is its thread's alone until the `with` ends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from postdiff import duca, schedules, tokens
from postdiff.ownership import owned
from postdiff.plan import Mode, Plan
from postdiff.tokens import Drawn, token_grid


@dataclass
class Cache:
    """Stored outputs of one batch, by module name; outputs of the denoiser that were computed ahead, by step."""

    deep: dict[str, object] = field(default_factory=dict)
    encoder: dict[str, object] = field(default_factory=dict)
    attention: dict[str, "Stored"] = field(default_factory=dict)
    modules: dict[str, torch.Tensor] = field(default_factory=dict)
    blocks: dict[str, object] = field(default_factory=dict)
    matching: dict[str, list] = field(default_factory=dict)
    merged: dict[str, dict[int, float]] = field(default_factory=dict)
    ahead: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass
class Stored:
    """An attention module's output [rows, N, C], the latent grid that it belongs to, and whether it has both halves."""

    output: torch.Tensor
    size: tuple[int, int]
    guided: bool


class Replay:
    """Tells the wrapped modules what the current step computes, stores and reuses."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.mode: Mode = plan.mode
        self.reducer: tokens.Merger | tokens.Thinner | None = None
        self.scheduled = schedules.Scheduled(plan)
        self.refresher: duca.TokenCache | None = None

    def draw_ahead(self, index: int, size: tuple[int, int], drawn: Drawn) -> None:
        """Draw what step `index` needs of chance, on latents (h, w) = `size`."""
        for part in (self.reducer, self.refresher):
            if part:
                for name, one in part.draws(index, size):
                    drawn(index, name, one)

    def begin(
        self, index: int, size: tuple[int, int], cache: Cache, guidance: float, drawn: Drawn, copies: int = 1
    ) -> None:
        """Before a forward pass of step `index`: latents are (h, w) = `size`; `guidance` is w, for the mode `cfg`.

        drawn: where chance comes from. copies: of the batch, one a step, where the steps after `index` are computed
        with it.
        """
        self.step, self.size, self.cache, self.guidance = self.plan.steps[index], size, cache, guidance
        self.copies = copies
        self.scheduled.begin(index, cache.modules)
        if self.reducer:
            self.reducer.begin(index, size, drawn, cache.matching, cache.merged)
        if self.refresher:
            self.refresher.begin(index, size, cache.blocks, drawn)

    def wrap_deep(self, name: str, forward):
        def deep(*args, **kwargs):
            if self.step.deep == "reuse":
                return self.cache.deep[name]
            output = forward(*args, **kwargs)
            if self.step.deep == "store":
                self.cache.deep[name] = output
            return output

        return deep

    def wrap_encoder(self, name: str, forward):
        def part(*args, **kwargs):
            if self.step.encoder == "reuse":
                return repeat(self.cache.encoder[name], self.copies)
            output = forward(*args, **kwargs)
            if self.step.encoder == "store":
                self.cache.encoder[name] = output
            return output

        return part

    def wrap_attention(self, name: str, forward):
        cross = name.endswith(".attn2")

        def attention(hidden_states, *args, **kwargs):
            action = self.step.cross_attention if cross else self.step.self_attention
            if action == "reuse":
                stored = self.cache.attention[name]
                if stored.guided and not self.step.guided:
                    stored.output, stored.guided = merge_guidance(stored.output, self.mode, self.guidance), False
                stored.output = resize_tokens(stored.output, stored.size, self.size, hidden_states.shape[1])
                stored.size = self.size  # once: no later step is smaller
                return stored.output
            output = forward(hidden_states, *args, **kwargs)
            if action == "store":
                self.cache.attention[name] = Stored(output, self.size, self.step.guided)
            return output

        return attention


def repeat(features, copies: int):
    """A tensor [B, ...], or tuples and dicts of such, `copies` times along the batch. None stays None."""
    if copies == 1 or features is None:
        return features
    if isinstance(features, tuple):
        return tuple(repeat(part, copies) for part in features)
    if isinstance(features, dict):
        return {name: repeat(part, copies) for name, part in features.items()}
    return torch.cat([features] * copies)


def merge_guidance(output: torch.Tensor, mode: Mode, w: float) -> torch.Tensor:
    """[2B, N, C], unconditional half first -> [B, N, C]: the four choices of sec. 2.5."""
    uncond, cond = output.chunk(2)
    if mode == "ave":
        return (uncond + cond) / 2
    if mode == "cfg":
        return uncond + w * (cond - uncond)
    return (cond if mode == "cond" else uncond).clone()  # a copy, so that the other half is not kept alive


def resize_tokens(tokens: torch.Tensor, stored: tuple[int, int], size: tuple[int, int], n: int) -> torch.Tensor:
    """[B, N, C] on the token grid of latents `stored` -> [B, n, C] on that of latents `size`, bilinear in fp32."""
    if stored == size:
        return tokens
    grid = token_grid(stored, tokens.shape[1])
    image = tokens.float().transpose(1, 2).unflatten(2, grid)
    image = F.interpolate(image, size=token_grid(size, n), mode="bilinear", align_corners=False)
    return image.flatten(2).transpose(1, 2).to(tokens.dtype)


def skip_count(unet: torch.nn.Module) -> int:
    """How many skip connections a diffusers U-Net has: 12 in SD1.5."""
    return 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in unet.down_blocks)


def deep_modules(unet: torch.nn.Module, branch: int) -> list[str]:
    """Names of the modules that a step through skip connection `branch` does not run, in the order they run.

    Skips are numbered from the outside: 0 is conv_in's output, each layer and each downsampler of the encoder
    produces the next, and the decoder's layers consume them in reverse. Whole blocks are named as one.

    Raises: ValueError if the denoiser has no such branch.
    """
    if not hasattr(unet, "down_blocks"):
        raise ValueError(f"deep caching needs a U-Net with skip connections, got {type(unet).__name__}")
    if branch > skip_count(unet) - 2:
        raise ValueError(f"branch must be from 0 to {skip_count(unet) - 2} for this U-Net, got {branch}")
    names, skip = [], 0
    for b, block in enumerate(unet.down_blocks):
        layers, down = len(block.resnets), bool(block.downsamplers)
        units = [(skip + 1 + i, _layer(block, f"down_blocks.{b}", i)) for i in range(layers)]
        units += [(skip + layers + 1, [f"down_blocks.{b}.downsamplers.0"])] if down else []
        names += _beyond(units, branch, f"down_blocks.{b}")
        skip += layers + down
    names += ["mid_block"] if unet.mid_block is not None else []
    for b, block in enumerate(unet.up_blocks):
        layers = len(block.resnets)
        units = [(skip - i, _layer(block, f"up_blocks.{b}", i)) for i in range(layers)]
        if block.upsamplers:  # belongs to the block's last layer
            units[-1][1].append(f"up_blocks.{b}.upsamplers.0")
        names += _beyond(units, branch, f"up_blocks.{b}")
        skip -= layers
    return names


def _layer(block: torch.nn.Module, name: str, i: int) -> list[str]:
    attention = [f"{name}.attentions.{i}"] if getattr(block, "attentions", None) else []
    return [f"{name}.resnets.{i}", *attention]


def _beyond(units: list[tuple[int, list[str]]], branch: int, block: str) -> list[str]:
    if all(skip > branch for skip, _ in units):
        return [block]
    return [name for skip, names in units if skip > branch for name in names]


def encoder_modules(unet: torch.nn.Module) -> list[str]:
    """Names of a U-Net's parts before its decoder. Raises ValueError if there are none."""
    if not hasattr(unet, "down_blocks"):
        raise ValueError(f"encoder propagation needs a U-Net, got {type(unet).__name__}")
    middle = ["mid_block"] if unet.mid_block is not None else []
    return ["conv_in", *[f"down_blocks.{b}" for b in range(len(unet.down_blocks))], *middle]


def attention_modules(denoiser: torch.nn.Module, plan: Plan) -> dict[str, list[str]]:
    """{attn1, attn2: names of its modules}, where some step of `plan` reuses them."""
    reused = {
        "attn1": any(step.self_attention == "reuse" for step in plan.steps),
        "attn2": any(step.cross_attention == "reuse" for step in plan.steps),
    }
    return {
        kind: [name for name, _ in denoiser.named_modules() if name.endswith(f".{kind}")]
        for kind, found in reused.items()
        if found
    }


def check(denoiser: torch.nn.Module, plan: Plan) -> None:
    """Raises ValueError, with the reason, if the denoiser has no module that the plan changes."""
    if any(step.deep == "reuse" for step in plan.steps):
        deep_modules(denoiser, plan.branch)
    if any(step.encoder == "reuse" for step in plan.steps):
        encoder_modules(denoiser)
    if any(step.blocks != "compute" for step in plan.steps):
        duca.blocks(denoiser)
    if plan.tokens:
        tokens.reached(denoiser, plan.tokens)
    schedules.check(denoiser, plan)


@contextmanager
def attach(denoiser: torch.nn.Module, plan: Plan) -> Iterator[Replay]:
    """Wrap what `plan` stores or reuses, for the length of the `with`. A plan that reuses nothing wraps nothing.

    Raises: RuntimeError if this thread is in the middle of another run; other threads' runs are waited for.
    """
    with owned(denoiser):
        yield from _attach(denoiser, plan)


def _attach(denoiser: torch.nn.Module, plan: Plan) -> Iterator[Replay]:
    replay = Replay(plan)
    wrappers: list[tuple[str, Callable]] = []
    if plan.tokens:  # innermost: what is stored has all its tokens
        replay.reducer, wrappers = tokens.wrappers(denoiser, plan)
    wrappers += replay.scheduled.wrappers(denoiser)
    if any(step.blocks != "compute" for step in plan.steps):
        replay.refresher = duca.TokenCache(plan, denoiser)
        wrappers += replay.refresher.wrappers()
    if any(step.encoder == "reuse" for step in plan.steps):
        wrappers += [(name, replay.wrap_encoder) for name in encoder_modules(denoiser)]
    if any(step.deep == "reuse" for step in plan.steps):
        wrappers += [(name, replay.wrap_deep) for name in deep_modules(denoiser, plan.branch)]
    for names in attention_modules(denoiser, plan).values():
        wrappers += [(name, replay.wrap_attention) for name in names]
    done = []
    try:
        for name, wrap in wrappers:
            module = denoiser.get_submodule(name)
            # An instance attribute may be there already (offloading puts one); it is called, and put back after.
            done.append((module, module.__dict__.get("forward")))
            module.forward = wrap(name, module.forward)
        yield replay
    finally:
        for module, before in reversed(done):
            if before is None:
                del module.forward
            else:
                module.forward = before
