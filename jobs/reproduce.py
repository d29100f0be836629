"""The paper's tables and figures from one command, each beside what the paper printed.

    python jobs/reproduce.py table2 fig4                              on the mini models and Shapes
    python jobs/reproduce.py all --scale 0.5                          every exhibit, half of the prompts
    python jobs/reproduce.py all --models real --dry-run              what it would take: runs, GPU hours, bytes
    python jobs/reproduce.py all --models real --prompts captions.tsv --calibration others.tsv \
        --reference FOLDER --fid inception-2015-12-05.pt --out s3://bucket/paper

Runs that several exhibits share are made once. Ends in OUT/exhibits/KEY.{csv,md,tex} (a figure also .svg and .png;
Table 6 and the galleries, of other prompts, below folders of their own) and OUT/report.html. Run it again and it goes
on where it stopped. Latency is measured first, one image at a time, in a process of its own: on a GPU of the cluster
that nothing else has then, or on the machine that runs this.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import evaluation, options, protocols
from pipelines.data import pairs
from pipelines.engine import workers
from pipelines.engine.identity import digest
from pipelines.engine.store import Store, clean, local_path
from pipelines.evaluation import Protocol
from pipelines.paper import (
    datasets,
    dry_run,
    exhibit_text,
    exhibits,
    figures,
    published,
    reproduction,
    searched_plans,
    verdict,
)
from pipelines.paper.exhibits import Exhibit
from pipelines.report import document, tables, tracking
from pipelines.stages import latency, trajectories
from pipelines.stages.generation import Configuration
from pipelines.stages.latency import Latency
from pipelines.training.finetune_settings import Settings
from postdiff import methods
from postdiff.models.checkpoints import RUN, resolve
from postdiff.plan import Plan
from postdiff.terminal import doing

SEARCHED = ("table3", "table4")  # exhibits with plans that are found with the model


@dataclass(frozen=True)
class Job:
    """What a run of this job needs before anything is drawn. names: the paper's model -> the one that runs. tuned: the
    folder of each fine-tuned one. options, protocols: of each data set of the paper. gpu: latencies and searches have
    a GPU of the cluster to themselves. captions: of the searches."""

    args: argparse.Namespace
    names: dict[str, str]
    tuned: dict[str, Path]
    options: dict[str, argparse.Namespace]
    protocols: dict[str, Protocol]
    gpu: bool
    captions: list[str]


def prepare(args: argparse.Namespace, chosen: list[Exhibit], names: dict[str, str]) -> Job:
    """Raises ValueError or OSError for whatever only later stages would meet."""
    tuned = {model: tuned_folder(args, before(model)) for model in names if model != before(model)}
    settled = {dataset: datasets.of_dataset(args, dataset) for dataset in dict.fromkeys(e.dataset for e in chosen)}
    protocols = {dataset: evaluation.protocol(own) for dataset, own in settled.items()}
    if exhibits.APPENDIX_J in protocols:  # a few images: to be seen
        protocols[exhibits.APPENDIX_J] = replace(protocols[exhibits.APPENDIX_J], reference=())
    searched = any(exhibit.key in SEARCHED for exhibit in chosen)
    captions = searched_plans.calibration_prompts(args.prompts, args.calibration) if searched else []
    for exhibit in chosen:  # raises for a solver or a guidance that a model cannot have
        for model, plan in {run.model: run.plan for run in exhibit.runs}.items():
            evaluation.configure(settled[exhibit.dataset], names[model], plan)
    for dataset, own in settled.items():
        evaluation.check_store(own.out, protocols[dataset])
    gpu = workers.cluster_has_gpus(args.gpus_per_worker)
    if gpu or any(resolve(name).revision for name in names.values()):  # else Ray starts after the latencies
        evaluation.connect(args, list(names.values()))
    return Job(args, names, tuned, settled, protocols, gpu, captions)


def before(model: str) -> str:
    """The model before fine-tuning."""
    return model.removesuffix(exhibits.TUNED)


def run(args: argparse.Namespace) -> None:
    chosen = exhibits.gather(args.exhibits, {})  # raises for one that is not here
    models = dict.fromkeys(model for exhibit in chosen for model in exhibit.models)
    names = {model: exhibits.MINI[before(model)] if args.models == "mini" else before(model) for model in models}
    if args.dry_run:
        return print_dry_run(args, chosen, names)
    job = prepare(args, chosen, names)
    stores = {dataset: evaluation.open_store(own.out, job.protocols[dataset]) for dataset, own in job.options.items()}
    first = next(iter(stores.values()))
    with doing("fine-tuning the models of Table 7"):
        names = tune(job)
    with doing("searching the plans of Tables 3 and 4"):
        found = search(job, names, chosen, first)
    chosen = [told_of_tuning(args, one) for one in exhibits.gather(args.exhibits, found)]
    with doing("measuring latencies"):
        own = next(iter(job.options.values()))
        times = reproduction.time_plans(first, chosen, names, own, job.gpu) if args.rounds else {}
    sections, facts, answers = [], {}, []
    for dataset, store in stores.items():
        group = [exhibit for exhibit in chosen if exhibit.dataset == dataset]
        made, told, answered = make(job.options[dataset], group, names, store, job.protocols[dataset], times)
        sections += made
        answers += answered if dataset == "coco2014" else []
        facts |= told if store is first else {f"{dataset}: {key}": value for key, value in told.items()}
    counts = ", ".join(f"{len(of.prompts)} prompts ({dataset}'s role)" for dataset, of in job.protocols.items())
    where = ", ".join({took.machine for took in times.values()}) or "nothing: none of these exhibits has seconds"
    facts = {"run": f"{len(chosen)} exhibits, {counts}"} | facts
    facts["latency"] = "not measured (--rounds 0)"
    if args.rounds:
        facts["latency"] = (
            f"one image, decoding included, text encoded before; {args.rounds} rounds after warming up, on {where}"
        )
    facts |= {"machine": workers.machine(), "commit": document.commit()}
    publish(first, args, sections, answers, facts)


def tune(job: Job) -> dict[str, str]:
    """`job.names` with the folders of Table 7's fine-tuned models; those of mini models are made if missing."""
    for model, folder in job.tuned.items():
        if job.args.models == "mini" and not (folder / RUN).exists():
            from pipelines.training import finetuning  # with torch

            finetuning.make(job.names[model], pairs.open_pairs("shapes"), tune_settings(before(model)), folder)
    return job.names | {model: str(folder) for model, folder in job.tuned.items()}


