"""A plan on a denoiser: its mechanisms' wrappers, for the length of a `with`; then the model is exactly what it was.

    with attach(unet, plan) as running:
        running.begin(Pass(index, ...), cache)   # before every forward pass
        unet(...)

Nothing here knows a mechanism. What they store lives in `cache`, which belongs to one batch of images. The denoiser is
its thread's alone until the `with` ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from postdiff.ownership import owned
from postdiff.plan import Mechanism, Plan, kind

if TYPE_CHECKING:
    import torch

Cache = dict[str, dict[Any, Any]]  # {kind of mechanism: what it stored}
Forward = Callable[..., Any]
Wrap = Callable[[str, Forward], Forward]  # a module's name and forward -> what runs in its place
Draw = Callable[["torch.Generator"], "torch.Tensor"]
Drawn = Callable[[int, str, Draw], "torch.Tensor"]  # step, name -> what each image draws from its stream, [B, ...]


@dataclass
class Pass:
    """What mechanisms know of the forward pass that comes.

    index: of its step; guided: both halves of guidance are in the batch, the unconditional first.
    size: (height, width) of the latents. guidance: w.
    drawn: where chance comes from.
    copies: of the batch, one a step, where the steps after `index` are computed with it.
    """

    index: int
    guided: bool
    size: tuple[int, int]
    guidance: float
    drawn: Drawn
    copies: int = 1


@dataclass(frozen=True)
class Retrace:
    """How the cost of a module that runs otherwise is found: by running it so, on the meta device and one half.

    mechanism: alone, in a plan of `steps` steps, of which those of `runs` are run; the last one counts. None: it is
        run as in the whole pass of that step.
    halves: of guidance that the module runs; None: those of the step.
    """

    mechanism: Mechanism | None = None
    steps: int = 1
    runs: tuple[int, ...] = (0,)
    halves: int | None = None


class Runner:
    """What carries out a mechanism on one denoiser. `now` and `store` are set before every pass.

    now: the pass. store: this mechanism's own dict, of this batch.
    """

    now: Pass
    store: dict[Any, Any]

    def wrappers(self) -> list[tuple[str, Wrap]]:
        """(name of a module, what wraps its forward), those inside first."""
        raise NotImplementedError

    def draws(self, i: int, size: tuple[int, int]) -> Iterator[tuple[str, Draw]]:
        """(name of a stream, what an image draws from it) of step i on latents of `size`."""
        return iter(())

    def skipped(self, i: int) -> list[str]:
        """Modules that step i does not run."""
        return []

    def retraced(self, i: int) -> dict[str, Retrace]:
        """{module: how it runs at step i}, where it runs otherwise; "" is the whole denoiser.

        Raises: ValueError if its cost is not known.
        """
        return {}


class Running:
    """Tells the wrapped modules which pass comes."""

    def __init__(self, runners: dict[str, Runner]):
        self.runners = runners

    def begin(self, now: Pass, cache: Cache) -> None:
        """Before a forward pass. cache: of the batch, empty at its first."""
        for name, runner in self.runners.items():
            runner.now, runner.store = now, cache.setdefault(name, {})

    def draw_ahead(self, i: int, size: tuple[int, int], drawn: Drawn) -> None:
        """Draw what step i needs of chance, on latents of `size`."""
        for runner in self.runners.values():
            for name, draw in runner.draws(i, size):
                drawn(i, name, draw)


def runners(denoiser: torch.nn.Module, plan: Plan) -> dict[str, Runner]:
    """What carries out each of the plan's mechanisms, those inside first.

    Raises: ValueError, with the reason, if the denoiser lacks what one needs, or one has nothing to change there.
    """
    by_kind = {kind(mechanism): mechanism.runner(denoiser, plan) for mechanism in plan.mechanisms}
    for name, runner in by_kind.items():
        if not runner.wrappers():
            raise ValueError(f"{plan.name}: {name} finds nothing to wrap in a {type(denoiser).__name__}")
    return by_kind


@contextmanager
def attach(denoiser: torch.nn.Module, plan: Plan) -> Iterator[Running]:
    """Wrap what `plan` stores or reuses, for the length of the `with`. A plan that reuses nothing wraps nothing.

    Raises: RuntimeError if this thread is in the middle of another run (other threads' runs are waited for);
        ValueError as `runners` does.
    """
    with owned(denoiser):
        running = Running(runners(denoiser, plan))
        wrapped = []
        try:
            for runner in running.runners.values():
                for name, wrap in runner.wrappers():
                    module = denoiser.get_submodule(name)
                    # An instance attribute may be there already (offloading puts one); it is called, and put back.
                    wrapped.append((module, module.__dict__.get("forward")))
                    module.forward = wrap(name, module.forward)
            yield running
        finally:
            for module, before in reversed(wrapped):
                if before is None:
                    del module.forward
                else:
                    module.forward = before
