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
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import features, generate, grids, plots, prompts, records, report, scores, tables, tracking, workers
from pipelines.generate import Configuration
from pipelines.store import Store
from pipelines.workers import Resources
from postdiff import costs, encoders
from postdiff.backbones import HUB, resolve
from postdiff.families import FAMILIES, adapt
from postdiff.metrics import Interval


@dataclass(frozen=True)
class Point:
    """A configuration of the grid, and how the tables name it."""

    method: str
    settings: str
    configuration: Configuration
    macs_paper: int
    flops: int


def plan_sweep(args: argparse.Namespace) -> list[Point]:
    """The grid as configurations with their costs; two names of one computation become one."""
    points: dict[str, Point] = {}
    spec = resolve(args.backbone)
    entries = grids.grid(args.grid, spec.settings)
    prices = costs([plan for _, _, plan in entries], spec)
    first = generate.configure(
        args.backbone, entries[0][2], args.guidance, args.solver, args.batch_size, args.dtype
    )  # reads the checkpoint's fingerprint: once
    for (method, settings, plan), price in zip(entries, prices, strict=True):
        configuration = replace(first, plan=adapt(plan, spec.family))
        points.setdefault(configuration.id, Point(method, settings, configuration, price.macs_paper, price.flops))
    return list(points.values())


def run_units(units: list[workers.Unit], make_handler, store: Store, resources: Resources, what: str) -> None:
    """Run what the store lacks. Units that keep failing are set aside in `failed/`; then the sweep stops, exit 1."""
    done = store.names()
    todo = [unit for unit in units if unit.name not in done]
    for_others = {name for unit in units for name in unit.needs}
    needed = {name for unit in todo for name in unit.needs}
    todo = [unit for unit in todo if unit.name not in for_others or unit.name in needed]
    if not todo:
        return
    for unit in todo:
        if f"failed/{unit.name}.json" in done:  # of an earlier run: it is tried again now
            store.delete(f"failed/{unit.name}.json")
    failed: dict[str, str] = {}
    try:
        failed = workers.run(todo, make_handler, store.has, resources, what)
    except workers.WorkersError as error:
        failed = error.failed
        raise
    finally:
        for name, reason in failed.items():
            store.put(f"failed/{name}.json", json.dumps({"unit": name, "reason": reason}, indent=2).encode())
    if failed:
        name, reason = next(iter(failed.items()))
        raise SystemExit(
            f"error: {len(failed)} of {len(todo)} units failed {workers.ATTEMPTS} times and are set aside in "
            f"{store.url}/failed; the first, {name}: {reason}\nAll others are committed; run again to retry."
        )


def sweep(args: argparse.Namespace) -> None:
    began = time.time()
    listed = prompts.load_prompts(args.prompts, args.limit)
    shards = prompts.shard(listed, args.shard)
    reference = reference_keys(args)
    check(args, len(listed), bool(reference))
    points = plan_sweep(args)
    if args.dry_run:
        return print_dry_run(args, points, listed, shards)
    store = Store(args.out)
    store.check_writable()
    store.claim({"prompts": prompts.fingerprint(listed), "prompts_per_shard": args.shard})
    workers.connect()
    resources = workers.default_resources(args.workers, args.gpus_per_worker)
    if resolve(args.backbone).revision and not resources.gpus and args.gpus_per_worker is None:
        raise ValueError(
            f"{args.backbone} is made for GPUs and none is up: --gpus-per-worker 1 --workers N asks the cluster for "
            "them, --gpus-per-worker 0 runs it on CPUs (with --dtype float32)"
        )

    units = generate.units([p.configuration for p in points], shards, [p.flops / 1e9 for p in points])
    run_units(units, partial(generate.Generator, store), store, resources, "images")
    units = features.prompt_units(args.clip, shards)
    if reference:
        units += features.reference_units(args.fid, reference)
    ids = [p.configuration.id for p in points]
    names = sorted(n for n in store.names("images") if n.split("/")[1] in ids)
    for encoder in {args.clip, args.fid if reference else args.clip}:
        units += features.image_units(encoder, names)
    run_units(units, partial(features.Extractor, store), store, resources, "features")
    where = features.folder
    captions = where(args.clip, "prompts")
    name = where(args.fid, features.reference_name(reference)) if reference else None
    tasks = [
        scores.Task(store, id, where(args.clip, id), captions, where(args.fid, id) if name else None, name)
        for id in ids
    ]
    results = list(workers.map_tasks(scores.score, tasks))
    write_report(args, store, points, results, listed, reference, time.time() - began)