def told_of_tuning(args: argparse.Namespace, exhibit: Exhibit) -> Exhibit:
    """Table 7 with how the mini models were fine-tuned in its note."""
    if exhibit.key != "table7" or args.models != "mini":
        return exhibit
    few = tune_settings(exhibit.models[0])
    note = (
        f"{exhibit.note}; here {few.steps} steps of {few.batch} pairs of Shapes, learning rate {few.lr:g}, on mini "
        "models that saw low resolution in training, as SD1.5 did not"
    )
    return replace(exhibit, note=note)


def search(job: Job, names: dict[str, str], chosen: list[Exhibit], store: Store) -> dict[str, Plan]:
    """The plans that Tables 3 and 4 must search, {preset: plan}."""
    found: dict[str, Plan] = {}
    for exhibit in chosen:
        if exhibit.key in SEARCHED:
            of = evaluation.configure(job.options[exhibit.dataset], names[exhibit.models[0]], methods.dense())
            task = exhibit.key, of, store, job.captions
            found |= workers.alone(searched_plans.find, *task) if job.gpu else searched_plans.find(*task)
    return found


def publish(
    store: Store,
    args: argparse.Namespace,
    sections: list[tuple[Exhibit, str, str]],
    answers: list[list[str]],
    facts: dict[str, str],
) -> None:
    """Write the report, and print it."""
    sections = sorted(sections, key=lambda of: list(exhibits.EXHIBITS).index(of[0].key))
    legend = exhibit_text.LEGEND + (exhibit_text.MINI_LEGEND if args.models == "mini" else "")
    above, headline = "", f"{len(sections)} exhibits."
    if answers:
        headline = "Fewer denoising steps, or cheaper steps?"
        above = f"{document.table(verdict.HEADER, answers)}<p>{escape(verdict.LEGEND)}</p>\n"
        store.put("answer.md", f"{tables.markdown(verdict.HEADER, answers)}\n{verdict.LEGEND}\n".encode())
    body = "\n".join(html for _, html, _ in sections)
    page = document.page(
        "postdiff: the paper, reproduced", headline, f'{above}<p class="dim">{escape(legend)}</p>\n{body}', facts
    )
    store.put("report.html", page.encode())
    for exhibit, _, markdown in sections:
        print(f"\n{exhibit.key}: {exhibit.title}\n{markdown}")
    if answers:
        print(f"\n{tables.markdown(verdict.HEADER, answers)}\n{verdict.LEGEND}")
    print(f"report: {store.shown}/report.html")


def tuned_folder(args: argparse.Namespace, model: str) -> Path:
    """Where `model` lies after fine-tuning: of a mini model beside the store, and made here."""
    if args.models == "mini":
        out = local_path(args.out)
        if out is None:
            raise ValueError(
                f"Table 7 fine-tunes mini models into --out, which must be a local folder, got {clean(args.out)}"
            )
        settings = digest(repr(tune_settings(model)).encode(), 8)
        return Path(out) / "finetuned" / f"{exhibits.MINI[model]}-{settings}"
    given = dict(pair.partition("=")[::2] for pair in args.finetuned)
    if not (Path(given.get(model, "")) / RUN).is_file():
        raise ValueError(
            f"Table 7 needs --finetuned {model}=FOLDER, a folder that jobs/finetune.py made; got {given.get(model)!r}"
        )
    return Path(given[model]).absolute()


def tune_settings(model: str) -> Settings:
    """App. F's beta and s; of its 15,000 steps of 128 pairs 100 of 32, with a learning rate to match."""
    line = next(line for line in published.lines("table7") if line.model == model)
    few = {"steps": 100, "batch": 32, "lr": 1e-4, "warm_up": 10, "ema": 0.95}
    return Settings(beta=line.settings["beta"], s=line.settings["s"], **few)


