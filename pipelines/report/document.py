"""Pages: one HTML file each that fetches nothing, from the templates, the style sheet and the script of page/.

Whatever is handed to a template is text and is escaped, prompts and names above all; what is HTML already is `Markup`.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipelines.engine.provenance import commit as commit
from pipelines.metrics.intervals import LEVEL, PAIRED, Interval, together
from pipelines.metrics.metric import Metric
from pipelines.report import chart, real_images, tables
from pipelines.report.answers import Answer
from pipelines.report.pictures import Gallery
from pipelines.report.pictures import examples as examples
from pipelines.report.real_images import Real
from pipelines.report.tables import Row

if TYPE_CHECKING:
    import jinja2

FOLDER = Path(__file__).with_name("page")


@cache
def _templates() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,  # a name that is mistyped in a template is an error, and not blank
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _part(name: str, *values) -> Markup:
    """A part of a page: the macro `name` of parts.html."""
    return Markup(getattr(_templates().get_template("parts.html").module, name)(*values))


def table(
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    marked: Sequence[bool] | None = None,
    text_columns: int = 1,
    caption: str = "A table; click a heading to sort",
) -> Markup:
    """marked: which lines are bold. text_columns: how many are sentences, to the left; the others hold numbers."""
    return _part("table", header, lines, marked, text_columns, caption, None, None)


def gallery(
    shown: Gallery, caption: str = "The first images: a column a prompt, with the same noise down it.", base: str = ""
) -> Markup:
    """base: the folder of the images' store from the page, "" where that is beside it."""
    return _part("gallery", shown, caption, base)


def figure(svg: str, caption: str) -> Markup:
    """svg: of `plots.as_svg`."""
    return _part("figure", Markup(svg), caption)


def files(names: Sequence[str]) -> Markup:
    """Links to files beside the page."""
    return _part("files", names)


def folded(summary: str, *parts: str) -> Markup:
    """Parts that are seen on a click."""
    return Markup("<details><summary>{}</summary>{}</details>\n").format(summary, _together(parts))


def notes(texts: Sequence[str]) -> Markup:
    """A numbered list."""
    return Markup("<ol>{}</ol>").format(Markup("").join(Markup("<li>{}</li>").format(text) for text in texts))


def _together(parts: Sequence[str]) -> Markup:
    """Markup as it is, and text as a paragraph."""
    return Markup("\n").join(
        part if isinstance(part, Markup) else Markup("<p>{}</p>").format(part) for part in parts if part
    )


def section(anchor: str, title: str, *parts: str) -> Markup:
    """A part of a page with a heading, which `contents` of a page leads to. parts: Markup, or text as paragraphs."""
    return Markup(
        '<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>\n{2}\n</section>\n'
    ).format(anchor, title, _together(parts))


def page(
    title: str,
    answer: Answer,
    body: str,
    facts: Mapping[str, str],
    links: Sequence[str] = (),
    contents: Sequence[tuple[str, str]] = (),
    command: str = "",
) -> str:
    """One HTML file. body: Markup; all others are text.

    Args:
        facts: protocol, machine, commit, and the like.
        links: names of files beside the page.
        contents: (anchor, title) of the sections that a table of contents lists.
        command: what makes it again.
    """
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    now = datetime.datetime.now(datetime.UTC)
    return _templates().get_template("page.html").render(
        title=title, answer=answer, body=body, facts=facts, links=links, contents=contents, command=command,
        css=Markup(style), script=Markup(script), date=f"{now:%d %B %Y, %H:%M} UTC",
    )  # fmt: skip


