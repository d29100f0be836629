"""Exhibits from declared runs to files: which configurations they share, what those cost and take, what is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

import postdiff
from pipelines import command_line, evaluation
from pipelines.engine.store import Store
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics.metric import METRICS
from pipelines.paper import claims, datasets, exhibit_text, exhibits, figures, significance, verdict
from pipelines.paper.datasets import Options
from pipelines.paper.exhibit import Cell, Exhibit, before
from pipelines.report import document, latex, plots, tables, tracking
from pipelines.report.answers import Answer
from pipelines.stages import latency, worker
from pipelines.stages.generation import Configuration
from pipelines.stages.latency import Latency
from postdiff.models.checkpoints import resolve

if TYPE_CHECKING:
    from postdiff.pricing import Cost

QUESTION = "Fewer denoising steps, or cheaper steps?"
Key = tuple[str, str]  # the paper's model, plan id


@dataclass(frozen=True)
class Price:
    """Of one image. there: of the paper's model, None for a plan that was searched on another; here: of the model that
    runs."""

    there: Cost | None
    here: Cost


def distinct(chosen: Sequence[Exhibit]) -> dict[Key, Cell]:
    return {cell.key: cell for exhibit in chosen for cell in exhibit.cells}


def count_costs(cells: dict[Key, Cell], names: dict[str, str]) -> dict[Key, Price]:
    """What every run costs."""
    found: dict[Key, Price] = {}
    for model, name in names.items():
        keys = [key for key in cells if key[0] == model]
        plans = [cells[key].plan for key in keys]
        prices = postdiff.costs(plans, resolve(name))
        shared = [key for key in keys if name == model or not cells[key].searched]
        first = before(model)
        theirs = prices if name == first else postdiff.costs([cells[key].plan for key in shared], resolve(first))
        there = dict(zip(shared, theirs, strict=True))
        found |= {key: Price(there.get(key), price) for key, price in zip(keys, prices, strict=True)}
    return found


def entries_of(
    options: Options, cells: dict[Key, Cell], prices: dict[Key, Price], names: dict[str, str]
) -> list[Entry]:
    """Each run as a configuration under a job's `options`, in order. names: the paper's model -> the one that runs."""
    return [
        Entry(cell.plan.name, cell.label, evaluation.configure(options, names[cell.model], cell.plan),
              prices[key].here.macs_paper, prices[key].here.flops)
        for key, cell in cells.items()
    ]  # fmt: skip


def time_plans(
    store: Store, chosen: Sequence[Exhibit], names: dict[str, str], options: Options, gpu: bool
) -> dict[Key, Latency]:
    """Latencies of the timed exhibits' runs, each model's beside that model as it is."""
    timed = [exhibit for exhibit in chosen if exhibit.timed]
    found: dict[Key, Latency] = {}
    for model, name in names.items():
        plans = {cell.plan.id: cell.plan for cell in distinct(timed).values() if cell.model == model}
        if plans:
            first = next(exhibit for exhibit in timed if model in exhibit.models).reference(model).plan
            among = list({first.id: first, **plans}.values())
            of = [evaluation.configure(options, name, plan) for plan in among]
            times = latency.kept(store, of, options.rounds, gpu)
            found |= {(model, plan.id): took for plan, took in zip(among, times, strict=True)}
    return found


def write(
    store: Store,
    exhibit: Exhibit,
    results: exhibit_text.Results,
    names: dict[str, str],
    protocol: Protocol,
    configurations: figures.Configurations,
) -> tuple[str, str]:
    """Write the files of one exhibit; returns it as HTML and as Markdown."""
    if exhibit.claims:
        return write_claims(store, results, names, protocol)
    table = exhibit_text.table(exhibit, results)
    of = protocol.facts()["protocol"]
    notes = [*table.footnotes, *([exhibit.note] if exhibit.note else []), f"n = {len(protocol.prompts)}, protocol {of}"]
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
    told = significance.sentences(exhibit, results)
    listed = "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1))
    markdown = f"{tables.markdown(table.header, table.lines)}\n{listed}\n{told}\n"
    store.put(f"{base}.md", markdown.encode())
    store.put(f"{base}.csv", exhibit_text.to_csv(exhibit, results, of).encode())
    named = f"{exhibit.key}.png" if drawn else ""
    store.put(f"{base}.tex", latex.to_latex(exhibit.title, table.header, table.lines, notes, named).encode())
    caption = f"{title_of(exhibit)}: measured here, beside what the paper printed"
    whole = [document.table(table.header, table.lines, caption=caption), document.notes(notes)]
    whole = whole if exhibit.is_table else [document.folded(f"{len(exhibit.cells)} points", *whole)]
    files = document.files([f"{beside(exhibit)}{base}.{kind}" for kind in ("csv", "md", "tex")])
    return document.section(exhibit.key, title_of(exhibit), *picture, *whole, told, files), markdown


def title_of(exhibit: Exhibit) -> str:
    """Its heading, as `Table 2. ...`."""
    number = exhibit.key.replace("table", "Table ").replace("fig", "Figure ")
    return exhibit.title if exhibit.claims else f"{number}. {exhibit.title}"


def beside(exhibit: Exhibit) -> str:
    """The folder of an exhibit's store from the report's: a data set of its own has one below."""
    return "" if exhibit.dataset == next(iter(datasets.DATASETS)) else f"{exhibit.dataset}/"


def write_claims(
    store: Store, results: exhibit_text.Results, names: dict[str, str], protocol: Protocol
) -> tuple[str, str]:
    """As `write`, of the claims."""
    rows = {key: measured.row for key, measured in results.items()}
    judged = claims.judge(rows)
    lines, of = claims.lines(judged, names), protocol.facts()["protocol"]
    note = f"{claims.LEGEND}{claims.agreement(rows)} Protocol {of}; again: python jobs/reproduce.py claims."
    table = tables.markdown(claims.HEADER, lines, claims.TEXT_COLUMNS)
    markdown = f"{claims.answer(judged)}\n\n{table}\n{note}\n"
    store.put("exhibits/claims.md", markdown.encode())
    store.put("exhibits/claims.csv", claims.to_csv(judged, names, of).encode())
    title = "What the paper says, claim by claim"
    html = document.section(
        "claims",
        title,
        document.table(claims.HEADER, lines, text_columns=claims.TEXT_COLUMNS, caption=f"{title}, and what came of it"),
        document.folded("How to read the table", note),
        document.files(["exhibits/claims.csv", "exhibits/claims.md"]),
    )
    return html, markdown


def make(
    options: Options,
    group: list[Exhibit],
    names: dict[str, str],
    store: Store,
    protocol: Protocol,
    times: dict[Key, Latency],
) -> tuple[list[tuple[Exhibit, str, str]], dict[str, str], list[list[str]]]:
    """All exhibits of one data set: (exhibit, its HTML, its Markdown) each, the facts that the report tells, and the
    answer to the paper's question, lines of a table."""
    names = {model: name for model, name in names.items() if any(model in exhibit.models for exhibit in group)}
    cells = distinct(group)
    prices = count_costs(cells, names)
    entries = entries_of(options, cells, prices, names)
    resources = evaluation.connect(options, list(names.values()))
    evaluated = evaluation.evaluate(store, entries, protocol, resources)
    there = {key: row for key, row in zip(cells, evaluated.rows, strict=True) if row}
    whole = [exhibit for exhibit in group if exhibit.claims or all(cell.key in there for cell in exhibit.cells)]
    configurations = {key: entry.configuration for key, entry in zip(cells, entries, strict=True)}
    tasks = {task.name: task for exhibit in whole for task in figures.tasks(exhibit, configurations, protocol)}
    units = [task.unit for task in tasks.values()]
    worker.run_all(units, store, resources, "steps")
    results = {key: exhibit_text.Measured(row, prices[key].there, times.get(key)) for key, row in there.items()}
    made = [(exhibit, *write(store, exhibit, results, names, protocol, configurations)) for exhibit in whole]
    models = [next(p.configuration for p in entries if p.configuration.backbone == name) for name in names.values()]
    facts = {
        "models": "; ".join(f"{model}: {describe(of)}" for model, of in zip(names, models, strict=True)),
        "sampling": f"batches of {options.batch_size}, {entries[0].configuration.dtype}",
        **protocol.facts(),
        **evaluated.facts,
        "runs": f"{sum(len(e.cells) for e in group)} cells, "
        f"{len({entry.configuration.id for entry in entries})} different runs",
    }
    specs = {p.configuration.id: json.loads(json.dumps(asdict(p.configuration))) for p in entries}
    once = list({row.configuration: row for row in there.values()}.values())
    tracking.log(store, f"paper-{options.models}", protocol.facts(), once, specs, {})
    return made, facts, verdict.lines(results, names, whole)


