"""The best plan under a budget, found on a few prompts by successive halving (Jamieson and Talwalkar, 2016).

The paper picks its settings on a small calibration set (sec. 2.4, App. D) and does not say how. Here all plans are
scored on a few prompts, the better half of them on as many again, and so on: prompts are spent where there is doubt.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

import postdiff
from pipelines import candidates, command_line, evaluation, low_resolution
from pipelines.candidates import UNITS, Candidate, Options
from pipelines.data import prompts
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.engine.urls import below, local_path
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics.intervals import Interval, together
from pipelines.metrics.metric import METRICS, Metric, shown
from pipelines.report import tables
from pipelines.stages import features, fidelity, scores, worker
from pipelines.stages.generation import Configuration
from postdiff import planfile
from postdiff.models.checkpoints import fingerprint, resolve
from postdiff.terminal import doing

FINALISTS = 4  # plans that are scored on all prompts, at the least
RESAMPLINGS = 10_000


@dataclass(frozen=True)
class Round:
    """prompts: of this round alone; keep: how many plans go on."""

    prompts: tuple[Prompt, ...]
    keep: int


@dataclass(frozen=True)
class Scored:
    """A candidate after the last of the `rounds` that it was in. change: paired, the chosen's score on the same prompts
    taken off; None for the chosen. first: of the last round's, the share of resamplings of the prompts in which it
    comes first."""

    candidate: Candidate
    rounds: int
    score: Interval
    change: Interval | None
    first: float | None


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
    evaluation.check_batch(options, min(len(part.prompts) for part in halving))
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
        values = score(stores, protocol, listed, metric)
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


def score(stores: Sequence[Store], protocol: Protocol, entries: Sequence[Entry], metric: Metric) -> list[Interval]:
    """`metric` of each entry over the images of all `stores`, in order."""
    if metric.is_paired:
        return [metric.score(_compared(stores, entry.configuration, metric), np.empty(0)) for entry in entries]
    encoder, against = protocol.encoder(metric), protocol.against(metric)
    references = [scores.read_features(store, against) for store in stores]  # of references: the same in each
    intervals = []
    for entry in entries:
        images, others = [], []
        for store, (names, values) in zip(stores, references, strict=True):
            ids, embeddings = scores.read_features(store, features.folder(encoder, entry.configuration.id))
            images.append(embeddings)
            others.append(scores.held_against(metric, ids, names, values))
        others = others[:1] if metric.needs == "reference" else others
        intervals.append(metric.score(np.concatenate(images), np.concatenate(others)))
    return intervals


def _compared(stores: Sequence[Store], configuration: Configuration, metric: Metric) -> np.ndarray:
    """How its images compare with the baseline's, over all `stores`."""
    baseline = fidelity.baseline(metric.needs, configuration)
    assert baseline  # else `judged` raised
    return np.concatenate(
        [scores.read_features(store, fidelity.folder(baseline.id, configuration.id))[1] for store in stores]
    )


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
    quality = metric.sign * means
    best = quality == quality.max(0)  # plans that draw the same images share a place
    return [float(share) for share in (best / best.sum(0)).mean(1)]


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


def compare(
    candidates: list[Candidate], chosen: Candidate, curves: dict[str, list[Interval]], by: Metric
) -> list[Scored]:
    """The chosen one, then the others: the longest in the race first, then by score without its bias, as `ranked`."""
    own = curves[chosen.plan.id]
    last = [c for c in candidates if len(curves[c.plan.id]) == len(own)]
    shares = first_places([curves[c.plan.id][-1] for c in last], by)
    first = {c.plan.id: share for c, share in zip(last, shares, strict=True)}
    others = [c for c in candidates if c != chosen]
    last_scores = [(curve[-1], own[len(curve) - 1]) for curve in (curves[c.plan.id] for c in others)]
    changes = together([by.difference(score, [(1.0, best)]) for score, best in last_scores])
    change_of = dict(zip((c.plan.id for c in others), changes, strict=True))
    scored = []
    for c in candidates:
        curve = curves[c.plan.id]
        scored.append(Scored(c, len(curve), curve[-1], change_of.get(c.plan.id), first.get(c.plan.id)))
    return sorted(
        scored, key=lambda row: (row.candidate != chosen, -row.rounds, -by.sign * by.unbiased(row.score).value)
    )