def make(
    args: argparse.Namespace,
    group: list[Exhibit],
    names: dict[str, str],
    store: Store,
    protocol: Protocol,
    times: dict[reproduction.Key, Latency],
) -> tuple[list[tuple[Exhibit, str, str]], dict[str, str], list[list[str]]]:
    """All exhibits of one data set: (exhibit, its HTML, its Markdown) each, the facts that the report tells, and the
    answer to the paper's question, lines of a table."""
    names = {model: name for model, name in names.items() if any(model in exhibit.models for exhibit in group)}
    runs = reproduction.distinct(group)
    prices = reproduction.count_costs(runs, names)
    points = reproduction.points_of(args, runs, prices, names)
    resources = evaluation.connect(args, list(names.values()))
    rows = evaluation.evaluate(store, points, protocol, resources)
    configurations = {key: point.configuration for key, point in zip(runs, points, strict=True)}
    tasks = {task.name: task for exhibit in group for task in figures.tasks(exhibit, configurations, protocol)}
    units = [task.unit for task in tasks.values()]
    evaluation.run_units(units, partial(trajectories.Watcher, store), store, resources, "steps")
    results = {
        key: exhibit_text.Measured(row, prices[key].there, times.get(key)) for key, row in zip(runs, rows, strict=True)
    }
    made = [
        (exhibit, *reproduction.write(store, exhibit, results, names, protocol, configurations)) for exhibit in group
    ]
    models = [next(p.configuration for p in points if p.configuration.backbone == name) for name in names.values()]
    facts = {
        "models": "; ".join(f"{model}: {describe(of)}" for model, of in zip(names, models, strict=True)),
        "sampling": f"batches of {args.batch_size}, {points[0].configuration.dtype}",
        **protocol.facts(),
        "runs": f"{sum(len(e.runs) for e in group)} cells, {len({p.configuration.id for p in points})} different runs",
    }
    specs = {p.configuration.id: json.loads(json.dumps(asdict(p.configuration))) for p in points}
    once = list({row.configuration: row for row in rows}.values())
    tracking.log(store, f"paper-{args.models}", protocol.facts(), once, specs, {})
    return made, facts, verdict.lines(results, names, group)


def describe(of: Configuration) -> str:
    return f"{of.backbone} (weights {of.weights}), {of.size} px, solver {of.solver}, guidance {of.guidance}"


def print_dry_run(args: argparse.Namespace, chosen: list[Exhibit], names: dict[str, str]) -> None:
    groups, read = dry_run.gather(args, chosen)
    print(*read, sep="\n")
    print(dry_run.text(groups, names, args.models == "real", args.price, latency.measured(Store(args.out))))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = options.Parser(__doc__)
    add = parser.add_argument
    add("exhibits", nargs="*", default=["all"], help=f"all, or any of {', '.join(exhibits.EXHIBITS)}")
    add("--models", choices=("mini", "real"), default="mini")
    add("--scale", type=options.number(0, 1, above=True), default=1.0, help="share of the prompts")
    add("--calibration", help="prompts of the searches of Tables 3 and 4: a file (default: Shapes' train split)")
    add("--recaption", help="captions of Table 6's data set (jobs/fetch.py imagenet21k-recaption), as --prompts takes")
    add("--recaption-reference", help="folder of its reference images")
    add(
        "--finetuned", nargs="+", default=[], metavar="MODEL=FOLDER", help="of Table 7's real models (jobs/finetune.py)"
    )
    add("--rounds", type=options.rounds(zero=True), default=7, help="of the latency measurement; 0: none")
    options.add_options(parser)
    add("--out", default="out/paper", help="the store: a folder or any pyarrow.fs or fsspec URL")
    add("--price", type=options.number(0, 1e6), help="of a GPU hour, for --dry-run of the real models")
    add("--dry-run", action="store_true", help="print what would run, and stop")
    args = parser.parse_args(argv)
    if args.protocol:
        protocols.apply(args)
    args.exhibits = args.exhibits or ["all"]
    refuse_unused(args)
    return args


def refuse_unused(args: argparse.Namespace) -> None:
    """Raise ValueError for an option that was given, and that has no effect beside the others."""
    if args.models == "mini" or args.prompts != "shapes":
        options.refuse_unused(args, other=args.recaption_reference)
    if args.models == "mini":
        options.refuse(args, "with --models mini", "recaption", "finetuned", "price")
    if not args.dry_run:
        options.refuse(args, "without --dry-run", "price")
    chosen = {exhibit.key for exhibit in exhibits.gather(args.exhibits, {})}
    only = {SEARCHED: ("calibration",), ("table6",): ("recaption", "recaption_reference"), ("table7",): ("finetuned",)}
    for keys, names in only.items():
        if chosen.isdisjoint(keys):
            options.refuse(args, f"on {', '.join(args.exhibits)}: it is of {' and '.join(keys)}", *names)


def main(argv: list[str] | None = None) -> None:
    options.job(run, parse, argv)


if __name__ == "__main__":
    main()
