"""Exhibits from declared runs to files: which configurations they share, what those cost and take, what is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from pipelines import exhibits, figures, generate, latency, paper, plots, report, tables
from pipelines.evaluation import Point, Protocol
from pipelines.exhibits import Exhibit, Run
from pipelines.latency import Latency
from pipelines.store import Store
from postdiff import costs
from postdiff.backbones import resolve
from postdiff.families import adapt

Key = tuple[str, str]  # the paper's model, plan id


@dataclass(frozen=True)
class Price:
    """Of one image. there: MACs by the paper's rule of the paper's model, None for a plan that was searched on another;
    macs, flops: of the model that runs."""

    there: int | None
    macs: int
    flops: int


def distinct(chosen: Sequence[Exhibit]) -> dict[Key, Run]:
    return {(run.model, run.plan.id): run for exhibit in chosen for run in exhibit.runs}


def count_costs(runs: dict[Key, Run], names: dict[str, str]) -> dict[Key, Price]:
    """What every run costs."""
    found: dict[Key, Price] = {}
    for model, name in names.items():
        keys = [key for key in runs if key[0] == model]
        plans = [runs[key].plan for key in keys]
        prices = costs(plans, resolve(name))
        shared = [key for key in keys if name == model or not runs[key].searched]
        theirs = costs([runs[key].plan for key in shared], resolve(model.removesuffix(exhibits.TUNED)))
        there = {key: price.macs_paper for key, price in zip(shared, theirs, strict=True)}
        found |= {
            key: Price(there.get(key), price.macs_paper, price.flops) for key, price in zip(keys, prices, strict=True)
        }
    return found


def points_of(options, runs: dict[Key, Run], prices: dict[Key, Price], names: dict[str, str]) -> list[Point]:
    shared = options.guidance, options.solver, options.batch_size, options.dtype
    plans = {model: next(run.plan for run in runs.values() if run.model == model) for model in names}
    # The checkpoint's fingerprint is read once.
    first = {model: generate.configure(name, plans[model], *shared) for model, name in names.items()}
    points = []
    for key, run in runs.items():
        of = first[run.model]
        configuration = replace(of, plan=adapt(run.plan, resolve(of.backbone).family))
        points.append(Point(run.plan.name, run.label, configuration, prices[key].macs, prices[key].flops))
    return points


def time_plans(store: Store, chosen: Sequence[Exhibit], names: dict[str, str], rounds: int) -> dict[Key, Latency]:
    """Latencies of the timed exhibits' runs, each model's beside that model as it is."""
    timed = [exhibit for exhibit in chosen if exhibit.timed]
    found: dict[Key, Latency] = {}
    for model, name in names.items():
        plans = {run.plan.id: run.plan for run in distinct(timed).values() if run.model == model}
        if plans:
            first = next(exhibit for exhibit in timed if model in exhibit.models).reference(model).plan
            among = list({first.id: first, **plans}.values())
            times = latency.kept(store, name, among, rounds)
            found |= {(model, plan.id): took for plan, took in zip(among, times, strict=True)}
    return found


def answers(results: paper.Results, names: dict[str, str]) -> list[str]:
    """The paper's question, answered for each model from all that was run on it (the methods that it compares with left
    out), and whether that is the paper's answer: cheaper steps are "often more effective" for FID (sec. 1)."""
    found = []
    for model, name in names.items():
        rows = {of.row.configuration: of.row for (m, _), of in results.items() if m == model}
        own = [row for row in rows.values() if row.family != "others"]
        if not all(row.fid for row in own):
            continue
        gains = tables.gains(own, "fid").values()
        better, worse = tables.clear(gains, "fid")
        if gains:
            verdict = "as the paper finds" if better > worse else "against the paper" if worse > better else "undecided"
            found.append(f"{tables.answer(own, f'{name} (for {model})')} On FID: {verdict}.")
    return found


def write(
    store: Store,
    exhibit: Exhibit,
    results: paper.Results,
    names: dict[str, str],
    protocol: Protocol,
    configurations: figures.Configurations,
) -> tuple[str, str]:
    """Write the files of one exhibit; returns it as HTML and as Markdown."""
    table = paper.table(exhibit, results)
    title = f"{exhibit.key.replace('table', 'Table ').replace('fig', 'Figure ')}. {exhibit.title}"
    notes = [*table.footnotes, *([exhibit.note] if exhibit.note else [])]
    base = f"exhibits/{exhibit.key}"
    body = f"<h2>{escape(title)}</h2>\n"
    if exhibit.kind != "table":
        drawn = figures.draw(store, exhibit, results, names, protocol, configurations)
        notes += [drawn.note] if drawn.note else []
        svg = plots.as_svg(drawn.figure)
        store.put(f"{base}.svg", svg.encode())
        store.put(f"{base}.png", plots.as_png(drawn.figure))
        if drawn.numbers:
            store.put(f"{base}.points.csv", drawn.numbers.encode())
        body += f'<div class="plots"><div>{svg}</div></div>\n'
    listed = "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1))
    markdown = f"{tables.markdown(table.header, table.lines)}\n{listed}\n{table.clear}\n"
    store.put(f"{base}.md", markdown.encode())
    store.put(f"{base}.csv", paper.to_csv(exhibit, results, protocol.facts()["protocol"]).encode())
    store.put(f"{base}.tex", paper.to_latex(title, table.header, table.lines, notes).encode())
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    whole = f"{report.table(table.header, table.lines)}\n<ol>{items}</ol>"
    folded = f"<details><summary>{len(exhibit.runs)} points</summary>{whole}</details>"
    html = f"{body}{whole if exhibit.kind == 'table' else folded}\n<p>{escape(table.clear)}</p>"
    return html, markdown
