"""The row of real images below sweeps, comparisons and exhibits: what a model that draws as the world is would score.

It is no plan. It has no cost, is on no front, no baseline of any gain and in no answer; it says how far the best row is
from what can be reached, by these judges and with so many images.
"""

from collections.abc import Mapping, Sequence

from pipelines.metrics.intervals import Interval, column_names
from pipelines.metrics.metric import METRICS, Metric
from pipelines.report import tables
from pipelines.report.tables import Row

Real = Mapping[str, Interval]  # {key of a metric: its score}, of those that can be measured
LABEL, NOT_DRAWN = "real images", "not drawn"
MEANING = (
    f"“{LABEL}” are the prompts' own, drawn by no model: what can be reached with so many images, on no front and no "
    f"baseline; “{NOT_DRAWN}”: a cost, a gain or a comparison with what a model drew, which they have not."
)


def text(real: Real, metric: Metric) -> str:
    """Its score as tables print it, or the word that stands for none."""
    return metric.text(real[metric.key]) if metric.key in real else NOT_DRAWN


def cells(rows: Sequence[Row], real: Real | None) -> list[list[str]]:
    """The line of real images under `tables.header(rows)`; none without them."""
    if not real:
        return []
    scores = [cell for metric in tables.columns(rows) for cell in (text(real, metric), NOT_DRAWN)]
    return [[LABEL, *[NOT_DRAWN] * (len(tables.header(rows)) - 1 - len(scores)), *scores]]


def to_markdown(rows: Sequence[Row], real: Real | None) -> str:
    """The table of configurations and real images."""
    return tables.markdown(tables.header(rows), [*tables.cells(rows), *cells(rows, real)])


def to_csv(rows: Sequence[Row], more: Mapping[str, Sequence[str]], real: Real | None) -> str:
    """`tables.csv_columns` as a csv, with a last line of real images."""
    columns = tables.csv_columns(rows, more)
    return tables.csv_of(with_line(columns, real, {metric.key: metric.column for metric in METRICS.values()}))


def with_line(columns: Mapping[str, Sequence], real: Real | None, names: Mapping[str, str]) -> Mapping[str, Sequence]:
    """Columns of a csv, {name: a cell a line}, with one line more, which is called LABEL under `method` or `label`.
    names: {key of a metric: its column}."""
    if not real:
        return columns
    own: dict[str, str] = {"method": LABEL, "label": LABEL, "n": str(max(score.n for score in real.values()))}
    for name in ("protocol", "exhibit"):
        if len(set(columns.get(name, ()))) == 1:
            own[name] = columns[name][0]
    for key, score in real.items():
        metric, column = METRICS[key], names[key]
        own |= {name: f"{value:.{metric.digits + 2}f}" for name, value in score.columns(column).items()}
        if metric.biased:
            free = metric.unbiased(score).columns(f"{metric.column}_infinity")
            own |= {name: f"{value:.{metric.digits + 2}f}" for name, value in free.items()}
    return {name: [*cells, own.get(name, "")] for name, cells in columns.items()}


def numbers(real: Real) -> dict[str, float]:
    """As a line of numbers, under the names of a run of W&B."""
    values: dict[str, float] = {"n": max(score.n for score in real.values())}
    for key, score in real.items():
        values |= dict(zip(column_names(METRICS[key].column), (score.value, score.low, score.high), strict=True))
    return values
