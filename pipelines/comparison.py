"""The same plans, prompts and noise under two models or conditions: what differs, paired, and how sure that is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import postdiff
from pipelines import command_line
from pipelines.command_line import flag
from pipelines.engine.store import Store
from pipelines.evaluation import Entry, Evaluated, Protocol
from pipelines.metrics.intervals import LEVEL, PAIRED, Interval, together
from pipelines.metrics.metric import Metric, shown
from pipelines.options import Options as Evaluation
from pipelines.options import Out
from pipelines.report import real_images, tables
from pipelines.report.real_images import Real
from pipelines.report.tables import Row
from pipelines.stages import generation
from pipelines.sweeps import label
from postdiff import methods
from postdiff.arguments import shown_size
from postdiff.models.checkpoints import resolve
from postdiff.models.families import adapt
from postdiff.plan import SIZE_CONDITIONS, Plan

LEGEND = f"{LEVEL} Change: from the first variant under the same plan, {PAIRED}. “the first”: changes are from it."


@dataclass(frozen=True, kw_only=True)
class Options(Evaluation):
    """backbones: the others are compared with the first."""

    backbones: Annotated[
        tuple[str, ...], flag("names, folders, or ORG/REPOSITORY@COMMIT: others with the first", nargs="+")
    ]
    methods: Annotated[tuple[str, ...], flag("(postdiff methods)", nargs="+")] = (
        "dense", "mixed_resolution", "postdiff",
    )  # fmt: skip
    size_conditions: Annotated[bool, flag("compare target with current on one backbone")] = False
    out: Out = "out/compare"

    @property
    def evaluated(self) -> tuple[str, ...]:
        return self.backbones


@dataclass(frozen=True)
class Variant:
    name: str
    backbone: str
    size_condition: Literal["target", "current"] = "target"


@dataclass(frozen=True)
class Compared:
    """A row beside its plan's first one. change: {key of a metric: paired difference}, none for the first itself."""

    variant: str
    row: Row
    change: dict[str, Interval]


def variants(backbones: Sequence[str], size_conditions: bool) -> list[Variant]:
    """What is compared; the others with the first. Raises ValueError if not exactly one thing varies."""
    backbones = list(dict.fromkeys(backbones))
    if (len(backbones) > 1) == size_conditions:
        raise ValueError("expected two or more --backbones, or one and --size-conditions, to compare")
    if size_conditions:
        return [Variant(condition, backbones[0], condition) for condition in SIZE_CONDITIONS]
    names = [Path(backbone).name for backbone in backbones]
    return [
        Variant(name if names.count(name) == 1 else backbone, backbone)
        for name, backbone in zip(names, backbones, strict=True)
    ]


def plans(names: Sequence[str], settings: dict) -> list[tuple[str, str, Plan]]:
    """(method, settings, plan) of each method at `settings`; two names of one computation become one."""
    unique: dict[str, tuple[str, str, Plan]] = {}
    for name in names:
        taken = methods.settings_for(name, settings)
        plan = methods.METHODS[name](**taken)
        text = label(len(plan), taken.get("s"), taken.get("k", 1), taken.get("m"))
        unique.setdefault(plan.id, (name, text, plan))
    return list(unique.values())


