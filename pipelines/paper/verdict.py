"""The paper's question, answered from what was run, beside the paper's own answer."""

from collections.abc import Sequence

from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import Metric
from pipelines.paper.exhibit import Exhibit
from pipelines.paper.exhibit_text import Results
from pipelines.report import tables
from pipelines.report.answers import Answer

LEGEND = (
    "Plans that the paper lists for Figures 1, 4, 5 and Table 2 (of Figure 5, whose m and s it does not list, those "
    "that a table has too), each held against fewer steps of the same model at equal FLOPs, paired; the intervals of a "
    "model and metric hold together at 95 %, with our own plans of Figure 5. Here: the direction that a quarter of the "
    "plans or more take clearly, if that is more than take the other; plans that cost less than the fewest steps, or "
    "more than the most, cannot be compared (1 of 2: one could); from fewer images than a metric needs (FID 128, CLIP "
    "score 20) no direction is called. The paper: of mixed resolution sec. 2.4, which "
    "is of SD1.5 and FID; of PostDiff sec. 3.2 and 3.3."
)
HEADER = (
    "model", "cheaper by", "metric", "FLOPs saved", "plans", "clearly better", "clearly worse", "here", "the paper",
    "agrees",
)  # fmt: skip
FEW_FLOPS = 0.4  # "e.g., reducing >60% FLOPs" is where fewer steps become "increasingly beneficial" (sec. 2.4)
ORDER = list(tables.FAMILIES)
SILENT = "says nothing"
NOT_COMPARED = "not compared"  # all cost less than the fewest steps that were run, or more than the most
SAID = {tables.OPEN: "are not resolved", tables.TOO_FEW: "have too few images"}
CLAIMS = {  # (cheaper by, key of the metric, is more than that saved): what the paper finds
    ("mixed resolution", "fid", False): "cheaper steps",  # sec. 2.4 (3)
    ("mixed resolution", "fid", True): "fewer steps, increasingly",
    ("PostDiff", "fid", False): "cheaper steps",  # sec. 3.2 (1): "across all FLOPs ranges"; sec. 3.3 (1)
    ("PostDiff", "fid", True): "cheaper steps",
    ("PostDiff", "clip", False): "comparable",  # sec. 3.2 (2)
    ("PostDiff", "clip", True): "fewer steps, slightly",
}


def claim(model: str, by: str, metric: str, few: bool) -> str:
    """What the paper finds for plans of the family `by` that save more than 60 % (`few`) or less."""
    if by == "mixed resolution" and model != "sd15":  # of the others it has a row of Table 2, and no word
        return SILENT
    return CLAIMS.get((by, metric, few), SILENT)


def lines(results: Results, names: dict[str, str], chosen: Sequence[Exhibit]) -> list[list[str]]:
    """The paper's question for each model, lines under `HEADER`: its plans against fewer steps at equal FLOPs."""
    asked = [(exhibit, cell) for exhibit in chosen if exhibit.answers for cell in exhibit.cells]
    keys = list(dict.fromkeys((cell.model, cell.plan.id) for _, cell in asked))
    listed = {(cell.model, cell.plan.id) for exhibit, cell in asked if exhibit.answers == "all" or cell.values}
    table = []
    for model, name in names.items():
        by_id = {results[key].row.configuration: results[key].row for key in keys if key[0] == model}
        counted = {results[key].row.configuration for key in listed if key[0] == model}
        rows = sorted(by_id.values(), key=lambda row: row.flops)
        dense = [row for row in rows if row.family == "fewer steps"]
        if not dense:
            continue
        for metric in tables.comparable(rows):
            gains = tables.gains(rows, metric)
            groups: dict[tuple[str, bool], list[Interval | None]] = {}
            for row in rows:
                if row.configuration in counted and row not in dense:
                    few = row.flops < FEW_FLOPS * dense[-1].flops
                    groups.setdefault((row.family, few), []).append(gains.get(row.configuration))
            for (by, few), own in sorted(groups.items(), key=lambda group: (ORDER.index(group[0][0]), group[0][1])):
                table.append(_line(f"{name} ({model})", by, few, metric, own, claim(model, by, metric.key, few)))
    return table


def _line(name: str, by: str, few: bool, metric: Metric, gains: Sequence[Interval | None], paper: str) -> list[str]:
    """Under HEADER, of one kind of plans; None is a gain that could not be had."""
    own = [gain for gain in gains if gain]
    better, worse = tables.clear(own, metric)
    here = tables.called(own, metric) if own else NOT_COMPARED
    compared = str(len(own)) if len(own) == len(gains) else f"{len(own)} of {len(gains)}"
    saved = f"{'over' if few else 'up to'} {1 - FEW_FLOPS:.0%}"
    return [name, by, metric.title, saved, compared, str(better), str(worse), here, paper, agrees(here, paper)]


def agrees(here: str, paper: str) -> str:
    """Of verdicts: yes, no, or open; – where one says nothing. Plans that cannot be told apart may be comparable, or
    too few were drawn."""
    if paper == SILENT or here in (NOT_COMPARED, tables.TOO_FEW):
        return "–"
    if paper == "comparable":
        return {tables.OPEN: "not contradicted", tables.CHEAPER: "better"}.get(here, "no")
    return "open" if here == tables.OPEN else "yes" if paper.startswith(here) else "no"


def answer(lines: Sequence[Sequence[str]]) -> Answer:
    """What `lines` come to, as a page begins with it."""
    here = [line[HEADER.index("here")] for line in lines]
    counts = {word: here.count(word) for word in (tables.CHEAPER, tables.FEWER, tables.OPEN, tables.TOO_FEW)}
    phrases = [f"{word} win in {counts[word]}" for word in (tables.CHEAPER, tables.FEWER)]
    phrases += [f"{counts[word]} {say}" for word, say in SAID.items() if counts[word]]
    compared = sum(counts.values())
    what = f"Of {compared} comparisons with fewer steps at equal FLOPs, {', '.join(phrases)}."
    own = [line[HEADER.index("agrees")] for line in lines]
    beside = f"Beside what the paper finds, {own.count('yes') + own.count('better')} agree, {own.count('no')} do not."
    if compared and counts[tables.TOO_FEW] == compared:
        return Answer("Too few images to say", "few", (what, beside))
    cheaper, fewer = counts[tables.CHEAPER], counts[tables.FEWER]
    if cheaper and fewer:
        return Answer("It depends: on the model, the method and the metric", "open", (what, beside))
    if cheaper or fewer:
        word = tables.CHEAPER if cheaper else tables.FEWER
        return Answer(
            f"{word.capitalize()} win in {cheaper or fewer} of {compared} comparisons", "clear", (what, beside)
        )
    return Answer("Not resolved: neither wins clearly", "open", (what, beside))
