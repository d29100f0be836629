"""Seconds an image of plans side by side: in a process of its own, before anything else runs, the plans alternating.

A machine's pace changes while it is measured, so what is known best is each round's ratio of a plan to the first:
seconds are the first plan's, times that ratio, and so no speed-up contradicts them.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

import postdiff
from pipelines.engine import records
from pipelines.engine.identity import digest
from pipelines.engine.provenance import machine
from pipelines.engine.store import Store
from pipelines.metrics.pace import at_one_pace
from pipelines.stages.generation import Configuration
from postdiff.terminal import one_line

if TYPE_CHECKING:
    from postdiff.text import Embeddings

FORMAT = 5  # of what is kept
KEPT = f"latency/{FORMAT}-"  # what files of this format begin with
WARM_UP = 3  # rounds that do not count, of a GPU; of a CPU one
STEADY = 1.2  # p90 over p50, at the most; else all is timed again
BLOCKS = 3  # of rounds, at the most


@dataclass(frozen=True)
class Latency:
    """Of one image alone, from noise to pixels, text encoded before. speedup: the first plan's seconds over this
    one's, the median of `n` rounds.

    p50, p90: seconds: of the first plan as they were, of the others its p50 times their share of its seconds.
    denoise, decode: what p50 is made of. encode: the median of one prompt's text, in seconds. memory: GiB at the peak
    of a GPU's, None on a CPU. machine: what it was measured on, in words. blocks: of `n` rounds that were timed, until
    one was steady; the steadiest is told.
    """

    p50: float
    p90: float
    speedup: float
    n: int
    denoise: float
    decode: float
    encode: float
    memory: float | None
    machine: str
    blocks: int = 1

    @property
    def steady(self) -> bool:
        return self.p90 <= STEADY * self.p50


def measure(configurations: Sequence[Configuration], rounds: int = 7, gpu: bool = False) -> list[Latency]:
    """Time configurations of one backbone, one image each: after rounds to warm up, `rounds` of all, alternating; all
    of them again, BLOCKS times at the most, where one of the plans is not `steady`.

    gpu: in a process that Ray gives a GPU of its own, waiting for a cluster to bring one up; else on this machine.

    Raises: ValueError if there are fewer than 3 rounds.
    """
    check_rounds(rounds)
    return _alone(gpu, _measure, list(configurations), rounds)


def measured_once(
    store: Store, configurations: Sequence[Configuration], rounds: int, gpu: bool = False
) -> list[Latency]:
    """As `measure`, but once a machine, torch and list of configurations: what the store holds is read."""
    here = _alone(gpu, machine) if gpu else machine()
    key = [FORMAT, configurations[0].backbone, here, rounds, *(one.id for one in configurations)]
    file = f"{KEPT}{digest(key)}.json"
    if not store.has(file):
        times = [asdict(took) for took in measure(configurations, rounds, gpu)]
        plans = [one.plan.id for one in configurations]
        of_all = {"backbone": configurations[0].backbone, "machine": here, "rounds": rounds}
        record = {**of_all, "plans": plans, "times": times}
        store.commit(file, records.to_json(record, file))
    return read(store, file)[1]


def read(store: Store, file: str) -> tuple[dict, list[Latency]]:
    """What `kept` wrote, and the latencies in it. Raises ValueError, naming the file, if it is something else."""
    record = store.record(file)
    try:
        times = [Latency(**took) for took in record["times"]]
        seconds = [x for took in times for x in (took.p50, took.p90, took.speedup, took.denoise, took.decode)]
        if not all(isinstance(x, int | float) for x in seconds) or len(times) != len(record["plans"]):
            raise TypeError("expected seconds, a number a plan")
        return {**record, "backbone": str(record["backbone"]), "machine": str(record["machine"])}, times
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{store.shown}/{file} must hold latencies that a job wrote, got {one_line(repr(error))}; deleted, "
            "they are measured again"
        ) from None


def measured(store: Store) -> dict[str, tuple[str, dict[str, float]]]:
    """{backbone: (machine, {plan id: seconds an image, p50})} of all that the store keeps: where several machines were
    timed, the one with most plans."""
    medians: dict[tuple[str, str], dict[str, float]] = {}
    for file in sorted(name for name in store.names("latency") if name.startswith(KEPT)):
        record, times = read(store, file)
        seconds = {plan: took.p50 for plan, took in zip(record["plans"], times, strict=True)}
        medians.setdefault((record["backbone"], record["machine"]), {}).update(seconds)
    best = sorted(medians.items(), key=lambda item: len(item[1]))
    return {backbone: (where, seconds) for (backbone, where), seconds in best}


def _alone(gpu: bool, function: Callable, *args):
    """`function(*args)` in a process of its own: on a GPU of the cluster that nothing else is given (the jobs measure
    before they generate), or on this machine."""
    if gpu:
        from pipelines.engine import workers

        return workers.alone(function, *args)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def check_rounds(rounds: int) -> None:
    if rounds < 3:
        raise ValueError(f"rounds must be 3 or more (a median of fewer says little), got {rounds}")


def _measure(configurations: list[Configuration], rounds: int) -> list[Latency]:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    backbone = configurations[0].load()
    _rounds(backbone, configurations, WARM_UP if torch.cuda.is_available() else 1)
    return steadiest(lambda: _rounds(backbone, configurations, rounds))


def steadiest(block: Callable[[], list[Latency]]) -> list[Latency]:
    """What `block` times: the first time that is steady, or the steadiest of BLOCKS."""
    timed: list[list[Latency]] = []
    while len(timed) < BLOCKS and not (timed and all(took.steady for took in timed[-1])):
        timed.append(block())
    best = min(timed, key=lambda times: max(took.p90 / took.p50 for took in times))
    return [replace(took, blocks=len(timed)) for took in best]


def _rounds(backbone: postdiff.Backbone, configurations: Sequence[Configuration], rounds: int) -> list[Latency]:
    import torch

    gpu = torch.cuda.is_available()
    encode, memory = [], np.zeros((rounds, len(configurations)))
    stages = np.empty((rounds, len(configurations), 2))  # denoise, decode
    for i in tqdm(range(rounds), desc="latency", unit="round"):
        began = _now()
        embeddings = postdiff.encode(backbone, ["a big red star on snow"], 1)
        encode.append(_now() - began)
        for at, one in enumerate(configurations):
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            stages[i, at] = _draw(backbone, embeddings, one)
            memory[i, at] = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0
    peaks = [float(x) if gpu else None for x in memory.max(0)]
    return summarise(stages, float(np.median(encode)), peaks, machine())


def _draw(backbone: postdiff.Backbone, embeddings: Embeddings, configuration: Configuration) -> tuple[float, float]:
    """Seconds of denoising and of decoding."""
    from postdiff import decoding, sampling

    text = embeddings.batch(0, 1, configuration.plan.needs_both_texts)
    state = sampling.begin(backbone, text, [0], configuration.plan, configuration.sampling)
    began = _now()
    latents = sampling.denoise(backbone, state)
    denoised = _now()
    decoding.decode(backbone, latents)
    return denoised - began, _now() - denoised


def _now() -> float:
    """Seconds, once the GPU has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def summarise(stages: np.ndarray, encode: float, peaks: Sequence[float | None], where: str) -> list[Latency]:
    """stages: as `at_one_pace` takes them -> one Latency a plan."""
    p50, p90, denoise = at_one_pace(stages)
    return [
        Latency(float(own), float(late), float(p50[0] / own), len(stages), float(noise), float(own - noise), encode,
                peak, where)
        for own, late, noise, peak in zip(p50, p90, denoise, peaks, strict=True)
    ]  # fmt: skip
