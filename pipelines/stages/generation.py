"""Images of a configuration for a shard of prompts: the unit of work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np

import postdiff
from pipelines.data import prompts as prompting
from pipelines.engine import records
from pipelines.engine.cluster import Unit
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store, shard_name
from pipelines.stages import beside, embeddings
from pipelines.stages.beside import Ahead, Threads
from pipelines.stages.features import Encoding, Extractor, Pictures
from postdiff import arguments
from postdiff.arguments import DTYPES, one_of
from postdiff.models.checkpoints import check_weights, fingerprint, is_function, resolve
from postdiff.models.evaluations import check_plan
from postdiff.models.families import adapt
from postdiff.models.family import Size
from postdiff.models.spec import Sampling, SamplingSettings, settle
from postdiff.plan import PIXELS, Plan

if TYPE_CHECKING:
    from postdiff.text import Embeddings


@dataclass(frozen=True)
class Configuration:
    """Everything that changes pixels but prompt and seed. `backbone` is what `postdiff.load` takes; of a function it
    ends with @ and `weights`, so that a worker whose pipeline is another one refuses it. Guidance, solver
    and size stand here as a user says them, a square's size as one number: the id is made of them."""

    backbone: str
    weights: str  # fingerprint of the checkpoint
    plan: Plan
    guidance: float
    solver: str
    size: int | Size
    batch_size: int
    dtype: str = "float32"
    sampler: int = PIXELS
    channels_last: bool = False
    compiled: bool = False

    @property
    def settings(self) -> SamplingSettings:
        """As `postdiff.sample` takes them."""
        return {"guidance": self.guidance, "solver": self.solver, "size": self.size}

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.guidance, self.solver, arguments.size(self.size))

    @property
    def arithmetic(self) -> str:
        """What decides the last bits, for reports."""
        ways = self.dtype, "channels last" * self.channels_last, "compiled" * self.compiled
        return ", ".join(filter(None, ways))

    def load(self, parts: Literal["all", "text", "denoiser"] = "all") -> postdiff.Backbone:
        check_weights(self.backbone, self.weights)
        return postdiff.load(self.backbone, None, self.dtype, parts, self.channels_last, self.compiled)

    @cached_property
    def id(self) -> str:
        value = {**asdict(self), "plan": self.plan.id}
        del value["backbone"]  # two names of one checkpoint make the same pixels
        for how in ("channels_last", "compiled"):  # ids of before these were there still hold
            if not value[how]:
                del value[how]
        return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def configure(
    backbone: str,
    plan: Plan,
    guidance: float | None = None,
    solver: str | None = None,
    batch_size: int = 8,
    dtype: str | None = None,
    channels_last: bool = False,
    compiled: bool = False,
) -> Configuration:
    """A configuration with the backbone's own settings where None. Raises ValueError if one is out of range.

    dtype: float16 for checkpoints of the hub, float32 for folders: what a configuration is must not depend on the
    machine that plans it. A function's pipeline has its own, and no other.
    """
    spec = resolve(backbone)
    plan = adapt(plan, spec.family)
    settings = settle(spec, guidance, solver).settings
    check_plan(settings["solver"], plan)
    dtype = dtype or spec.dtype or ("float16" if spec.revision else "float32")
    if batch_size < 1:
        raise ValueError(f"batch size must be 1 or more, got {batch_size}")
    one_of("dtype", dtype, DTYPES)
    if spec.dtype and dtype != spec.dtype:
        raise ValueError(f"{backbone} makes its pipeline in {spec.dtype}: expected that dtype, got {dtype}")
    weights = fingerprint(spec)
    backbone = f"{spec.source}@{weights}" if is_function(backbone) else backbone
    configuration = Configuration(backbone, weights, plan, **settings, batch_size=batch_size, dtype=dtype)
    return replace(configuration, channels_last=channels_last, compiled=compiled)


@dataclass(frozen=True)
class Generation:
    """text: the name of the prompts' embeddings in the store."""

    name: str
    configuration: Configuration
    prompts: tuple[Prompt, ...]
    text: str


def shard_names(id: str, shards: int, first: int = 0) -> list[str]:
    """Of the images of a configuration: of all `shards`, or of the `first` so many alone, which are a folder of their
    own: a run that needs all of them makes all of them."""
    folder = f"images/{id}-first{first}" if first else f"images/{id}"
    return [shard_name(folder, i, first or shards) for i in range(first or shards)]


def units(
    configurations: Sequence[Configuration],
    shards: Sequence[tuple[Prompt, ...]],
    costs_per_image: Sequence[float],
    first: int = 0,
) -> list[Unit]:
    """One unit a configuration and shard, and before them one a shard for the embeddings that they share.

    costs_per_image: relative, one a configuration; they order the units and feed the progress bar. first: images of the
    first so many shards alone, and of those only what another unit turns out to need.
    """
    made = []
    texts: dict[tuple, list[Unit]] = {}
    for configuration, cost in zip(configurations, costs_per_image, strict=True):
        # Two names of one checkpoint share them.
        key = configuration.weights, configuration.dtype, configuration.batch_size
        if key not in texts:
            texts[key] = embeddings.units(configuration.backbone, *key, shards)
        group = f"{configuration.backbone} {configuration.arithmetic}"
        named = shard_names(configuration.id, len(shards), first)
        for name, shard, text in zip(named, shards, texts[key], strict=not first):
            task = Generation(name, configuration, shard, text.name)
            made.append(Unit(name, group, cost * len(shard), task, (text.name,), on_demand=bool(first)))
    return [*chain.from_iterable(texts.values()), *made]


