"""Seconds an image of plans side by side: in a process of its own, before anything else runs, the plans alternating."""

import json
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import postdiff
from pipelines.store import Store
from postdiff import sampling
from postdiff.backbones import fingerprint, resolve
from postdiff.families import adapt
from postdiff.plan import Plan


@dataclass(frozen=True)
class Latency:
    """Of one image alone, from noise to pixels, text encoded before. speedup: the first plan's seconds over this
    one's, the median of `n` rounds; p50, p90: seconds."""

    p50: float
    p90: float
    speedup: float
    n: int


def measure(backbone: str, plans: Sequence[Plan], rounds: int = 7) -> list[Latency]:
    """Time `plans` on `backbone`: one round to warm up, then `rounds` of all, one after the other.

    Raises: ValueError if there are fewer than 3 rounds.
    """
    check_rounds(rounds)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return summarise(pool.apply(_seconds, (backbone, list(plans), rounds)))


def kept(store: Store, backbone: str, plans: Sequence[Plan], rounds: int) -> list[Latency]:
    """As `measure`, but once a machine, model and list of plans: what the store holds is read."""
    of = [backbone, fingerprint(resolve(backbone)), machine(), rounds, *(plan.id for plan in plans)]
    file = f"latency/{sha256(json.dumps(of).encode()).hexdigest()[:12]}.json"
    if not store.has(file):
        times = [asdict(took) for took in measure(backbone, plans, rounds)]
        store.put(file, json.dumps({"of": of, "times": times}, indent=2).encode())
    return [Latency(**took) for took in json.loads(store.get(file))["times"]]


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


def summarise(seconds: np.ndarray) -> list[Latency]:
    """seconds [rounds, plans] -> one Latency a plan."""
    speedups = np.median(seconds[:, :1] / seconds, axis=0)
    p50, p90 = np.percentile(seconds, (50, 90), axis=0)
    return [
        Latency(float(a), float(b), float(ratio), len(seconds)) for a, b, ratio in zip(p50, p90, speedups, strict=True)
    ]


def _seconds(name: str, plans: list[Plan], rounds: int) -> np.ndarray:
    torch.set_num_threads(os.cpu_count() or 1)
    backbone = postdiff.load(name)
    spec = backbone.spec
    embeddings = postdiff.encode(backbone, ["a big red star on snow"], 1)
    plans = [adapt(plan, spec.family) for plan in plans]

    def draw(plan: Plan) -> float:
        state = sampling.begin(backbone, embeddings.batch(0, 1, plan.needs_both_texts), [0], plan, None, spec.size)
        began = time.perf_counter()
        latents = sampling.denoise(backbone, state, plan, spec.guidance, spec.size)
        sampling.decode(backbone, latents)  # ends on the CPU: nothing is left to wait for
        return time.perf_counter() - began

    bar = tqdm(range(rounds + 1), desc="latency", unit="round")
    return np.array([[draw(plan) for plan in plans] for _ in bar][1:])
