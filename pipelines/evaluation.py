"""From configurations to scored rows: images, features and scores that the store lacks are made, all others read.

What is wrong with the options is told in seconds: Ray and torch are imported when there is work for them.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipelines import graph, protocols, results
from pipelines.data import coco, prompts
from pipelines.engine import records
from pipelines.engine.cluster import Limits, Resources, Stopped, in_a_cluster
from pipelines.engine.identity import digest
from pipelines.engine.records import Prompt
from pipelines.engine.store import SHARD, Store
from pipelines.metrics import encoders, preference
from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import METRICS, Metric, shown
from pipelines.options import Options, check_batch, read_prompts
from pipelines.report import tables
from pipelines.stages import features, fidelity, generation, scores, worker
from pipelines.stages.generation import Configuration
from postdiff.models.checkpoints import resolve
from postdiff.plan import Plan


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

    source: where the prompts are from. reference: keys of FID's reference images, none for no FID. clip, fid,
    preference: encoders. only: key of the one metric that is asked for; empty for all. pictures: {a prompt's id: the
    file that it is the caption of}, where that is known.
    """

    source: str
    prompts: tuple[Prompt, ...]
    prompts_per_shard: int
    reference: tuple[str, ...]
    clip: str
    fid: str
    name: str = ""
    only: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)
    preference: tuple[str, ...] = ()

    @property
    def shards(self) -> list[tuple[Prompt, ...]]:
        return prompts.shard(self.prompts, self.prompts_per_shard)

    def facts(self) -> dict[str, str]:
        """The protocol as a report prints it: what the metrics shown are, each under its title."""
        captions = prompts.fingerprint(self.prompts)
        defined = {m.title: self.definition(m) for m in shown() if not (m.only_where_measured and self.lacks(m))}
        return {
            "protocol": f"{self.name or 'custom'}-{digest([captions, *defined.values()], 8)}",
            "prompts": f"{len(self.prompts)} of {self.source} ({captions}), one image each",
            **defined,
        }

    @property
    def encoders(self) -> list[str]:
        """Of images, each alone."""
        return list(dict.fromkeys(map(self.encoder, self.alone)))

    @cached_property
    def alone(self) -> list[Metric]:
        """The metrics that can be measured of a configuration's images without those of another one."""
        return [metric for metric in METRICS.values() if not (metric.is_paired or self.lacks(metric))]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Of the prompts, in order."""
        return tuple(prompt.id for prompt in self.prompts)

    @cached_property
    def made_of(self) -> tuple[str, ...]:
        """Fingerprints of the prompts of each shard."""
        return tuple(map(prompts.fingerprint, self.shards))

    def definition(self, metric: Metric) -> str:
        """What `metric` is of here, in words, or why it is not computed."""
        if missing := self.lacks(metric):
            return f"not computed: {missing}"
        if metric.is_paired:
            return metric.definition.format(n=sum(map(len, fidelity.first(self.shards, bool(self.only)))))
        encoder, reference = encoders.fingerprint(self.encoder(metric)), ""
        if metric.needs == "reference":
            reference = f"{len(self.reference)} reference images ({self.reference_name})"
        return metric.definition.format(encoder=encoder, reference=reference)

    def encoder(self, metric: Metric) -> str:
        """What makes its features; empty for none. Content is judged in scenes of a procedural data set alone."""
        if metric.is_of_preference:
            return preference.name_of(metric.encoder, self.preference)
        judges = prompts.DRAWN[self.source][0].judges if self.source in prompts.DRAWN else ""
        beside = {"judge": judges, "grid": judges and f"{judges}-grid", "pixels": metric.encoder}
        return beside[metric.encoder] if metric.encoder in beside else getattr(self, metric.encoder)

    def lacks(self, metric: Metric) -> str:
        """What `metric` needs and there is not, in words; "" where it can be measured."""
        images, references = metric.fewest
        if self.only and metric.key != self.only:
            return f"{METRICS[self.only].title} alone is asked for"
        if not self.encoder(metric):
            return "--preference names none" if metric.is_of_preference else f"nothing judges images of {self.source}"
        if sum(not metric.applies or metric.applies(prompt.text) for prompt in self.prompts) < images:
            return f"fewer than {images} images"
        if metric.needs != "reference":
            return ""
        if not self.reference:
            return "no reference images (--reference)"
        if len(self.reference) < references:
            return f"fewer than {references} reference images"
        own = self.encoder(metric)
        if metric.encoder != "grid" and own != self.fid and encoders.fingerprint(own) != encoders.fingerprint(self.fid):
            return f"no features of the reference images by {own} (--fid)"
        return ""

    def against(self, metric: Metric) -> str:
        """Where the features are that `metric` holds those of images against; "" where those say all."""
        if metric.needs == "nothing":
            return ""
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
    preference.check(options.preference)
    if options.clip.endswith(".pt"):
        raise ValueError(f"--clip must be a CLIP model, got {options.clip!r}")
    features.check_encoder(options.clip)
    if options.reference or options.prompts in prompts.DRAWN:
        features.check_encoder(options.fid)
    reference = _reference(options, listed)  # last: it reads every file
    name = protocols.name(options, reference)
    pictures = dict(zip((prompt.id for prompt in listed), reference, strict=False)) if options.matched else {}
    return Protocol(
        options.prompts, tuple(listed), options.shard, tuple(reference), options.clip, options.fid, name,
        pictures=pictures, preference=options.preference,
    )  # fmt: skip


def _gpu_is_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _reference(options: Options, listed: list[Prompt]) -> list[str]:
    """Reference images of FID: Shapes' own, or the images of --reference; none means no FID.

    Every file is read before anything is generated, and what is used of the folder is printed.
    """
    if options.matched and not options.reference and "matched" not in options.given:
        return []  # of a protocol, where no FID is asked for
    if options.matched and (not options.reference or not options.prompts.lower().endswith(".json")):
        raise ValueError("--matched needs --prompts, COCO's annotations (.json), and --reference, their images")
    if options.n_reference < 2:
        raise ValueError(f"--n-reference must be 2 or more, got {options.n_reference}")
    if not options.reference:
        return prompts.references(options.prompts, options.n_reference)
    folder = Path(options.reference)
    files, line = features.reference_files(
        folder, coco.images(Path(options.prompts), folder, listed) if options.matched else None
    )
    print(f"reference: {line}", file=sys.stderr)
    return files


def _spec(protocol: Protocol) -> dict:
    return {"prompts": prompts.fingerprint(protocol.prompts), "prompts_per_shard": protocol.prompts_per_shard}


def check_store(url: str, protocol: Protocol) -> Store:
    """The store, if it can be written to and is empty or of these prompts; else ValueError. Leaves nothing behind."""
    store = Store(url)
    store.check_writable()
    store.check(_spec(protocol))
    return store


def claim_store(url: str, protocol: Protocol, batch_size: int | None = None) -> Store:
    """As `check_store`, and from now on it is the store of these prompts: the first step that a run leaves behind.
    batch_size: that was found, and that the store keeps."""
    store = check_store(url, protocol)
    if not store.has("spec.json"):
        _check_shards(store, protocol)
    store.claim(_spec(protocol) | ({} if batch_size is None else {"batch_size": batch_size}))
    return store


def _check_shards(store: Store, protocol: Protocol) -> None:
    """Raise ValueError if there are shards of other prompts: a store whose spec was damaged is still theirs."""
    made_of = [prompts.fingerprint(shard) for shard in protocol.shards]
    for shard in filter(None, map(SHARD.fullmatch, store.names("text"))):
        if int(shard[3]) != len(made_of) or records.made_of(store.table(shard[0])) != made_of[int(shard[2])]:
            raise ValueError(
                f"store {store.shown!r} has no spec.json, and shards of other prompts: choose another --out"
            )


def configure(options: Options, backbone: str, plan: Plan) -> Configuration:
    """`plan` on `backbone` under the options of a job. A batch size that is to be found is 1 until it is."""
    given, ways = options, (options.dtype, options.channels_last, options.compile)
    return generation.configure(backbone, plan, given.guidance, given.solver, given.batch_size or 1, *ways)


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
    longest = 60 * options.hang_after
    return replace(resources, limits=Limits(longest=longest, shortest=min(Limits.shortest, longest)))


@dataclass(frozen=True)
class Evaluated:
    """rows: one an entry, None where its configuration is not complete. missing: {how tables name it: why}. failed: in
    words, the units that were set aside. real: scores of the prompts' real images by metric, if they were asked for."""

    rows: list[tables.Row | None]
    missing: dict[str, str]
    failed: str = ""
    real: Mapping[str, Interval] | None = None

    @property
    def complete(self) -> list[tables.Row]:
        return [row for row in self.rows if row]

    @property
    def facts(self) -> dict[str, str]:
        """What a report says of that."""
        listed = "; ".join(f"{name} ({why})" for name, why in self.missing.items())
        return {"missing": f"{len(self.missing)} configurations: {listed}"} if self.missing else {}

    def check(self) -> None:
        """Raises Stopped if a unit was set aside: a job ends with it, whatever it could report."""
        if self.failed:
            lacking = f"{len(self.missing)} configurations are missing: " if self.missing else ""
            raise Stopped(f"{lacking}{self.failed}")


