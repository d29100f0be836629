"""attach(): a plan of caches inside a diffusers pipeline's own loop: img2img, inpainting, ControlNet, IP-Adapter.

    with postdiff.attach(pipe, plan):
        images = pipe(prompt, image=image, strength=0.5, num_inference_steps=40).images  # a plan of 20 steps

The loop, the solver, guidance and all arguments are the pipeline's; what is saved is the plan's. What needs a loop of
ours (another resolution, dropped guidance, noise added to latents, steps computed ahead) is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from postdiff import arguments
from postdiff.mechanisms import EncoderPropagation
from postdiff.mechanisms import attach as wrapping
from postdiff.mechanisms.attach import Cache, Draw, Pass, Running
from postdiff.models.families import FAMILIES, adapt
from postdiff.offloading import check_groups
from postdiff.plan import Plan, Step, kind

if TYPE_CHECKING:
    import torch

# diffusers' pipelines whose loops run the denoiser once a step, on both halves of guidance or on one; their families.
_KINDS = ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint")
LOOPS = {
    **{f"StableDiffusion{words}Pipeline": "sd" for words in _KINDS},
    **{f"StableDiffusionXL{words}Pipeline": "sdxl" for words in _KINDS},
    "LatentConsistencyModelPipeline": "lcm",
    "LatentConsistencyModelImg2ImgPipeline": "lcm",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart-sigma",
}
_RULE = "a plan has a step for each time that the call runs the denoiser (img2img: num_inference_steps * strength)"


def attach(pipe: Any, plan: Plan, *, seeds: Sequence[int] | None = None) -> Attached:
    """Let a diffusers pipeline's own loop save what `plan` saves, until `detach()`, or for the length of a `with`.

    Each call of the pipeline carries out the plan from its first step. Until it is detached the denoiser belongs to
    this thread: `sample` with it raises here, and waits in other threads.

    Args:
        pipe: of a class of `LOOPS`: text-to-image, img2img, inpainting and ControlNet of SD and SDXL, LCM, PixArt;
            with IP-Adapters or without.
        plan: at full resolution, with guidance at every step (or at none, for calls without). It has as many steps as
            a call runs the denoiser: `num_inference_steps`, fewer where the loop starts late (img2img with a strength)
            or ends early (SDXL's denoising_end), more where the scheduler asks more often (Heun, PNDM).
        seeds: of the images of each call, in their order, for mechanisms that draw (ToMe's random partition): an image
            draws what it draws in `sample` with its seed. Other mechanisms take none.

    Returns: a handle with `detach()`, which is a context manager too.
    Raises: ValueError, before anything is changed, if this loop cannot carry out the plan, with all reasons;
        RuntimeError if the pipeline, or its denoiser, has a plan attached already. A call of the pipeline raises
        ValueError before its first run of the denoiser if it would make another number of them than the plan has
        steps, and RuntimeError if its loop is not the one that was expected.
    """
    name = type(pipe).__name__
    if isinstance(pipe, _Marked):
        raise RuntimeError(f"this {name} has a plan attached: expected detach() before another is")
    if name not in LOOPS or not type(pipe).__module__.startswith("diffusers."):
        raise ValueError(f"pipe must be one of {', '.join(LOOPS)} of diffusers, whose loops are known, got {name}")
    family = LOOPS[name]
    plan = adapt(arguments.instance("plan", plan, Plan), family)
    if reasons := list(_reasons(plan)):
        honoured = ", ".join(_honoured(plan)) or "nothing"
        raise ValueError(
            f"{plan.name} needs more than the own loop of a {name}: {'; '.join(reasons)}; expected a plan without "
            f"these (of this one {honoured} would be honoured), or postdiff.sample"
        )
    seeds = None if seeds is None else arguments.whole_numbers("seeds", seeds)
    return Attached(pipe, FAMILIES[family].denoiser, plan, seeds)


def _reasons(plan: Plan) -> Iterator[str]:
    """What of `plan` a pipeline's own loop cannot carry out."""
    low = [i for i, step in enumerate(plan.steps) if step.scale != 1]
    if low:
        yield f"steps {low[0]} to {low[-1]} are at low resolution, and it has one size"
    unguided = [i for i, step in enumerate(plan.steps) if not step.guided]
    if 0 < len(unguided) < len(plan):
        yield f"guidance is dropped from step {unguided[0]} on, and it runs the same halves at every step"
    elif unguided and plan.half != "cond":
        yield "the unconditional half runs alone, and it runs the conditional one without guidance"
    if plan.prior_noise:
        yield f"{plan.prior_noise:g} of the initial noise is added to the latents between steps, and it adds none"
    if any(plan.ahead(i) > 1 for i in range(len(plan))):
        yield "steps are computed ahead, as one batch, and it takes them one by one"


def _honoured(plan: Plan) -> Iterator[str]:
    """The mechanisms of `plan` that would go with full resolution and guidance at every step."""
    for mechanism in plan.mechanisms:
        if isinstance(mechanism, EncoderPropagation):
            mechanism = replace(mechanism, parallel=False, prior_noise=0.0)
        try:
            alone = Plan(plan.name, (Step(),) * len(plan), (mechanism,))
        except ValueError:
            continue
        yield from map(kind, alone.mechanisms)


class _Marked:
    """A pipeline with a plan attached: what the class of one is derived from, for as long as it is."""


@dataclass
class _Run:
    """One call of the pipeline.

    plan: as its passes are: guided or not. timesteps: of its scheduler. starts: where in them the call may have begun,
    as far as its passes tell.
    """

    guidance: float
    plan: Plan | None = None
    guided: bool = False
    calls: int = 0
    timesteps: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    cache: Cache = field(default_factory=dict)
    drawn: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)


class Attached:
    """A plan attached to a pipeline, until `detach()` or the end of a `with`."""

    def __init__(self, pipe: Any, part: str, plan: Plan, seeds: Sequence[int] | None):
        self.plan, self.seeds, self.pipe, self._part = plan, seeds, pipe, part
        self._denoiser = getattr(pipe, part)
        self._now: _Run | None = None
        check_groups(self._denoiser)
        with ExitStack() as stack:
            self._running: Running = stack.enter_context(wrapping.attach(self._denoiser, plan))
            self._check_seeds()
            before_pass = wrapping.eager(self._denoiser)(self._before_pass)
            hook = self._denoiser.register_forward_pre_hook(before_pass, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(setattr, pipe, "__class__", type(pipe))
            pipe.__class__ = _derived(type(pipe), self)
            self._undo = stack.pop_all()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Make the pipeline what it was before. Again, it does nothing.

        Raises: RuntimeError in the middle of a call of the pipeline, as in one of its callbacks.
        """
        if self._now:
            raise RuntimeError(
                f"this {type(self.pipe).__name__} is in the middle of a call: expected detach() after it"
            )
        self._undo.close()

    def _check_seeds(self) -> None:
        """Raise ValueError if a mechanism draws and there are no seeds, or none does and there are."""
        draws = [
            name
            for name, runner in self._running.runners.items()
            if any(True for i in range(len(self.plan)) for _ in runner.draws(i, (64, 64)))
        ]
        if draws and self.seeds is None:
            raise ValueError(
                f"{', '.join(draws)} of {self.plan.name} draws from each image's own stream, and a pipeline's loop has "
                "no seeds: expected seeds=[one an image], or a setting that draws nothing (random=False)"
            )
        if self.seeds is not None and not draws:
            raise ValueError(f"seeds are for mechanisms that draw, and {self.plan.name} has none: expected no seeds")

    def _call(self, pipe: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of the pipeline: one run of the plan."""
        name = type(pipe).__name__
        if pipe is not self.pipe:
            raise RuntimeError(f"this is a copy of the {name} that a plan is attached to: expected that one")
        if getattr(pipe, self._part) is not self._denoiser:
            raise RuntimeError(f"the {self._part} is another than the plan was attached to: expected detach() first")
        if self._now:
            raise RuntimeError(f"this {name} is in the middle of a call: expected the next one after it")
        check_groups(self._denoiser)
        wrapping.runners(self._denoiser, self.plan)  # raises where it was changed since, and no longer fits
        bound = signature(call).bind(pipe, *args, **kwargs)
        bound.apply_defaults()
        self._now = _Run(bound.arguments["guidance_scale"])
        try:
            output = call(pipe, *args, **kwargs)
            # Who interrupts a call from a callback (diffusers' `_interrupt`) asked for fewer steps.
            if self._now.calls != len(self.plan) and not getattr(pipe, "interrupt", False):
                raise RuntimeError(self._miscounted(self._now.calls))
            return output
        finally:
            self._now = None

    def _miscounted(self, calls: int) -> str:
        return f"{self.plan.name}: expected {len(self.plan)} runs of the {self._part}, got {calls}: {_RULE}"

    def _before_pass(self, denoiser: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Tell the mechanisms which pass comes. It is a hook before the denoiser's forward."""
        run = self._now
        if run is None:
            raise RuntimeError(
                f"the {self._part} runs outside of the {type(self.pipe).__name__} that a plan is attached to: expected "
                "a call of that one, or detach() first"
            )
        latents, t = args[0], kwargs["timestep"] if "timestep" in kwargs else args[1]
        if run.plan is None:
            self._first_pass(run)
        if run.calls == len(self.plan):
            raise RuntimeError(self._miscounted(run.calls + 1))
        self._follow(run, float(t if isinstance(t, int | float) else t.flatten()[0]))
        if self._guided(run) != run.guided:
            raise RuntimeError(
                f"guidance {'ends' if run.guided else 'begins'} at step {run.calls}: expected the same halves at every "
                "step while a plan is attached"
            )
        images = len(latents) // (1 + run.guided)
        if self.seeds is not None and len(self.seeds) != images:
            raise ValueError(f"seeds: expected one an image of the call, {images}, got {len(self.seeds)}")

        def drawn(i: int, name: str, draw: Draw) -> torch.Tensor:
            return self._drawn(run, latents.device, i, name, draw)

        size = latents.shape[-2], latents.shape[-1]
        self._running.begin(Pass(run.calls, run.guided, size, run.guidance, drawn), run.cache)
        run.calls += 1

    def _first_pass(self, run: _Run) -> None:
        """Check what is known before the denoiser runs: how often it will, and on which halves of guidance."""
        run.timesteps = self.pipe.scheduler.timesteps.tolist()
        run.starts = list(range(len(run.timesteps)))
        calls = getattr(self.pipe, "num_timesteps", len(run.timesteps))
        if calls != len(self.plan):
            raise ValueError(self._miscounted(calls))
        run.guided = self._guided(run)
        planned = self.plan.steps[0].guided
        if run.guided and not planned:
            wrong = f"expected guidance_scale of 1 or less, got {run.guidance}"
            raise ValueError(f"{self.plan.name} has no guidance at any step: {wrong}")
        # Marks that share halves of guidance do not go with calls that have one: the plan's own checks say so.
        run.plan = replace(self.plan, steps=tuple(replace(step, guided=run.guided) for step in self.plan.steps))

    def _guided(self, run: _Run) -> bool:
        """Does the pass that comes run both halves? The pipeline's own rule; PixArt's is not in an attribute."""
        return bool(getattr(self.pipe, "do_classifier_free_guidance", run.guidance > 1))

    def _follow(self, run: _Run, t: float) -> None:
        """Raise RuntimeError if timestep `t` is not the one that is due."""
        run.starts = [s for s in run.starts if run.timesteps[s + run.calls : s + run.calls + 1] == [t]]
        if not run.starts:
            raise RuntimeError(
                f"run {run.calls} of the {self._part} is at timestep {t:g}, which is not the scheduler's next one: "
                "expected a run a step"
            )

    def _drawn(self, run: _Run, device: torch.device, i: int, name: str, draw: Draw) -> torch.Tensor:
        """What each image draws at step `i` from its stream of that name, as `State.drawn`."""
        import torch

        from postdiff.state import generator

        if (i, name) not in run.drawn:
            rows = [draw(generator(seed, f"{name}-{i}")) for seed in self.seeds or ()]
            run.drawn[i, name] = torch.stack(rows).to(device)
        return run.drawn[i, name]


def _derived(cls: type, attached: Attached) -> type:
    """A class like `cls`, of the same name, whose calls are runs of the plan: Python looks up calls in classes alone.

    It keeps `attached`, so that a handle that nobody keeps is not lost, and undone, before the pipeline is.
    """

    @functools.wraps(cls.__call__)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        return attached._call(pipe, cls.__call__, *args, **kwargs)

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls, _Marked), {**names, "__call__": call, "attached": attached})