def plan_entries(options: Options, among: list[Variant]) -> list[list[Entry]]:
    """For each plan, one entry a variant. Raises ValueError if two of them are the same."""
    spec = resolve(among[0].backbone)
    listed = plans(options.methods, spec.settings)
    if among[0].backbone == among[1].backbone:  # of a plan at one size nothing is told
        listed = [entry for entry in listed if entry[2].switches]
    if not listed:
        raise ValueError(
            "expected a method that switches resolution (mixed_resolution, postdiff) to compare sizes told"
        )
    columns: list[list[Entry]] = []
    shared = options.guidance, options.solver, options.dtype
    for variant in among:
        own = resolve(variant.backbone)
        if own.size != spec.size:
            sizes = f"{shown_size(spec.size)} px and {shown_size(own.size)} px"
            raise ValueError(f"expected models of one size, got {sizes} ({variant.backbone})")
        changed = [adapt(replace(plan, size_condition=variant.size_condition), own.family) for _, _, plan in listed]
        guidance, solver, dtype = shared
        ways = options.batch_size, dtype, options.channels_last, options.compile
        base = generation.configure(variant.backbone, changed[0], guidance, solver, *ways)
        shared = base.guidance, base.solver, base.dtype  # the first one's, for all
        columns.append([
            Entry(method, text, replace(base, plan=plan), price.macs_paper, price.flops)
            for (method, text, _), plan, price in zip(listed, changed, postdiff.costs(changed, own), strict=True)
        ])  # fmt: skip
    seen: dict[str, str] = {}
    for variant, column in zip(among, columns, strict=True):
        same = seen.setdefault(column[0].configuration.id, variant.name)
        if same != variant.name:
            raise ValueError(f"{same} and {variant.name} have the same weights: there is nothing to compare")
    return [list(entries) for entries in zip(*columns, strict=True)]


def compare(among: list[str], groups: list[list[Row]]) -> list[Compared]:
    """groups: a plan's rows, one a variant. Intervals of changes hold for all of a metric's together (max-t)."""
    pairs = [(first, row) for first, *others in groups for row in others]
    changes: list[dict[str, Interval]] = [{} for _ in pairs]
    for metric in compared_by([row for group in groups for row in group], tables.comparable):
        own = [metric.difference(row.interval(metric), [(1.0, first.interval(metric))]) for first, row in pairs]
        for change, moved in zip(changes, together(own), strict=True):
            change[metric.key] = moved
    left, compared = iter(changes), []
    for first, *others in groups:
        compared.append(Compared(among[0], first, {}))
        compared += [Compared(variant, row, next(left)) for variant, row in zip(among[1:], others, strict=True)]
    return compared


def compared_by(rows: Sequence[Row], among: Callable[[Sequence[Row]], list[Metric]] = tables.columns) -> list[Metric]:
    """Not by what holds an image against its own model's: each variant would be held against another image."""
    return [metric for metric in among(rows) if not metric.is_paired]


def answer(compared: list[Compared]) -> str:
    """A sentence a metric: in how many plans a change is clear."""
    parts = []
    for metric in shown():
        changes = [one.change[metric.key] for one in compared if metric.key in one.change]
        better, worse = tables.clear(changes, metric)
        if changes:
            parts.append(
                f"{metric.title}: {better} of {len(changes)} changes are clearly better, {worse} clearly worse"
            )
    n = compared[0].row.n
    return "; ".join(parts) + f" (paired 95 % intervals that hold together, n = {n})."


def verdict(compared: list[Compared]) -> str:
    """Of `answer`, in a few words: how many changes are clear."""
    changes = {metric: [one.change[metric.key] for one in compared if metric.key in one.change] for metric in shown()}
    clear = [
        sum(counts) for counts in zip(*(tables.clear(own, metric) for metric, own in changes.items()), strict=True)
    ]
    if not any(clear):
        return "No change is clear"
    words = [f"{count} clearly {way}" for count, way in zip(clear, ("better", "worse"), strict=True) if count]
    return f"{' and '.join(words)} of {sum(map(len, changes.values()))} changes"


def header(rows: Sequence[Row]) -> list[str]:
    """Of `cells`."""
    quality = [title for metric in compared_by(rows) for title in (metric.title, f"{metric.title}: change")]
    return ["plan", "variant", "GFLOPs", *quality]


def cells(compared: list[Compared]) -> list[list[str]]:
    lines = []
    for one in compared:
        line = [one.row.label, one.variant, f"{one.row.flops / 1e9:.2f}"]
        for metric in compared_by([row.row for row in compared]):
            change = one.change.get(metric.key)
            value = metric.text(one.row.interval(metric)) if tables.measured([one.row], metric) else "no reference"
            line += [value, metric.text(change, "+") if change else "the first"]
        lines.append(line)
    return lines


