"""The best plan for a backbone and a budget, from a small calibration set (sec. 2.4, App. D).

    python jobs/calibrate.py --share 0.4                              mini-SD, 40 % of its FLOPs, Shapes
    python jobs/calibrate.py --share 0.5 --of seconds --by fid        half of its measured latency, by FID
    python jobs/calibrate.py --backbone sd15 --budget 6 --of macs --prompts captions.tsv --limit 500
    python jobs/calibrate.py --share 0.2 --grid small --limit 32      the least that shows it: 12 plans, 288 images

Every combination of beta, s, k and m, at the most steps that the budget pays for, is scored on the first prompts; the
better half goes on, prompts double, until the last few are scored on all. Ends in OUT/plan.json, which `postdiff
generate --plan` and `postdiff.load_plan` take, and OUT/report.html, which says how sure the choice is. Run it again and
it goes on where it stopped.
"""

import argparse
import csv
import io
import os
import sys
from dataclasses import dataclass, replace
from html import escape
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

import postdiff
from pipelines import calibration, evaluation, options
from pipelines.calibration import Candidate
from pipelines.data import prompts
from pipelines.engine.store import Store, below, local_path
from pipelines.evaluation import Point, Protocol
from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import METRICS, Metric, shown
from pipelines.report import tables
from postdiff import methods, planfile
from postdiff.models.checkpoints import Spec, fingerprint, resolve
from postdiff.terminal import doing

UNITS = {"flops": "TFLOP", "macs": "T MACs", "seconds": "s"}


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


def price(args: argparse.Namespace, store: Store, spec: Spec) -> tuple[list[Candidate], float, float]:
    """The candidates, the budget, and what the backbone costs as it is, in UNITS[args.of]."""
    plans, as_it_is = calibration.grid(spec, args.grid), methods.dense(spec.settings["steps"])
    listed = list({plan.id: plan for plan in (as_it_is, *chain.from_iterable(plans.values()))}.values())
    counted = dict(zip((plan.id for plan in listed), postdiff.costs(listed, spec), strict=True))
    if args.of == "seconds":
        from pipelines.engine import workers
        from pipelines.stages import latency

        longest = list({plan.id: plan for plan in (as_it_is, *(group[-1] for group in plans.values()))}.values())
        of = [evaluation.configure(args, args.backbone, plan) for plan in longest]
        with doing("measuring latencies"):
            times = latency.kept(store, of, args.rounds, workers.cluster_has_gpus(args.gpus_per_worker))
        timed = dict(zip((plan.id for plan in longest), times, strict=True))
        cost = calibration.seconds(plans, {id: one.flops for id, one in counted.items()}, timed)
    else:
        name = "macs_paper" if args.of == "macs" else "flops"
        cost = {id: getattr(one, name) / 1e12 for id, one in counted.items()}
    whole = cost[as_it_is.id]
    budget = whole * args.share if args.share else args.budget
    return calibration.affordable(plans, cost, budget), budget, whole


