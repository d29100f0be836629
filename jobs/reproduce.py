"""The paper's tables and figures from one command, each beside what the paper printed.

    python jobs/reproduce.py table2 fig4                              on the mini models and Shapes
    python jobs/reproduce.py all --scale 0.5                          every exhibit, half of the prompts
    python jobs/reproduce.py all --models real --dry-run              what it would take: runs, GPU hours, bytes
    python jobs/reproduce.py all --models real --prompts captions.tsv --calibration others.tsv \
        --reference FOLDER --fid inception-2015-12-05.pt --out s3://bucket/paper

Runs that several exhibits share are made once. Ends in OUT/exhibits/KEY.{csv,md,tex} (a figure also .svg and .png) and
OUT/report.html. Run it again and it goes on where it stopped. Latency is measured before Ray starts, one image at a
time, in a process of its own on the machine that runs this.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import (
    evaluation,
    exhibits,
    features,
    generate,
    latency,
    paper,
    plots,
    prompts,
    report,
    rivals,
    scores,
    tables,
    tracking,
    workers,
)
from pipelines.evaluation import Point, Protocol
from pipelines.exhibits import Exhibit, Run
from pipelines.generate import Configuration
from pipelines.latency import Latency
from pipelines.store import Store
from postdiff import costs, metrics, published
from postdiff.backbones import resolve
from postdiff.families import adapt

PAPER_PROMPTS = 30_000  # captions of COCO 2014's validation split, as is usual; the paper does not say
LEGEND = (
    "Intervals are 95 %. T MACs: what the paper calls FLOPs (T), of the paper's own model, counted here by the paper's "
    "rule; GFLOPs here: of the model that was run, everything counted. Change: from the model as it is, paired image "
    "by image; intervals of a column hold all at once (Bonferroni)."
)
MINI_LEGEND = (
    " Quality and seconds are of mini models on Shapes, the paper's of large models on photographs: only directions "
    "can be compared."
)


def distinct(chosen: Sequence[Exhibit]) -> dict[tuple[str, str], Run]:
    return {(run.model, run.plan.id): run for exhibit in chosen for run in exhibit.runs}


def count_costs(runs: dict[tuple[str, str], Run], names: dict[str, str]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(macs of the paper's model, macs and flops of the one that runs) of every run."""
    found = {}
    for model, name in names.items():
        keys = [key for key in runs if key[0] == model]
        plans = [runs[key].plan for key in keys]
        prices = costs(plans, resolve(name))
        theirs = prices if name == model else costs(plans, resolve(model))
        found |= {
            key: (there.macs_paper, here.macs_paper, here.flops)
            for key, here, there in zip(keys, prices, theirs, strict=True)
        }
    return found


def points_of(args, runs: dict[tuple[str, str], Run], prices: dict, names: dict[str, str]) -> list[Point]:
    first = {
        model: generate.configure(name, runs[next(k for k in runs if k[0] == model)].plan, args.guidance, args.solver,
                                  args.batch_size, args.dtype)
        for model, name in names.items()
    }  # fmt: skip  # the checkpoint's fingerprint is read once
    points = []
    for key, run in runs.items():
        of = first[run.model]
        configuration = replace(of, plan=adapt(run.plan, resolve(of.backbone).family))
        points.append(Point(run.plan.name, run.label, configuration, *prices[key][1:]))
    return points


def time_plans(
    store: Store, chosen: Sequence[Exhibit], names: dict[str, str], rounds: int
) -> dict[tuple[str, str], Latency]:
    """Latencies of the timed exhibits' runs, each model's beside that model as it is."""
    timed = [exhibit for exhibit in chosen if exhibit.timed]
    found = {}
    for model, name in names.items():
        plans = {run.plan.id: run.plan for run in distinct(timed).values() if run.model == model}
        if plans:
            first = next(exhibit for exhibit in timed if model in exhibit.models).reference(model).plan
            among = list({first.id: first, **plans}.values())
            times = latency.kept(store, name, among, rounds)
            found |= {(model, plan.id): took for plan, took in zip(among, times, strict=True)}
    return found


def subsets(store: Store, exhibit: Exhibit, results: paper.Results, protocol: Protocol) -> dict[str, list]:
    """Fig. 9: {set of prompts: [(s, interval of the CLIP score)]}: the first n of the prompts, and all."""
    n, names = len(protocol.prompts), store.names()
    sizes = [
        size if n > max(exhibits.CALIBRATION) else n // (16 // (i + 2)) for i, size in enumerate(exhibits.CALIBRATION)
    ]
    curves: dict[str, list] = {f"{size} prompts": [] for size in [*sizes, n]}
    ids, texts = scores.read_features(store, names, features.folder(protocol.clip, "prompts"))
    for run in exhibit.runs:
        of, images = scores.read_features(
            store, names, features.folder(protocol.clip, paper.of(results, run).row.configuration)
        )
        per_prompt = metrics.clip_scores(images, texts[[ids.index(id) for id in of]])
        for size in [*sizes, n]:
            curves[f"{size} prompts"].append((run.x, metrics.mean_interval(per_prompt[:size])))
    return curves


