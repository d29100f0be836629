"""What the parts of jobs/bench_gpu.py share: settings, time shared out, one run on a device, and what it took."""

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

import postdiff
from pipelines.gpu.random_backbones import THIN_VAE, VAE, random_backbone, thin
from postdiff import decoding, sampling
from postdiff.models.checkpoints import HUB
from postdiff.models.spec import Spec, settle
from postdiff.plan import Plan
from postdiff.text import Embeddings

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How the parts run.

    device: cuda or cpu. thin: a rehearsal with thin models, few steps and small batches. minis: names of mini models.
    rounds: counted runs of every plan whose latency is measured.
    """

    device: str
    thin: bool
    minis: tuple[str, ...]
    rounds: int

    @property
    def rehearsal(self) -> bool:
        """Is what is measured no GPU's, or of no model that anyone uses?"""
        return self.thin or self.device == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """That of speed and memory: what `postdiff.load` takes by default."""
        return torch.float32 if self.device == "cpu" else torch.float16

    def spec(self, name: str) -> Spec:
        """That of a row of `backbones.HUB`, thin in a rehearsal."""
        return thin(HUB[name]) if self.thin else HUB[name]

    def backbone(self, name: str, dtype: torch.dtype | None = None) -> postdiff.Backbone:
        """It with random weights."""
        return random_backbone(self.spec(name), self.device, dtype or self.dtype, THIN_VAE if self.thin else VAE)


class Budget:
    """Time until a moment. What is being done when it is over is finished; nothing more is begun."""

    def __init__(self, seconds: float):
        self.until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def shares(self, items: Sequence[T], weights: Sequence[float] | None = None) -> Iterator[tuple[T, "Budget"]]:
        """Each item with its share of the time that is left then: what one leaves over, those after it have.

        weights: what the items ask for, in proportion; all alike by default.
        """
        weights = weights or [1.0] * len(items)
        for i, (item, weight) in enumerate(zip(items, weights, strict=True)):
            yield item, Budget(self.left * weight / sum(weights[i:]))


@dataclass
class Outcome:
    """What a part found.

    numbers: what was measured, by case. failed: {case: why}. refused: {case: why it cannot be run at all}.
    left_out: cases that there was no time for. notes: sentences about all of it.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(
        self,
        name: str,
        cases: Mapping[str, Callable[[], Any]],
        budget: Budget,
        judge: Callable[[Any], str] | None = None,
    ) -> None:
        """Run each case while there is time: its numbers, or why it failed. judge: of numbers, why they are wrong, or
        ""."""
        for label, case in tqdm(cases.items(), desc=name, unit="case", leave=False):
            key = f"{name} {label}"
            if budget.left <= 0:
                self.left_out.append(key)
                continue
            try:
                self.numbers[key] = case()
            except Exception as error:  # the other cases are still worth their minutes
                self.failed[key] = reason(error)
                continue
            if judge and (why := judge(self.numbers[key])):
                self.failed[key] = why


def reason(error: Exception) -> str:
    """An error as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def latents(
    backbone: postdiff.Backbone,
    text: Embeddings,
    plan: Plan,
    solver: str | None,
    seeds: Sequence[int],
    watched: AbstractContextManager | None = None,
) -> torch.Tensor:
    """Clean latents [B, C, h, w] of one batch: the only place where the parts draw. watched: entered for the steps
    alone, after the initial noise."""
    rows = text.batch(0, len(seeds), plan.needs_both_texts)
    state = sampling.begin(backbone, rows, seeds, plan, settle(backbone.spec, solver=solver))
    with watched or nullcontext():
        return sampling.denoise(backbone, state)


def decode(backbone: postdiff.Backbone, clean: torch.Tensor) -> None:
    """Decode for its time alone: a random autoencoder that overflows takes as long as one that does not."""
    with suppress(ArithmeticError):
        decoding.decode(backbone, clean)


@contextmanager
def count_waits(device: str, lines: Counter[str]) -> Iterator[None]:
    """Count in `lines` what makes the host wait for the GPU inside, by file and line; a CPU waits for nothing."""
    if device == "cpu":
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines.update(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))


def now(device: str) -> float:
    """Seconds, once the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_from_here(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float | None:
    """GiB of the GPU at their most since `peak_from_here`, weights included; None on a CPU."""
    return None if device == "cpu" else round(torch.cuda.max_memory_allocated() / 2**30, 2)


def free(device: str) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
