"""Seconds an image of plans side by side: in a process of its own, before anything else runs, the plans alternating."""

import json
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import postdiff
from pipelines import workers
from pipelines.store import Store
from postdiff import sampling
from postdiff.backbones import fingerprint, resolve
from postdiff.families import adapt
from postdiff.plan import Plan
from postdiff.text import Embeddings

FORMAT = 2  # of what is kept


@dataclass(frozen=True)
class Latency:
    """Of one image alone, from noise to pixels, text encoded before. speedup: the first plan's seconds over this
    one's, the median of `n` rounds; p50, p90: seconds.

    denoise, decode, encode: medians of the stages in seconds, the last of one prompt. memory: GiB at the peak of a
    GPU's, None on a CPU. machine: what it was measured on, in words.
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


def measure(backbone: str, plans: Sequence[Plan], rounds: int = 7) -> list[Latency]:
    """Time `plans` on `backbone`: one round to warm up, then `rounds` of all, one after the other.

    Raises: ValueError if there are fewer than 3 rounds.
    """
    check_rounds(rounds)
    return _alone(_measure, backbone, list(plans), rounds)


def kept(store: Store, backbone: str, plans: Sequence[Plan], rounds: int) -> list[Latency]:
    """As `measure`, but once a machine, model and list of plans: what the store holds is read."""
    here = workers.alone(machine) if workers.cluster_has_gpus() else machine()
    of = [backbone, fingerprint(resolve(backbone)), here, rounds, *(plan.id for plan in plans)]
    file = f"latency/{sha256(json.dumps([FORMAT, *of]).encode()).hexdigest()[:12]}.json"
    if not store.has(file):
        times = [asdict(took) for took in measure(backbone, plans, rounds)]
        store.put(file, json.dumps({"of": of, "times": times}, indent=2).encode())
    return [Latency(**took) for took in json.loads(store.get(file))["times"]]


def measured(store: Store) -> dict[str, tuple[str, dict[str, float]]]:
    """{backbone: (machine, {plan id: seconds an image, p50})} of all that the store keeps: where several machines were
    timed, the one with most plans."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for file in sorted(store.names("latency")):
        kept_there = json.loads(store.get(file))
        backbone, _, where, _, *plans = kept_there["of"]
        seconds = [took["p50"] for took in kept_there["times"]]
        found.setdefault((backbone, where), {}).update(zip(plans, seconds, strict=True))
    best = sorted(found.items(), key=lambda item: len(item[1]))
    return {backbone: (where, seconds) for (backbone, where), seconds in best}


def _alone(function: Callable, *args):
    """`function(*args)` in a process of its own: on a GPU of the cluster that nothing else is given (the jobs measure
    before they generate), or on this machine where the cluster has none."""
    if workers.cluster_has_gpus():
        return workers.alone(function, *args)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def machine() -> str:
    """What `measure` runs on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else []
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def check_rounds(rounds: int) -> None:
    if rounds < 3:
        raise ValueError(f"a median of fewer than 3 rounds says little, got {rounds}")


def _measure(name: str, plans: list[Plan], rounds: int) -> list[Latency]:
    torch.set_num_threads(os.cpu_count() or 1)
    backbone = postdiff.load(name)
    gpu = torch.cuda.is_available()
    plans = [adapt(plan, backbone.spec.family) for plan in plans]
    encode, memory = [], np.zeros((rounds + 1, len(plans)))
    stages = np.empty((rounds + 1, len(plans), 2))  # denoise, decode
    for i in tqdm(range(rounds + 1), desc="latency", unit="round"):
        began = _now()
        embeddings = postdiff.encode(backbone, ["a big red star on snow"], 1)
        encode.append(_now() - began)
        for at, plan in enumerate(plans):
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            stages[i, at] = _draw(backbone, embeddings, plan)
            memory[i, at] = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0
    peaks = [float(x) if gpu else None for x in memory[1:].max(0)]
    return summarise(stages[1:], float(np.median(encode[1:])), peaks, machine())


def _draw(backbone: postdiff.Backbone, embeddings: Embeddings, plan: Plan) -> tuple[float, float]:
    """Seconds of denoising and of decoding."""
    spec = backbone.spec
    state = sampling.begin(backbone, embeddings.batch(0, 1, plan.needs_both_texts), [0], plan, None, spec.size)
    began = _now()
    latents = sampling.denoise(backbone, state, plan, spec.guidance, spec.size)
    denoised = _now()
    sampling.decode(backbone, latents)
    return denoised - began, _now() - denoised


def _now() -> float:
    """Seconds, once the GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def summarise(stages: np.ndarray, encode: float, peaks: Sequence[float | None], where: str) -> list[Latency]:
    """stages: seconds of denoising and decoding [rounds, plans, 2] -> one Latency a plan."""
    seconds = stages.sum(2)
    speedups = np.median(seconds[:, :1] / seconds, axis=0)
    p50, p90 = np.percentile(seconds, (50, 90), axis=0)
    columns = zip(p50, p90, speedups, *np.median(stages, axis=0).T, peaks, strict=True)
    return [
        Latency(float(a), float(b), float(ratio), len(seconds), float(denoise), float(decode), encode, peak, where)
        for a, b, ratio, denoise, decode, peak in columns
    ]
