"""The files of an exhibit, and its part of the page: tables, figures, the claims, the numbers of the prose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.data.prompts import DRAWN
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.paper import claims, exhibit_text, figures, prose, replication, significance
from pipelines.paper.claims import Judged, Rows
from pipelines.paper.datasets import DATASETS, Options
from pipelines.paper.exhibit import Exhibit
from pipelines.report import document, latex, tables
from pipelines.report.real_images import Real


def write(
    store: Store,
    exhibit: Exhibit,
    results: exhibit_text.Results,
    names: dict[str, str],
    protocol: Protocol,
    configurations: figures.Configurations,
    real: Real | None = None,
) -> tuple[str, str]:
    """Write the files of one exhibit; returns it as HTML and as Markdown. real: scores of the prompts' real images."""
    from pipelines.report import plots  # with matplotlib, which a job that refuses does not need

    table = exhibit_text.table(exhibit, results, real)
    protocol_name = protocol.facts()["protocol"]
    notes = [*table.footnotes, *([exhibit.note] if exhibit.note else []), *stand_in(exhibit, protocol)]
    notes.append(f"n = {len(protocol.prompts)}, protocol {protocol_name}")
    base = f"exhibits/{exhibit.key}"
    picture: list[str] = []
    drawn = figures.draw(store, exhibit, results, names, protocol, configurations)
    if drawn:
        notes += [drawn.note] if drawn.note else []
        svg = plots.as_svg(drawn.figure, exhibit.title)
        store.put(f"{base}.svg", svg.encode())
        store.put(f"{base}.png", plots.as_png(drawn.figure))
        if drawn.numbers:
            store.put(f"{base}.points.csv", drawn.numbers.encode())
        picture = [document.gallery(images, f"{title}.", beside(exhibit)) for title, images in drawn.galleries]
        picture = picture or [document.figure(svg, f"{title_of(exhibit)}, drawn from this run.")]
    significant = significance.sentences(exhibit, results)
    listed = "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1))
    markdown = f"{tables.markdown(table.header, table.lines)}\n{listed}\n{significant}\n"
    store.put(f"{base}.md", markdown.encode())
    store.put(f"{base}.csv", exhibit_text.to_csv(exhibit, results, protocol_name, real).encode())
    named = f"{exhibit.key}.png" if drawn else ""
    store.put(f"{base}.tex", latex.to_latex(exhibit.title, table.header, table.lines, notes, named).encode())
    caption = f"{title_of(exhibit)}: measured here, beside what the paper printed"
    whole = [document.table(table.header, table.lines, caption=caption), document.notes(notes)]
    points = "1 point" if len(exhibit.cells) == 1 else f"{len(exhibit.cells)} points"
    whole = whole if exhibit.is_table else [document.folded(points, *whole)]
    files = document.files([f"{beside(exhibit)}{base}.{kind}" for kind in ("csv", "md", "tex")])
    return document.section(exhibit.key, title_of(exhibit), *picture, *whole, significant, files), markdown


def title_of(exhibit: Exhibit) -> str:
    """Its heading, as `Table 2. ...`."""
    number = exhibit.key.replace("table", "Table ").replace("fig", "Figure ")
    return exhibit.title if number == exhibit.key else f"{number}. {exhibit.title}"


def beside(exhibit: Exhibit) -> str:
    """The folder of an exhibit's store from the report's: a data set of its own has one below."""
    return "" if exhibit.dataset == next(iter(DATASETS)) else f"{exhibit.dataset}/"


def stand_in(exhibit: Exhibit, protocol: Protocol) -> list[str]:
    """What a drawn data set cannot play of the paper's."""
    note = DATASETS[exhibit.dataset].on_drawn
    return [note] if note and protocol.source in DRAWN else []


def write_prose(
    store: Store, exhibit: Exhibit, results: exhibit_text.Results, names: dict[str, str], protocol: Protocol
) -> tuple[str, str]:
    """As `write`, of the numbers of the paper's sentences."""
    lines = prose.lines(exhibit.numbers, results, names)
    protocol_name = protocol.facts()["protocol"]
    note = f"{prose.LEGEND} n = {len(protocol.prompts)}, protocol {protocol_name}."
    markdown = f"{tables.markdown(prose.HEADER, lines, prose.TEXT_COLUMNS)}\n{note}\n"
    store.put(f"exhibits/{exhibit.key}.md", markdown.encode())
    columns = {name: [line[i] for line in lines] for i, name in enumerate(prose.HEADER)}
    columns["protocol"] = [protocol_name] * len(lines)
    store.put(f"exhibits/{exhibit.key}.csv", tables.csv_of(columns).encode())
    table = document.table(prose.HEADER, lines, text_columns=prose.TEXT_COLUMNS, caption=exhibit.title)
    files = document.files([f"{beside(exhibit)}exhibits/{exhibit.key}.{kind}" for kind in ("csv", "md")])
    return document.section(exhibit.key, exhibit.title, table, note, files), markdown


def write_claims(
    store: Store,
    judged: list[Judged],
    rows: Rows,
    names: dict[str, str],
    protocol: Protocol,
    options: Options,
    looks: Sequence[int] = (),
    missing: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """As `write`, of the claims as they were `judged`. rows: of their plans, with the prompts of the protocol. options:
    of the run: its draw, and the claims.csv of a first run, which these are held against. looks: prompts at each, where
    there were several. missing: what later looks could not make."""
    lines, protocol_name = claims.lines(judged, names), protocol.facts()["protocol"]
    again = f"python jobs/reproduce.py claims{f' --draw {options.draw}' if options.draw else ''}"
    lost = "".join(f" {look}: {why}." for look, why in (missing or {}).items())
    note = f"{claims.legend(looks)}{claims.agreement(rows)}{lost} Draw {options.draw}, protocol {protocol_name}"
    note += f"; again: {again}."
    table = tables.markdown(claims.HEADER, lines, claims.TEXT_COLUMNS)
    markdown = f"{claims.answer(judged)}\n\n{table}\n{note}\n"
    store.put("exhibits/claims.md", markdown.encode())
    store.put("exhibits/claims.csv", claims.to_csv(judged, names, protocol_name, options.draw, looks).encode())
    title = "What the paper says, claim by claim"
    html = document.section(
        "claims",
        title,
        document.table(claims.HEADER, lines, text_columns=claims.TEXT_COLUMNS, caption=f"{title}, and what came of it"),
        document.folded("How to read the table", note),
        document.files(["exhibits/claims.csv", "exhibits/claims.md"]),
    )
    if options.against:
        first = replication.read(options.against, names)
        compared = replication.lines(first, judged, names)
        text = replication.markdown(compared, first, protocol_name)
        store.put("exhibits/claims-replication.md", text.encode())
        store.put("exhibits/claims-replication.csv", replication.to_csv(compared, first, protocol_name).encode())
        title = "The claims, in a second run"
        table = document.table(replication.HEADER, compared, text_columns=replication.TEXT_COLUMNS, caption=title)
        html += document.section("replication", title, replication.answer(compared, first, protocol_name), table)
        markdown += f"\n{text}"
    return html, markdown
