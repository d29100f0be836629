"""What the prompts can tell apart in an exhibit: changes from the model as it is, and the order of a table's rows."""

from itertools import combinations

from pipelines.metrics.intervals import Interval, together
from pipelines.metrics.metric import Metric
from pipelines.paper import exhibit_text
from pipelines.paper.exhibit import TUNED, Exhibit
from pipelines.paper.exhibit_text import Results, measured_of
from pipelines.report import tables

LISTED = 15  # names in a sentence, at the most


def sentences(exhibit: Exhibit, results: Results) -> str:
    """A sentence or two a metric: how many changes, and of a table how many orderings, are clear, and go the paper's
    way; which are not resolved."""
    parts = []
    for metric in exhibit.metrics:
        named = [changes(exhibit, results, metric), orderings(exhibit, results, metric)]
        parts += [text for text in named if text]
    return " ".join(parts)


def is_clear(moved: Interval) -> bool:
    """Does the interval leave out 0?"""
    return moved.low > 0 or moved.high < 0


def changes(exhibit: Exhibit, results: Results, metric: Metric) -> str:
    since = "before fine-tuning" if any(model.endswith(TUNED) for model in exhibit.models) else "the model as it is"
    if any(exhibit.reference(model).plan.switches for model in exhibit.models):
        since = "each model's first row"
    known = exhibit_text.changes(exhibit, results, metric)
    if not known:
        return ""
    sure = {cell: moved for cell, moved in known.items() if is_clear(moved)}
    printed = {cell: change for cell in sure if (change := exhibit_text.printed_change(exhibit, cell, metric))}
    against = [exhibit.name(cell) for cell, change in printed.items() if change * sure[cell].value < 0]
    text = f"{metric.title}: {len(sure)} of {len(known)} changes from {since} are clear"
    if 0 < len(sure) <= LISTED:
        text += f" ({'; '.join(exhibit.name(cell) for cell in sure)})"
    if printed:
        text += f"; of the {len(printed)} whose change the paper prints {len(printed) - len(against)} go its way"
        text += f" (against it: {'; '.join(against)})" if against else ""
    unresolved = [exhibit.name(cell) for cell in known if cell not in sure]
    if len(unresolved) > LISTED:
        return f"{text}. The other {len(unresolved)} are not resolved."
    return f"{text}. Not resolved: {'; '.join(unresolved) or 'none'}."


def orderings(exhibit: Exhibit, results: Results, metric: Metric) -> str:
    """Of a table: every two rows of one model against each other, all at once (max-t)."""
    if not exhibit.is_table:
        return ""
    cells = [cell for cell in exhibit.cells if tables.measured([measured_of(results, cell).row], metric)]
    pairs = [
        (a, b)
        for a, b in combinations(cells, 2)
        if a.model.removesuffix(TUNED) == b.model.removesuffix(TUNED)
        and measured_of(results, a).row is not measured_of(results, b).row
    ]
    clear, known, against = 0, 0, []
    scores = {cell: measured_of(results, cell).row.interval(metric) for cell in cells}
    differences = together([metric.difference(scores[a], [(1.0, scores[b])]) for a, b in pairs])
    for (a, b), moved in zip(pairs, differences, strict=True):
        if is_clear(moved):
            clear += 1
            both = metric.key in a.values and metric.key in b.values
            printed = a.values[metric.key] - b.values[metric.key] if both else 0.0
            known += printed != 0  # a printed tie is no order
            if printed * moved.value < 0:
                lower, higher = (a, b) if moved.value < 0 else (b, a)
                against.append(f"{exhibit.name(lower)} below {exhibit.name(higher)}")
    if not pairs:
        return ""
    text = f"{metric.title} tells {clear} of {len(pairs)} pairs of rows apart"
    text += f"; of the {known} whose order the paper prints {known - len(against)} are in it" if clear else ""
    text += f" (against it: {'; '.join(against)})" if against else ""
    return f"{text}; the order of the other {len(pairs) - clear} is not resolved."
