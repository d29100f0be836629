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
    """cond: one row a prompt. uncond: the empty prompt, one row an image of a batch; none where nothing is guided.

    One row of `uncond` would do, but for the last bit: in fp32 a row's bits depend on the batch it was encoded in, and
    the diffusers pipelines encode the empty prompt once an image.
    """

    cond: Text
    uncond: Text

    def __len__(self) -> int:
        return len(self.cond["text"])

    def check(self, backbone: Backbone, prompts: int) -> None:
        """Raises ValueError if these are not of so many prompts, or not what this backbone takes."""
        spec, expected = backbone.spec, FAMILIES[backbone.spec.family].text_shapes
        shapes = expected(backbone.denoiser.config, spec.text_tokens)
        for part in (self.cond, *([self.uncond] if self.uncond else [])):
            found = {name: tuple(rows.shape[1:]) for name, rows in part.items()}
            if found != shapes:
                raise ValueError(f"embeddings for {spec.name} must have rows of {shapes}, got {found}")
        if len(self) != prompts:
            raise ValueError(f"expected one row of embeddings a prompt ({prompts}), got {len(self)}")

    def rows(self, which: slice) -> "Embeddings":
        return Embeddings({name: rows[which] for name, rows in self.cond.items()}, self.uncond)

    def batch(self, start: int, size: int, guided: bool) -> Text:
        """Rows for `size` images from `start` on, the last one repeated where there are fewer, uncond first.

        Raises: ValueError if they were encoded for another batch size.
        """
        picked = [min(i, len(self) - 1) for i in range(start, start + size)]
        cond = {name: rows[picked] for name, rows in self.cond.items()}
        if not guided:
            return cond
        found = len(self.uncond.get("text", ()))
        if found != size:
            raise ValueError(f"embeddings must be made for batches of {size}, got ones for batches of {found}")
        return {name: torch.cat([self.uncond[name], rows]) for name, rows in cond.items()}


@torch.no_grad()
def encode(backbone: Backbone, prompts: Sequence[str], batch_size: int) -> Embeddings:
    """Encode `prompts` in batches of `batch_size` (a short one is padded), as the pipelines do.

    Raises: ValueError if there are none, or the backbone was loaded without its text encoder.
    """
    if arguments.instance("backbone", backbone, Backbone).pipe.text_encoder is None:
        raise ValueError("the backbone was loaded without its text encoder: expected `embeddings` of the prompts")
    prompts, batch_size = arguments.strings("prompts", prompts), arguments.batch_size(batch_size)
    if not prompts:
        raise ValueError("expected at least one prompt, got 0")
    with owned(backbone.pipe.text_encoder):  # tokenizers hold a batch's padding, and refuse a second thread
        return _encode(backbone, prompts, batch_size)


def _encode(backbone: Backbone, prompts: list[str], batch_size: int) -> Embeddings:
    rules, tokens = FAMILIES[backbone.spec.family], backbone.spec.text_tokens
    parts, uncond = [], {}
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        padded = batch + [batch[-1]] * (batch_size - len(batch))
        guided = rules.guided and not start  # the empty prompts give the same rows in every batch
        rows = rules.encode(backbone.pipe, padded, guided, tokens)
        if guided:
            uncond = {name: both[:batch_size] for name, both in rows.items()}
        parts.append({name: both[-batch_size:][: len(batch)] for name, both in rows.items()})
    return Embeddings({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, uncond)
