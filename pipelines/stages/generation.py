"""Images of a configuration for a shard of prompts: the unit of work."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
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
from pipelines.stages import embeddings
from pipelines.stages.compression import Compressor
from pipelines.stages.features import Encoding, Extractor
from postdiff import arguments
from postdiff.arguments import DTYPES, one_of
from postdiff.models.checkpoints import fingerprint, resolve
from postdiff.models.families import adapt
from postdiff.models.family import Size
from postdiff.models.spec import Sampling, SamplingSettings, settle
from postdiff.plan import PIXELS, Plan

if TYPE_CHECKING:
    from postdiff.text import Embeddings


MOST_THREADS = 6  # that compress: a GPU makes an image of 512 pixels in about the time that two of them take for it


@dataclass(frozen=True)
class Configuration:
    """Everything that changes pixels but prompt and seed. `backbone` is what `postdiff.load` takes. Guidance, solver
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

    @property
    def settings(self) -> SamplingSettings:
        """As `postdiff.sample` takes them."""
        return {"guidance": self.guidance, "solver": self.solver, "size": self.size}

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.guidance, self.solver, arguments.size(self.size))

    @cached_property
    def id(self) -> str:
        value = {**asdict(self), "plan": self.plan.id}
        del value["backbone"]  # two names of one checkpoint make the same pixels
        return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def configure(
    backbone: str,
    plan: Plan,
    guidance: float | None = None,
    solver: str | None = None,
    batch_size: int = 8,
    dtype: str | None = None,
) -> Configuration:
    """A configuration with the backbone's own settings where None. Raises ValueError if one is out of range.

    dtype: float16 for checkpoints of the hub, float32 for folders: what a configuration is must not depend on the
    machine that plans it.
    """
    spec = resolve(backbone)
    plan = adapt(plan, spec.family)
    settings = settle(spec, guidance, solver).settings
    dtype = dtype or ("float16" if spec.revision else "float32")
    if batch_size < 1:
        raise ValueError(f"batch size must be 1 or more, got {batch_size}")
    one_of("dtype", dtype, DTYPES)
    return Configuration(backbone, fingerprint(spec), plan, **settings, batch_size=batch_size, dtype=dtype)


@dataclass(frozen=True)
class Generation:
    """text: the name of the prompts' embeddings in the store."""

    name: str
    configuration: Configuration
    prompts: tuple[Prompt, ...]
    text: str


def units(
    configurations: Sequence[Configuration], shards: Sequence[tuple[Prompt, ...]], costs_per_image: Sequence[float]
) -> list[Unit]:
    """One unit a configuration and shard, and before them one a shard for the embeddings that they share.

    costs_per_image: relative, one a configuration; they order the units and feed the progress bar.
    """
    n, found = len(shards), []
    texts: dict[tuple, list[Unit]] = {}
    for of, cost in zip(configurations, costs_per_image, strict=True):
        key = of.weights, of.dtype, of.batch_size  # two names of one checkpoint share them
        if key not in texts:
            texts[key] = embeddings.units(of.backbone, *key, shards)
        for i, (shard, text) in enumerate(zip(shards, texts[key], strict=True)):
            task = Generation(shard_name(f"images/{of.id}", i, n), of, shard, text.name)
            found.append(Unit(task.name, f"{of.backbone} {of.dtype}", cost * len(shard), task, (text.name,)))
    return [*chain.from_iterable(texts.values()), *found]


class Generator:
    """A worker's handler: keeps a text encoder or a denoiser loaded, never both; commits one file a task.

    Features of the new images are computed from the pixels in memory, where they ride along.
    """

    def __init__(self, store: Store):
        self.store, self.extractor = store, Extractor(store)
        self.loaded: tuple[tuple[str, str, str], postdiff.Backbone] | None = None

    def __call__(self, task: Generation | embeddings.TextEncoding, riders: Sequence[Encoding] = ()) -> tuple[str, ...]:
        """Names of the riders, all of which are committed too."""
        if isinstance(task, embeddings.TextEncoding):
            self.store.commit(task.name, embeddings.make(self._load(task.backbone, task.dtype, "text"), task))
            return ()
        of = task.configuration
        text = embeddings.read(self.store, task.text, task.prompts)
        backbone = self._load(of.backbone, of.dtype, "denoiser")
        made = generate(backbone, of, task.prompts, text, task.name)
        # In this order: images that are there have their seconds.
        timings = timings_name(task.name)
        self.store.commit(timings, records.to_json({"seconds": made.seconds}, timings))
        self.store.commit(task.name, made.images)
        ids, made_of = [prompt.id for prompt in task.prompts], prompting.fingerprint(task.prompts)
        for rider in riders:
            self.extractor.extract(rider, made.pixels, ids, made_of)
        return tuple(rider.name for rider in riders)

    def _load(self, backbone: str, dtype: str, parts: Literal["text", "denoiser"]) -> postdiff.Backbone:
        wanted = backbone, dtype, parts
        if self.loaded is None or self.loaded[0] != wanted:
            self.loaded = None  # free the old one first
            self.loaded = wanted, postdiff.load(backbone, dtype=dtype, parts=parts)
        return self.loaded[1]


def timings_name(images: str) -> str:
    """Where the seconds of a shard of images are kept, by its name."""
    return f"timings/{images.removeprefix('images/').removesuffix('.parquet')}.json"


@dataclass(frozen=True)
class Made:
    """images: a Parquet file (records.IMAGES), and pixels: what is in it, uint8 [H, W, 3] each. seconds: of each, the
    wall time of its batch over the images in it."""

    images: bytes
    pixels: list[np.ndarray]
    seconds: list[float]


def encoding_threads() -> int:
    """Threads that compress images beside the one that samples: of a worker's CPU threads, which Ray tells it. 0 where
    there is only one, as on a laptop's workers: there, sampling itself would wait for them."""
    return min(MOST_THREADS, int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]) - 1)  # "4,2": of nested loops


def generate(
    backbone: postdiff.Backbone,
    configuration: Configuration,
    prompts: Sequence[Prompt],
    text: Embeddings | None = None,
    name: str = "",
) -> Made:
    """The images of `prompts`, compressed while the next ones are sampled.

    Without `text` the prompts are encoded here. name: the file's, in the store.
    """
    seeds = [prompting.seed(prompt) for prompt in prompts]
    pixels: list[np.ndarray] = []
    seconds: list[float] = []
    with Compressor(encoding_threads()) as compressor:
        for start in range(0, len(prompts), configuration.batch_size):
            batch = slice(start, start + configuration.batch_size)
            began = time.perf_counter()
            made = postdiff.sample(
                backbone,
                [prompt.text for prompt in prompts[batch]],
                seeds[batch],
                configuration.plan,
                **configuration.settings,
                batch_size=configuration.batch_size,
                embeddings=None if text is None else text.rows(batch),
            )
            seconds += [(time.perf_counter() - began) / len(made)] * len(made)
            pixels += list(made)
            compressor.add(made)
        images = compressor.result()
    columns: dict[str, Sequence] = {
        "prompt_id": [prompt.id for prompt in prompts],
        "prompt": [prompt.text for prompt in prompts],
        "seed": seeds,
        "configuration": [configuration.id] * len(prompts),
        "plan": [configuration.plan.id] * len(prompts),
        "image": [{"bytes": data, "path": f"{i}.webp"} for i, data in enumerate(images)],
    }
    made_of = prompting.fingerprint(prompts)
    return Made(records.to_parquet(records.IMAGES, columns, name, made_of), pixels, seconds)