def sure(scored: list[Scored], chosen: Candidate, by: Metric) -> str:
    """The answer in words: what was chosen, and which plans it could not be told from."""
    others = [row for row in scored if row.change is not None]
    if not others:
        return f"{chosen.label}: the only plan that the budget pays for."
    better, worse = tables.clear([row.change for row in others if row.change], by)
    first = next(row.first for row in scored if row.candidate == chosen)
    doubt = f"{len(others) - worse - better} cannot be told from it"
    if better:
        doubt += f", {better} dropped early were clearly better on the few prompts that they had"
    return (
        f"{chosen.label}. Clearly worse are {worse} of the {len(others)} other plans (paired, all at once); {doubt}. "
        f"Of the plans scored on all prompts it comes first in {first:.0%} of resamplings of the prompts."
    )


def write(
    options: Options,
    store: Store,
    candidates: list[Candidate],
    chosen: Candidate,
    curves: dict[str, list[Interval]],
    protocol: Protocol,
    budget: float,
    whole: float,
    warnings: Sequence[str],
) -> str:
    """Write the plan, the report and its numbers; returns what is to be printed. warnings: of the probe."""
    from pipelines.report import answers, document, latex, plots

    metric, unit = METRICS[options.by], UNITS[options.of]
    scored = compare(candidates, chosen, curves, metric)
    answer = sure(scored, chosen, metric)
    header = ["plan", unit, "prompts", metric.title, "from the chosen", "comes first"]
    lines = [
        [row.candidate.label, f"{row.candidate.cost:.4g}", str(row.score.n), metric.text(row.score),
         metric.text(row.change, "+") if row.change else "chosen",
         f"{row.first:.0%}" if row.first is not None else "dropped"]
        for row in scored
    ]  # fmt: skip
    figure = plots.halving_plot(curves, chosen.plan.id, metric.title, f"{options.backbone}, {budget:.4g} {unit}")
    facts = {
        "budget": f"{budget:.4g} {unit} an image ({budget / whole:.1%} of the model as it is)",
        **({"latency": f"median of {options.rounds} rounds"} if options.of == "seconds" else {}),
        "model": f"{options.backbone}, weights {fingerprint(resolve(options.backbone))}",
        **{fact: text for fact, text in protocol.facts().items() if fact not in [m.title for m in shown()]},
        metric.title: protocol.definition(metric),
        "commit": document.commit(),
    }
    unbiased = f"; they, and the order, are of {metric.title} without its bias at few images" if metric.biased else ""
    note = (
        "Each plan with the prompts that it was scored on before it was dropped; differences are paired on those, "
        f"95 %, and hold for all plans at once (max-t){unbiased}. The chosen plan's own score flatters it, since "
        "it was chosen by it: score it on other prompts before you quote it. "
        "“dropped”: before the last round, so it cannot come first."
    )
    svg = plots.as_svg(figure, "Scores of plans against the prompts that they were scored on")
    body = document.section(
        "choice", "How it was chosen", document.figure(svg, "A line a plan, until it was dropped."), note
    )
    body += document.section(
        "plans", "All plans", document.table(header, lines, caption="All plans, the chosen one first")
    )
    page = document.page(
        f"A plan for {options.backbone}",
        answers.of_choice(f"Chosen: {chosen.label}", answer, warnings),
        body,
        facts,
        links=("plan.json", "calibration.csv", "calibration.md", "calibration.tex"),
        command=command_line.again("jobs/calibrate.py", options),
    )
    store.put("report.html", page.encode())
    store.put("calibration.md", tables.markdown(header, lines).encode())
    store.put(
        "calibration.tex", latex.to_latex(f"Plans for {options.backbone}", header, lines, [answer, note]).encode()
    )
    store.put("halving.png", plots.as_png(figure))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *lines])
    store.put("calibration.csv", out.getvalue().encode())
    notes = {"backbone": options.backbone, "by": metric.title, "prompts": len(protocol.prompts), "answer": answer}
    store.put("plan.json", planfile.to_json(chosen.plan, **notes, **{"budget": facts["budget"]}).encode())
    best = tables.markdown(header, lines[: 2 * FINALISTS])
    return f"\n{best}\n{answer}\n\nplan: {store.shown}/plan.json\nreport: {store.shown}/report.html"
