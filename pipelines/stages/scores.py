"""Scores of a configuration from stored features, each with its interval: a Ray task."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

import numpy as np

from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.metrics import distances, statistics
from postdiff.terminal import one_line

VERSION = 2  # counts changes of this file that change scores
NEIGHBOURS = 10_000  # images a side of precision and recall, whose work grows with their product


@dataclass(frozen=True)
class Task:
    """Score `configuration` in `store`: the features are in the folders named.

    prompts: ids of all prompts, in order. shards: of images, and so of their features, in order. clip, texts:
    embeddings of the images and of the prompts. fid, reference: features of the images and of the reference images,
    both None for no FID.
    """

    store: Store
    configuration: str
    prompts: tuple[str, ...]
    shards: tuple[str, ...]
    clip: str
    texts: str
    fid: str | None
    reference: str | None

    @property
    def name(self) -> str:
        of = [VERSION, self.prompts, self.clip, self.texts, self.fid, self.reference]
        return f"scores/{self.configuration}-{sha256(json.dumps(of).encode()).hexdigest()[:8]}.json"


def score(task: Task) -> dict:
    """{"clip": interval, "fid": interval or None, "seconds": median seconds an image, "more": other distances of the
    features of FID}; committed as `task.name`. Raises ValueError if a prompt has no image."""
    store = task.store
    ids, image = read_features(store, task.clip, task.prompts)
    text_ids, text = read_features(store, task.texts)
    row_of = {id: i for i, id in enumerate(text_ids)}
    clip = statistics.clip_scores(image, text[[row_of[id] for id in ids]])
    fid, more = None, {}
    if task.fid and task.reference:
        _, reference = read_features(store, task.reference)
        _, generated = read_features(store, task.fid, task.prompts)
        fid = asdict(statistics.frechet_interval(generated, statistics.moments(reference)))
        some = generated[:NEIGHBOURS], reference[:NEIGHBOURS]
        more = {"kid": distances.kernel_distance(generated, reference)}
        if task.fid.split("/")[1] == task.clip.split("/")[1]:  # CMMD is one of CLIP's embeddings alone
            more["cmmd"] = distances.cmmd(generated, reference)
        more |= dict(zip(("precision", "recall"), distances.precision_recall(*some), strict=True))
    seconds = [store.table(name, ["seconds"])["seconds"].to_numpy() for name in task.shards]  # images are not read
    result = {
        "clip": asdict(statistics.mean_interval(clip)),
        "fid": fid,
        "seconds": float(np.median(np.concatenate(seconds))),
        "more": more,
    }
    store.put(task.name, json.dumps(result, indent=2).encode())
    return result


def read(store: Store, name: str) -> dict:
    """What `score` wrote. Raises ValueError, naming the file, if it is something else."""
    found = store.json(name)
    try:
        intervals = [statistics.Interval(**of) for of in (found["clip"], found["fid"]) if of is not None]
        if found["clip"] is None:
            raise TypeError("expected a CLIP score")
        numbers = [x for of in intervals for x in (of.value, of.low, of.high, of.n, *of.left_out)]
        if not all(isinstance(x, int | float) for x in (*numbers, found["seconds"], *found["more"].values())):
            raise TypeError("expected numbers")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{store.shown}/{name} must hold scores that a job wrote, got {one_line(repr(error))}; "
            "deleted, it is made again"
        ) from None
    return found


def read_features(store: Store, folder: str, expected: Sequence[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Prompt ids and features [N, D] of one folder of features, in shard order.

    Raises: ValueError if there are none, or they are not of the `expected` prompts.
    """
    tables = [store.table(name) for name in sorted(store.names(folder))]
    if not tables:
        raise ValueError(f"no features in {store.shown}/{folder}")
    ids = [id for table in tables for id in table["prompt_id"].to_pylist()]
    if expected is not None and ids != list(expected):
        missing = len(set(expected) - set(ids))
        raise ValueError(
            f"{store.shown}/{folder} holds features of {len(ids)} images, expected those of {len(expected)} prompts "
            f"in their order ({missing} are missing)"
        )
    return ids, np.concatenate([records.feature_matrix(table) for table in tables])
