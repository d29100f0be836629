"""Scores over the images of several stores, each of other prompts, as if all had been drawn in one."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipelines.engine.cluster import DamagedError
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import Metric
from pipelines.stages import features, fidelity, scores
from pipelines.stages.generation import Configuration

KEPT = 16  # folders of features that are kept in memory: those of references and prompts, and one configuration's


class Pool:
    """What `stores` hold under one protocol, but for the prompts, which follow one another. References and encoders are
    the same in each."""

    def __init__(self, stores: Sequence[Store], protocol: Protocol):
        self.stores, self.protocol = tuple(stores), protocol
        self._features = lru_cache(KEPT)(self._read)

    def _read(self, folder: str) -> list[tuple[list[str], np.ndarray]]:
        return [self._read_one(store, folder) for store in self.stores]

    @staticmethod
    def _read_one(store: Store, folder: str) -> tuple[list[str], np.ndarray]:
        try:
            return scores.read_features(store, folder)
        except DamagedError as error:  # files of one name lie in all of the stores
            raise DamagedError(error.name, error.why, store.url) from None

    def score(self, configuration: Configuration, metric: Metric) -> Interval:
        """`metric` of its images in all stores, in their order.

        Raises: ValueError if a store has not all of their features; DamagedError, with its store, if a file is not what
            its name says.
        """
        if metric.is_paired:
            baseline = fidelity.baseline(metric.needs, configuration)
            if not baseline:
                raise ValueError(f"{configuration.backbone} has no {metric.needs}, which {metric.title} needs")
            compared = self._features(fidelity.folder(baseline.id, configuration.id))
            return metric.score(np.concatenate([values for _, values in compared]), np.empty(0))
        images = self._features(features.folder(self.protocol.encoder(metric), configuration.id))
        if not self.protocol.against(metric):
            return metric.score(np.concatenate([values for _, values in images]), np.empty(0))
        held = [
            scores.held_against(metric, ids, *against)
            for (ids, _), against in zip(images, self._features(self.protocol.against(metric)), strict=True)
        ]
        others = held[:1] if metric.needs == "reference" else held
        return metric.score(np.concatenate([values for _, values in images]), np.concatenate(others))
