"""A sweep: fewer steps against cheaper steps. Its configurations, what they would take, and its report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated, ClassVar

import postdiff
from pipelines import command_line, evaluation, low_resolution
from pipelines.command_line import flag
from pipelines.data import prompts
from pipelines.engine.store import Store
from pipelines.evaluation import Entry, Evaluated, Protocol
from pipelines.options import OfOneModel, Out
from pipelines.report import tables
from pipelines.stages import fidelity
from postdiff import methods
from postdiff.models.checkpoints import resolve
from postdiff.models.families import FAMILIES
from postdiff.plan import Plan
from postdiff.terminal import doing

NAMES = ("steps", "small", "laptop", "full")


@dataclass(frozen=True, kw_only=True)
class Options(OfOneModel):
    """plans: files."""

    probes: ClassVar[bool] = True
    out: Out = "out/sweep"
    grid: Annotated[str | None, flag("(default: laptop for Shapes, full else)", choices=NAMES)] = None
    plans: Annotated[
        tuple[str, ...], flag("plans of your own (save_plan) beside the grid's", nargs="+", metavar="FILE")
    ] = ()


def label(total: int, s: float | None = None, k: int = 1, m: float | None = None) -> str:
    """Settings as tables print them, e.g. 's=0.5 k=2 m=15'. m: a share of the `total` steps."""
    parts = [s is not None and f"s={s}", k > 1 and f"k={k}", m and f"m={round(m * total)}"]
    return " ".join(part for part in parts if part)


def grid(name: str, settings: dict) -> list[tuple[str, str, Plan]]:
    """(method, settings, plan): fewer steps against mixed resolution (s) and caching (k, m) at the backbone's own T.

    settings: the paper's for the backbone. With its T = 20, fewer steps are T in {8..20}; with LCM's 8, {2..8}.

    `full` is the paper's kind of grid, `laptop` a half of it, `small` what tests can afford; `steps` asks only whether
    more steps help, and so can afford more prompts.
    """
    total, beta, k, own = settings["steps"], settings["beta"], settings["k"], (settings["s"], settings["m"])
    first, stride = (8, 4) if total == 20 else (total // 4, total // 4)
    shares = {  # s of mixed resolution; m of caching as a share of the steps; (s, m) of PostDiff
        "steps": ((), (), ()),
        "small": ((0.3,), (0.75,), ((0.3, own[1]),)),
        "laptop": ((0.1, 0.3, 0.5), (0.5, 0.75), ((0.1, own[1]), (0.3, own[1]), (0.5, own[1]), own)),
        "full": (
            (0.1, 0.2, 0.3, 0.4, 0.5),
            (0.25, 0.5, 0.75),
            ((0.1, own[1]), (0.2, own[1]), (0.3, own[1]), (0.5, own[1]), (0.2, 0.5), own),
        ),
    }
    fewer = {"steps": (first, total), "full": range(first, total + 1, stride // 2)}
    scales, ends, whole = shares[name]
    intervals = {"laptop": (2,), "full": (2, 3)}.get(name, ()) if k > 1 else ()
    attention = {"small": (), "steps": ()}.get(name, (0.75,)) if k > 1 else ends  # k = 1: caching is this alone

    def cached(s: float, m: float) -> Plan:
        return methods.postdiff(total, beta, s, k, m)

    return [
        *[("dense", "", methods.dense(t)) for t in fewer.get(name, range(first, total + 1, stride))],
        *[("mixed_resolution", label(total, s), methods.mixed_resolution(total, beta, s)) for s in scales],
        *([("no_cfg", "", methods.no_cfg(total))] if name == "full" else []),
        *[("cross_attention_cache", label(total, m=m), methods.cross_attention_cache(total, m)) for m in attention],
        *[("deepcache", label(total, k=n), methods.deepcache(total, n)) for n in intervals],
        *[("caching", label(total, None, k, m), replace(cached(0.0, m), name="caching")) for m in ends if k > 1],
        *[("postdiff", label(total, s, k, m), cached(s, m)) for s, m in whole],
    ]


def named(plan: Plan, file: str) -> tuple[str, str]:
    """Method and settings of the plan of a `file`, as tables print them. Only what runs every step whole is `dense`:
    those rows are what all others are held against, and a plan keeps its name when its first steps are made smaller."""
    dense = plan.name == "dense" and plan.id != methods.dense(len(plan)).id
    return "changed dense" if dense else plan.name, Path(file).stem


def entries(options: Options) -> list[Entry]:
    """The grid as configurations with their costs; two names of one computation become one."""
    unique: dict[str, Entry] = {}
    spec = resolve(options.backbone)
    name = options.grid or ("laptop" if options.prompts in prompts.DRAWN else "full")
    entries = grid(name, spec.settings)
    for file in options.plans:
        with doing(f"reading the plan {file!r}"):
            plan = postdiff.load_plan(file)
        entries.append((*named(plan, file), plan))
    prices = postdiff.costs([plan for _, _, plan in entries], spec)
    for (method, settings, plan), price in zip(entries, prices, strict=True):
        configuration = evaluation.configure(options, options.backbone, plan)
        unique.setdefault(configuration.id, Entry(method, settings, configuration, price.macs_paper, price.flops))
    return list(unique.values())


def dry_run(options: Options, entries: Sequence[Entry], protocol: Protocol) -> str:
    """What the sweep would take, in lines: units, MACs, time and bytes."""
    listed, shards = protocol.prompts, protocol.shards
    n = len(listed)
    macs, flops = n * sum(p.macs_paper for p in entries), n * sum(p.flops for p in entries)
    pixels = prod(entries[0].configuration.sampling.size)
    spec, width = resolve(options.backbone), 4 if entries[0].configuration.dtype == "float32" else 2  # bytes a number
    shapes = FAMILIES[spec.family].text_shapes(spec.denoiser, spec.text_tokens).values()
    lengths, limit = prompts.token_lengths(listed, spec), spec.text_tokens
    cut = sum(length > limit for length in lengths)
    of_entries = []
    for entry in entries:
        label = tables.name(entry.method, len(entry.configuration.plan), entry.settings)
        price = f"{entry.macs_paper / 1e12:9.4f} T MACs{entry.flops / 1e12:9.4f} TFLOP"
        of_entries.append(f"  {entry.configuration.id}  {label:<44}{price}")
    return "\n".join([
        f"read {prompts.describe(listed)} (of {options.prompts})",
        f"{len(entries)} configurations x {n} prompts = {len(entries) * n} images "
        f"in {len(entries) * len(shards)} units",
        *of_entries,
        f"beside them: {besides(options, entries, protocol)}",
        f"denoiser: {macs / 1e15:.3f} P MACs (paper's rule), {flops / 1e15:.3f} PFLOP",
        f"time: {flops / (options.speed * 1e12) / 3600:.2f} worker-hours at {options.speed:g} TFLOP/s sustained "
        "(--tflops)",
        f"store: about {len(entries) * n * pixels * 1.2 / 1e9:.1f} GB of images (1.2 bytes a pixel, lossless WebP)",
        f"text: {len(shards)} units, at most {n * width * sum(map(prod, shapes)) / 1e9:.2f} GB of embeddings",
        f"prompts: longest {max(lengths)} tokens, {cut} of {n} truncated at {limit}",
    ])  # fmt: skip


def besides(options: Options, entries: Sequence[Entry], protocol: Protocol) -> str:
    """In words: the images that are made beside those of the configurations, for PSNR and for the warning."""
    first = sum(map(len, fidelity.first(protocol.shards)))
    solution = f"{first} images of {fidelity.STEPS} steps, which PSNR is to"
    if not fidelity.baseline("solution", entries[0].configuration):
        solution = "no solution for PSNR, since the model is distilled"
    begun = low_resolution.beginnings(options, [entry.configuration.plan for entry in entries])
    if not low_resolution.asked(begun, protocol):
        return solution
    few, low = low_resolution.PROMPTS, len(begun) - 1
    return (
        f"{solution}; {few} images of the model as it is, and with half of its steps at each of {low} low resolutions"
    )


def write_report(
    options: Options,
    store: Store,
    entries: Sequence[Entry],
    evaluated: Evaluated,
    protocol: Protocol,
    warnings: Sequence[str],
    seconds: float,
) -> str:
    """Write report, tables and plots, and mirror them; returns what is to be printed. warnings: of the probe. seconds:
    that the sweep took."""
    from pipelines.engine import workers
    from pipelines.report import answers, document, latex, plots, real_images, tracking
    from pipelines.report.runs import Logbook

    rows, real = evaluated.complete, evaluated.real
    metrics = tables.comparable(rows)
    figures = []
    for metric in metrics:
        by = protocol.encoder(metric) + (" features" if metric.needs == "reference" else "")
        held = "to 60 steps from the same noise" if metric.is_paired else by
        title = f"{options.backbone}, n = {rows[0].interval(metric).n}, {held}"
        figures.append(plots.front_plot(rows, metric, title))
    answer = tables.answer(rows, options.backbone)
    first = entries[0].configuration
    facts = {
        "model": f"{options.backbone} (weights {first.weights}), {first.size} px",
        "sampling": f"solver {first.solver}, guidance {first.guidance}, batches of {first.batch_size}, "
        f"{first.arithmetic}",
        **protocol.facts(),
        **evaluated.facts,
        "seconds an image": "median over batches of "
        f"{options.batch_size}, wall time in a worker, decoding included, while other workers were busy",
        "machine": workers.machine(),
        "commit": document.commit(),
        "sweep time": f"{seconds:.0f} s (less what an earlier run had done)",
    }
    page = document.page(
        f"Fewer steps, or cheaper steps? {options.backbone}",
        answers.of_sweep(rows, options.backbone, warnings),
        document.sweep_body(rows, document.examples(store, rows), real),
        facts,
        links=("results.csv", "results.md", "results.tex"),
        command=command_line.again("jobs/coco_sweep.py", options),
    )
    more = tables.more_steps(rows)
    more = "" if more in answer else more
    pictures = {f"{m.key}_front": plots.as_png(f) for m, f in zip(metrics, figures, strict=True)}
    store.put("report.html", page.encode())
    named = {"protocol": [protocol.facts()["protocol"]] * len(rows)}
    markdown = real_images.to_markdown(rows, real)
    store.put("results.csv", real_images.to_csv(rows, named, real).encode())
    store.put("results.md", markdown.encode())
    caption = f"Fewer steps and cheaper steps on {options.backbone}, {tables.sizes(rows)}"
    lines = [*tables.cells(rows), *real_images.cells(rows, real)]
    store.put("results.tex", latex.to_latex(caption, tables.header(rows), lines, [answer]).encode())
    for name, png in pictures.items():
        store.put(f"{name}.png", png)
    book = Logbook(
        sweep=f"sweep-{options.backbone}",
        protocol=protocol.facts(),
        rows=rows,
        configurations={entry.configuration.id: entry.configuration for entry in entries},
        about={"device": facts["machine"], "commit": facts["commit"]},
        answer=" ".join([answer, *(f"Warning: {line}." for line in warnings), *filter(None, [more])]),
        pictures=pictures,
        real=real,
        private=(options.backbone, *options.names),
    )
    tracking.log(store, book)
    lacking = "".join(f"\nmissing: {fact}" for fact in evaluated.facts.values())
    return f"{markdown}\n{answer}\n{lacking}\nreport: {store.shown}/report.html"
