"""Prompts encoded once, for any number of plans: the text encoder (T5-XXL: 4.8 B weights) need not sit beside the
denoiser, nor run again for every configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from postdiff import arguments
from postdiff.models.families import FAMILIES
from postdiff.models.family import Text
from postdiff.models.loading import Backbone
from postdiff.ownership import owned


@dataclass(frozen=True)
class Embeddings:
    """Encoded prompts, as dicts of tensors (`postdiff.models.family` lists them) of one row a prompt or image.

    cond: one row a prompt.
    uncond: the negative prompt, or the empty one, one row an image of a batch; {} where nothing is guided.

    One row of `uncond` would do, but for the last bit: in fp32 a row's bits depend on the batch it was encoded in, and
    the diffusers pipelines encode the empty prompt once an image.
    """

    cond: Text
    uncond: Text

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
        if len(self) != prompts:
            raise ValueError(f"expected one row of embeddings a prompt ({prompts}), got {len(self)}")

    def rows(self, which: slice) -> "Embeddings":
        """Those of some of the prompts."""
        return Embeddings({name: rows[which] for name, rows in self.cond.items()}, self.uncond)

    def batch(self, start: int, size: int, guided: bool) -> Text:
        """The text of one batch: rows of the `size` prompts from `start` on, where guided after as many of `uncond`.

        Where fewer prompts are left, the last one is repeated.

        Raises: ValueError if they were encoded for another batch size.
        """
        picked = [min(i, len(self) - 1) for i in range(start, start + size)]
        cond = {name: rows[picked] for name, rows in self.cond.items()}
        if not guided:
            return cond
        made_for = len(self.uncond.get("text", ()))
        if made_for != size:
            raise ValueError(f"embeddings must be made for batches of {size}, got ones for batches of {made_for}")
        return {name: torch.cat([self.uncond[name], rows]) for name, rows in cond.items()}


@torch.no_grad()
def encode(backbone: Backbone, prompts: Sequence[str], batch_size: int, negative: str | None = None) -> Embeddings:
    """Encode prompts once, for any number of plans: as the diffusers pipeline encodes them.

    Args:
        backbone: loaded with its text encoder.
        prompts: at least one.
        batch_size: prompts a forward pass; a short batch is padded to it. It must be the one that `sample` is given.
        negative: the prompt that guidance leads away from, for all images; the pipeline's own, empty one by default.

    Returns: what `sample` takes as `embeddings`, on the backbone's device and in its dtype.
    Raises: ValueError if there are no prompts, the backbone was loaded without its text encoder, or a negative prompt
        is given to a model of which nothing is guided.
    """
    if arguments.instance("backbone", backbone, Backbone).pipe.text_encoder is None:
        raise ValueError("the backbone was loaded without its text encoder: expected `embeddings` of the prompts")
    prompts, batch_size = arguments.strings("prompts", prompts), arguments.batch_size(batch_size)
    if not prompts:
        raise ValueError("expected at least one prompt, got 0")
    if negative is not None:
        (negative,) = arguments.strings("negative", [negative])
        if not FAMILIES[backbone.spec.family].guided:
            raise ValueError(
                f"negative must be None, got {negative!r}: guidance was distilled into {backbone.spec.name}"
            )
    with owned(backbone.pipe.text_encoder):  # tokenizers hold a batch's padding, and refuse a second thread
        return _encode(backbone, prompts, batch_size, negative)


def _encode(backbone: Backbone, prompts: list[str], batch_size: int, negative: str | None) -> Embeddings:
    rules, tokens = FAMILIES[backbone.spec.family], backbone.spec.text_tokens
    parts, uncond = [], {}
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        padded = batch + [batch[-1]] * (batch_size - len(batch))
        guided = rules.guided and not start  # the empty prompts give the same rows in every batch
        asked = {} if negative is None else {"negative_prompt": [negative] * batch_size}
        rows = rules.encode(backbone.pipe, padded, guided, tokens, asked)
        if guided:
            uncond = {name: halves[:batch_size] for name, halves in rows.items()}
        parts.append({name: halves[-batch_size:][: len(batch)] for name, halves in rows.items()})
    return Embeddings({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, uncond)
