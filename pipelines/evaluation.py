"""From configurations to scored rows: images, features and scores that the store lacks are made, all others read.

What is wrong with the options is told in seconds: Ray and torch are imported when there is work for them.
"""

import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from pipelines import protocols
from pipelines.data import coco, prompts
from pipelines.engine.cluster import Resources, Unit, WorkersError, in_a_cluster
from pipelines.engine.identity import digest
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store, shard_name
from pipelines.metrics import encoders
from pipelines.metrics.metric import METRICS, Metric, shown
from pipelines.options import Options, read_prompts
from pipelines.report import tables
from pipelines.stages import features, generation, scores
from pipelines.stages.generation import Configuration
from postdiff.models.checkpoints import resolve
from postdiff.plan import Plan
from postdiff.terminal import doing


@dataclass(frozen=True)
class Entry:
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
        """The protocol as a report prints it: what the metrics shown are, each under its title."""
        captions = prompts.fingerprint(self.prompts)
        defined = {metric.title: self.definition(metric) for metric in shown()}
        return {
            "protocol": f"{self.name or 'custom'}-{digest([captions, *defined.values()], 8)}",
            "prompts": f"{len(self.prompts)} of {self.source} ({captions}), one image each",
            **defined,
        }

    def definition(self, metric: Metric) -> str:
        """What `metric` is of here, in words, or why it is not computed."""
        if missing := self.lacks(metric):
            return f"not computed: {missing}"
        encoder, reference = encoders.fingerprint(self.encoder(metric)), ""
        if metric.needs == "reference":
            reference = f"{len(self.reference)} reference images ({self.reference_name})"
        return metric.definition.format(encoder=encoder, reference=reference)

    def encoder(self, metric: Metric) -> str:
        return getattr(self, metric.encoder)

    def lacks(self, metric: Metric) -> str:
        """What `metric` needs and there is not, in words; "" where it can be measured."""
        images, references = metric.fewest
        if len(self.prompts) < images:
            return f"fewer than {images} images"
        if metric.needs == "prompts":
            return ""
        if not self.reference:
            return "no reference images (--reference)"
        if len(self.reference) < references:
            return f"fewer than {references} reference images"
        own = self.encoder(metric)
        if own != self.fid and encoders.fingerprint(own) != encoders.fingerprint(self.fid):
            return f"no features of the reference images by {own} (--fid)"
        return ""

    def against(self, metric: Metric) -> str:
        """Where the features are that `metric` holds those of images against."""
        return features.folder(self.encoder(metric), "prompts" if metric.needs == "prompts" else self.reference_name)

    @cached_property
    def reference_name(self) -> str:
        return features.reference_name(list(self.reference))  # reads every file, if it is not known yet


def protocol(options: Options) -> Protocol:
    """Raises ValueError or OSError for what only the later stages would meet, hours from now."""
    listed = read_prompts(options)
    check_batch(options, min(options.shard, len(listed)))
    if len(listed) < 4:
        raise ValueError(f"intervals need at least 4 prompts, got {len(listed)}")
    if options.gpus_per_worker and not in_a_cluster() and not _gpu_is_here():
        raise ValueError("--gpus-per-worker needs GPUs: this machine has none, and RAY_ADDRESS names no cluster")
    if options.clip.endswith(".pt"):
        raise ValueError(f"--clip must be a CLIP model, got {options.clip!r}")
    features.check_encoder(options.clip)
    if options.reference or options.prompts in prompts.SHAPES:
        features.check_encoder(options.fid)
    reference = _reference(options, listed)  # last: it reads every file
    name = protocols.name(options, reference)
    return Protocol(options.prompts, tuple(listed), options.shard, tuple(reference), options.clip, options.fid, name)


def _gpu_is_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _reference(options: Options, listed: list[Prompt]) -> list[str]:
    """Reference images of FID: Shapes' val split, or the images of --reference; none means no FID.

    Every file is read before anything is generated, and what is used of the folder is printed.
    """
    if options.matched and not options.reference and "matched" not in options.given:
        return []  # of a protocol, where no FID is asked for
    if options.matched and (not options.reference or not options.prompts.lower().endswith(".json")):
        raise ValueError("--matched needs --prompts, COCO's annotations (.json), and --reference, their images")
    if options.n_reference < 2:
        raise ValueError(f"--n-reference must be 2 or more, got {options.n_reference}")
    if not options.reference:
        return [f"val/{i}" for i in range(options.n_reference)] if options.prompts in prompts.SHAPES else []
    folder = Path(options.reference)
    files, told = features.reference_files(
        folder, coco.images(Path(options.prompts), folder, listed) if options.matched else None
    )
    print(f"reference: {told}", file=sys.stderr)
    return files


