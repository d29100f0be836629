"""Exhibits from declared runs to files: which configurations they share, what those cost and take, what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

import postdiff
from pipelines import command_line, evaluation
from pipelines.engine.provenance import commit
from pipelines.engine.store import Store
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics.metric import METRICS
from pipelines.paper import exhibit_text, exhibits, figures, looks, verdict, writing
from pipelines.paper.datasets import Options
from pipelines.paper.exhibit import Cell, Exhibit, before
from pipelines.report import document, tables, tracking
from pipelines.report.answers import Answer
from pipelines.report.real_images import Real
from pipelines.report.runs import Logbook
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
    costs: dict[Key, Price] = {}
    for model, name in names.items():
        keys = [key for key in cells if key[0] == model]
        plans = [cells[key].plan for key in keys]
        prices = postdiff.costs(plans, resolve(name))
        shared = [key for key in keys if name == model or not cells[key].searched]
        first = before(model)
        theirs = prices if name == first else postdiff.costs([cells[key].plan for key in shared], resolve(first))
        papers = dict(zip(shared, theirs, strict=True))
        costs |= {key: Price(papers.get(key), price) for key, price in zip(keys, prices, strict=True)}
    return costs


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
    latencies: dict[Key, Latency] = {}
    for model, name in names.items():
        plans = {cell.plan.id: cell.plan for cell in distinct(timed).values() if cell.model == model}
        if plans:
            first = next(exhibit for exhibit in timed if model in exhibit.models).reference(model).plan
            among = list({first.id: first, **plans}.values())
            configurations = [evaluation.configure(options, name, plan) for plan in among]
            times = latency.measured_once(store, configurations, options.rounds, gpu)
            latencies |= {(model, plan.id): took for plan, took in zip(among, times, strict=True)}
    return latencies


def make(
    options: Options,
    group: list[Exhibit],
    names: dict[str, str],
    store: Store,
    protocol: Protocol,
    times: dict[Key, Latency],
    planned: looks.Looks,
) -> tuple[list[tuple[Exhibit, str, str]], dict[str, str], list[list[str]]]:
    """All exhibits of one data set: (exhibit, its HTML, its Markdown) each, the facts that the report tells, and the
    answer to the paper's question, lines of a table. planned: how often the claims are looked at."""
    names = {model: name for model, name in names.items() if any(model in exhibit.models for exhibit in group)}
    cells = distinct(group)
    prices = count_costs(cells, names)
    entries = entries_of(options, cells, prices, names)
    resources = evaluation.connect(options, list(names.values()))
    evaluated = evaluation.evaluate(store, entries, protocol, resources, real=True)
    rows = {key: row for key, row in zip(cells, evaluated.rows, strict=True) if row}
    whole = [exhibit for exhibit in group if exhibit.claims or all(cell.key in rows for cell in exhibit.cells)]
    configurations = {key: entry.configuration for key, entry in zip(cells, entries, strict=True)}
    tasks = {task.name: task for exhibit in whole for task in figures.tasks(exhibit, configurations, protocol)}
    units = [task.unit for task in tasks.values()]
    worker.run_all(units, store, resources, "steps")
    results = {key: exhibit_text.Measured(row, prices[key].there, times.get(key)) for key, row in rows.items()}
    made = []
    missing = dict(evaluated.facts)
    for exhibit in whole:
        if exhibit.claims:
            own = dict(zip(cells, entries, strict=True))
            judged, lost = looks.judge(planned, rows, own, store, resources)
            missing |= lost
            files = writing.write_claims(store, judged, rows, names, protocol, options, planned.sizes, lost)
        elif exhibit.numbers:
            files = writing.write_prose(store, exhibit, results, names, protocol)
        else:
            files = writing.write(store, exhibit, results, names, protocol, configurations, evaluated.real)
        made.append((exhibit, *files))
    models = [next(p.configuration for p in entries if p.configuration.backbone == name) for name in names.values()]
    facts = {
        "models": "; ".join(f"{model}: {describe(first)}" for model, first in zip(names, models, strict=True)),
        "sampling": f"batches of {options.batch_size}, {entries[0].configuration.arithmetic}",
        **protocol.facts(),
        **missing,
        "runs": f"{sum(len(e.cells) for e in group)} cells, "
        f"{len({entry.configuration.id for entry in entries})} different runs",
    }
    answers = verdict.lines(results, names, whole)
    mirror(options, store, protocol, made, results, configurations, answers, evaluated.real)
    return made, facts, answers


def mirror(
    options: Options,
    store: Store,
    protocol: Protocol,
    made: Sequence[tuple[Exhibit, str, str]],
    results: exhibit_text.Results,
    configurations: figures.Configurations,
    answers: list[list[str]],
    real: Real | None,
) -> None:
    """Mirror the exhibits of one data set to W&B: their runs, each once, their tables and their pictures."""
    from pipelines.engine import workers

    rows = {measured.row.configuration: measured for measured in results.values()}
    times = {id: asdict(one.latency) for id, one in rows.items() if one.latency}
    drawn = [exhibit.key for exhibit, _, _ in made if not exhibit.is_table and not exhibit.claims]
    question = [f"{tables.markdown(verdict.HEADER, answers)}\n{verdict.LEGEND}"] if answers else []
    named = (*(configuration.backbone for configuration in configurations.values()), *options.names)
    book = Logbook(
        sweep=f"paper-{options.models}",
        protocol=protocol.facts(),
        rows=[measured.row for measured in rows.values()],
        configurations={configuration.id: configuration for configuration in configurations.values()},
        measured={id: {f"latency_{name}": took[name] for name in exhibit_text.TIMES} for id, took in times.items()},
        about={"device": workers.machine(), "commit": commit()},
        answer="\n\n".join(question),
        exhibits=[(f"{exhibit.key}: {exhibit.title}", markdown) for exhibit, _, markdown in made],
        pictures={key: store.get(f"exhibits/{key}.png") for key in drawn if store.has(f"exhibits/{key}.png")},
        real=real,
        private=named,
    )
    tracking.log(store, book)


def describe(configuration: Configuration) -> str:
    model = f"{configuration.backbone} (weights {configuration.weights}), {configuration.size} px"
    return f"{model}, solver {configuration.solver}, guidance {configuration.guidance}"


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
    sections = sorted(sections, key=lambda section: list(exhibits.EXHIBITS).index(section[0].key))
    legend = exhibit_text.LEGEND + (exhibit_text.MINI_LEGEND.format(options.drawn.capitalize()) if options.mini else "")
    parts = [(exhibit.key, writing.title_of(exhibit), Markup(html)) for exhibit, html, _ in sections]
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
