"""Fewer denoising steps, or cheaper steps? The sweep that answers it for one model, from prompts to report.

    python jobs/coco_sweep.py                                         the mini model on Shapes: minutes on two cores
    python jobs/coco_sweep.py --backbone sd15 --prompts captions.tsv --out s3://bucket/sweep
    python jobs/coco_sweep.py ... --dry-run                           what would run: units, MACs, time and bytes
    ray job submit --working-dir . -- python jobs/coco_sweep.py ... --workers 8 --gpus-per-worker 1

The last asks a cluster for GPU nodes that are not up yet. FID on real images needs --reference, a folder of them, and
--fid, clean-fid's inception-2015-12-05.pt, both readable by every worker; without --reference there is no FID.

Run it again and it goes on where it stopped: what is in the store is done.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

import postdiff
from pipelines import evaluation, options, sweeps
from pipelines.data import prompts
from pipelines.engine.store import Store, local_path
from pipelines.evaluation import Point, Protocol
from pipelines.report import tables
from postdiff.models.checkpoints import resolve
from postdiff.models.families import FAMILIES
from postdiff.terminal import doing


def plan_sweep(args: argparse.Namespace) -> list[Point]:
    """The grid as configurations with their costs; two names of one computation become one."""
    points: dict[str, Point] = {}
    spec = resolve(args.backbone)
    entries = sweeps.grid(args.grid, spec.settings)
    for file in args.plans:
        with doing(f"reading the plan {file!r}"):
            plan = postdiff.load_plan(file)
        entries.append((plan.name, "", plan))
    prices = postdiff.costs([plan for _, _, plan in entries], spec)
    for (method, settings, plan), price in zip(entries, prices, strict=True):
        configuration = evaluation.configure(args, args.backbone, plan)
        points.setdefault(configuration.id, Point(method, settings, configuration, price.macs_paper, price.flops))
    return list(points.values())


def sweep(args: argparse.Namespace) -> None:
    began = time.time()
    protocol = evaluation.protocol(args)
    points = plan_sweep(args)
    if local_path(args.out) or not args.dry_run:
        evaluation.check_store(args.out, protocol)
    if args.dry_run:
        return print_dry_run(args, points, protocol)
    resources = evaluation.connect(args, [args.backbone])
    store = evaluation.open_store(args.out, protocol)  # all that can be refused is refused before
    rows = evaluation.evaluate(store, points, protocol, resources)
    with doing("writing the report"):
        write_report(args, store, points, rows, protocol, time.time() - began)


def write_report(
    args, store: Store, points: list[Point], rows: list[tables.Row], protocol: Protocol, seconds: float
) -> None:
    from pipelines.engine import workers
    from pipelines.report import document, plots, tracking

    metrics = tables.comparable(rows)
    figures = []
    for metric in metrics:
        features = protocol.encoder(metric) + (" features" if metric.needs == "reference" else "")
        title = f"{args.backbone}, n = {len(protocol.prompts)}, {features}"
        figures.append(plots.front_plot(rows, metric, title))
    fronts = {row.configuration for m in metrics for row in tables.front(rows, m)}
    answer = tables.answer(rows, args.backbone)
    first = points[0].configuration
    facts = {
        "model": f"{args.backbone} (weights {first.weights}), {first.size} px",
        "sampling": f"solver {first.solver}, guidance {first.guidance}, batches of {first.batch_size}",
        **protocol.facts(),
        "seconds an image": "median over batches of "
        f"{args.batch_size}, wall time in a worker, decoding included, while other workers were busy",
        "machine": workers.machine(),
        "commit": document.commit(),
        "sweep time": f"{seconds:.0f} s (less what an earlier run had done)",
    }
    more = tables.more_steps(rows)
    body = document.sweep_body("" if more in answer else more, rows, fronts, figures, document.examples(store, rows))
    page = document.page(f"postdiff: {args.backbone}", answer, body, facts)
    pictures = {f"{m.key}_front": plots.as_png(f) for m, f in zip(metrics, figures, strict=True)}
    store.put("report.html", page.encode())
    store.put("results.csv", tables.to_csv(rows, {"protocol": [protocol.facts()["protocol"]] * len(rows)}).encode())
    store.put("results.md", tables.to_markdown(rows).encode())
    for name, png in pictures.items():
        store.put(f"{name}.png", png)
    specs = {p.configuration.id: json.loads(json.dumps(asdict(p.configuration))) for p in points}
    tracking.log(store, f"sweep-{args.backbone}", protocol.facts(), rows, specs, pictures)
    print(f"{tables.to_markdown(rows)}\n{answer}\n\nreport: {store.shown}/report.html")


def print_dry_run(args, points: list[Point], protocol: Protocol) -> None:
    listed, shards = protocol.prompts, protocol.shards
    n = len(listed)
    macs, flops = n * sum(p.macs_paper for p in points), n * sum(p.flops for p in points)
    pixels = points[0].configuration.size ** 2
    print(f"read {prompts.describe(listed)} (of {args.prompts})")
    print(f"{len(points)} configurations x {n} prompts = {len(points) * n} images in {len(points) * len(shards)} units")
    for point in points:
        label = tables.name(point.method, len(point.configuration.plan), point.settings)
        price = f"{point.macs_paper / 1e12:9.4f} T MACs{point.flops / 1e12:9.4f} TFLOP"
        print(f"  {point.configuration.id}  {label:<44}{price}")
    print(f"denoiser: {macs / 1e15:.3f} P MACs (paper's rule), {flops / 1e15:.3f} PFLOP")
    print(
        f"time: {flops / (args.tflops * 1e12) / 3600:.2f} worker-hours at {args.tflops:g} TFLOP/s sustained (--tflops)"
    )
    print(f"store: about {len(points) * n * pixels * 1.2 / 1e9:.1f} GB of images (1.2 bytes a pixel, lossless WebP)")
    spec, width = resolve(args.backbone), 4 if points[0].configuration.dtype == "float32" else 2  # bytes a number
    shapes = FAMILIES[spec.family].text_shapes(spec.denoiser, spec.text_tokens).values()
    print(f"text: {len(shards)} units, at most {n * width * sum(map(prod, shapes)) / 1e9:.2f} GB of embeddings")
    lengths, limit = prompts.token_lengths(listed, spec), spec.text_tokens
    cut = sum(length > limit for length in lengths)
    print(f"prompts: longest {max(lengths)} tokens, {cut} of {n} truncated at {limit}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.Parser(__doc__)
    add = parser.add_argument
    add("--backbone", default="mini-sd", help="a name (postdiff models), a folder, or ORG/REPOSITORY@COMMIT")
    options.add_options(parser)
    add("--out", default="out/sweep", help="the store: a folder or any pyarrow.fs or fsspec URL")
    add("--grid", choices=list(sweeps.NAMES), help="(default: laptop for Shapes, full else)")
    add("--plans", nargs="+", default=[], metavar="FILE", help="plans of your own (save_plan) beside the grid's")
    options.add_dry_run(parser)
    args = options.settle_options(parser.parse_args(argv))
    options.refuse_unused(args)
    options.settle_dry_run(args)
    args.grid = args.grid or ("laptop" if args.prompts in prompts.SHAPES else "full")
    return args


def main(argv: list[str] | None = None) -> None:
    options.job(sweep, parse, argv)


if __name__ == "__main__":
    main()
