"""The denoiser compiled by torch, part by part, under any plan.

Each transformer block and residual block becomes a kernel or a few, wherever no mechanism changes what is inside of it;
around one that is changed, its layers do. Mechanisms wrap the compiled parts as they wrap the others, so what they
decide from step to step stays outside of every graph: a part has one graph a shape of its inputs, however many plans,
steps and batches run through it. The last bits of an image change, so a configuration says whether it was compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from postdiff.models.anatomy import anatomy

if TYPE_CHECKING:
    import torch

    from postdiff.mechanisms.attach import Forward, Wrap

GRAPHS = 256  # of one class of parts: each resolution, half of guidance and level of a U-Net has its own; torch has 8


def wrappers(denoiser: torch.nn.Module, changed: Sequence[str]) -> list[tuple[str, Wrap]]:
    """(name of a part, what compiles its forward). changed: the modules that mechanisms wrap."""
    return [(name, _compiled) for name in parts(denoiser, changed)]


def parts(denoiser: torch.nn.Module, changed: Sequence[str]) -> list[str]:
    """The largest parts inside of which no module of `changed` is: blocks, or layers of those that have one inside."""
    described = anatomy(denoiser)
    names = list(described.convolutions)
    for block in described.blocks:
        whole = not any(name.startswith(f"{block.name}.") for name in changed)
        names += [block.name] if whole else block.layers.values()
    return names


def _compiled(_name: str, forward: Forward) -> Forward:
    import torch

    return torch.compile(forward, dynamic=False)


@contextmanager
def graphs() -> Iterator[None]:
    """Room for as many graphs as a plan may need: beyond its limit torch runs a part as it is, and logs it."""
    import torch._dynamo.config

    with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=20 * GRAPHS):
        yield
