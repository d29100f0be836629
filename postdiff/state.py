"""What a batch holds between two steps, and the noise that is drawn for its images."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch

from postdiff import solvers
from postdiff.mechanisms.attach import Cache
from postdiff.models.family import Conditions, Text
from postdiff.models.spec import Sampling
from postdiff.plan import Plan
from postdiff.transfer import send


@dataclass
class State:
    """All that a batch of images holds between two steps. A `copy` of it can be sampled on independently."""

    plan: Plan
    sampling: Sampling
    latents: torch.Tensor  # [B, C, h, w], at step `index`'s noise level
    solver: solvers.Solver
    timesteps: torch.Tensor  # [T], the same beside the latents, for the denoiser
    text: Text  # 2B rows, unconditional half first, or B rows
    seeds: tuple[int, ...]
    index: int = 0
    cache: Cache = field(default_factory=dict)  # what mechanisms stored
    ahead: dict[int, torch.Tensor] = field(default_factory=dict)  # outputs of steps that were computed ahead
    sent: dict[tuple, Any] = field(default_factory=dict)  # what steps need of the host, made and sent once: `prepare`
    conditions: Conditions | None = None  # a row for each of `text`; None for the family's own
    rescale: float = 0.0  # of `guidance.combine`
    adapter_scale: float | None = None  # what adapters are multiplied by

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.latents.shape[2], self.latents.shape[3]

    def noise(self, stream: str, grid: tuple[int, int]) -> torch.Tensor:
        """Standard normal noise fp32 [B, C, h, w] of each image's own `stream`, beside the latents."""
        key = "noise", stream, grid
        if key not in self.sent:
            self.sent[key] = send(draw(self.seeds, stream, self.latents.shape[1], grid), self.latents.device)
        return self.sent[key]

    def give(self, stream: str, noise: torch.Tensor) -> None:
        """Have `noise`, [B, C, h, w] beside the latents, be what `noise(stream, (h, w))` gives."""
        self.sent["noise", stream, (noise.shape[2], noise.shape[3])] = noise

    def drawn(self, i: int, name: str, one: Callable[[torch.Generator], torch.Tensor]) -> torch.Tensor:
        """What `one` draws for every image at step `i` from its own stream `name`: [B, ...], beside the latents."""
        key = "drawn", i, name
        if key not in self.sent:
            rows = [one(generator(seed, f"{name}-{i}")) for seed in self.seeds]
            self.sent[key] = send(torch.stack(rows), self.latents.device)
        return self.sent[key]

    def copy(self) -> "State":
        return copy.deepcopy(self)


def draw(seeds: Sequence[int], stream: str, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Standard normal noise, fp32 [N, channels, h, w]: a function of (seed, stream) for each image alone."""
    shape = channels, *size
    rows = [torch.randn(shape, generator=generator(seed, stream), dtype=torch.float32, device="cpu") for seed in seeds]
    return torch.stack(rows)


def generator(seed: int, stream: str) -> torch.Generator:
    digest = sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
