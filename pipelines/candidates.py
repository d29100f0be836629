"""The plans that a budget pays for: every combination of settings, at the most steps that it affords."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import TYPE_CHECKING, Annotated

import postdiff
from pipelines import command_line, evaluation, sweeps
from pipelines.command_line import flag
from pipelines.engine.store import Store
from pipelines.metrics.metric import METRICS
from pipelines.options import OfOneModel, Out
from postdiff import methods
from postdiff.models.families import FAMILIES
from postdiff.models.spec import Spec
from postdiff.plan import Plan
from postdiff.terminal import doing

if TYPE_CHECKING:
    from pipelines.report.tables import Row
    from pipelines.stages.generation import Configuration
    from pipelines.stages.latency import Latency

UNITS = {"flops": "TFLOP", "macs": "T MACs", "seconds": "s"}
Settings = tuple[float, float, int, float]  # beta, s, k, m


@dataclass(frozen=True)
class Candidate:
    label: str
    plan: Plan
    cost: float


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


@dataclass(frozen=True, kw_only=True)
class Options(OfOneModel):
    """share, budget: either is given; the budget as a share of what the backbone costs as it is, or in UNITS."""

    share: float = 0.0
    budget: float = 0.0
    of: Annotated[str, flag("what the budget is of (seconds: measured here)", choices=list(UNITS))] = "flops"
    by: Annotated[str, flag("what is best (default: the CLIP score, as in Fig. 9)", choices=METRICS)] = "clip"
    rounds: Annotated[int, flag("of the latency measurement (default: 3)", command_line.rounds())] = 3
    grid: Annotated[str, flag("how many settings are combined", choices=list(GRIDS))] = "full"
    out: Out = "out/calibration"


def grid(spec: Spec, name: str = "full") -> dict[Settings, list[Plan]]:
    """Every combination of settings that the family has, each at 2 steps to the backbone's own T."""
    values, total = GRIDS[name], spec.settings["steps"]
    intervals = (1,) if FAMILIES[spec.family].no_deep else values.intervals
    combined: dict[Settings, list[Plan]] = {}
    for beta, s, k, m in product((1.0, *values.scales), values.shares, intervals, values.gates):
        if (beta == 1) == (s == 0):
            combined[beta, s, k, m] = [make(steps, beta, s, k, m) for steps in range(2, total + 1)]
    return combined


def make(steps: int, beta: float, s: float, k: int, m: float) -> Plan:
    if s == 0 and k == 1 and m == 1:
        return methods.dense(steps)
    return methods.postdiff(steps, beta, s, k, m)


def seconds(plans: dict[Settings, list[Plan]], flops: dict[str, int], timed: dict[str, "Latency"]) -> dict[str, float]:
    """{plan id: seconds an image} of all, from those of each combination at its most steps: fewer steps of the same
    kinds take less in proportion to their FLOPs, and the decoder as long as ever."""
    times: dict[str, float] = {}
    for group in plans.values():
        longest = group[-1].id
        took = timed[longest]
        times |= {plan.id: took.decode + took.denoise * flops[plan.id] / flops[longest] for plan in group}
    return times


def affordable(plans: dict[Settings, list[Plan]], cost: dict[str, float], budget: float) -> list[Candidate]:
    """Of every combination of settings the plan of the most steps that `budget` pays for.

    Fewer steps of the same settings would cost less, and nothing is won by that. cost: {plan id: in the budget's unit}.
    Raises: ValueError, naming the cheapest plan's cost, if the budget pays for none.
    """
    chosen: dict[str, Candidate] = {}
    for settings, group in plans.items():
        within = [plan for plan in group if cost[plan.id] <= budget]
        if within:
            plan = max(within, key=len)
            # Few steps can make two settings one plan; the first is the simpler.
            chosen.setdefault(plan.id, Candidate(label(len(plan), *settings), plan, cost[plan.id]))
    if not chosen:
        raise ValueError(f"the budget, {budget:.4g}, pays for no plan: the cheapest costs {min(cost.values()):.4g}")
    return list(chosen.values())


def label(steps: int, beta: float, s: float, k: int, m: float) -> str:
    parts = [f"T={steps}", s and f"beta={beta:g}", sweeps.label(steps, s or None, k, m if m < 1 else None)]
    return " ".join(part for part in parts if part)


def track(
    options: Options,
    store: Store,
    stores: Sequence[Store],
    scored: "Sequence[tuple[Row, Configuration]]",
    protocol: evaluation.Protocol,
    answer: str,
) -> None:
    """Mirror a calibration to W&B. stores: of its rounds. scored: of each plan, over all prompts that it had, in any
    order. A plan that was dropped early has a protocol of its own, of fewer prompts: no plot mixes the two."""
    from pipelines.engine import workers
    from pipelines.engine.provenance import commit
    from pipelines.report import tracking
    from pipelines.report.runs import Logbook

    scored = sorted(scored, key=lambda pair: -pair[0].n)
    sizes = {row.configuration: row.n for row, _ in scored}
    facts = {n: replace(protocol, prompts=protocol.prompts[:n]).facts() for n in set(sizes.values())}
    book = Logbook(
        sweep=f"calibration-{options.backbone}",
        protocol=protocol.facts(),
        rows=[row for row, _ in scored],
        configurations={configuration.id: configuration for _, configuration in scored},
        stores=stores,
        protocols={id: facts[n] for id, n in sizes.items()},
        about={"device": workers.machine(), "commit": commit()},
        answer=answer,
        private=(options.backbone, *options.names),
    )
    tracking.log(store, book)


def price(options: Options, store: Store, spec: Spec) -> tuple[list[Candidate], float, float]:
    """The candidates, the budget, and what the backbone costs as it is, in UNITS[options.of]."""
    plans, as_it_is = grid(spec, options.grid), methods.dense(spec.settings["steps"])
    listed = list({plan.id: plan for plan in (as_it_is, *chain.from_iterable(plans.values()))}.values())
    counted = dict(zip((plan.id for plan in listed), postdiff.costs(listed, spec), strict=True))
    if options.of == "seconds":
        from pipelines.engine import workers
        from pipelines.stages import latency

        longest = list({plan.id: plan for plan in (as_it_is, *(group[-1] for group in plans.values()))}.values())
        configurations = [evaluation.configure(options, options.backbone, plan) for plan in longest]
        with doing("measuring latencies"):
            times = latency.measured_once(
                store, configurations, options.rounds, workers.cluster_has_gpus(options.gpus_per_worker)
            )
        timed = dict(zip((plan.id for plan in longest), times, strict=True))
        cost = seconds(plans, {id: counts.flops for id, counts in counted.items()}, timed)
    else:
        name = "macs_paper" if options.of == "macs" else "flops"
        cost = {id: getattr(counts, name) / 1e12 for id, counts in counted.items()}
    whole = cost[as_it_is.id]
    budget = whole * options.share if options.share else options.budget
    return affordable(plans, cost, budget), budget, whole