def check(args: argparse.Namespace, n: int, has_reference: bool) -> None:
    """Raise ValueError for what only the later stages would meet, hours from now."""
    if n < 4:
        raise ValueError(f"intervals need at least 4 prompts, got {n}")
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {args.workers}")
    if args.gpus_per_worker is not None and args.gpus_per_worker < 0:
        raise ValueError(f"--gpus-per-worker must be 0 or more, got {args.gpus_per_worker:g}")
    if args.clip.endswith(".pt"):
        raise ValueError(f"--clip must be a CLIP model, got {args.clip!r}")
    encoders.fingerprint(args.clip)
    if has_reference:
        encoders.fingerprint(args.fid)


def reference_keys(args: argparse.Namespace) -> list[str]:
    """Reference images of FID: Shapes' val split, or the images of --reference; none means no FID."""
    if args.n_reference < 2:
        raise ValueError(f"--n-reference must be 2 or more, got {args.n_reference}")
    if args.reference:
        files = sorted(
            str(f.absolute())
            for f in Path(args.reference).glob("*")
            if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
        )
        if len(files) < 2:
            raise ValueError(f"--reference must be a folder of at least 2 images, got {args.reference!r}")
        return files
    return [f"val/{i}" for i in range(args.n_reference)] if args.prompts == "shapes" else []


def to_row(point: Point, result: dict) -> tables.Row:
    fid = Interval(**result["fid"]) if result["fid"] else None
    steps = len(point.configuration.plan)
    return tables.Row(
        point.configuration.id,
        point.method,
        point.settings,
        steps,
        point.macs_paper,
        point.flops,
        result["seconds"],
        fid,
        Interval(**result["clip"]),
    )


def write_report(
    args, store: Store, points: list[Point], results: list[dict], listed: list, reference: list[str], seconds: float
) -> None:
    rows = [to_row(point, result) for point, result in zip(points, results, strict=True)]
    metrics = ("fid", "clip") if reference else ("clip",)
    n = len(listed)
    titles = {"fid": f"{args.backbone}, n = {n}, {args.fid} features", "clip": f"{args.backbone}, n = {n}, {args.clip}"}
    figures = [plots.front_plot(rows, m, titles[m]) for m in metrics]
    fronts = {row.configuration for m in metrics for row in tables.front(rows, m)}
    answer = tables.answer(rows, args.backbone)
    first = points[0].configuration
    facts = {
        "model": f"{args.backbone} (weights {first.weights}), {first.size} px",
        "sampling": f"solver {first.solver}, guidance {first.guidance}, batches of {first.batch_size}",
        "prompts": f"{n} of {args.prompts} ({prompts.fingerprint(listed)}), one image each",
        "FID": f"Frechet distance of {encoders.fingerprint(args.fid)} features to {len(reference)} reference images "
        f"({features.reference_name(reference)}); jackknife over generated images"
        if reference
        else "not computed: no reference images (--reference)",
        "CLIP score": f"100 x cosine of {encoders.fingerprint(args.clip)} embeddings; Student's t over prompts",
        "seconds an image": "median over batches of "
        f"{args.batch_size}, wall time in a worker, decoding included, while other workers were busy",
        "machine": workers.machine(),
        "commit": report.commit(),
        "sweep time": f"{seconds:.0f} s (less what an earlier run had done)",
    }
    images = report.examples(store, rows)
    page = report.html(f"postdiff: {args.backbone}", answer, rows, fronts, figures, images, facts)
    pictures = {f"{m}_front": plots.as_png(f) for m, f in zip(metrics, figures, strict=True)}
    store.put("report.html", page.encode())
    store.put("results.csv", tables.to_csv(rows).encode())
    store.put("results.md", tables.to_markdown(rows).encode())
    for name, png in pictures.items():
        store.put(f"{name}.png", png)
    specs = {p.configuration.id: json.loads(json.dumps(asdict(p.configuration))) for p in points}
    protocol = {key: facts[key] for key in ("prompts", "FID", "CLIP score")}
    tracking.log(store, f"sweep-{args.backbone}", protocol, rows, specs, pictures)
    print(f"{tables.to_markdown(rows)}\n{answer}\n\nreport: {store.url}/report.html")


