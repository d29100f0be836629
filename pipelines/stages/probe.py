"""The largest batch that a GPU bears, for `--batch-size auto`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import postdiff
from pipelines.engine.cluster import Resources
from pipelines.engine.store import Store
from pipelines.stages.features import loaded_encoder
from pipelines.stages.generation import Configuration

SHARE = 0.8  # of what is free beside weights and encoders: the rest is for memory in pieces, and the batch before


def find(
    store: Store, configurations: Sequence[Configuration], encoders: Sequence[str], most: int, resources: Resources
) -> int:
    """What the store keeps of an earlier run, or `largest` on a GPU of the cluster.

    Raises: ValueError where workers have no GPU, or the store was begun with a number.
    """
    if store.has("spec.json"):
        earlier = store.record("spec.json").get("batch_size")
        if earlier is None:
            raise ValueError(f"store {store.shown!r} was begun with a number: expected that --batch-size, got auto")
        return earlier
    if not resources.gpus:
        raise ValueError("--batch-size auto needs GPUs: on CPUs expected a number (8 is the default)")
    from pipelines.engine import workers

    return workers.alone(largest, list(configurations), list(encoders), most, min(1.0, resources.gpus))


def largest(configurations: Sequence[Configuration], encoders: Sequence[str], most: int, share: float = 1.0) -> int:
    """Images a forward pass, a power of two up to `most`, that all configurations of one backbone bear on this
    process's GPU: the one that takes most for one image is drawn with twice as many, again and again.

    encoders: that are loaded beside it. share: of the GPU, that a worker has.
    """
    import torch

    from postdiff import drawing
    from postdiff.text import Embeddings

    first = configurations[0]
    text = postdiff.encode(first.load("text"), ["a star on snow"], 1)
    backbone = first.load("denoiser")
    for name in encoders:
        loaded_encoder(name)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]

    def peak(one: Configuration, n: int) -> float:
        """Of a batch of `n`, over what is free; infinite if it does not fit."""
        rows = ({key: torch.cat([value] * n) for key, value in half.items()} for half in (text.cond, text.uncond))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        try:
            for _ in drawing.batches(
                backbone, ["a star on snow"] * n, range(n), one.plan, n, Embeddings(*rows), **one.settings
            ):
                pass
        except torch.OutOfMemoryError:
            return inf
        return (torch.cuda.max_memory_reserved() - before) / free

    heaviest = max(configurations, key=lambda one: peak(one, 1))
    return double(lambda n: peak(heaviest, n), most, SHARE * share)


def double(peak: Callable[[int], float], most: int, share: float) -> int:
    """The largest power of two up to `most` whose peak is at most `share`, where twice as many take more. Raises
    ValueError if there is none."""
    if peak(1) > share:
        raise ValueError(f"--batch-size auto: one image takes more than {share:.0%} of the GPU's free memory")
    n = 1
    while 2 * n <= most and peak(2 * n) <= share:
        n *= 2
    return n