def run(args: argparse.Namespace) -> None:
    spec, whole_protocol = resolve(args.backbone), evaluation.protocol(args)
    metric = METRICS[args.by]
    if metric.needs == "reference" and not whole_protocol.reference:
        raise ValueError(f"--by {args.by} needs --reference, a folder of images")
    if missing := whole_protocol.lacks(metric):
        raise ValueError(f"--by {args.by} cannot be measured: {missing}")
    if metric.needs == "prompts":
        whole_protocol = replace(whole_protocol, reference=())
    if args.of == "seconds" and args.dry_run:
        raise ValueError("--dry-run cannot tell what seconds buy: they are measured first")
    calibration.rounds(whole_protocol.prompts, 1, metric)  # raises for too few prompts, before seconds are measured
    if local_path(args.out) or not args.dry_run:
        evaluation.check_store(args.out, whole_protocol)
    candidates, budget, whole = price(args, Store(args.out), spec)
    halving = calibration.rounds(whole_protocol.prompts, len(candidates), metric)
    evaluation.check_batch(args, min(len(part.prompts) for part in halving))
    images = drawn(halving, len(candidates))
    print(f"{len(candidates)} plans within {budget:.4g} {UNITS[args.of]} ({budget / whole:.1%} of the model as it is)")
    print(f"{len(halving)} rounds, {images} images; all plans on all prompts would be "
          f"{len(candidates) * len(whole_protocol.prompts)}")  # fmt: skip
    prices = postdiff.costs([c.plan for c in candidates], spec)
    points = {}
    for c, one in zip(candidates, prices, strict=True):
        of = evaluation.configure(args, args.backbone, c.plan)
        points[c.plan.id] = Point(c.plan.name, c.label, of, one.macs_paper, one.flops)
    if args.dry_run:
        print(f"read {prompts.describe(whole_protocol.prompts)} (of {args.prompts})")
        return print(time_told(args, images * sum(one.flops for one in prices) / len(prices)))
    parts = [replace(whole_protocol, prompts=part.prompts) for part in halving]
    folders = [below(args.out, f"round-{number}") for number in range(1, 1 + len(parts))]
    for folder, protocol in zip(folders, parts, strict=True):
        evaluation.check_store(folder, protocol)
    resources = evaluation.connect(args, [args.backbone])
    store = evaluation.open_store(args.out, whole_protocol)  # all that can be refused is refused before
    stores: list[Store] = []
    curves: dict[str, list[Interval]] = {}
    left = candidates
    for part, folder, protocol in zip(halving, folders, parts, strict=True):
        stores.append(evaluation.open_store(folder, protocol))
        listed = [points[c.plan.id] for c in left]
        evaluation.evaluate(stores[-1], listed, protocol, resources)
        scores = calibration.score(stores, protocol, listed, metric)
        for c, value in zip(left, scores, strict=True):
            curves.setdefault(c.plan.id, []).append(value)
        left = [left[i] for i in calibration.ranked(scores, metric)[: part.keep]]
    with doing("writing the report"):
        write(args, store, candidates, left[0], curves, whole_protocol, budget, whole)


def drawn(halving: list[calibration.Round], plans: int) -> int:
    """Images of all rounds, the first of all `plans`."""
    return sum(len(r.prompts) * n for r, n in zip(halving, [plans, *(r.keep for r in halving)], strict=False))


def time_told(args: argparse.Namespace, flops: float) -> str:
    """How long `flops` take, in words: the plans that go on are taken to cost what the average plan does."""
    minutes = flops / (args.tflops * 1e12) / 60
    n = args.workers or (1 if resolve(args.backbone).revision else os.cpu_count() or 1)
    return (
        f"time: about {minutes / n:.1f} minutes on {n} workers (--workers), {minutes:.1f} worker-minutes at "
        f"{args.tflops:g} TFLOP/s sustained (--tflops), and one or two to start"
    )


def compare(
    candidates: list[Candidate], chosen: Candidate, curves: dict[str, list[Interval]], by: Metric
) -> list[Scored]:
    """All candidates, the longest in the race first, then by score."""
    own = curves[chosen.plan.id]
    last = [c for c in candidates if len(curves[c.plan.id]) == len(own)]
    shares = calibration.first_places([curves[c.plan.id][-1] for c in last], by)
    first = {c.plan.id: share for c, share in zip(last, shares, strict=True)}
    found = []
    for c in candidates:
        curve = curves[c.plan.id]
        parts = [(1.0, own[len(curve) - 1])]
        change = by.difference(curve[-1], parts, len(candidates) - 1) if c != chosen else None
        found.append(Scored(c, len(curve), curve[-1], change, first.get(c.plan.id)))
    return sorted(found, key=lambda of: (-of.rounds, -by.sign * of.score.value))


def sure(scored: list[Scored], chosen: Candidate, by: Metric) -> str:
    """The answer in words: what was chosen, and which plans it could not be told from."""
    others = [of for of in scored if of.change is not None]
    better, worse = tables.clear([of.change for of in others if of.change], by)
    first = next(of.first for of in scored if of.candidate == chosen)
    doubt = f"{len(others) - worse - better} cannot be told from it"
    if better:
        doubt += f", {better} dropped early were clearly better on the few prompts that they had"
    return (
        f"{chosen.label}. Clearly worse are {worse} of the {len(others)} other plans (paired, all at once); {doubt}. "
        f"Of the plans scored on all prompts it comes first in {first:.0%} of resamplings of the prompts."
    )


