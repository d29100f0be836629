"""All units of an evaluation, and what each needs: a graph without barriers, which the loop makes as it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.data.prompts import DRAWN, scene
from pipelines.engine.cluster import Unit
from pipelines.engine.store import Store
from pipelines.metrics.metric import METRICS, Metric
from pipelines.stages import features, fidelity, generation, scores

if TYPE_CHECKING:
    from pipelines.evaluation import Entry, Protocol
    from pipelines.stages.generation import Configuration


def units(store: Store, entries: Sequence[Entry], protocol: Protocol) -> tuple[list[Unit], dict[str, scores.Scoring]]:
    """All units that `entries` need under `protocol`, and {id of a configuration: its score}."""
    shards = protocol.shards
    different = {entry.configuration.id: entry for entry in entries}
    costs = [entry.flops / 1e9 for entry in different.values()]
    found = generation.units([entry.configuration for entry in different.values()], shards, costs)
    metrics = [metric for metric in METRICS.values() if not protocol.lacks(metric)]
    comparisons = _Comparisons([metric for metric in metrics if metric.is_paired], different, protocol)
    shared = shared_features(protocol)
    found += [*shared, *comparisons.baseline_units()]
    tasks = {}
    for id in different:
        compared, of_compared = comparisons.units(id)
        own = [*own_features(id, protocol), *compared]
        tasks[id] = scoring(store, id, protocol, (*own, *shared), of_compared)
        found += [*own, tasks[id].unit]
    return list({unit.name: unit for unit in found}.values()), tasks  # baselines share the entries' text


def shared_features(protocol: Protocol) -> list[Unit]:
    """Features that the images of all configurations are held against: of the prompts, and of the references."""
    made = []
    for encoder in dict.fromkeys(protocol.encoder(metric) for metric in protocol.alone if metric.needs == "prompts"):
        made += features.prompt_units(encoder, protocol.shards)
    for encoder in dict.fromkeys(protocol.encoder(metric) for metric in protocol.alone if metric.needs == "reference"):
        made += features.reference_units(encoder, list(protocol.reference))
    return made


def own_features(id: str, protocol: Protocol) -> list[Unit]:
    """Features of the images of the configuration `id`, by each encoder."""
    images = generation.shard_names(id, len(protocol.shards))
    return [
        replace(unit, needs=(image,), rides=True)
        for encoder in protocol.encoders
        for unit, image in zip(features.image_units(encoder, images), images, strict=True)
    ]


def real_images(store: Store, protocol: Protocol) -> tuple[list[Unit], scores.Scoring | None]:
    """Features and the score of the real images of the prompts, where there are some: they are no configuration's, and
    what a table has beside its rows. What they are held against is made by `units`."""
    if protocol.source in DRAWN:
        real = {prompt.id: scene(prompt) for prompt in protocol.prompts}
    else:
        real = {id: protocol.pictures[id] for id in protocol.ids if protocol.pictures}
    if not real:
        return [], None
    name = f"real-{features.reference_name(list(real.values())).partition('-')[2]}"
    encoders = protocol.encoders
    own = [unit for encoder in encoders for unit in features.real_units(encoder, name, protocol.shards, real)]
    used = tuple(unit.name for unit in (*own, *shared_features(protocol)))
    inputs = [
        scores.Input(metric.key, features.folder(protocol.encoder(metric), name), protocol.against(metric))
        for metric in protocol.alone
        if not (metric.needs == "reference" and protocol.pictures)  # they are of the reference themselves
    ]
    task = scores.Scoring(store, name, protocol.ids, (), protocol.made_of, tuple(inputs), used)
    return [*own, task.unit], task


def scoring(
    store: Store, id: str, protocol: Protocol, used: Sequence[Unit], paired: Sequence[scores.Input] = ()
) -> scores.Scoring:
    """The score of the configuration `id` from the features that `used` make. paired: what paired metrics are of."""
    inputs = [
        scores.Input(metric.key, features.folder(protocol.encoder(metric), id), protocol.against(metric))
        for metric in protocol.alone
    ]
    images = tuple(generation.shard_names(id, len(protocol.shards)))
    names = tuple(unit.name for unit in used)
    return scores.Scoring(store, id, protocol.ids, images, protocol.made_of, (*inputs, *paired), names)


class _Comparisons:
    """What paired metrics need: images of baselines, and comparisons with them, of the first shards."""

    def __init__(self, metrics: Sequence[Metric], entries: dict[str, Entry], protocol: Protocol):
        self.metrics, self.entries, self.shards = metrics, entries, protocol.shards
        self.first = fidelity.first(self.shards, bool(protocol.only))
        kinds = dict.fromkeys(metric.needs for metric in metrics)
        self.baselines = {
            id: {kind: of for kind in kinds if (of := fidelity.baseline(kind, entry.configuration))}
            for id, entry in entries.items()
        }

    def baseline_units(self) -> list[Unit]:
        """Images of the baselines that are no entries themselves: of the first shards alone, and in folders of their
        own. Where another run of the store has them as entries, theirs are in no way mixed up with these."""
        extra: dict[str, tuple[Configuration, float]] = {}
        for id, entry in self.entries.items():
            a_step = entry.flops / 1e9 / len(entry.configuration.plan)  # about: it is for the order of work
            for of in self.baselines[id].values():
                if of.id not in self.entries:
                    extra[of.id] = of, max(a_step * len(of.plan), extra[of.id][1] if of.id in extra else 0)
        costs = [cost for _, cost in extra.values()]
        return generation.units([of for of, _ in extra.values()], self.shards, costs, len(self.first))

    def units(self, id: str) -> tuple[list[Unit], list[scores.Input]]:
        """The comparisons of a configuration's images, and what the paired metrics are of."""
        made: list[Unit] = []
        inputs: list[scores.Input] = []
        n = sum(map(len, self.first))
        for kind, of in self.baselines[id].items():
            hidden = 0 if of.id in self.entries else len(self.first)
            own = generation.shard_names(id, len(self.shards))[: len(self.first)]
            others = generation.shard_names(of.id, len(self.shards), hidden)[: len(self.first)]
            where = fidelity.folder(of.id, id)
            if where not in (one.images for one in inputs):  # one baseline can be both kinds
                made += fidelity.units(own, others, where)
            inputs += [scores.Input(m.key, where, "", n) for m in self.metrics if m.needs == kind]
        return made, inputs
