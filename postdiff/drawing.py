"""sample(): prompts in, images out. Every draw depends on the image's own seed and on nothing else: not on batch, order
or plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, Unpack

import numpy as np
import torch

from postdiff import arguments, sampling
from postdiff.asked import Asked, Told, check, check_beside, check_noise
from postdiff.decoding import Decoding, check_finite
from postdiff.details import Details
from postdiff.models.families import FAMILIES, guided_by
from postdiff.models.family import Size
from postdiff.models.loading import Backbone
from postdiff.models.spec import Sampling, SamplingSettings
from postdiff.noise import Generators, begin_drawn, first_latents, padded, seeds_of
from postdiff.offloading import rest
from postdiff.plan import Plan
from postdiff.state import State
from postdiff.text import Embeddings, encode, encoded
from postdiff.transfer import Moment

OUTPUTS = ("uint8", "pil", "latent")
OnStep = Callable[[int, torch.Tensor], object]


def sample(
    backbone: Backbone,
    prompts: Sequence[str] | None,
    seeds: Sequence[int] | None,
    plan: Plan,
    *,
    guidance: float | None = None,
    solver: str | None = None,
    size: int | Size | None = None,
    batch_size: int | None = None,
    embeddings: Embeddings | None = None,
    on_step: OnStep | None = None,
    negative: str | Sequence[str] | None = None,
    num_images_per_prompt: int = 1,
    clip_skip: int | None = None,
    generator: Generators = None,
    latents: torch.Tensor | None = None,
    guidance_rescale: float = 0.0,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    original_inference_steps: int | None = None,
    eta: float = 0.0,
    original_size: Size | None = None,
    crops_coords_top_left: tuple[int, int] | None = None,
    target_size: Size | None = None,
    use_resolution_binning: bool = False,
    output: Literal["uint8", "pil", "latent"] = "uint8",
    progress: bool = False,
) -> Any:
    """Generate images, one a prompt or several.

    Args:
        prompts, seeds: a seed an image; an image depends on its own pair. Strings and whole numbers, in a list, a
            tuple, an array, a Series or a range. No prompts (None) where there are `embeddings`; no seeds where there
            are latents or a generator.
        plan: at most as many steps, runs of the model, as the backbone was trained with (1000; LCM: 50).
        guidance: w of classifier-free guidance; the backbone's own by default. 0 to 1 is none, as in diffusers: every
            step runs the conditional half alone, and costs what it does in a plan without guidance. (LCM: from 1.)
        solver: of `models.schedulers.GENERAL` (ddim, dpm, ...; lcm for LCM); the backbone's own by default.
        size: of the images in pixels, (height, width) or one number for a square; the backbone's own by default.
        batch_size: images a forward pass; a short batch is padded to it. In fp32 the last bits of an image depend
            on the batch shape, so it belongs to a configuration. All images in one batch by default.
        embeddings: of these prompts, made by `encode` for this batch size, or your own; encoded here by default.
        on_step: called with the number of finished steps of the current batch and its latents [B, C, h, w], which are
            at the grid of the next step.
        negative: the prompt that guidance leads away from, for all images, or a list of one a prompt.
        num_images_per_prompt: those of a prompt come one after the other.
        clip_skip: layers of CLIP that are left out at its end; of SD, LCM and SDXL.
        generator: torch's, as diffusers' pipelines take it: one, which is drawn from batch by batch, or one an image. A
            dense plan gives the pipeline's image for it; what else a plan draws depends on each image's initial noise.
        latents: standard normal [images, C, h, w] at the grid of the plan's first step, in the denoiser's dtype, in
            place of the initial noise.
        guidance_rescale: in [0, 1], at the steps that the plan guides (`guidance.combine`).
        timesteps: of dpm, euler and lcm, one a step of the plan, falling; in place of the scheduler's.
        sigmas: noise levels of euler, one a step of the plan and the one that it ends at, falling.
        original_inference_steps: those that LCM's are chosen from.
        eta: of the noise that ddim adds, in [0, 1].
        original_size, crops_coords_top_left, target_size: told to SDXL, (height, width) and (top, left); by default the
            image's own size, uncropped.
        use_resolution_binning: draw at that of PixArt's sizes that is nearest in shape, then resize and crop.
        output: uint8 arrays, PIL images, or latents, which are not decoded.
        progress: show a progress bar with the pipeline's settings, a unit a step of a batch.

    Returns: uint8 [N, H, W, 3] RGB; a list of N PIL images; or N clean latents [N, C, h, w] beside the denoiser.
    Raises: ValueError, before any work is done, if an argument is out of range or this backbone or plan has no use for
        it; ArithmeticError if an image is not finite, as when float16 overflows.
    """
    arguments.one_of("output", output, OUTPUTS)
    asked = Asked(
        negative, num_images_per_prompt, clip_skip, generator, latents,
        Details(guidance_rescale, timesteps, sigmas, original_inference_steps, eta),
        Told(original_size, crops_coords_top_left, target_size), use_resolution_binning, True, progress,
    )  # fmt: skip
    settings: SamplingSettings = {"guidance": guidance, "solver": solver, "size": size}
    if output == "latent":
        run = _run(backbone, prompts, seeds, plan, batch_size, embeddings, on_step, asked, **settings)
        with run.bar() as bar:
            parts = [sampling.denoise(backbone, run.begin(start), run.watch(on_step, bar)) for start in run.starts]
        rest(backbone.pipe)
        clean = torch.cat(parts)[: run.images].clone()  # an ordinary tensor, and not one of inference mode
        check_finite(backbone, int((~clean.isfinite().flatten(1).all(1)).sum()), run.images)
        return clean
    drawn = batches(backbone, prompts, seeds, plan, batch_size, embeddings, on_step, asked, **settings)
    arrays, _ = zip(*drawn, strict=True)
    pixels = np.concatenate(arrays)
    if output == "uint8":
        return pixels
    from PIL import Image

    return [Image.fromarray(image) for image in pixels]


def batches(
    backbone: Backbone,
    prompts: Sequence[str] | None,
    seeds: Sequence[int] | None,
    plan: Plan,
    batch_size: int | None = None,
    embeddings: Embeddings | None = None,
    on_step: OnStep | None = None,
    asked: Asked | None = None,
    **settings: Unpack[SamplingSettings],
) -> Iterator[tuple[np.ndarray, float]]:
    """The images of `sample`, batch by batch, each with the seconds that it took from its first noise to its pixels.

    A GPU is given batch n + 1 before the pixels of batch n are waited for, so that it never waits for the host.
    """
    run = _run(backbone, prompts, seeds, plan, batch_size, embeddings, on_step, asked or Asked(), **settings)
    ahead = 1 if backbone.device.type == "cuda" else 0  # batches that were launched, and not waited for
    launched: deque[tuple[Moment, Decoding, int]] = deque()
    with run.bar() as bar:
        watching = run.watch(on_step, bar)
        for start in run.starts:
            began = Moment(backbone.device)
            clean = sampling.denoise(backbone, run.begin(start), watching)
            launched.append((began, Decoding(backbone, clean, run.resized), run.count(start)))
            if len(launched) > ahead:
                yield _fetch(*launched.popleft())
        while launched:
            yield _fetch(*launched.popleft())
    rest(backbone.pipe)


def _fetch(began: Moment, decoding: Decoding, count: int) -> tuple[np.ndarray, float]:
    """The first `count` images of a batch, and the seconds that it took."""
    pixels = decoding.pixels()
    return pixels[:count], decoding.fetched.ready.since(began)


@dataclass(frozen=True)
class _Run:
    """A call of `sample`, checked: its batches can begin.

    copies: images a prompt. resized: (height, width) that images become once they are drawn, or None.
    """

    backbone: Backbone
    plan: Plan
    settled: Sampling
    asked: Asked
    embeddings: Embeddings
    seeds: tuple[int, ...] | None
    images: int
    batch_size: int
    resized: Size | None

    @property
    def starts(self) -> range:
        """The first image of each batch."""
        return range(0, self.images, self.batch_size)

    def count(self, start: int) -> int:
        """Images of the batch that begins at `start`; it is padded to `batch_size`."""
        return min(self.batch_size, self.images - start)

    def bar(self) -> Any:
        """A progress bar as the pipeline's, where one was asked for, as a context."""
        if not self.asked.progress:
            return nullcontext()
        from diffusers.utils import logging

        # `load` switches the pipeline's own off, and one that is asked for is shown.
        options = {**getattr(self.backbone.pipe, "_progress_bar_config", {}), "disable": False}
        return logging.tqdm(**options, total=len(self.plan) * ceil(self.images / self.batch_size))

    def watch(self, on_step: OnStep | None, bar: Any) -> OnStep | None:
        if bar is None:
            return on_step

        def both(index: int, latents: torch.Tensor) -> None:
            bar.update()
            if on_step:
                on_step(index, latents)

        return both

    def begin(self, start: int) -> State:
        asked, backbone, plan, settled = self.asked, self.backbone, self.plan, self.settled
        count, size, part = self.count(start), self.batch_size, slice(start, start + self.batch_size)
        text = self.embeddings.batch(start, size, plan.needs_both_texts, asked.num_images_per_prompt)
        conditions = None
        if asked.told.given:
            call = asked.told.as_called()
            rules = FAMILIES[backbone.spec.family]
            text = sampling.beside(backbone, text)  # sizes are of its dtype and where it is
            conditions = rules.called_conditions(backbone.pipe, call, text, settled.size, size)
        first = None if asked.latents is None else asked.latents[part]
        if asked.generator is not None:
            each = isinstance(asked.generator, list | tuple)
            given = asked.generator[part] if each else asked.generator  # type: ignore[index]
            return begin_drawn(
                backbone, text, plan, settled, asked.details, count, given, first, conditions, size
            )  # fmt: skip
        noise = None if first is None else padded(first, size)
        seeds: list[int] = list(self.seeds[part]) if self.seeds is not None else seeds_of(noise)  # type: ignore[arg-type]
        seeds += [seeds[-1]] * (size - len(seeds))
        return sampling.begin(backbone, text, seeds, plan, settled, asked.details, noise=noise, conditions=conditions)


