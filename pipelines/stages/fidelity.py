"""Paired fidelity: units that hold the images of a configuration against a baseline's of the same prompts and noise.

A baseline is a configuration of its own, of which only the first prompts are needed: that tells plans apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from pipelines.engine.cluster import Unit
from pipelines.engine.records import Prompt
from pipelines.engine.store import shard_name
from pipelines.metrics import pixels
from pipelines.stages.features import Encoding
from pipelines.stages.generation import Configuration
from postdiff import methods
from postdiff.models.checkpoints import resolve
from postdiff.models.families import FAMILIES, adapt

PROMPTS = 64
STEPS = 60  # of the solution: what 120 still change is less than what 20 do (a test)


def baseline(kind: str, configuration: Configuration) -> Configuration | None:
    """What `configuration` is held against: `dense`, as many steps with nothing saved, or its `solution`, STEPS steps.

    None for the solution of a distilled model: its sampler draws noise at every step, so more steps are another image.
    """
    spec = resolve(configuration.backbone)
    if kind == "solution" and not FAMILIES[spec.family].guided:
        return None
    steps = STEPS if kind == "solution" else len(configuration.plan)
    return replace(configuration, plan=adapt(methods.dense(steps), spec.family))


def first(shards: Sequence[tuple[Prompt, ...]], every: bool = False) -> Sequence[tuple[Prompt, ...]]:
    """The shards that hold the first PROMPTS prompts; `every` one where nothing else is measured."""
    return shards if every else shards[: ceil(PROMPTS / len(shards[0]))]


def folder(against: str, id: str) -> str:
    """Where the fidelity of the images of the configuration `id` to those of `against` is kept; both are ids."""
    return f"features/fidelity{pixels.VERSION}-{against}/{id}"


def units(images: Sequence[str], others: Sequence[str], where: str) -> list[Unit]:
    """One a pair of image shards, committed in the folder `where`."""
    made = []
    for i, (own, other) in enumerate(zip(images, others, strict=True)):
        name = shard_name(where, i, len(images))
        made.append(Unit(name, "fidelity", 1, Encoding(name, "", own, other), (own, other)))
    return made
