"""Where a model repeats itself from step to step (Fig. 7), and what each step would draw (Fig. 3, 12)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Unpack

import numpy as np
import torch

from postdiff import decoding, drawing, sampling
from postdiff.models.anatomy import KINDS, anatomy, kind_of
from postdiff.models.loading import Backbone
from postdiff.models.spec import SamplingSettings
from postdiff.plan import Plan


@dataclass(frozen=True)
class Profile:
    """Distances between the feature maps of steps t-1 and t, [T-1], averaged over images and modules.

    blocks: relative L1 of each block's output, |F(x_t) - F(x_t-1)|_1 / |F(x_t)|_1 (App. A).
    layers: L2 by type of layer. Not a number where the resolution or the guidance changed between the two.
    n: images.
    """

    blocks: dict[str, np.ndarray]
    layers: dict[str, np.ndarray]
    n: int


def profile(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    *,
    batch_size: int | None = None,
    **settings: Unpack[SamplingSettings],
) -> Profile:
    """Compare every block and layer of `backbone` with itself, step by step, while it draws `prompts`.

    settings: guidance, solver and size, as `sample` takes them. A module that a step does not run keeps its output.

    # Paper differs: it does not say how L2 distances of layers of different sizes are averaged; ours are root mean
    # squares, in the unit of the features.
    """
    batch_size = batch_size or len(prompts)
    sums: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(prompts), batch_size):
        chunk = slice(start, start + batch_size)
        with _watch(backbone.denoiser) as features:
            drawing.sample(
                backbone, prompts[chunk], seeds[chunk], plan,
                on_step=features.end_step, **settings,
            )  # fmt: skip
        count = len(prompts[chunk])
        for name, distances in features.distances.items():
            sums.setdefault(name, []).append(count * np.array(distances))
    means = {name: np.sum(parts, axis=0) / len(prompts) for name, parts in sums.items()}
    stages = anatomy(backbone.denoiser).stages
    by_kind = {kind: [v for name, v in means.items() if kind_of(name) == kind] for kind in KINDS.values()}
    return Profile(
        blocks={name: values for name, values in means.items() if name in stages},
        layers={kind: np.mean(values, axis=0) for kind, values in by_kind.items() if values},
        n=len(prompts),
    )


class _Watch:
    def __init__(self, stages: Sequence[str]) -> None:
        self.stages = stages
        self.before: dict[str, torch.Tensor] = {}
        self.now: dict[str, torch.Tensor] = {}
        self.distances: dict[str, list[float]] = {}

    def end_step(self, step: int, latents: torch.Tensor) -> None:
        for name, before in self.before.items():
            self.distances.setdefault(name, []).append(self._distance(name, before, self.now.get(name, before)))
        self.before |= self.now
        self.now = {}

    def _distance(self, name: str, before: torch.Tensor, now: torch.Tensor) -> float:
        if before.shape != now.shape:
            return float("nan")
        change, before = (now - before).float(), before.float()
        if name in self.stages:  # App. A: over the norm at t, the step before, since t counts down
            return float((change.flatten(1).norm(1, dim=1) / before.flatten(1).norm(1, dim=1)).mean())
        return float(change.square().flatten(1).mean(1).sqrt().mean())


@contextmanager
def _watch(denoiser: torch.nn.Module) -> Iterator[_Watch]:
    stages = anatomy(denoiser).stages
    watch, handles, thread = _Watch(stages), [], get_ident()
    for name, module in denoiser.named_modules():
        if name in stages or kind_of(name):

            def hook(module, args, output, name=name):
                if get_ident() == thread:  # not another's run on this model
                    watch.now[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

            handles.append(module.register_forward_hook(hook))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def trajectory(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    **settings: Unpack[SamplingSettings],
) -> list[np.ndarray]:
    """The clean image that each step predicts: T arrays uint8 [N, H, W, 3], smaller while the resolution is low."""
    state = sampling.begin_batch(backbone, prompts, seeds, plan, **settings)
    latents: list[torch.Tensor] = []
    sampling.denoise(backbone, state, on_x0=latents.append)
    return [decoding.decode(backbone, x0.to(state.latents.dtype)) for x0 in latents]