def _run(
    backbone: Backbone,
    prompts: Sequence[str] | None,
    seeds: Sequence[int] | None,
    plan: Plan,
    batch_size: int | None,
    embeddings: Embeddings | None,
    on_step: OnStep | None,
    asked: Asked,
    **settings: Unpack[SamplingSettings],
) -> _Run:
    """Raises ValueError for what is not meant or out of range; then encodes the prompts."""
    spec = arguments.instance("backbone", backbone, Backbone).spec
    arguments.callback("on_step", on_step)
    arguments.flag("progress", asked.progress)
    prompts = None if prompts is None and embeddings is not None else arguments.strings("prompts", prompts)
    if embeddings is not None:
        arguments.instance("embeddings", embeddings, Embeddings)
    count = len(prompts) if prompts is not None else len(embeddings or ())
    images = count * arguments.whole_number("num_images_per_prompt", asked.num_images_per_prompt)
    chosen = check_noise(asked, seeds, images, count)
    plan, settled, resized = _settled(backbone, plan, asked, **settings)
    batch_size = arguments.batch_size(images if batch_size is None else batch_size)
    if asked.latents is not None:
        first_latents(backbone, asked.latents, images, plan, settled)
    if embeddings is not None:
        check_beside(asked, embeddings)
        embeddings.check(backbone, count)
    check(spec, plan, asked, count)
    if embeddings is None:
        together = encoded(batch_size, asked.num_images_per_prompt)
        embeddings = encode(backbone, prompts or [], together, asked.negative, asked.clip_skip)
    return _Run(backbone, plan, settled, asked, embeddings, chosen, images, batch_size, resized)


def _settled(
    backbone: Backbone, plan: Plan, asked: Asked, **settings: Unpack[SamplingSettings]
) -> tuple[Plan, Sampling, Size | None]:
    """Plan and settings as they run, and the size that images are resized to, if any."""
    spec, resized = backbone.spec, None
    if asked.as_called and arguments.instance("plan", plan, Plan):
        given = settings.get("guidance")
        w = arguments.number("guidance", spec.guidance if given is None else given, "[0, inf)")
        plan, settings["guidance"] = guided_by(plan, spec.family, w)
    if arguments.flag("use_resolution_binning", asked.use_resolution_binning):
        size = settings.get("size")
        wanted = arguments.size(spec.size if size is None else size)
        call = {"use_resolution_binning": True}
        settings["size"] = drawn = FAMILIES[spec.family].called_size(backbone.pipe, wanted, call)
        resized = None if drawn == wanted else wanted
    plan, settled = sampling.ready(backbone, plan, asked.details, **settings)
    return plan, settled, resized