def to_csv(compared: list[Compared], real: Real | None = None) -> str:
    columns: dict[str, list[str]] = {"variant": [one.variant for one in compared]}
    for metric in shown():
        changes = [one.change.get(metric.key) for one in compared]
        columns |= tables.interval_columns(f"{metric.column}_change", changes, metric.digits + 2)
    return real_images.to_csv([one.row for one in compared], columns, real)


def write(
    store: Store,
    among: Sequence[Variant],
    groups: Sequence[Sequence[Entry]],
    evaluated: Evaluated,
    protocol: Protocol,
    options: Options | None = None,
) -> str:
    """Write compare.md, .csv, .tex and .html, and mirror them; returns what is to be printed. evaluated: all `groups`,
    in order.

    Raises: Stopped if no plan is complete with all variants.
    """
    from pipelines.engine import workers
    from pipelines.report import answers, document, latex, tracking
    from pipelines.report.runs import Logbook

    names = [variant.name for variant in among]
    rows = [evaluated.rows[i : i + len(among)] for i in range(0, len(evaluated.rows), len(among))]
    whole = [[row for row in group if row] for group in rows if all(group)]
    if not whole:
        evaluated.check()
    compared = compare(names, whole)
    lines, shared = cells(compared), groups[0][0].configuration
    models = zip(names, (entry.configuration for entry in groups[0]), strict=True)
    facts = {
        "compared": "; ".join(f"{name} ({c.backbone}, weights {c.weights})" for name, c in models),
        "sampling": f"solver {shared.solver}, guidance {shared.guidance}, {shared.size} px, {shared.arithmetic}, "
        f"batches of {shared.batch_size}",
        **protocol.facts(),
        **evaluated.facts,
        "machine": workers.machine(),
        "commit": document.commit(),
    }
    scored, real = [one.row for one in compared], evaluated.real
    if real:
        quality = [cell for m in compared_by(scored) for cell in (real_images.text(real, m), real_images.NOT_DRAWN)]
        lines.append([real_images.LABEL, real_images.NOT_DRAWN, real_images.NOT_DRAWN, *quality])
    labels = [f"{one.variant}: {one.row.label}" for one in compared]
    legend = f"{LEGEND} {tables.directions(compared_by(scored))}{f' {real_images.MEANING}' if real else ''}"
    body = document.section(
        "changes", "Plan by plan", document.table(header(scored), lines, text_columns=2, caption="Every plan"), legend
    ) + document.section(
        "images", "The same prompts and noise", document.gallery(document.examples(store, scored, labels))
    )
    page = document.page(
        f"postdiff: {' and '.join(names)}",
        answers.of_changes(answer(compared), compared[0].row.n, verdict(compared)),
        body,
        facts,
        links=("compare.csv", "compare.md", "compare.tex"),
        command=command_line.again("jobs/compare.py", options) if options else "",
    )
    tex = latex.to_latex(f"{' and '.join(names)}: changes", header(scored), lines, [legend])
    markdown = tables.markdown(header(scored), lines, text_columns=2)
    for name, text in (
        ("compare.md", markdown),
        ("compare.csv", to_csv(compared, real)),
        ("compare.tex", tex),
        ("compare.html", page),
    ):
        store.put(name, text.encode())
    book = Logbook(
        sweep=f"compare-{'-'.join(names)}",
        protocol=protocol.facts(),
        rows=scored,
        configurations={entry.configuration.id: entry.configuration for group in groups for entry in group},
        variants={one.row.configuration: one.variant for one in compared},
        about={"device": facts["machine"], "commit": facts["commit"]},
        answer=answer(compared),
        real=real,
        private=(*(variant.backbone for variant in among), *names, *(options.names if options else ())),
    )
    tracking.log(store, book)
    lacking = "".join(f"\nmissing: {fact}" for fact in evaluated.facts.values())
    return f"{markdown}\n{answer(compared)}\n{lacking}\nreport: {store.shown}/compare.html"
