"""Scores of a configuration from stored features, each with its interval: a Ray task."""

import json
from dataclasses import asdict, dataclass

import numpy as np

from pipelines import records
from pipelines.store import Store
from postdiff import distances, metrics

NEIGHBOURS = 10_000  # images a side of precision and recall, whose work grows with their product


@dataclass(frozen=True)
class Task:
    """Score `configuration` in `store`: the features are in the folders named.

    clip, texts: embeddings of the images and of the prompts. fid, reference: features of the images and of the
        reference images, both None for no FID.
    """

    store: Store
    configuration: str
    clip: str
    texts: str
    fid: str | None
    reference: str | None

    @property
    def name(self) -> str:
        return f"scores/{self.configuration}.json"


def score(task: Task) -> dict:
    """{"clip": interval, "fid": interval or None, "seconds": median seconds an image, "more": other distances of the
    features of FID}; committed as `task.name`."""
    store, names = task.store, task.store.names()
    image_ids, image = read_features(store, names, task.clip)
    text_ids, text = read_features(store, names, task.texts)
    row_of = {id: i for i, id in enumerate(text_ids)}
    clip = metrics.clip_scores(image, text[[row_of[id] for id in image_ids]])
    fid, more = None, {}
    if task.fid and task.reference:
        _, reference = read_features(store, names, task.reference)
        _, generated = read_features(store, names, task.fid)
        fid = asdict(metrics.frechet_interval(generated, metrics.moments(reference)))
        some = generated[:NEIGHBOURS], reference[:NEIGHBOURS]
        more = {"kid": distances.kernel_distance(generated, reference), "cmmd": distances.cmmd(generated, reference)}
        more |= dict(zip(("precision", "recall"), distances.precision_recall(*some), strict=True))
    seconds = [
        store.table(name, ["seconds"])["seconds"].to_numpy()  # a column: the images are not read
        for name in _under(names, f"images/{task.configuration}/")
    ]
    result = {
        "clip": asdict(metrics.mean_interval(clip)),
        "fid": fid,
        "seconds": float(np.median(np.concatenate(seconds))),
        "more": more,
    }
    store.put(task.name, json.dumps(result, indent=2).encode())
    return result


def read_features(store: Store, names: set[str], folder: str) -> tuple[list[str], np.ndarray]:
    """Prompt ids and features [N, D] of one folder of features, in shard order."""
    tables = [store.table(name) for name in _under(names, f"{folder}/")]
    if not tables:
        raise ValueError(f"no features in {store.url}/{folder}")
    ids = [id for table in tables for id in table["prompt_id"].to_pylist()]
    return ids, np.concatenate([records.feature_matrix(table) for table in tables])


def _under(names: set[str], prefix: str) -> list[str]:
    return sorted(name for name in names if name.startswith(prefix))