def write(store: Store, exhibit: Exhibit, results: paper.Results, names: dict[str, str], protocol: Protocol) -> str:
    """Write the files of one exhibit; returns it as HTML."""
    table = paper.table(exhibit, results)
    title = f"{exhibit.key.replace('table', 'Table ').replace('fig', 'Figure ')}. {exhibit.title}"
    notes = [*table.footnotes, *([exhibit.note] if exhibit.note else [])]
    listed = "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1))
    markdown = f"{tables.markdown(table.header, table.lines)}\n{listed}\n{table.clear}\n"
    base = f"exhibits/{exhibit.key}"
    store.put(f"{base}.md", markdown.encode())
    store.put(f"{base}.csv", paper.to_csv(exhibit, results).encode())
    store.put(f"{base}.tex", paper.to_latex(title, table.header, table.lines, notes).encode())
    body = f"<h2>{escape(title)}</h2>\n"
    if exhibit.kind != "table":
        if exhibit.kind == "subsets":
            figure = plots.subsets_plot(
                subsets(store, exhibit, results, protocol), f"{names[exhibit.models[0]]}, T = 20"
            )
        else:
            figure = plots.exhibit_plot(exhibit, results, names)
        svg = plots.as_svg(figure)
        store.put(f"{base}.svg", svg.encode())
        store.put(f"{base}.png", plots.as_png(figure))
        body += f'<div class="plots"><div>{svg}</div></div>\n'
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    whole = f"{report.table(table.header, table.lines)}\n<ol>{items}</ol>"
    folded = f"<details><summary>{len(exhibit.runs)} points</summary>{whole}</details>"
    return f"{body}{whole if exhibit.kind == 'table' else folded}\n<p>{escape(table.clear)}</p>"


def share(args: argparse.Namespace) -> int:
    """How many prompts `--scale` leaves of those that --prompts and --limit name."""
    return max(4, round(args.scale * len(prompts.load_prompts(args.prompts, args.limit))))


def run(args: argparse.Namespace) -> None:
    names_of = {model: exhibits.MINI[model] if args.models == "mini" else model for model in exhibits.MINI}
    chosen = exhibits.gather(args.exhibits, {})  # raises for one that is not here
    names = {model: name for model, name in names_of.items() if any(model in exhibit.models for exhibit in chosen)}
    if args.dry_run:
        return print_dry_run(args, chosen, names)
    if args.rounds:
        latency.check_rounds(args.rounds)
    if args.models == "real" and args.prompts == "shapes":
        raise ValueError("--models real needs --prompts, a file of captions (COCO 2014's are the paper's)")
    args.limit = share(args)
    protocol = evaluation.protocol(args)
    store = evaluation.open_store(args.out, protocol)
    captions = rivals.calibration_prompts(args.prompts, args.calibration)
    found = {}
    for exhibit in chosen:
        if exhibit.key in ("table3", "table4"):
            found |= rivals.find(exhibit.key, names[exhibit.models[0]], store, captions)
    chosen = exhibits.gather(args.exhibits, found)
    runs = distinct(chosen)
    prices = count_costs(runs, names)
    points = points_of(args, runs, prices, names)
    times = time_plans(store, chosen, names, args.rounds) if args.rounds else {}
    rows = evaluation.evaluate(store, points, protocol, evaluation.connect(args, list(names.values())))
    results = {key: paper.Measured(row, prices[key][0], times.get(key)) for key, row in zip(runs, rows, strict=True)}
    body = "\n".join(write(store, exhibit, results, names, protocol) for exhibit in chosen)
    legend = LEGEND + (MINI_LEGEND if args.models == "mini" else "")
    models = [next(p.configuration for p in points if p.configuration.backbone == name) for name in names.values()]
    facts = {
        "models": "; ".join(f"{model}: {describe(of)}" for model, of in zip(names, models, strict=True)),
        "sampling": f"batches of {args.batch_size}, {points[0].configuration.dtype}",
        **protocol.facts(),
        "latency": f"one image, decoding included, text encoded before; {args.rounds} rounds after one to warm up, on "
        f"{latency.machine()}",
        "runs": f"{sum(len(e.runs) for e in chosen)} cells, {len({p.configuration.id for p in points})} different runs",
        "machine": workers.machine(),
        "commit": report.commit(),
    }  # fmt: skip
    answer = f"{len(chosen)} exhibits, n = {len(protocol.prompts)} prompts a run."
    page = report.page("postdiff: the paper, reproduced", answer, f'<p class="dim">{escape(legend)}</p>\n{body}', facts)
    store.put("report.html", page.encode())
    specs = {p.configuration.id: json.loads(json.dumps(asdict(p.configuration))) for p in points}
    once = list({row.configuration: row for row in rows}.values())
    tracking.log(store, f"paper-{args.models}", protocol.facts(), once, specs, {})
    for exhibit in chosen:
        print(f"\n{exhibit.key}: {exhibit.title}\n{store.get(f'exhibits/{exhibit.key}.md').decode()}")
    print(f"report: {store.url}/report.html")


