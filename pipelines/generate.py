"""Images of a configuration for a shard of prompts: the unit of work."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256

import torch

import postdiff
from pipelines import prompts as prompting
from pipelines import records
from pipelines.records import Prompt
from pipelines.store import Store, shard_name
from pipelines.workers import Unit
from postdiff.backbones import fingerprint, resolve
from postdiff.families import adapt
from postdiff.plan import Plan
from postdiff.sampling import VERSION, settle

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Configuration:
    """Everything that changes pixels but prompt and seed. `backbone` is what `postdiff.load` takes."""

    backbone: str
    weights: str  # fingerprint of the checkpoint
    plan: Plan
    guidance: float
    solver: str
    size: int
    batch_size: int
    dtype: str = "float32"
    sampler: int = VERSION

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
    guidance, solver, size = settle(spec, guidance, solver, None)
    dtype = dtype or ("float16" if spec.revision else "float32")
    if batch_size < 1:
        raise ValueError(f"batch size must be 1 or more, got {batch_size}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return Configuration(backbone, fingerprint(spec), plan, guidance, solver, size, batch_size, dtype)


@dataclass(frozen=True)
class Task:
    name: str
    configuration: Configuration
    prompts: tuple[Prompt, ...]


def units(configuration: Configuration, shards: Sequence[tuple[Prompt, ...]], cost_per_image: float) -> list[Unit]:
    """One unit a shard. `cost_per_image` orders the units and feeds the progress bar."""
    folder = f"images/{configuration.id}"
    named = [(shard_name(folder, i, len(shards)), shard) for i, shard in enumerate(shards)]
    return [
        Unit(
            name,
            f"{configuration.backbone} {configuration.dtype}",
            cost_per_image * len(shard),
            Task(name, configuration, shard),
        )
        for name, shard in named
    ]


class Generator:
    """A worker's handler: keeps one backbone loaded, commits one file a task."""

    def __init__(self, store: Store):
        self.store = store
        self.loaded: tuple[tuple[str, str], postdiff.Backbone] | None = None

    def __call__(self, task: Task) -> None:
        configuration = task.configuration
        wanted = configuration.backbone, configuration.dtype
        if self.loaded is None or self.loaded[0] != wanted:
            self.loaded = None  # free the old one first
            self.loaded = wanted, postdiff.load(configuration.backbone, dtype=DTYPES[configuration.dtype])
        self.store.put(task.name, generate(self.loaded[1], configuration, task.prompts))


def generate(backbone: postdiff.Backbone, configuration: Configuration, prompts: Sequence[Prompt]) -> bytes:
    """The images of `prompts` as a Parquet file (records.IMAGES)."""
    seeds = [prompting.seed(prompt) for prompt in prompts]
    images, seconds = [], []
    for start in range(0, len(prompts), configuration.batch_size):
        batch = slice(start, start + configuration.batch_size)
        began = time.perf_counter()
        made = postdiff.sample(
            backbone,
            [prompt.text for prompt in prompts[batch]],
            seeds[batch],
            configuration.plan,
            guidance=configuration.guidance,
            solver=configuration.solver,
            size=configuration.size,
            batch_size=configuration.batch_size,
        )
        images += [records.encode_image(image) for image in made]
        seconds += [(time.perf_counter() - began) / len(made)] * len(made)
    columns: dict[str, Sequence] = {
        "prompt_id": [prompt.id for prompt in prompts],
        "prompt": [prompt.text for prompt in prompts],
        "seed": seeds,
        "configuration": [configuration.id] * len(prompts),
        "plan": [configuration.plan.id] * len(prompts),
        "image": [{"bytes": data, "path": f"{i}.webp"} for i, data in enumerate(images)],
        "seconds": seconds,
    }
    return records.to_parquet(records.IMAGES, columns)
