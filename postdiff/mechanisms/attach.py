"""Attaching a plan to a denoiser: the modules that its mechanisms change are wrapped for the length of a `with`, and
after it the model is exactly what it was before.

    with attach(unet, plan) as running:
        running.begin(Pass(index, ...), cache)   # before every forward pass
        unet(...)

Nothing here knows a mechanism. What mechanisms store lives in `cache`, which belongs to one batch of images. Until the
`with` ends, other threads that want the denoiser wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from postdiff import compiling
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
    """The next forward pass of the denoiser, as mechanisms see it.

    index: of its step in the plan.
    guided: whether both halves of guidance are in the batch, the unconditional first.
    size: (height, width) of the latents.
    guidance: w of classifier-free guidance.
    drawn: (step, name, draw) -> what each image draws from its own stream of that name: [B, ...].
    copies: how many steps, from `index` on, this pass computes: its batch holds one copy of the latents for each.
    """

    index: int
    guided: bool
    size: tuple[int, int]
    guidance: float
    drawn: Drawn
    copies: int = 1


@dataclass(frozen=True)
class Retrace:
    """How the cost of a module that a mechanism changes is counted: it is run that way on the meta device, on one half.

    mechanism: the only one of the plan that is run; None if the module runs as it does in a dense plan.
    steps: how many steps that plan has.
    runs: which of them are run; the last one counts.
    halves: how many halves of guidance the module runs; None for those of the step.
    """

    mechanism: Mechanism | None = None
    steps: int = 1
    runs: tuple[int, ...] = (0,)
    halves: int | None = None


class Runner:
    """What carries out a mechanism on one denoiser.

    now: the pass that comes, set before each.
    store: this mechanism's own dict, which belongs to the batch; set before each pass.
    """

    now: Pass
    store: dict[Any, Any]

    def wrappers(self) -> list[tuple[str, Wrap]]:
        """(name of a module, wrapper of its forward), inner modules before those that contain them."""
        raise NotImplementedError

    def draws(self, i: int, size: tuple[int, int]) -> Iterator[tuple[str, Draw]]:
        """The random draws of step i on latents of `size` (h, w): (name of a stream, what an image draws from it)."""
        return iter(())

    def skipped(self, i: int) -> list[str]:
        """Modules that step i does not run."""
        return []

    def retraced(self, i: int) -> dict[str, Retrace]:
        """{module: how to count its cost} of the modules that step i runs in another way; "" is the whole denoiser.

        Raises: ValueError if its cost is not known.
        """
        return {}


class Running:
    """An attached plan: it tells the plan's mechanisms which pass comes next."""

    def __init__(self, runners: dict[str, Runner]):
        self.runners = runners

    def begin(self, now: Pass, cache: Cache) -> None:
        """Call it before each forward pass. cache: the batch's own, {} before its first pass."""
        for name, runner in self.runners.items():
            runner.now, runner.store = now, cache.setdefault(name, {})

    def draw_ahead(self, i: int, size: tuple[int, int], drawn: Drawn) -> None:
        """Make the random draws of step i, on latents of `size` (h, w), before the first step."""
        for runner in self.runners.values():
            for name, draw in runner.draws(i, size):
                drawn(i, name, draw)


def runners(denoiser: torch.nn.Module, plan: Plan) -> dict[str, Runner]:
    """{kind of mechanism: what carries it out} for each of the plan's mechanisms, the innermost first.

    Raises: ValueError, with the reason, if the denoiser lacks what one needs, or one has nothing to change there.
    """
    denoiser = uncompiled(denoiser)
    by_kind = {kind(mechanism): mechanism.runner(denoiser, plan) for mechanism in plan.mechanisms}
    for name, runner in by_kind.items():
        if not runner.wrappers():
            raise ValueError(f"{plan.name}: {name} finds nothing to wrap in a {type(denoiser).__name__}")
    return by_kind


def uncompiled(denoiser: torch.nn.Module) -> torch.nn.Module:
    """The model itself, where `torch.compile(model)` was put in its place: it calls the model, wrapped or not."""
    return getattr(denoiser, "_orig_mod", denoiser)


def eager(denoiser: torch.nn.Module) -> Callable[[Forward], Forward]:
    """What makes a function of ours one that compiled code calls, and does not trace: traced, it would be compiled anew
    for every step. What it calls stays compiled. Where nothing is compiled, it is the function itself.
    """
    ways = (vars(m).get("_compiled_call_impl") or "_orig_mod" in m._modules for m in denoiser.modules())
    if not any(ways):
        return lambda forward: forward
    import torch

    return lambda forward: torch.compiler.disable(forward, recursive=False)


@contextmanager
def attach(denoiser: torch.nn.Module, plan: Plan, compiled: bool = False) -> Iterator[Running]:
    """Wrap the modules of `denoiser` that `plan` changes, for the length of the `with`. A dense plan wraps nothing.

    compiled: parts that the plan leaves as they are run compiled by torch (`postdiff.compiling`). A model that its user
        compiled, or whose blocks are, stays so, in parts: what is wrapped is left to Python.

    Raises: RuntimeError if this thread is in the middle of another run (other threads' runs are waited for);
        ValueError as `runners` does.
    """
    called, denoiser = denoiser, uncompiled(denoiser)
    with owned(denoiser):
        untraced = eager(called)
        running = Running(runners(denoiser, plan))
        changes = [change for runner in running.runners.values() for change in runner.wrappers()]
        if compiled:  # innermost
            changes = [*compiling.wrappers(denoiser, [name for name, _ in changes]), *changes]
        wrapped = []
        try:
            for name, wrap in changes:
                module = denoiser.get_submodule(name)
                # An instance attribute may be there already (offloading puts one); it is called, and put back.
                wrapped.append((module, module.__dict__.get("forward")))
                module.forward = untraced(wrap(name, module.forward))
            with compiling.graphs() if compiled else nullcontext():
                yield running
        finally:
            for module, before in reversed(wrapped):
                if before is None:
                    del module.forward
                else:
                    module.forward = before