def describe(of: Configuration) -> str:
    return f"{of.backbone} (weights {of.weights}), {of.size} px, solver {of.solver}, guidance {of.guidance}"


def throughput(model: str, gpu: str) -> float:
    """T MACs (the paper's rule) a second that the paper's own latency of the dense model means on `gpu`; for a model
    that the paper did not time there, scaled as PixArt-alpha, which it timed on both."""
    dense = {line.model: line for line in published.lines("table2") if line.method == "dense"}  # the last: most steps
    speed = dense[model].values["tmacs"] / dense[model].values["latency_s_a5000"]
    faster = dense["pixart"].values["latency_s_a5000"] / next(
        line.values["latency_s_h100"] for line in published.lines("table4") if line.method == "dense"
    )
    return speed if gpu == "A5000" else speed * faster


def print_dry_run(args: argparse.Namespace, chosen: list[Exhibit], names: dict[str, str]) -> None:
    runs = distinct(chosen)
    prices = count_costs(runs, names)
    assumed = args.models == "real" and args.prompts == "shapes"
    n = max(4, round(args.scale * PAPER_PROMPTS)) if assumed else share(args)
    cells = sum(len(exhibit.runs) for exhibit in chosen)
    print(f"{len(chosen)} exhibits, {cells} cells, {len(runs)} different runs, {len(runs) * n} images"
          f" ({n} prompts{', assumed: no --prompts' if assumed else ''})")  # fmt: skip
    for exhibit in chosen:
        print(f"  {exhibit.key:<8}{len(exhibit.runs):>4} cells  {exhibit.title}")
    total = dict.fromkeys(("A5000", "H100"), 0.0)
    size = 0.0
    for model, name in names.items():
        own = [prices[key] for key in runs if key[0] == model]
        macs = n * sum(price[1] for price in own) / 1e12
        size += n * len(own) * resolve(name).size ** 2 * 1.2 / 1e9
        line = f"  {name:<12}{len(own):>4} runs  {macs / 1e3:12.3f} P MACs (the paper's rule)"
        if args.models == "real":
            hours = {gpu: macs / throughput(model, gpu) / 3600 for gpu in total}
            total = {gpu: total[gpu] + hours[gpu] for gpu in total}
            line += "".join(f"{value:12.0f} {gpu} hours" for gpu, value in hours.items())
        print(line)
    if args.models == "real":
        bill = f", {total['H100'] * args.price:.0f} at {args.price:g} an H100 hour" if args.price else " (--price)"
        print(f"in all {total['A5000']:.0f} hours of an A5000 or {total['H100']:.0f} of an H100{bill}; by the paper's "
              "latencies of single images, so batches take less")  # fmt: skip
    print(f"store: about {size:.1f} GB of images (1.2 bytes a pixel, lossless WebP)")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("exhibits", nargs="*", default=["all"], help=f"all, or any of {', '.join(exhibits.EXHIBITS)}")
    add("--models", choices=("mini", "real"), default="mini")
    add("--scale", type=float, default=1.0, help="share of the prompts")
    add("--calibration", help="prompts of the searches of Tables 3 and 4: a file (default: Shapes' train split)")
    add("--rounds", type=int, default=7, help="of the latency measurement; 0: none")
    evaluation.add_options(parser)
    add("--out", default="out/paper", help="the store: a folder or any pyarrow.fs or fsspec URL")
    add("--price", type=float, help="of a GPU hour, for --dry-run")
    add("--dry-run", action="store_true", help="print what would run, and stop")
    args = evaluation.settle_options(parser.parse_args(argv))
    args.exhibits = args.exhibits or ["all"]
    return args


def main(argv: list[str] | None = None) -> None:
    try:
        args = parse(argv)
        if not 0 < args.scale <= 1:
            raise ValueError(f"--scale must be above 0 and at most 1, got {args.scale:g}")
        run(args)
    except (ValueError, OSError, workers.WorkersError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
