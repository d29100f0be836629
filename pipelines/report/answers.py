"""The answer as a page begins with it: a verdict, two sentences, and what to beware of."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import Metric, shown
from pipelines.report import tables
from pipelines.report.tables import Row


@dataclass(frozen=True)
class Answer:
    """verdict: a few words. tone: whether it is one, is open, or was not called for want of images. sentences: what is
    so, and the evidence. warnings: whole sentences."""

    verdict: str
    tone: Literal["clear", "open", "few"]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def of_sweep(rows: Sequence[Row], model: str, warnings: Sequence[str] = ()) -> Answer:
    """Fewer steps or cheaper steps, for this model.

    By each metric a direction is called or not (`tables.called`): never from fewer images than `tables.fewest`, and
    only if a quarter of the plans go its way clearly, and more than go the other.
    """
    own = tuple(f"{line}." for line in warnings)
    changes = {metric: list(tables.gains(rows, metric).values()) for metric in tables.comparable(rows)}
    changes = {metric: gains for metric, gains in changes.items() if gains}
    if not changes:
        only_dense = all(row.method == "dense" for row in rows)
        verdict = "More steps, or fewer" if only_dense else "Nothing can be compared"
        return Answer(verdict, "open", (tables.answer(rows, model), tables.sizes(rows) + "."), own)
    calls = {metric: tables.called(gains, metric) for metric, gains in changes.items()}
    warned = (*_small(calls, changes), *own, *_nothing_to_see(calls, changes))
    return Answer(*_verdict(calls), (_what(calls, model), _evidence(changes, rows)), warned)


def of_changes(sentence: str, n: int, verdict: str = "What changes") -> Answer:
    """Of a comparison, whose changes are told one by one. n: images of a plan."""
    few = n < max(tables.fewest(metric) for metric in shown())
    warning = f"Only {n} images a plan: intervals of few are wide, and a change that is not clear may still be there."
    return Answer(verdict, "open", (f"{sentence[:1].upper()}{sentence[1:]}",), (warning,) if few else ())


def of_choice(plan: str, sentence: str, warnings: Sequence[str]) -> Answer:
    """Of a calibration. sentence: which other plans it could not be told from."""
    return Answer(plan, "open", (sentence,), tuple(f"{line}." for line in warnings))


def _verdict(calls: dict[Metric, str]) -> tuple[str, Literal["clear", "open", "few"]]:
    words = set(calls.values())
    if words == {tables.TOO_FEW}:
        return "Too few images to say", "few"
    if {tables.CHEAPER, tables.FEWER} <= words:
        return "It depends on the metric", "open"
    for word in (tables.CHEAPER, tables.FEWER):
        if word in words:
            alone = "" if words == {word} else f" by {_titles(calls, word)}"
            return f"{word.capitalize()} win{alone}", "clear"
    return "Not resolved: neither wins clearly", "open"


def _what(calls: dict[Metric, str], model: str) -> str:
    phrases = {
        tables.CHEAPER: "cheaper steps beat fewer steps by {}",
        tables.FEWER: "fewer steps beat cheaper steps by {}",
        tables.OPEN: "neither wins clearly by {}",
        tables.TOO_FEW: "no verdict is called by {}, for want of images",
    }
    parts = [phrase.format(_titles(calls, word)) for word, phrase in phrases.items() if word in calls.values()]
    return f"For {model}, at equal FLOPs, {'; '.join(parts)}."


def _evidence(changes: dict[Metric, list[Interval]], rows: Sequence[Row]) -> str:
    """How many plans are clearly better or worse; metrics with the same counts share a phrase."""
    counts: dict[tuple[int, int, int], list[str]] = {}
    for metric, gains in changes.items():
        counts.setdefault((*tables.clear(gains, metric), len(gains)), []).append(metric.title)
    parts = []
    for (better, worse, count), titles in counts.items():
        phrase = f"{better or 'none'} of {count} clearly better and {worse or 'none'} clearly worse"
        parts.append(
            f"{phrase if better or worse else f'none of {count} clearly better or worse'} by {_listed(titles)}"
        )
    return (
        f"Of the cheaper-step plans that can be held against fewer steps of their cost, {'; '.join(parts)} (paired "
        f"95 % intervals that hold together within a metric, {tables.sizes(rows)})."
    )


def _small(calls: dict[Metric, str], changes: dict[Metric, list[Interval]]) -> list[str]:
    """A warning where images are few."""
    few = [metric for metric, word in calls.items() if word == tables.TOO_FEW]
    if not few:
        return []
    needs = _listed([f"{metric.title} from {tables.fewest(metric)}" for metric in few])
    n = min(change.n for metric in few for change in changes[metric])
    return [
        f"Only {n} images a plan: a direction is called by {needs} images on, because intervals of fewer can be narrow "
        f"by chance. Run it again with --limit {max(256, *map(tables.fewest, few))} or more; what is done is kept."
    ]


def _nothing_to_see(calls: dict[Metric, str], changes: dict[Metric, list[Interval]]) -> list[str]:
    """What an open verdict could not have seen."""
    parts = []
    for metric, word in calls.items():
        if word == tables.OPEN:
            half = median((change.high - change.low) / 2 for change in changes[metric])
            parts.append(f"{half:.{metric.digits}f} {metric.title}")
    return (
        [f"Open is not equal: gains below about {_listed(parts)} cannot be seen with so many images."] if parts else []
    )


def _titles(calls: dict[Metric, str], word: str) -> str:
    return _listed([metric.title for metric, own in calls.items() if own == word])


def _listed(parts: Collection[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
