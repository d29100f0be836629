"""Scores of a configuration from stored features, each with its interval: a unit of work."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from math import nan

import numpy as np

from pipelines.engine import records
from pipelines.engine.cluster import Unit
from pipelines.engine.identity import digest
from pipelines.engine.store import Store
from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import METRICS, Metric
from pipelines.stages.generation import timings_name
from postdiff.terminal import one_line

VERSION = 7  # counts changes of what is scored, or of how it is stored


@dataclass(frozen=True)
class Input:
    """What `metric`, a key of METRICS, is of.

    images: the folder of features of the images. against: that of what they are held against; "" where the features
    compare images already. first: they are of the first so many prompts; 0: of all.
    """

    metric: str
    images: str
    against: str
    first: int = 0


@dataclass(frozen=True)
class Scoring:
    """Score `configuration` in `store`.

    prompts: ids of all prompts, in order. shards: of images, in order, and made_of: the fingerprint of the prompts of
    each; real images have no shards. inputs: one a metric. features: all shards of what they name, which are all that
    is read.
    """

    store: Store
    configuration: str
    prompts: tuple[str, ...]
    shards: tuple[str, ...]
    made_of: tuple[str, ...]
    inputs: tuple[Input, ...]
    features: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        inputs = json.dumps([asdict(one) for one in self.inputs])
        # As JSON has it, without writing all ids each time.
        parts = f"[{VERSION}, {_as_json(self.prompts)}, {_as_json(self.made_of)}, {inputs}]"
        return f"scores/{self.configuration}-{digest(parts.encode(), 8)}.json"

    @property
    def unit(self) -> Unit:
        """It loads nothing, so that it belongs to no group."""
        return Unit(self.name, "", 1, self, (*self.features, *self.shards))


@cache
def _as_json(ids: tuple[str, ...]) -> str:
    return json.dumps(ids)


@dataclass(frozen=True)
class Scores:
    """intervals: {key of a metric: its interval}. seconds: the median an image; NaN if timings were lost, since what is
    left would be of some images."""

    seconds: float
    intervals: dict[str, Interval]


def score(task: Scoring) -> Scores:
    """Scores of all `task.inputs`; committed as `task.name`, {"seconds": number, key of a metric: interval, ...}.

    Raises: ValueError if a prompt has no image.
    """
    store = task.store

    @cache  # most metrics are of the same features
    def read_once(folder: str, expected: tuple[str, ...] | None = None) -> tuple[list[str], np.ndarray]:
        names = sorted(name for name in task.features if name.startswith(f"{folder}/"))
        own = () if "/reference-" in folder else task.made_of[: len(names)]
        return read_shards(store, folder, names, expected, own)

    intervals = {}
    for one in task.inputs:
        metric = METRICS[one.metric]
        ids, images = read_once(one.images, task.prompts[: one.first or None])
        held = held_against(metric, ids, *read_once(one.against)) if one.against else images[:0]
        intervals[metric.key] = metric.score(images, held)
    timings = store.names(f"timings/{task.configuration}")  # one that is lost is worth no image
    names = [timings_name(name) for name in task.shards]
    whole = bool(names) and timings.issuperset(names)  # real images have none
    seconds = float(np.median([s for n in names for s in store.record(n)["seconds"]])) if whole else nan
    result = Scores(seconds, intervals)
    written = {key: asdict(interval) for key, interval in intervals.items()}
    store.commit(task.name, records.to_json({"seconds": result.seconds if whole else None, **written}, task.name))
    return result


def held_against(metric: Metric, ids: Sequence[str], names: Sequence[str], features: np.ndarray) -> np.ndarray:
    """What images `ids` are scored against: of the `features` of `names`, those of its prompt for each image, or those
    of all reference images."""
    if metric.needs == "reference":
        return features
    row_of = {name: i for i, name in enumerate(names)}
    return features[[row_of[id] for id in ids]]


def read(store: Store, name: str) -> Scores:
    """What `score` wrote. Raises ValueError, naming the file, if it is something else."""
    record = store.record(name)
    try:
        seconds = record.pop("seconds")
        seconds = nan if seconds is None else seconds
        intervals = {key: Interval(**{**value, "left_out": tuple(value["left_out"])}) for key, value in record.items()}
        numbers = [x for one in intervals.values() for x in (one.value, one.low, one.high, one.n, *one.left_out)]
        if not intervals or not all(isinstance(x, int | float) for x in (*numbers, seconds)):
            raise TypeError("expected numbers")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{store.shown}/{name} must hold scores that a job wrote, got {one_line(repr(error))}; "
            "deleted, it is made again"
        ) from None
    return Scores(seconds, intervals)


def read_features(store: Store, folder: str) -> tuple[list[str], np.ndarray]:
    """Prompt ids and features [N, D] of one folder of features, in shard order. Raises ValueError if there are none, or
    not all."""
    return read_shards(store, folder, store.shards(folder))


def read_shards(
    store: Store,
    folder: str,
    names: Sequence[str],
    expected: Sequence[str] | None = None,
    made_of: Sequence[str] = (),
) -> tuple[list[str], np.ndarray]:
    """As `read_features`, of the shards `names`; made_of: of each, if it is known.

    Raises: ValueError if they are not of the `expected` prompts; DamagedError if one is not what its name says.
    """
    owners: Sequence[str | None] = made_of or [None] * len(names)
    tables = [store.table(name, made_of=one) for name, one in zip(names, owners, strict=True)]
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
