"""The best plan under a budget, found on a few prompts by successive halving (Jamieson and Talwalkar, 2016).

The paper picks its settings on a small calibration set (sec. 2.4, App. D) and does not say how. Here all plans are
scored on a few prompts, the better half of them on as many again, and so on: prompts are spent where there is doubt.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import postdiff
from pipelines import candidates, evaluation, low_resolution
from pipelines.calibration_report import FINALISTS, compare, sure, write
from pipelines.candidates import UNITS, Candidate, Options
from pipelines.data import prompts
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.engine.urls import below, local_path
from pipelines.evaluation import Entry
from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import METRICS, Metric
from pipelines.options import check_batch
from pipelines.pooling import Pool
from pipelines.report import tables
from pipelines.stages import fidelity, worker
from pipelines.stages.generation import Configuration
from postdiff.models.checkpoints import resolve
from postdiff.terminal import doing


@dataclass(frozen=True)
class Round:
    """prompts: of this round alone; keep: how many plans go on."""

    prompts: tuple[Prompt, ...]
    keep: int


def run(options: Options) -> None:
    """From options to OUT/plan.json and OUT/report.html. Raises ValueError before any work for what does not fit."""
    spec, whole_protocol = resolve(options.backbone), evaluation.protocol(options)
    metric = METRICS[options.by]
    if metric.needs == "reference" and not whole_protocol.reference:
        raise ValueError(f"--by {options.by} needs --reference, a folder of images")
    if not metric.ranks:
        able = ", ".join(one.key for one in METRICS.values() if one.ranks)
        raise ValueError(f"--by must be a metric that ranks plans ({able}), got {options.by}")
    if missing := whole_protocol.lacks(metric):
        raise ValueError(f"--by {options.by} cannot be measured: {missing}")
    whole_protocol = replace(whole_protocol, only=metric.key)
    if metric.needs != "reference":
        whole_protocol = replace(whole_protocol, reference=())
    if options.of == "seconds" and options.dry_run:
        raise ValueError("--dry-run cannot tell what seconds buy: they are measured first")
    rounds(whole_protocol.prompts, 1, metric)  # raises for too few prompts, before seconds are measured
    if local_path(options.out) or not options.dry_run:
        evaluation.check_store(options.out, whole_protocol)
    affordable, budget, whole = candidates.price(options, Store(options.out), spec)
    affordable = judged(affordable, metric, evaluation.configure(options, options.backbone, affordable[0].plan))
    halving = rounds(whole_protocol.prompts, len(affordable), metric)
    check_batch(options, min(len(part.prompts) for part in halving))
    images = drawn(halving, len(affordable))
    print(
        f"{len(affordable)} plans within {budget:.4g} {UNITS[options.of]} ({budget / whole:.1%} of the model as it is)"
    )
    print(f"{len(halving)} rounds, {images} images; all plans on all prompts would be "
          f"{len(affordable) * len(whole_protocol.prompts)}")  # fmt: skip
    prices = postdiff.costs([c.plan for c in affordable], spec)
    entries = {}
    for c, price in zip(affordable, prices, strict=True):
        configuration = evaluation.configure(options, options.backbone, c.plan)
        entries[c.plan.id] = Entry(c.plan.name, c.label, configuration, price.macs_paper, price.flops)
    if options.dry_run:
        print(f"read {prompts.describe(whole_protocol.prompts)} (of {options.prompts})")
        return print(time_line(options, images * sum(price.flops for price in prices) / len(prices)))
    parts = [replace(whole_protocol, prompts=part.prompts) for part in halving]
    folders = [below(options.out, f"round-{number}") for number in range(1, 1 + len(parts))]
    for folder, protocol in zip(folders, parts, strict=True):
        evaluation.check_store(folder, protocol)
    resources = evaluation.connect(options, [options.backbone])
    store = evaluation.claim_store(options.out, whole_protocol)  # all that can be refused is refused before
    warnings = low_resolution.warnings(options, [c.plan for c in affordable], whole_protocol, resources)
    stores: list[Store] = []
    curves: dict[str, list[Interval]] = {}
    rows: dict[str, tables.Row] = {}
    racing = affordable
    for part, folder, protocol in zip(halving, folders, parts, strict=True):
        stores.append(evaluation.claim_store(folder, protocol))
        listed = [entries[c.plan.id] for c in racing]
        evaluate = partial(evaluation.evaluate, stores[-1], listed, protocol, resources)
        evaluated = worker.mending(stores[-1], evaluate)
        evaluated.check()  # plans are ranked whole, or not at all
        pool = Pool(stores, protocol)
        values = [pool.score(entry.configuration, metric) for entry in listed]
        for c, row, value in zip(racing, evaluated.complete, values, strict=True):
            curves.setdefault(c.plan.id, []).append(value)
            rows[c.plan.id] = replace(row, scores={metric.key: value})
        racing = [racing[i] for i in ranked(values, metric)[: part.keep]]
    with doing("writing the report"):
        print(write(options, store, affordable, racing[0], curves, whole_protocol, budget, whole, warnings))
        scored = [(rows[c.plan.id], entries[c.plan.id].configuration) for c in affordable]
        answer = sure(compare(affordable, racing[0], curves, metric), racing[0], metric)
        candidates.track(options, store, stores, scored, whole_protocol, answer)


def judged(plans: list[Candidate], metric: Metric, configuration: Configuration) -> list[Candidate]:
    """Of `plans` those that `metric` can judge; says how many it cannot. Raises ValueError if there is none."""
    if not metric.is_paired:
        return plans
    if not fidelity.baseline(metric.needs, configuration):
        raise ValueError(
            f"--by {metric.key} needs a {metric.needs} to compare with, which {configuration.backbone} has not"
        )
    able = [one for one in plans if not one.plan.switches]
    if not able:
        raise ValueError(f"--by {metric.key} cannot judge plans that change resolution, and all {len(plans)} do")
    if len(able) < len(plans):
        print(f"left out: {len(plans) - len(able)} plans that change resolution, which {metric.title} cannot judge")
    return able


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


def ranked(values: Sequence[Interval], metric: Metric) -> list[int]:
    """Indices, the best first; of equals the earlier. What is biased counts without its bias at this many images."""
    quality = [metric.sign * metric.unbiased(value).value for value in values]
    return sorted(range(len(values)), key=lambda i: -quality[i])


def drawn(halving: list[Round], plans: int) -> int:
    """Images of all rounds, the first of all `plans`."""
    return sum(len(r.prompts) * n for r, n in zip(halving, [plans, *(r.keep for r in halving)], strict=False))


def time_line(options: Options, flops: float) -> str:
    """How long `flops` take, in words: the plans that go on are taken to cost what the average plan does."""
    minutes = flops / (options.speed * 1e12) / 60
    n = options.workers or (1 if resolve(options.backbone).revision else os.cpu_count() or 1)
    return (
        f"time: about {minutes / n:.1f} minutes on {n} workers (--workers), {minutes:.1f} worker-minutes at "
        f"{options.speed:g} TFLOP/s sustained (--tflops), and one or two to start"
    )
