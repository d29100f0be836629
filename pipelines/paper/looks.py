"""The later looks of the claims' sequential rule: their prompts, a store each, and the plans of open claims in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pipelines import evaluation
from pipelines.command_line import MOST_OF_SHAPES
from pipelines.data import prompts
from pipelines.engine.cluster import Resources
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.engine.urls import below
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics.metric import METRICS, Metric
from pipelines.paper import claims, sequential
from pipelines.paper.claims import Judged, Rows
from pipelines.paper.datasets import Options
from pipelines.pooling import Pool
from pipelines.stages import worker

Key = tuple[str, str]  # the paper's model, plan id


@dataclass(frozen=True)
class Looks:
    """Of the claims. sizes: prompts at each look, the first of all others' exhibits. protocols: of the first look, and
    of what each later one adds. folders: their stores."""

    sizes: tuple[int, ...]
    protocols: tuple[Protocol, ...]
    folders: tuple[str, ...]


def planned(options: Options, first: Protocol) -> Looks:
    """One look at `first`, or with --up-to several. options: of the claims' data set.

    Raises: ValueError if there are not so many prompts, or those of --limit are not the first of them.
    """
    if options.up_to is None:
        return Looks((len(first.prompts),), (first,), (options.out,))
    sizes, listed = drawn(options, first.prompts)
    parts = [replace(first, prompts=listed[a:b]) for a, b in pairwise(sizes)]
    later = [below(options.out, f"look-{number}") for number in range(2, 2 + len(parts))]
    return Looks(tuple(sizes), (first, *parts), (options.out, *later))


def drawn(options: Options, first: Sequence[Prompt]) -> tuple[list[int], tuple[Prompt, ...]]:
    """Prompts at each look, and all of them. first: of the first look. Raises ValueError as `planned`."""
    assert options.up_to is not None
    sizes = sequential.sizes(len(first), options.up_to)
    most, why = MOST_OF_SHAPES
    if options.prompts in prompts.DRAWN and options.up_to > most:
        raise ValueError(f"--up-to must be at most {most} ({why}), got {options.up_to}")
    listed = tuple(prompts.load_prompts(options.prompts, options.up_to, options.shuffled, options.draw))
    if len(listed) < options.up_to:
        raise ValueError(f"--up-to must be at most the {len(listed)} prompts of {options.prompts!r}")
    if listed[: sizes[0]] != tuple(first):
        raise ValueError(f"--up-to needs prompts that go on: draw {options.draw} of a file has others for each --limit")
    return sizes, listed


def told(options: Options, first: int) -> str:
    """What --up-to may add to a run of `first` prompts, in a line; "" without it."""
    if options.up_to is None:
        return ""
    now, *later = sequential.sizes(first, options.up_to)
    return (
        f"claims that are not resolved by {now} prompts go on to {', then '.join(map(str, later))}: at the most "
        f"{options.up_to / first:.3g} times the images of their plans, which what follows counts once"
    )


def judge(
    looks: Looks, rows: Rows, entries: Mapping[Key, Entry], store: Store, resources: Resources
) -> tuple[list[Judged], dict[str, str]]:
    """All claims, and what could not be made, by look. rows: of the first, in `store`; entries: of all plans. A plan
    that a look lost is of no later one: its prompts would have a gap."""
    stores, missing = [store], {}
    whole = set(rows)

    def more(look: int, keys: set[Key]) -> Rows:
        own = {key: entries[key] for key in entries if key in keys & whole}
        if not own:
            return {}
        stores.append(evaluation.claim_store(looks.folders[look], looks.protocols[look]))
        asked = measurable(looks.protocols[: look + 1])

        def measure() -> tuple[Rows, dict[str, str]]:
            evaluated = evaluation.evaluate(stores[-1], list(own.values()), looks.protocols[look], resources)
            there = [key for key, row in zip(own, evaluated.rows, strict=True) if row]
            pool, pooled = Pool(stores, looks.protocols[0]), {}
            for key in there:
                scores = {m.key: pool.score(own[key].configuration, m) for m in asked if m.key in rows[key].scores}
                pooled[key] = replace(rows[key], scores=scores)
            return pooled, evaluated.facts

        pooled, facts = worker.mending(stores[-1], measure)
        missing.update({f"look {look + 1}, {key}": told for key, told in facts.items()})
        whole.difference_update(own.keys() - pooled.keys())
        return pooled

    return sequential.judge(rows, looks.sizes, more), missing


def measurable(protocols: Sequence[Protocol]) -> list[Metric]:
    """The metrics of claims, and those of each judge alone, that all of the protocols have what it takes for."""
    used = [METRICS[key] for key in claims.MARGINS]
    parts = [part for metric in used for part in (metric, *metric.judges)]
    return [metric for metric in parts if not any(protocol.lacks(metric) for protocol in protocols)]