def evaluate(
    store: Store, entries: Sequence[Entry], protocol: Protocol, resources: Resources, real: bool = False
) -> Evaluated:
    """Make what the store lacks: text, images, features and scores, each when what it needs is there, with no barrier.

    A row an entry; two of one configuration share its images. real: score the prompts' real images too, where there are
    some. Raises Stopped if no configuration is complete.
    """
    units, tasks = graph.units(store, entries, protocol)
    more, scored = graph.real_images(store, protocol) if real else ([], None)
    units += more
    results.announce(store, entries, protocol, {id: task.name for id, task in tasks.items()})
    failed = worker.run(units, store, resources, "units")
    rows: list[tables.Row | None] = []
    missing = {}
    for entry in entries:
        name = tasks[entry.configuration.id].name
        rows.append(None if name in failed else to_row(entry, scores.read(store, name)))
        if name in failed:
            label = tables.name(entry.method, len(entry.configuration.plan), entry.settings)
            missing[f"{entry.configuration.backbone} {label}"] = failed[name]
    if scored and scored.name in failed:
        missing["real images"] = failed[scored.name]
    pictured = scores.read(store, scored.name).intervals if scored and scored.name not in failed else None
    evaluated = Evaluated(rows, missing, worker.summary(failed, store) if failed else "", pictured)
    if not evaluated.complete:
        evaluated.check()
    return evaluated


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
        redraws=bool(entry.configuration.plan.switches),
    )
