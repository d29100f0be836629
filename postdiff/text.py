"""Prompts encoded once, for any number of plans: the text encoder (T5-XXL: 4.8 B weights) need not sit beside the
denoiser, nor run again for every configuration.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from postdiff import arguments
from postdiff.models.families import FAMILIES
from postdiff.models.family import Text
from postdiff.models.loading import Backbone, as_value_error
from postdiff.models.spec import Spec
from postdiff.ownership import owned


@dataclass(frozen=True)
class Embeddings:
    """Encoded prompts, as dicts of tensors (`postdiff.models.family` lists them) of one row a prompt or image.

    cond: one row a prompt.
    uncond: the negative prompt, or the empty one, one row a prompt of a batch; {} where nothing is guided.
    each: every prompt has a negative one of its own: `uncond` has one row a prompt of all.

    Your own: SD's are `Embeddings({"text": cond}, {"text": uncond})`, tensors [prompts, 77, 768] and [batch, 77, 768].

    One row of `uncond` would do, but for the last bit: in fp32 a row's bits depend on the batch it was encoded in, and
    the diffusers pipelines encode the empty prompt once an image.
    """

    cond: Text
    uncond: Text
    each: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.cond["text"])

    def check(self, backbone: Backbone, prompts: int) -> None:
        """Raise ValueError if these are not of that many prompts, or not of the shapes that `backbone` takes."""
        spec, expected = backbone.spec, FAMILIES[backbone.spec.family].text_shapes
        shapes = expected(backbone.denoiser.config, spec.text_tokens)
        for part in (self.cond, *([self.uncond] if self.uncond else [])):
            given = {name: tuple(rows.shape[1:]) for name, rows in part.items()}
            if given != shapes:
                raise ValueError(f"embeddings for {spec.name} must have rows of {shapes}, got {given}")
        rows = len(self.uncond.get("text", ())) if self.each else prompts
        if len(self) != prompts or rows != prompts:
            raise ValueError(f"expected one row of embeddings a prompt ({prompts}), got {len(self)} and {rows}")

    def rows(self, which: slice) -> "Embeddings":
        """Those of some of the prompts."""
        uncond = {name: rows[which] for name, rows in self.uncond.items()} if self.each else self.uncond
        return Embeddings({name: rows[which] for name, rows in self.cond.items()}, uncond, each=self.each)

    def batch(self, start: int, size: int, guided: bool, copies: int = 1) -> Text:
        """The text of one batch: rows of the `size` images from `start` on, where guided after as many of `uncond`.

        Where fewer images are left, the last one is repeated. copies: images a prompt, one after the other.

        Raises: ValueError if they were encoded for another batch size.
        """
        picked = [min(i, len(self) * copies - 1) // copies for i in range(start, start + size)]
        cond = {name: rows[picked] for name, rows in self.cond.items()}
        if not guided:
            return cond
        if not self.each:
            made_for, prompts = len(self.uncond.get("text", ())), encoded(size, copies)
            if made_for != prompts:
                raise ValueError(
                    f"embeddings must be made for batches of {prompts}, got ones for batches of {made_for}"
                )
            picked = [i // copies for i in range(size)]
        return {name: torch.cat([self.uncond[name][picked], rows]) for name, rows in cond.items()}


def encoded(size: int, copies: int) -> int:
    """Prompts that are encoded together for batches of `size` images, with so many images a prompt."""
    return -(-size // copies)


@torch.no_grad()
def encode(
    backbone: Backbone,
    prompts: Sequence[str],
    batch_size: int,
    negative: str | Sequence[str] | None = None,
    clip_skip: int | None = None,
) -> Embeddings:
    """Encode prompts once, for any number of plans: as the diffusers pipeline encodes them.

    Args:
        backbone: loaded with its text encoder.
        prompts: at least one.
        batch_size: prompts a forward pass; a short batch is padded to it. It must be the one that `sample` is given
            (with several images a prompt: divided by those, rounded up).
        negative: the prompt that guidance leads away from, for all images, or a list of one a prompt; the pipeline's
            own, empty one by default.
        clip_skip: layers of CLIP that are left out at its end, as the pipelines of SD, LCM and SDXL take it.

    Returns: what `sample` takes as `embeddings`, on the backbone's device and in its dtype.
    Raises: ValueError if there are no prompts, the backbone was loaded without its text encoder, or a negative prompt
        is given to a model of which nothing is guided.
    """
    if arguments.instance("backbone", backbone, Backbone).pipe.text_encoder is None:
        raise ValueError("the backbone was loaded without its text encoder: expected `embeddings` of the prompts")
    prompts, batch_size = arguments.strings("prompts", prompts), arguments.batch_size(batch_size)
    if not prompts:
        raise ValueError("expected at least one prompt, got 0")
    negative, skipped = check_encoding(backbone.spec, len(prompts), negative, clip_skip)
    with owned(backbone.pipe.text_encoder):  # tokenizers hold a batch's padding, and refuse a second thread
        return _encode(backbone, prompts, batch_size, negative, skipped)


def check_encoding(
    spec: Spec, prompts: int, negative: str | Sequence[str] | None, clip_skip: int | None
) -> tuple[str | list[str] | None, dict[str, int]]:
    """The negative prompt, or one a prompt, and `clip_skip` as an argument of the pipeline's `encode_prompt`. Raises
    ValueError if `spec` has neither, or there are not as many as prompts."""
    skipped = {}
    if clip_skip is not None:
        if not FAMILIES[spec.family].skips_layers:
            raise ValueError(f"clip_skip must be None, got {arguments.shown(clip_skip)}: {spec.name} has no CLIP")
        skipped["clip_skip"] = arguments.whole_number("clip_skip", clip_skip, 0)
    if negative is None:
        return None, skipped
    single = isinstance(negative, str)
    texts = arguments.strings("negative", [negative] if single else negative)
    if not FAMILIES[spec.family].guided:
        shown = arguments.shown(negative)
        raise ValueError(f"negative must be None, got {shown}: guidance was distilled into {spec.name}")
    if not single and len(texts) != prompts:
        raise ValueError(f"negative must be one text, or a list of one a prompt ({prompts}), got {len(texts)}")
    return texts[0] if single else texts, skipped


def _encode(
    backbone: Backbone,
    prompts: list[str],
    batch_size: int,
    negative: str | list[str] | None,
    skipped: Mapping[str, int],
) -> Embeddings:
    rules, tokens = FAMILIES[backbone.spec.family], backbone.spec.text_tokens
    each = isinstance(negative, list)
    parts: list[Text] = []
    uncond: list[Text] = []

    def batch_of(texts: list[str], start: int) -> list[str]:
        batch = texts[start : start + batch_size]
        return batch + [batch[-1]] * (batch_size - len(batch))

    for start in range(0, len(prompts), batch_size):
        count = len(prompts[start : start + batch_size])
        guided = rules.guided and (each or not start)  # the empty prompts give the same rows in every batch
        asked: dict[str, Any] = {**skipped}
        if negative is not None and guided:
            asked["negative_prompt"] = (
                batch_of(negative, start) if isinstance(negative, list) else [negative] * batch_size
            )
        # More layers than CLIP has, or those of a CLIP that diffusers does not know yet: no error of its own.
        failure = f"clip_skip={skipped['clip_skip']} cannot be honoured by {backbone.spec.name}" if skipped else ""
        with as_value_error(failure) if failure else nullcontext():
            rows = rules.encode(backbone.pipe, batch_of(prompts, start), guided, tokens, asked)
        if guided:
            uncond.append({name: halves[: count if each else batch_size] for name, halves in rows.items()})
        parts.append({name: halves[-batch_size:][:count] for name, halves in rows.items()})
    return Embeddings(_joined(parts), _joined(uncond), each=each)


def _joined(parts: list[Text]) -> Text:
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else {})}