class Generator:
    """A worker's handler: keeps a text encoder or a denoiser loaded, never both; commits one file a task.

    Features of the new images are computed from the pixels in memory, where they ride along. A worker with threads
    beside the one that samples answers what remains to be done: to compress the last images, and to commit.
    """

    def __init__(self, store: Store):
        self.store, self.threads = store, Threads(beside.count())
        self.extractor = Extractor(store, self.threads)
        self.text = Ahead(partial(embeddings.read, store))
        self.loaded: tuple[tuple, postdiff.Backbone] | None = None

    def ahead(self, task: Generation | embeddings.TextEncoding) -> None:
        """`task` is likely the next: its text is read."""
        if isinstance(task, Generation):
            self.text.start(task.text, task.prompts)

    def __call__(
        self, task: Generation | embeddings.TextEncoding, riders: Sequence[Encoding] = ()
    ) -> tuple[str, ...] | Callable[[], tuple[str, ...]]:
        """Names of the riders that are committed too."""
        if isinstance(task, embeddings.TextEncoding):
            # A function's pipeline is whole, so that its denoiser may come next without another call.
            part = () if is_function(task.backbone) else ("text",)
            encoder = self._load((task.backbone, task.dtype, *part), task.load)
            self.store.commit(task.name, embeddings.make(encoder, task))
            return ()
        configuration = task.configuration
        text = self.text.take(task.text, task.prompts)
        model = configuration.backbone, configuration.arithmetic
        backbone = self._load(model, partial(configuration.load, "denoiser"))
        prepared: dict[str, list[Future]] = {rider.encoder: [] for rider in riders}

        def prepare(images: np.ndarray) -> None:
            for encoder, coming in prepared.items():
                coming += self.extractor.prepare(encoder, list(images))

        made = generate(backbone, configuration, task.prompts, text, self.threads, prepare)
        ids, texts = [prompt.id for prompt in task.prompts], [prompt.text for prompt in task.prompts]
        pictures = Pictures(made.pixels, ids, prompting.fingerprint(task.prompts), prepared, texts)
        commit_riders = self.extractor.ride(riders, pictures)

        def commit() -> tuple[str, ...]:
            # In this order: images that are there have their seconds.
            timings = timings_name(task.name)
            self.store.commit(timings, records.to_json({"seconds": made.seconds}, timings))
            self.store.commit(task.name, made.file(task.name))
            return commit_riders()

        return commit if beside.count() else commit()

    def _load(self, wanted: tuple, load: Callable[[], postdiff.Backbone]) -> postdiff.Backbone:
        if self.loaded is None or self.loaded[0] != wanted:
            self.loaded = None  # free the old one first
            self.loaded = wanted, load()
        return self.loaded[1]


def timings_name(images: str) -> str:
    """Where the seconds of a shard of images are kept, by its name."""
    return f"timings/{images.removeprefix('images/').removesuffix('.parquet')}.json"


@dataclass(frozen=True)
class Made:
    """Images of `prompts`. pixels: uint8 [H, W, 3] each; compressed: the same, as they will be; seconds: of each, the
    wall time of its batch over the images in it."""

    configuration: Configuration
    prompts: Sequence[Prompt]
    pixels: list[np.ndarray]
    compressed: list[Future[bytes]]
    seconds: list[float]

    def file(self, name: str = "") -> bytes:
        """A Parquet file (records.IMAGES), by its name in the store."""
        images = [image.result() for image in self.compressed]
        columns: dict[str, Sequence] = {
            "prompt_id": [prompt.id for prompt in self.prompts],
            "prompt": [prompt.text for prompt in self.prompts],
            "seed": [prompting.seed(prompt) for prompt in self.prompts],
            "configuration": [self.configuration.id] * len(images),
            "plan": [self.configuration.plan.id] * len(images),
            "image": [{"bytes": data, "path": f"{i}.webp"} for i, data in enumerate(images)],
        }
        return records.to_parquet(records.IMAGES, columns, name, prompting.fingerprint(self.prompts))


def generate(
    backbone: postdiff.Backbone,
    configuration: Configuration,
    prompts: Sequence[Prompt],
    text: Embeddings | None = None,
    threads: Threads | None = None,
    meanwhile: Callable[[np.ndarray], object] = len,
) -> Made:
    """The images of `prompts`, compressed by `threads` while the next ones are sampled, or in line.

    Without `text` the prompts are encoded here. meanwhile: called with the images of each batch, uint8 [B, H, W, 3].
    """
    from postdiff import drawing

    threads = threads or Threads(0)
    pixels: list[np.ndarray] = []
    compressed: list[Future[bytes]] = []
    seconds: list[float] = []
    for images, took in drawing.batches(
        backbone,
        [prompt.text for prompt in prompts],
        [prompting.seed(prompt) for prompt in prompts],
        configuration.plan,
        configuration.batch_size,
        text,
        **configuration.settings,
    ):
        pixels += list(images)
        compressed += threads.each(records.encode_image, images)
        meanwhile(images)
        seconds += [took / len(images)] * len(images)
    return Made(configuration, prompts, pixels, compressed, seconds)
