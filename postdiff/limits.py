"""What no machine holds, and what of a prompt is not read: told by the console script, whatever else is right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from postdiff import arguments
from postdiff.terminal import warn

if TYPE_CHECKING:
    from postdiff.models.loading import Backbone
    from postdiff.models.spec import Spec


def check_memory(spec: Spec, images: int, batch: int, size: tuple[int, int]) -> None:
    """Raise ValueError if a part of what must be held at once is more than this machine's memory: for what no machine
    holds. A GPU's own limit is told when it is met."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    h, w = spec.latents(size)
    pixels, channels = size[0] * size[1], spec.denoiser.get("block_out_channels", (320,))[0]
    parts = {
        "--size: 1 image": pixels * 32 * 4,  # one feature map of the decoder
        f"--n: {images} images": 2 * images * pixels * 3,  # one by one, and as one array
        # What a pass and its decoding hold at the least: mini-SD held 490 bytes where this counts 64.
        f"--batch-size: a batch of {batch} images": batch * h * w * channels * 64,
    }
    for part, needed in parts.items():
        if needed > memory:
            need = f"{needed / 2**30:.0f} GiB, this machine has {memory / 2**30:.0f} GiB"
            raise ValueError(f"{part} of {arguments.shown_size(size)} px would need at least {need}")


def warn_of_cut(prompts: Sequence[str], backbone: Backbone) -> None:
    """Models read a fixed number of tokens; the libraries' own words for it hold the whole prompt."""
    reads = backbone.spec.text_tokens
    for i, tokens in enumerate(backbone.pipe.tokenizer(list(prompts)).input_ids, 1):
        if len(tokens) > reads:
            which = f"prompt {i} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
            warn(f"{which} has {len(tokens)} tokens, {backbone.spec.name} reads {reads}: the rest is not drawn")
