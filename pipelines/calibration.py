"""The best plan under a budget, found on a few prompts by successive halving (Jamieson and Talwalkar, 2016).

The paper picks its settings on a small calibration set (sec. 2.4, App. D) and does not say how. Here all plans are
scored on a few prompts, the better half of them on as many again, and so on: prompts are spent where there is doubt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from pipelines import sweeps
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.evaluation import Point, Protocol
from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import Metric
from pipelines.stages import features, scores
from postdiff import methods
from postdiff.models.checkpoints import Spec
from postdiff.models.families import FAMILIES
from postdiff.plan import Plan

if TYPE_CHECKING:
    from pipelines.stages.latency import Latency

FINALISTS = 4  # plans that are scored on all prompts, at the least
RESAMPLINGS = 10_000

Settings = tuple[float, float, int, float]  # beta, s, k, m


@dataclass(frozen=True)
class Candidate:
    label: str
    plan: Plan
    cost: float


@dataclass(frozen=True)
class Round:
    """prompts: of this round alone; keep: how many plans go on."""

    prompts: tuple[Prompt, ...]
    keep: int


@dataclass(frozen=True)
class Grid:
    """The values of each setting that are combined, full resolution apart."""

    shares: tuple[float, ...]  # s: those of Fig. 9, and the paper's 1/5 of SDXL and 0.4 of Fig. 4
    scales: tuple[float, ...]  # beta
    intervals: tuple[int, ...]  # k
    gates: tuple[float, ...]  # m, as a share of T; 1 is off


GRIDS = {
    "full": Grid((0.0, 0.2, 0.3, 0.4, 0.5, 0.6), (0.5, 0.75), (1, 2, 3), (0.5, 0.75, 1.0)),
    "small": Grid((0.0, 0.5), (0.5,), (1, 2, 3), (0.75, 1.0)),  # minutes on a mini model
}


def grid(spec: Spec, name: str = "full") -> dict[Settings, list[Plan]]:
    """Every combination of settings that the family has, each at 2 steps to the backbone's own T."""
    of, total = GRIDS[name], spec.settings["steps"]
    intervals = (1,) if FAMILIES[spec.family].no_deep else of.intervals
    found: dict[Settings, list[Plan]] = {}
    for beta, s, k, m in product((1.0, *of.scales), of.shares, intervals, of.gates):
        if (beta == 1) == (s == 0):
            found[beta, s, k, m] = [make(steps, beta, s, k, m) for steps in range(2, total + 1)]
    return found


def make(steps: int, beta: float, s: float, k: int, m: float) -> Plan:
    if s == 0 and k == 1 and m == 1:
        return methods.dense(steps)
    return methods.postdiff(steps, beta, s, k, m)


def seconds(plans: dict[Settings, list[Plan]], flops: dict[str, int], timed: dict[str, "Latency"]) -> dict[str, float]:
    """{plan id: seconds an image} of all, from those of each combination at its most steps: fewer steps of the same
    kinds take less in proportion to their FLOPs, and the decoder as long as ever."""
    found: dict[str, float] = {}
    for group in plans.values():
        longest = group[-1].id
        took = timed[longest]
        found |= {plan.id: took.decode + took.denoise * flops[plan.id] / flops[longest] for plan in group}
    return found


def affordable(plans: dict[Settings, list[Plan]], cost: dict[str, float], budget: float) -> list[Candidate]:
    """Of every combination of settings the plan of the most steps that `budget` pays for.

    Fewer steps of the same settings would cost less, and nothing is won by that. cost: {plan id: in the budget's unit}.
    Raises: ValueError, naming the cheapest plan's cost, if the budget pays for none.
    """
    found: dict[str, Candidate] = {}
    for settings, group in plans.items():
        within = [plan for plan in group if cost[plan.id] <= budget]
        if within:
            plan = max(within, key=len)
            # Few steps can make two settings one plan; the first is the simpler.
            found.setdefault(plan.id, Candidate(label(len(plan), *settings), plan, cost[plan.id]))
    if not found:
        raise ValueError(f"the budget, {budget:.4g}, pays for no plan: the cheapest costs {min(cost.values()):.4g}")
    return list(found.values())


def label(steps: int, beta: float, s: float, k: int, m: float) -> str:
    parts = [f"T={steps}", s and f"beta={beta:g}", sweeps.label(steps, s or None, k, m if m < 1 else None)]
    return " ".join(part for part in parts if part)


def rounds(prompts: Sequence[Prompt], plans: int, metric: Metric) -> list[Round]:
    """Rounds that halve the plans and double the prompts that each was scored on, the last on all prompts.

    Raises: ValueError for fewer prompts than `metric.least`.
    """
    first = metric.least
    if len(prompts) < first:
        raise ValueError(f"calibration by {metric.title} needs at least {first} prompts (--limit), got {len(prompts)}")
    count = 1
    while plans / 2**count >= FINALISTS and len(prompts) / 2**count >= first:
        count += 1
    ends = [0, *(round(len(prompts) / 2 ** (count - 1 - i)) for i in range(count))]
    keeps = [*(-(-plans // 2 ** (i + 1)) for i in range(count - 1)), 1]
    return [Round(tuple(prompts[a:b]), keep) for (a, b), keep in zip(pairwise(ends), keeps, strict=True)]


def score(stores: Sequence[Store], protocol: Protocol, points: Sequence[Point], metric: Metric) -> list[Interval]:
    """`metric` of each point over the images of all `stores`, in order."""
    encoder, against = protocol.encoder(metric), protocol.against(metric)
    held = [scores.read_features(store, against) for store in stores]  # of references: the same in each
    found = []
    for point in points:
        images, others = [], []
        for store, (names, there) in zip(stores, held, strict=True):
            ids, own = scores.read_features(store, features.folder(encoder, point.configuration.id))
            images.append(own)
            others.append(scores.held_against(metric, ids, names, there))
        others = others[:1] if metric.needs == "reference" else others
        found.append(metric.score(np.concatenate(images), np.concatenate(others)))
    return found


def ranked(values: Sequence[Interval], metric: Metric) -> list[int]:
    """Indices, the best first; of equals the earlier. What is biased counts without its bias at this many images."""
    quality = [metric.sign * metric.unbiased(value).value for value in values]
    return sorted(range(len(values)), key=lambda i: -quality[i])


def first_places(values: Sequence[Interval], metric: Metric) -> list[float]:
    """How often each comes first when the prompts are drawn anew: shares that sum to 1.

    A bootstrap of the jackknife's pseudo-values (Efron, 1982), of which each stands for one group of prompts, the same
    for all plans: what a prompt does to all of them cancels.
    """
    left_out = np.array([value.left_out for value in values])
    groups = left_out.shape[1]
    pseudo = groups * np.array([[value.value] for value in values]) - (groups - 1) * left_out
    draws = np.random.default_rng(0).integers(groups, size=(RESAMPLINGS, groups))
    means = pseudo[:, draws].mean(2)
    best = np.argmax(metric.sign * means, 0)
    return [float((best == i).mean()) for i in range(len(values))]
