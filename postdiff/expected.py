"""What a plan lets expect beside a dense plan, from costs alone."""

from __future__ import annotations

from dataclasses import dataclass

from postdiff import arguments, methods
from postdiff.models.families import adapt
from postdiff.models.family import Size
from postdiff.models.spec import Spec
from postdiff.plan import Plan
from postdiff.pricing import costs


@dataclass(frozen=True)
class Expected:
    """A plan's cost for one image beside a dense plan's of `dense_steps`. Nothing in it was measured.

    size: (height, width) in pixels that are drawn.
    macs, dense_macs: by the paper's rule; flops, dense_flops: attention included (1 MAC is 2 FLOPs). Of the denoiser
        alone, without the text encoders, the autoencoder, and what an adapter adds.
    passes, dense_passes: of the denoiser over one half of guidance, whole or in part.
    """

    plan: Plan
    dense_steps: int
    size: Size
    macs: int
    dense_macs: int
    flops: int
    dense_flops: int
    passes: int
    dense_passes: int

    @property
    def ratio(self) -> float:
        """FLOPs of the dense plan over the plan's: how much faster the denoiser would be, were time FLOPs."""
        return self.dense_flops / self.flops

    def __str__(self) -> str:
        size, dense = arguments.shown_size(self.size), f"the dense plan of {self.dense_steps} steps"
        return (
            f"{self.plan}\n"
            f"at {size} px, for one image (denoiser alone, without adapters):\n"
            f"  {self.macs / 1e9:.4g} GMACs of {self.dense_macs / 1e9:.4g} in {dense}\n"
            f"  {self.flops / 1e9:.4g} GFLOPs of {self.dense_flops / 1e9:.4g}, attention included\n"
            f"  {self.passes} passes of one half, whole or in part, of {self.dense_passes}\n"
            f"  {self.ratio:.2f} times fewer FLOPs: the denoiser's speed-up at most about so; nothing was measured"
        )


def expected(plan: Plan, spec: Spec, dense_steps: int, size: int | Size | None = None) -> Expected:
    """What `plan` costs an image of `size` pixels, by default the backbone's. Raises ValueError as `cost` does."""
    plan, dense = (adapt(each, spec.family) for each in (plan, methods.dense(dense_steps)))
    size = arguments.size(spec.size if size is None else size)
    price, full = costs([plan, dense], spec, size)
    passes = (sum(2 if step.guided else 1 for step in each.steps) for each in (plan, dense))
    return Expected(plan, dense_steps, size, price.macs_paper, full.macs_paper, price.flops, full.flops, *passes)