def check_batch(options: Options, unit: int) -> None:
    """Raise ValueError if a batch was asked for that the `unit` prompts of a unit cannot fill: it would be padded."""
    if "batch_size" in options.given and options.batch_size > unit:
        raise ValueError(f"--batch-size must be at most the {unit} prompts of a unit, got {options.batch_size}")


def _spec(of: Protocol) -> dict:
    return {"prompts": prompts.fingerprint(of.prompts), "prompts_per_shard": of.prompts_per_shard}


def check_store(url: str, of: Protocol) -> Store:
    """The store, if it can be written to and is empty or of these prompts; else ValueError. Leaves nothing behind."""
    store = Store(url)
    store.check_writable()
    store.check(_spec(of))
    return store


def open_store(url: str, of: Protocol) -> Store:
    """As `check_store`, and from now on it is the store of these prompts: the first step that a run leaves behind."""
    store = check_store(url, of)
    store.claim(_spec(of))
    return store


def configure(options: Options, backbone: str, plan: Plan) -> Configuration:
    """`plan` on `backbone` under the options of a job."""
    return generation.configure(backbone, plan, options.guidance, options.solver, options.batch_size, options.dtype)


def connect(options: Options, backbones: Sequence[str]) -> Resources:
    """Join or start Ray. Raises ValueError where GPUs are needed and none is up or asked for."""
    from pipelines.engine import workers

    workers.connect()
    resources = workers.default_resources(options.workers, options.gpus_per_worker)
    for name in backbones:
        if resolve(name).revision and not resources.gpus and options.gpus_per_worker is None:
            raise ValueError(
                f"{name} is made for GPUs and none is up: --gpus-per-worker 1 --workers N asks the cluster for "
                "them, --gpus-per-worker 0 runs it on CPUs (with --dtype float32)"
            )
    return resources


def evaluate(store: Store, entries: Sequence[Entry], of: Protocol, resources: Resources) -> list[tables.Row]:
    """One row an entry; two of one configuration share its images. Raises SystemExit if units keep failing."""
    from pipelines.engine import workers

    shards, reference = of.shards, list(of.reference)
    different = {entry.configuration.id: entry for entry in entries}
    costs = [entry.flops / 1e9 for entry in different.values()]
    units = generation.units([entry.configuration for entry in different.values()], shards, costs)
    run_units(units, partial(generation.Generator, store), store, resources, "images")
    metrics = [metric for metric in METRICS.values() if not of.lacks(metric)]
    units = []
    for encoder in dict.fromkeys(of.encoder(metric) for metric in metrics if metric.needs == "prompts"):
        units += features.prompt_units(encoder, shards)
    if reference:
        units += features.reference_units(of.fid, reference)
    images = {id: [shard_name(f"images/{id}", i, len(shards)) for i in range(len(shards))] for id in different}
    for encoder in dict.fromkeys(of.encoder(metric) for metric in metrics):
        units += features.image_units(encoder, list(chain.from_iterable(images.values())))
    run_units(units, partial(features.Extractor, store), store, resources, "features")
    against = {metric.key: of.against(metric) for metric in metrics}
    ids = tuple(prompt.id for prompt in of.prompts)
    tasks = {}
    for id in different:
        inputs = [scores.Input(m.key, features.folder(of.encoder(m), id), against[m.key]) for m in metrics]
        tasks[id] = scores.Scoring(store, id, ids, tuple(images[id]), tuple(inputs))
    there = store.names("scores")
    new = {id: task for id, task in tasks.items() if task.name not in there}
    kept = {id: scores.read(store, task.name) for id, task in tasks.items() if id not in new}
    with doing("scoring what was drawn"):
        scored = kept | dict(zip(new, workers.map_tasks(scores.score, list(new.values())), strict=True))
    return [to_row(entry, scored[entry.configuration.id]) for entry in entries]


def to_row(entry: Entry, scored: scores.Scores) -> tables.Row:
    return tables.Row(
        entry.configuration.id,
        entry.method,
        entry.settings,
        len(entry.configuration.plan),
        entry.macs_paper,
        entry.flops,
        scored.seconds,
        scored.intervals,
    )


def _handler(make_handler: Callable, store: Store) -> Callable:
    """A worker's handler, if the worker sees the store that the driver opened: a folder is each machine's own."""
    if not store.has("spec.json"):
        raise OSError(
            f"store {store.shown!r} is not seen on {platform.node()}: expected a folder that all machines share, or a "
            "URL such as s3://BUCKET/PATH"
        )
    return make_handler()


def run_units(units: list[Unit], make_handler, store: Store, resources: Resources, what: str) -> None:
    """Run what the store lacks. Units that keep failing are set aside in `failed/`; then the job stops, exit 1."""
    from pipelines.engine import workers

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
        with doing(f"making {what}"):
            failed = workers.run(todo, partial(_handler, make_handler, store), store.has, resources, what)
    except WorkersError as error:
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
