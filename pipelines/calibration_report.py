"""What a calibration says: how sure its choice is, and the files and the page that tell it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines import command_line
from pipelines.candidates import UNITS, Candidate, Options
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.metrics.intervals import Interval, together
from pipelines.metrics.metric import METRICS, Metric, shown
from pipelines.report import tables
from postdiff import planfile
from postdiff.models.checkpoints import fingerprint, resolve

FINALISTS = 4  # plans that are scored on all prompts, at the least
RESAMPLINGS = 10_000


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
        answers.of_choice(f"Chosen: {chosen.label}", answer.removeprefix(f"{chosen.label}. "), warnings),
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
