"""What a model does from step to step: profile of Fig. 7, trajectories of Fig. 3 and 12; a unit of work each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

import numpy as np

import postdiff
from pipelines.data import prompts as prompting
from pipelines.data.images import decode
from pipelines.engine import records
from pipelines.engine.cluster import Unit
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.metrics import encoders
from pipelines.metrics.clip import clip_scores
from pipelines.metrics.encoders import ClipEncoder
from pipelines.stages.generation import Configuration

if TYPE_CHECKING:
    from pipelines.stages.analysis import Profile

VERSION = 1  # counts changes of what is recorded, or of how
SHOWN = 4  # prompts of a trajectory whose images are kept


@dataclass(frozen=True)
class Recording:
    kind: Literal["profile", "trajectory"]
    configuration: Configuration
    prompts: tuple[Prompt, ...]
    clip: str

    @property
    def name(self) -> str:
        scored_by = "" if self.kind == "profile" else encoders.fingerprint(self.clip)
        parts = [VERSION, self.configuration.id, prompting.fingerprint(self.prompts), scored_by]
        kind = "json" if self.kind == "profile" else "parquet"
        return f"dynamics/{self.kind}-{sha256(json.dumps(parts).encode()).hexdigest()[:12]}.{kind}"

    @property
    def unit(self) -> Unit:
        steps = len(self.configuration.plan) * len(self.prompts)
        return Unit(self.name, f"{self.configuration.backbone} {self.configuration.arithmetic}", steps, self)


class Watcher:
    """A worker's handler: commits one file a task."""

    def __init__(self, store: Store):
        self.store = store
        self.loaded: tuple[tuple, postdiff.Backbone] | None = None

    def __call__(self, task: Recording) -> None:
        configuration = task.configuration
        if self.loaded is None or self.loaded[0] != (configuration.backbone, configuration.arithmetic):
            self.loaded = None  # free the old one first
            self.loaded = (configuration.backbone, configuration.arithmetic), configuration.load()
        make = _profile if task.kind == "profile" else _trajectory
        self.store.commit(task.name, make(self.loaded[1], task))


def _batches(task: Recording) -> Iterator[tuple[slice, list[str], list[int]]]:
    for start in range(0, len(task.prompts), task.configuration.batch_size):
        batch = slice(start, start + task.configuration.batch_size)
        chosen = task.prompts[batch]
        yield batch, [prompt.text for prompt in chosen], [prompting.seed(prompt) for prompt in chosen]


def _profile(backbone: postdiff.Backbone, task: Recording) -> bytes:
    from pipelines.stages import analysis

    configuration = task.configuration
    profile = analysis.profile(
        backbone, [p.text for p in task.prompts], [prompting.seed(p) for p in task.prompts], configuration.plan,
        batch_size=configuration.batch_size, **configuration.settings,
    )  # fmt: skip
    parts = {"blocks": profile.blocks, "layers": profile.layers}
    value = {part: {name: row.tolist() for name, row in rows.items()} for part, rows in parts.items()}
    return records.to_json({**value, "n": profile.n}, task.name)


def read_profile(store: Store, task: Recording) -> Profile:
    from pipelines.stages.analysis import Profile

    value = store.record(task.name)
    blocks, layers = ({name: np.array(row) for name, row in value[part].items()} for part in ("blocks", "layers"))
    return Profile(blocks, layers, value["n"])


def _trajectory(backbone: postdiff.Backbone, task: Recording) -> bytes:
    """A row a step and prompt (records.TRAJECTORY)."""
    from pipelines.stages import analysis

    configuration, encoder = task.configuration, ClipEncoder(task.clip)
    columns: dict[str, list] = {name: [] for name in records.TRAJECTORY.names}
    for batch, texts, seeds in _batches(task):
        steps = analysis.trajectory(backbone, texts, seeds, configuration.plan, **configuration.settings)
        embedded = encoder.texts(texts)
        for i, images in enumerate(steps):
            scores = clip_scores(encoder.images(images), embedded)
            for at, (image, score) in enumerate(zip(images, scores, strict=True), batch.start):
                shown = {"bytes": records.encode_image(image), "path": f"{at}.webp"} if at < SHOWN else None
                row = task.prompts[at].id, i, configuration.plan.steps[i].scale, shown, score
                for name, value in zip(columns, row, strict=True):
                    columns[name].append(value)
    return records.to_parquet(records.TRAJECTORY, columns, task.name, prompting.fingerprint(task.prompts))


@dataclass(frozen=True)
class Trajectory:
    """What each step would draw of each prompt. scores: [T, N] CLIP scores; images: uint8 [H, W, 3], `images[i][p]` of
    step i and prompt p, of the first `SHOWN` prompts."""

    scores: np.ndarray
    images: Sequence[Sequence[np.ndarray]]


def read_trajectory(store: Store, task: Recording) -> Trajectory:
    rows = store.table(task.name, made_of=prompting.fingerprint(task.prompts)).to_pylist()
    place = {prompt.id: at for at, prompt in enumerate(task.prompts)}
    scores = np.empty((len(task.configuration.plan), len(task.prompts)))
    images: list[list[np.ndarray]] = [[] for _ in scores]
    for row in sorted(rows, key=lambda row: (row["step"], place[row["prompt_id"]])):
        scores[row["step"], place[row["prompt_id"]]] = row["clip_score"]
        if row["image"]:
            images[row["step"]].append(decode(row["image"]["bytes"]))
    return Trajectory(scores, images)