def print_dry_run(args, points: list[Point], listed: list, shards: list) -> None:
    n = len(listed)
    macs, flops = n * sum(p.macs_paper for p in points), n * sum(p.flops for p in points)
    pixels = points[0].configuration.size ** 2
    print(f"{len(points)} configurations x {n} prompts = {len(points) * n} images in {len(points) * len(shards)} units")
    for point in points:
        label = f"{point.method.replace('_', ' ')} T={len(point.configuration.plan)} {point.settings}"
        price = f"{point.macs_paper / 1e12:9.4f} T MACs{point.flops / 1e12:9.4f} TFLOP"
        print(f"  {point.configuration.id}  {label:<44}{price}")
    print(f"denoiser: {macs / 1e15:.3f} P MACs (paper's rule), {flops / 1e15:.3f} PFLOP")
    print(
        f"time: {flops / (args.tflops * 1e12) / 3600:.2f} worker-hours at {args.tflops:g} TFLOP/s sustained (--tflops)"
    )
    print(f"store: about {len(points) * n * pixels * 1.2 / 1e9:.1f} GB of images (1.2 bytes a pixel, lossless WebP)")
    spec, width = resolve(args.backbone), records.DTYPES[points[0].configuration.dtype].itemsize
    shapes = FAMILIES[spec.family].text_shapes(spec.denoiser, spec.text_tokens).values()
    print(f"text: {len(shards)} units, at most {n * width * sum(map(prod, shapes)) / 1e9:.2f} GB of embeddings")
    lengths, limit = prompts.token_lengths(listed, spec), spec.text_tokens
    cut = sum(length > limit for length in lengths)
    print(f"prompts: longest {max(lengths)} tokens, {cut} of {n} truncated at {limit}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", default="mini-sd", help="a name (postdiff models), a folder, or ORG/REPOSITORY@COMMIT")
    add("--prompts", default="shapes", help="'shapes', or a file: txt, csv, tsv, parquet, COCO annotation json")
    add("--limit", type=int, help="use the first N prompts (default: 256 of Shapes, all of a file)")
    add("--reference", help="folder of reference images for FID (default: Shapes' val split for Shapes)")
    add("--n-reference", type=int, default=2000, help="reference images drawn from Shapes")
    add("--out", default="out/sweep", help="the store: a folder or any pyarrow.fs or fsspec URL")
    add("--grid", choices=list(grids.NAMES), help="(default: laptop for Shapes, full else)")
    add("--shard", type=int, default=32, help="prompts a unit of work")
    add("--batch-size", type=int, default=8, help="images a forward pass; part of a configuration")
    add("--guidance", type=float, help="w of classifier-free guidance (default: the backbone's)")
    add("--solver", help="ddim, dpm, euler, unipc (default: the backbone's)")
    add("--clip", help="CLIP model of the CLIP score (default: mini-clip, or ViT-g-14/laion2b_s34b_b88k)")
    add(
        "--fid",
        help="encoder of FID: a CLIP model, or the path of clean-fid's inception-2015-12-05.pt on every worker "
        "(default: mini-clip for Shapes, inception-2015-12-05.pt else)",
    )
    add("--dtype", choices=list(generate.DTYPES), help="of weights and latents (default: float16 for hub models)")
    add("--workers", type=int, help="actors (default: one a GPU that is up, else one a core)")
    add("--gpus-per-worker", type=float, help="(default: 1 if a GPU is up, else 0)")
    add(
        "--tflops",
        type=float,
        help="sustained TFLOP/s of a worker, for --dry-run's time (default: 0.03, or 30 on hub models)",
    )
    add("--dry-run", action="store_true", help="print what would run, and stop")
    args = parser.parse_args(argv)
    mini = args.prompts == "shapes"
    args.clip = args.clip or ("mini-clip" if mini else "ViT-g-14/laion2b_s34b_b88k")
    args.fid = args.fid or ("mini-clip" if mini else "inception-2015-12-05.pt")
    args.grid = args.grid or ("laptop" if mini else "full")
    args.tflops = args.tflops or (30.0 if args.backbone in HUB or "@" in args.backbone else 0.03)
    args.limit = args.limit if args.limit is not None else (256 if mini else None)
    return args


def main(argv: list[str] | None = None) -> None:
    try:
        sweep(parse(argv))
    except (ValueError, OSError, workers.WorkersError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