def sweep_body(rows: Sequence[Row], shown: Gallery, real: Real | None = None) -> Markup:
    """What a sweep's page shows: fronts whose points can be chosen, the table of configurations, images. real: scores
    of real images, the table's last line."""
    metrics = tables.comparable(rows)
    fronts = {row.configuration for metric in metrics for row in tables.front(rows, metric)}
    lines = tables.cells(rows)
    titles = " or of ".join(metric.title for metric in tables.columns(rows))
    families = [chart.family(row) for row in rows]
    legend = [
        "Cost is the denoiser's, for one image. GFLOPs count everything (2 x MAC, attention included); GMACs "
        f"follow the paper's rule, without attention products. {LEVEL} Bold: on the front of {titles}.",
        f"Gain: over fewer steps at the same FLOPs (linear between the two nearest), {PAIRED}. "
        f"{tables.directions(tables.columns(rows))}",
        tables.words(lines),
        real_images.MEANING if real else "",
    ]
    beside = real_images.cells(rows, real)
    return Markup(
        _templates()
        .get_template("sweep.html")
        .render(
            more=tables.more_steps(rows),
            whole=_whole(rows).label,
            charts=[chart.of_metric(rows, metric) for metric in metrics],
            names={metric.key: metric.title for metric in metrics},
            methods=[
                (number, name, families.count(number))
                for number, name in enumerate(tables.FAMILIES)
                if number in families
            ],
            gallery=shown,
            header=tables.header(rows),
            lines=[*lines, *beside],
            bold=[*(row.configuration in fronts for row in rows), *(False for _ in beside)],
            ids=[*(row.configuration for row in rows), *("" for _ in beside)],
            families=[*families, *(-1 for _ in beside)],
            legend=[line for line in legend if line],
            plans=_plans(rows, fronts),
        )
    )


def _plans(rows: Sequence[Row], fronts: set[str]) -> dict:
    """What the page tells of a plan that is chosen: {start: id, rows: {id: {label, cost, scores, beside}}}."""
    whole = _whole(rows)
    metrics = tables.comparable(rows)
    gains = {metric: tables.gains(rows, metric) for metric in metrics}
    changes = {metric: _changes(rows, whole, metric) for metric in metrics}
    plans = {}
    for row in rows:
        share = f"{row.flops / whole.flops:.0%} of {whole.label}"
        cost = f"{row.flops / 1e9:.4g} GFLOPs, {share}; {row.seconds:.3f} s an image"
        scores = []
        for metric in metrics:
            gain, change = gains[metric].get(row.configuration), changes[metric].get(row.configuration)
            scores.append([
                metric.title,
                metric.text(row.interval(metric)),
                metric.text(gain, "+") if gain else tables.why_no_gain(row, metric),
                metric.text(change, "+") if change else "itself" if row is whole else tables.REDRAWN,
            ])  # fmt: skip
        rival = _rival(row, rows)
        beside = [[whole.configuration, f"{whole.label} (as it is)"]] if row is not whole else []
        if rival and rival is not whole:
            near = f"nearest in cost, {rival.flops / row.flops:.0%} of its FLOPs"
            beside.append([rival.configuration, f"{rival.label} ({near})"])
        plans[row.configuration] = {"label": row.label, "cost": cost, "scores": scores, "beside": beside}
    first = [row for row in rows if row.configuration in fronts and row.method != "dense"]
    rivalled = [row for row in first if any(row.configuration in own for own in gains.values())]
    return {"start": (rivalled or first or [*rows])[-1].configuration, "rows": plans}


def _whole(rows: Sequence[Row]) -> Row:
    """The model as it is, at the most steps that were run."""
    dense = [row for row in rows if row.method == "dense"]
    return max(dense or rows, key=lambda row: row.flops)


def _changes(rows: Sequence[Row], whole: Row, metric: Metric) -> dict[str, Interval]:
    """Paired differences from the row `whole`, with intervals that hold together."""
    others = [row for row in rows if row is not whole and tables.judges(metric, row)]
    moved = [metric.difference(row.interval(metric), [(1.0, whole.interval(metric))]) for row in others]
    return dict(zip((row.configuration for row in others), together(moved), strict=True))


def _rival(row: Row, rows: Sequence[Row]) -> Row | None:
    """The plan of nearest cost on the other side of the question: of fewer steps for cheaper steps, and for fewer steps
    of cheaper steps."""
    others = [other for other in rows if (other.method == "dense") != (row.method == "dense")]
    return min(others, key=lambda other: abs(other.flops - row.flops), default=None)
