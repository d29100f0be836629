"""From configurations to scored rows: images, features and scores that the store lacks are made, all others read."""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path

from pipelines import coco, features, generate, prompts, protocols, scores, tables, workers
from pipelines.generate import Configuration
from pipelines.records import Prompt
from pipelines.store import Store, shard_name
from pipelines.workers import Resources
from postdiff import encoders
from postdiff.backbones import resolve
from postdiff.metrics import Interval
from postdiff.plan import Plan


@dataclass(frozen=True)
class Point:
    """A configuration, and how the tables name it."""

    method: str
    settings: str
    configuration: Configuration
    macs_paper: int
    flops: int


@dataclass(frozen=True)
class Protocol:
    """What is measured on what: numbers of two protocols never share a table.

    source: where the prompts are from. reference: keys of FID's reference images, none for no FID. clip, fid: encoders.
    """

    source: str
    prompts: tuple[Prompt, ...]
    prompts_per_shard: int
    reference: tuple[str, ...]
    clip: str
    fid: str
    name: str = ""

    @property
    def shards(self) -> list[tuple[Prompt, ...]]:
        return prompts.shard(self.prompts, self.prompts_per_shard)

    def facts(self) -> dict[str, str]:
        """The protocol as a report prints it."""
        fid = "not computed: no reference images (--reference)"
        if self.reference:
            fid = (
                f"Frechet distance of {encoders.fingerprint(self.fid)} features to {len(self.reference)} reference "
                f"images ({features.reference_name(list(self.reference))}); jackknife over generated images"
            )
        captions = prompts.fingerprint(self.prompts)
        clip = f"100 x cosine of {encoders.fingerprint(self.clip)} embeddings; Student's t over prompts"
        digest = sha256(json.dumps([captions, fid, clip]).encode()).hexdigest()[:8]
        return {
            "protocol": f"{self.name or 'custom'}-{digest}",
            "prompts": f"{len(self.prompts)} of {self.source} ({captions}), one image each",
            "FID": fid,
            "CLIP score": clip,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every job that evaluates; `settle_options` fills what depends on others."""
    add = parser.add_argument
    add(
        "--prompts",
        default="shapes",
        help="'shapes' ('shapes-recaption': others), or a file: txt, csv, tsv, parquet, jsonl, COCO annotation json",
    )
    add("--limit", type=int, help="use the first N prompts (default: 256 of Shapes, all of a file)")
    add("--reference", help="folder of reference images for FID (default: Shapes' val split for Shapes)")
    add("--matched", action="store_true", help="of --reference only the images that the prompts are captions of (COCO)")
    add("--shuffled", action="store_true", help="draw the prompts of a file by a fixed hash, not from its top")
    add("--protocol", help=f"fix these by name: {', '.join(protocols.PROTOCOLS)} (of COCO's captions_val2014.json)")
    add("--n-reference", type=int, default=2000, help="reference images drawn from Shapes")
    add("--shard", type=int, help="prompts a unit of work (default: 32 of Shapes, 256 of a file)")
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


def job(run: Callable, parse: Callable, argv: list[str] | None) -> None:
    """`run(parse(argv))`; what is wrong with the input, or stops the workers, is one line and exit status 1."""
    try:
        run(parse(argv))
    except (ValueError, OSError, workers.WorkersError) as error:
        raise SystemExit(f"error: {error}") from None


def settle_options(args: argparse.Namespace) -> argparse.Namespace:
    if args.protocol:
        protocols.apply(args)
    mini = args.prompts in prompts.SHAPES
    args.clip = args.clip or ("mini-clip" if mini else "ViT-g-14/laion2b_s34b_b88k")
    args.fid = args.fid or ("mini-clip" if mini else "inception-2015-12-05.pt")
    args.limit = args.limit if args.limit is not None else (256 if mini else None)
    args.shard = args.shard if args.shard is not None else (32 if mini else 256)
    return args


def protocol(args: argparse.Namespace) -> Protocol:
    """Raises ValueError or OSError for what only the later stages would meet, hours from now."""
    listed = prompts.load_prompts(args.prompts, args.limit, args.shuffled)
    prompts.shard(listed, args.shard)
    reference = _reference(args, listed)
    if len(listed) < 4:
        raise ValueError(f"intervals need at least 4 prompts, got {len(listed)}")
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {args.workers}")
    if args.gpus_per_worker is not None and args.gpus_per_worker < 0:
        raise ValueError(f"--gpus-per-worker must be 0 or more, got {args.gpus_per_worker:g}")
    if args.clip.endswith(".pt"):
        raise ValueError(f"--clip must be a CLIP model, got {args.clip!r}")
    encoders.fingerprint(args.clip)
    if reference:
        encoders.fingerprint(args.fid)
    return Protocol(
        args.prompts, tuple(listed), args.shard, tuple(reference), args.clip, args.fid, protocols.name(args, reference)
    )


def _reference(args: argparse.Namespace, listed: list[Prompt]) -> list[str]:
    """Reference images of FID: Shapes' val split, or the images of --reference; none means no FID.

    Every file is read before anything is generated, and what is used of the folder is printed.
    """
    if args.matched and (not args.reference or not args.prompts.lower().endswith(".json")):
        raise ValueError("--matched needs --prompts, COCO's annotations (.json), and --reference, their images")
    if args.n_reference < 2:
        raise ValueError(f"--n-reference must be 2 or more, got {args.n_reference}")
    if not args.reference:
        return [f"val/{i}" for i in range(args.n_reference)] if args.prompts in prompts.SHAPES else []
    folder = Path(args.reference)
    files, told = features.reference_files(
        folder, coco.images(Path(args.prompts), folder, listed) if args.matched else None
    )
    print(f"reference: {told}", file=sys.stderr)
    return files


def open_store(url: str, of: Protocol) -> Store:
    """The store, if it can be written to and is empty or of these prompts; else ValueError or OSError."""
    store = Store(url)
    store.check_writable()
    store.claim({"prompts": prompts.fingerprint(of.prompts), "prompts_per_shard": of.prompts_per_shard})
    return store


def configure(args: argparse.Namespace, backbone: str, plan: Plan) -> Configuration:
    """`plan` on `backbone` under the options of a job."""
    return generate.configure(backbone, plan, args.guidance, args.solver, args.batch_size, args.dtype)


def connect(args: argparse.Namespace, backbones: Sequence[str]) -> Resources:
    """Join or start Ray. Raises ValueError where GPUs are needed and none is up or asked for."""
    workers.connect()
    resources = workers.default_resources(args.workers, args.gpus_per_worker)
    for name in backbones:
        if resolve(name).revision and not resources.gpus and args.gpus_per_worker is None:
            raise ValueError(
                f"{name} is made for GPUs and none is up: --gpus-per-worker 1 --workers N asks the cluster for "
                "them, --gpus-per-worker 0 runs it on CPUs (with --dtype float32)"
            )
    return resources


def evaluate(store: Store, points: Sequence[Point], of: Protocol, resources: Resources) -> list[tables.Row]:
    """One row a point; two of one configuration share its images. Raises SystemExit if units keep failing."""
    shards, reference = of.shards, list(of.reference)
    different = {point.configuration.id: point for point in points}
    costs = [point.flops / 1e9 for point in different.values()]
    units = generate.units([point.configuration for point in different.values()], shards, costs)
    run_units(units, partial(generate.Generator, store), store, resources, "images")
    units = features.prompt_units(of.clip, shards)
    if reference:
        units += features.reference_units(of.fid, reference)
    images = {id: [shard_name(f"images/{id}", i, len(shards)) for i in range(len(shards))] for id in different}
    for encoder in dict.fromkeys([of.clip, of.fid if reference else of.clip]):
        units += features.image_units(encoder, list(chain.from_iterable(images.values())))
    run_units(units, partial(features.Extractor, store), store, resources, "features")
    where, ids = features.folder, tuple(prompt.id for prompt in of.prompts)
    captions = where(of.clip, "prompts")
    name = where(of.fid, features.reference_name(reference)) if reference else None
    tasks = {
        id: scores.Task(
            store, id, ids, tuple(images[id]), where(of.clip, id), captions, where(of.fid, id) if name else None, name
        )
        for id in different
    }
    there = store.names("scores")
    new = {id: task for id, task in tasks.items() if task.name not in there}
    scored = dict(zip(new, workers.map_tasks(scores.score, list(new.values())), strict=True))
    scored |= {id: json.loads(store.get(task.name)) for id, task in tasks.items() if id not in new}
    return [to_row(point, scored[point.configuration.id]) for point in points]


def to_row(point: Point, result: dict) -> tables.Row:
    return tables.Row(
        point.configuration.id,
        point.method,
        point.settings,
        len(point.configuration.plan),
        point.macs_paper,
        point.flops,
        result["seconds"],
        Interval(**result["fid"]) if result["fid"] else None,
        Interval(**result["clip"]),
        result["more"],
    )


def _handler(make_handler: Callable, store: Store) -> Callable:
    """A worker's handler, if the worker sees the store that the driver opened: a folder is each machine's own."""
    if not store.has("spec.json"):
        raise OSError(
            f"store {store.shown!r} is not seen on {platform.node()}: expected a folder that all machines share, or a "
            "URL such as s3://BUCKET/PATH"
        )
    return make_handler()


def run_units(units: list[workers.Unit], make_handler, store: Store, resources: Resources, what: str) -> None:
    """Run what the store lacks. Units that keep failing are set aside in `failed/`; then the job stops, exit 1."""
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
        failed = workers.run(todo, partial(_handler, make_handler, store), store.has, resources, what)
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
            f"{store.shown}/failed; the first, {name}: {reason}\nAll others are committed; run again to retry."
        )