def describe(of: Configuration) -> str:
    return f"{of.backbone} (weights {of.weights}), {of.size} px, solver {of.solver}, guidance {of.guidance}"


def warn_of_few(images: dict[str, int]) -> list[str]:
    """A warning for each data set that has fewer images than FID is judged from."""
    least = tables.fewest(METRICS["fid"])
    return [
        f"Only {n} images a plan ({dataset}'s role): FID is judged from {least} on, and intervals of few are wide."
        for dataset, n in images.items()
        if n < least
    ]


def answer_of(sections: list[tuple[Exhibit, str, str]], answers: list[list[str]], warnings: Sequence[str]) -> Answer:
    """What the page begins with: how the claims fared, or else the paper's question."""
    question = verdict.answer(answers) if answers else None
    if sections and sections[0][0].claims:
        counted = sections[0][2].partition("\n")[0]
        called = "Some claims are contradicted" if "contradict it" in counted else "No claim is contradicted"
        also = [f"{QUESTION} {question.sentences[0]}"] if question else []
        return Answer(called, "open", (counted, *also), tuple(warnings))
    if question:
        return replace(question, warnings=tuple(warnings))
    return Answer(f"{len(sections)} exhibits", "open", ("Each beside what the paper printed.",), tuple(warnings))


def publish(
    store: Store,
    options: Options,
    sections: list[tuple[Exhibit, str, str]],
    answers: list[list[str]],
    facts: dict[str, str],
    warnings: Sequence[str] = (),
) -> None:
    """Write the report, and print it. warnings: what the page begins with, beside its answer."""
    sections = sorted(sections, key=lambda of: list(exhibits.EXHIBITS).index(of[0].key))
    legend = exhibit_text.LEGEND + (exhibit_text.MINI_LEGEND if options.mini else "")
    parts = [(exhibit.key, title_of(exhibit), Markup(html)) for exhibit, html, _ in sections]
    if answers:
        table = document.table(verdict.HEADER, answers, text_columns=4, caption="The paper's question, model by model")
        question = document.section("question", QUESTION, table, document.folded("How to read it", verdict.LEGEND))
        parts.insert(1 if sections and sections[0][0].claims else 0, ("question", QUESTION, question))
        store.put("answer.md", f"{tables.markdown(verdict.HEADER, answers)}\n{verdict.LEGEND}\n".encode())
    parts.append(("legend", "How to read the exhibits", document.section("legend", "How to read the exhibits", legend)))
    page = document.page(
        "postdiff: the paper, reproduced",
        answer_of(sections, answers, warnings),
        Markup("\n").join(html for *_, html in parts),
        facts,
        links=("answer.md",) if answers else (),
        contents=[(key, title) for key, title, _ in parts] if len(sections) > 1 else (),
        command=command_line.again("jobs/reproduce.py", options),
    )
    store.put("report.html", page.encode())
    for exhibit, _, markdown in sections:
        print(f"\n{exhibit.key}: {exhibit.title}\n{markdown}")
    if answers:
        print(f"\n{tables.markdown(verdict.HEADER, answers)}\n{verdict.LEGEND}")
    print(f"report: {store.shown}/report.html")
