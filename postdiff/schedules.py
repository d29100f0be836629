"""Modules with schedules of their own (`Plan.modules`): blocks and self-attentions that reuse what they gave before
(block caching), attention in a window, or one half of guidance for both (DiTFastAttn).
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from postdiff.plan import Plan


class Scheduled:
    """Wraps the modules that `plan` names. What is stored lives in the dict that `begin` is given."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.schedules = dict(plan.modules)

    def begin(self, index: int, cache: dict[str, torch.Tensor]) -> None:
        """Before a forward pass of step `index`; `cache` belongs to the batch."""
        self.index, self.cache = index, cache

    def wrappers(self, denoiser: torch.nn.Module) -> list[tuple[str, Callable]]:
        return [
            (name, partial(self._wrap_attention, denoiser.get_submodule(name)) if _is_attention(name) else self._wrap)
            for name in self.schedules
        ]

    def _keeps(self, name: str) -> bool:
        """Is this step's output reused by the next?"""
        return self.schedules[name][self.index + 1 : self.index + 2] == "."

    def _wrap(self, name: str, forward):
        def block(hidden_states, *args, **kwargs):
            if self.schedules[name][self.index] == ".":
                output = hidden_states + self.cache[name]
                return output if kwargs.get("return_dict", True) else (output,)
            output = forward(hidden_states, *args, **kwargs)
            if self._keeps(name):
                self.cache[name] = (output[0] if isinstance(output, tuple) else output) - hidden_states
            return output

        return block

    def _wrap_attention(self, module: torch.nn.Module, name: str, forward):
        rest = f"{name} beyond its window"

        def attention(hidden_states, *args, **kwargs):
            mark = self.schedules[name][self.index]
            if mark == ".":
                return self.cache[name]
            x = hidden_states.chunk(2)[1] if mark in "cx" else hidden_states
            if mark in "#c":
                output = forward(x, *args, **kwargs)
            elif mark == "S":
                output, self.cache[rest] = split_attention(module, x, self.plan.window)
            else:
                output, _ = split_attention(module, x, self.plan.window, self.cache[rest][-len(x) :])
            if mark in "cx":
                output = torch.cat([output] * 2)
            if self._keeps(name):
                self.cache[name] = output
            return output

        return attention


def _is_attention(name: str) -> bool:
    return name.endswith(".attn1")


def split_attention(
    module: torch.nn.Module, x: torch.Tensor, window: float, rest: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention as what a window gives, and the rest of it. Returns the module's output, and the rest.

    x: [B, N, C]; window: a share of the N tokens; rest: [B, heads, N, C / heads] of an earlier step, taken as it is;
    computed, so that the output is that of full attention, if None.
    """
    q, k, v = (
        project(x).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for project in (module.to_q, module.to_k, module.to_v)
    )
    near = window_attention(q, k, v, max(1, int(window * x.shape[1])))
    heads = F.scaled_dot_product_attention(q, k, v) if rest is None else near + rest
    rest = heads - near if rest is None else rest
    return module.to_out[0](heads.transpose(1, 2).flatten(2)), rest


def window_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """Attention [B, H, N, D] of every token to the `window` tokens before it and after it, and to itself.

    Queries go in chunks, each with the keys that any of them sees: the work grows with N * window, not with N * N.
    """
    n = q.shape[2]
    if window >= n - 1:
        return F.scaled_dot_product_attention(q, k, v)
    chunk = max(16, window // 2)
    pad, span = -n % chunk, chunk + 2 * window
    q = F.pad(q, (0, 0, 0, pad)).unflatten(2, (-1, chunk))
    k, v = (F.pad(a, (0, 0, window, window + pad)).unfold(2, span, chunk).transpose(-1, -2) for a in (k, v))
    offset = torch.arange(span, device=q.device) - torch.arange(chunk, device=q.device)[:, None]
    start = torch.arange(0, n + pad, chunk, device=q.device)[:, None, None]
    key = start + torch.arange(span, device=q.device) - window
    seen = (offset >= 0) & (offset <= 2 * window) & (key >= 0) & (key < n)
    # A chunk is to the kernel what a head is: four dimensions are what the fused ones take.
    out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=seen)
    return out.unflatten(0, q.shape[:2]).flatten(2, 3)[:, :, :n]


def check(denoiser: torch.nn.Module, plan: Plan) -> None:
    """Raises ValueError if the denoiser lacks a module that `plan` names, or one that cannot be split as it says."""
    modules = dict(denoiser.named_modules())
    for name, marks in plan.modules:
        if name not in modules:
            raise ValueError(
                f"{plan.name} has a schedule of {name}, which a {type(denoiser).__name__} of this size lacks"
            )
        module = modules[name]
        plain = _is_attention(name) and not (
            module.residual_connection
            or module.norm_q
            or module.group_norm
            or module.spatial_norm
            or module.is_cross_attention
        )
        if set(marks) & set("Swx") and not (plain and module.rescale_output_factor == 1):
            raise ValueError(f"{name} must be plain self-attention to be split into windows")