def write(args, store: Store, candidates, chosen, curves, protocol: Protocol, budget: float, whole: float) -> None:
    from pipelines.report import document, plots

    metric, unit = METRICS[args.by], UNITS[args.of]
    scored = compare(candidates, chosen, curves, metric)
    answer = sure(scored, chosen, metric)
    header = ["plan", unit, "prompts", metric.title, "from the chosen", "comes first"]
    lines = [
        [of.candidate.label, f"{of.candidate.cost:.4g}", str(of.score.n), metric.text(of.score),
         metric.text(of.change, "+") if of.change else "", f"{of.first:.0%}" if of.first is not None else ""]
        for of in scored
    ]  # fmt: skip
    figure = plots.halving_plot(curves, chosen.plan.id, metric.title, f"{args.backbone}, {budget:.4g} {unit}")
    facts = {
        "budget": f"{budget:.4g} {unit} an image ({budget / whole:.1%} of the model as it is)",
        **({"latency": f"median of {args.rounds} rounds"} if args.of == "seconds" else {}),
        "model": f"{args.backbone}, weights {fingerprint(resolve(args.backbone))}",
        **{fact: text for fact, text in protocol.facts().items() if fact not in [m.title for m in shown()]},
        metric.title: protocol.definition(metric),
        "commit": document.commit(),
    }
    note = (
        "Each plan with the prompts that it was scored on before it was dropped; differences are paired on those, "
        "95 %, and hold for all plans at once (Bonferroni). The chosen plan's own score flatters it, since it was "
        "chosen by it: score it on other prompts before you quote it."
    )
    picture = f'<div class="plots"><div style="max-width: 44rem">{plots.as_svg(figure)}</div></div>'
    body = f"<p>{escape(note)}</p>{picture}{document.table(header, lines)}"
    store.put("report.html", document.page(f"postdiff: a plan for {args.backbone}", answer, body, facts).encode())
    store.put("halving.png", plots.as_png(figure))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *lines])
    store.put("calibration.csv", out.getvalue().encode())
    notes = {"backbone": args.backbone, "by": metric.title, "prompts": len(protocol.prompts), "answer": answer}
    store.put("plan.json", planfile.to_json(chosen.plan, **notes, **{"budget": facts["budget"]}).encode())
    print(f"\n{tables.markdown(header, lines[: 2 * calibration.FINALISTS])}\n{answer}\n")
    print(f"plan: {store.shown}/plan.json\nreport: {store.shown}/report.html")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.Parser(__doc__)
    add = parser.add_argument
    add("--backbone", default="mini-sd", help="a name (postdiff models), a folder, or ORG/REPOSITORY@COMMIT")
    budget = parser.add_mutually_exclusive_group(required=True)
    share = options.number(0, 1, above=True)
    budget.add_argument("--share", type=share, help="the budget as a share of what the backbone costs as it is")
    budget.add_argument("--budget", type=options.number(0, 1e9, above=True),
                        help="the budget for one image, in TFLOP, T MACs or seconds")  # fmt: skip
    add("--of", choices=list(UNITS), default="flops", help="what the budget is of (seconds: measured here)")
    add("--by", choices=list(METRICS), default="clip", help="what is best (default: the CLIP score, as in Fig. 9)")
    add("--rounds", type=options.rounds(), default=3, help="of the latency measurement (default: 3)")
    add("--grid", choices=list(calibration.GRIDS), default="full", help="how many settings are combined")
    options.add_options(parser)
    add("--out", default="out/calibration", help="the store: a folder or any pyarrow.fs or fsspec URL")
    options.add_dry_run(parser)
    args = options.settle_options(parser.parse_args(argv))
    options.refuse_unused(args, fid="" if METRICS[args.by].needs == "reference" else f"with --by {args.by}")
    options.settle_dry_run(args)
    if args.of != "seconds":
        options.refuse(args, f"on a budget of {args.of}: nothing is timed", "rounds")
    return args


def main(argv: list[str] | None = None) -> None:
    options.job(run, parse, argv)


if __name__ == "__main__":
    main()
