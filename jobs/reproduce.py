"""The paper's tables and figures from one command, each beside what the paper printed.

    python jobs/reproduce.py table2 fig4                              on the mini models and Shapes
    python jobs/reproduce.py all --scale 0.5                          every exhibit, half of the prompts
    python jobs/reproduce.py all --models real --dry-run              what it would take: runs, GPU hours, bytes
    python jobs/reproduce.py all --models real --prompts captions.tsv --calibration others.tsv \
        --reference FOLDER --fid inception-2015-12-05.pt --out s3://bucket/paper

Runs that several exhibits share are made once. Ends in OUT/exhibits/KEY.{csv,md,tex} (a figure also .svg and .png) and
OUT/report.html. Run it again and it goes on where it stopped. Latency is measured first, one image at
a time, in a process of its own: on a GPU of the cluster that nothing else has then, or on the machine that runs this.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import (
    budget,
    dynamics,
    evaluation,
    exhibits,
    figures,
    finetuning,
    latency,
    pairs,
    paper,
    prompts,
    report,
    reproduction,
    rivals,
    tracking,
    workers,
)
from pipelines.evaluation import Protocol
from pipelines.exhibits import Exhibit
from pipelines.generate import Configuration
from pipelines.latency import Latency
from pipelines.store import Store
from postdiff import published
from postdiff.backbones import RUN
from postdiff.published import APPENDIX_J

LEGEND = (
    "Intervals are 95 %. T MACs: what the paper calls FLOPs (T), of the paper's own model, counted here by the paper's "
    "rule; GFLOPs here: of the model that was run, everything counted. Change: from the model as it is, paired image "
    "by image; intervals of a column hold all at once (Bonferroni)."
)
MINI_LEGEND = (
    " Quality and seconds are of mini models on Shapes, the paper's of large models on photographs: only directions "
    "can be compared."
)


def share(args: argparse.Namespace) -> int:
    """How many prompts `--scale` leaves of those that --prompts and --limit name."""
    return max(4, round(args.scale * len(prompts.load_prompts(args.prompts, args.limit, args.shuffled))))


def of_dataset(args: argparse.Namespace, dataset: str) -> argparse.Namespace:
    """The options of a data set of the paper: COCO is --prompts and --reference, the other is --recaption's."""
    own = dict(vars(args))
    if dataset == exhibits.APPENDIX_J:
        own |= {
            "prompts": str(APPENDIX_J),
            "out": f"{args.out}/{dataset}",
            "limit": None,
            "protocol": None,
            "matched": False,
            "shuffled": False,
        }
        if args.models == "mini":
            own |= {"prompts": "shapes", "limit": figures.COLUMNS}
        return argparse.Namespace(**own)
    if dataset != "coco2014":
        own |= {
            "prompts": args.recaption,
            "reference": args.recaption_reference,
            "out": f"{args.out}/{dataset}",
            "protocol": None,
            "matched": False,
            "shuffled": True,
            "limit": min(args.limit or budget.PROMPTS[dataset], budget.PROMPTS[dataset]),
        }
        if args.models == "mini":
            own["prompts"] = "shapes-recaption"
    if args.models == "real" and own["prompts"] in (None, "shapes"):
        option = "--prompts" if dataset == "coco2014" else "--recaption"
        raise ValueError(f"--models real needs {option}, a file of captions ({dataset}'s are the paper's)")
    found = argparse.Namespace(**own)
    if args.models == "real":
        found.limit = found.limit or budget.PROMPTS[dataset]
    found.limit = share(found)
    return found


def run(args: argparse.Namespace) -> None:
    chosen = exhibits.gather(args.exhibits, {})  # raises for one that is not here
    models = dict.fromkeys(model for exhibit in chosen for model in exhibit.models)
    before = {model: model.removesuffix(exhibits.TUNED) for model in models}
    names = {model: exhibits.MINI[base] if args.models == "mini" else base for model, base in before.items()}
    if args.dry_run:
        return print_dry_run(args, chosen, names)
    tuned = {model: tuned_folder(args, base) for model, base in before.items() if model != base}
    if args.rounds:
        latency.check_rounds(args.rounds)
    options = {dataset: of_dataset(args, dataset) for dataset in dict.fromkeys(e.dataset for e in chosen)}
    protocols = {dataset: evaluation.protocol(own) for dataset, own in options.items()}
    if exhibits.APPENDIX_J in protocols:  # a few images: to be seen
        protocols[exhibits.APPENDIX_J] = replace(protocols[exhibits.APPENDIX_J], reference=())
    captions = rivals.calibration_prompts(args.prompts, args.calibration)
    stores = {dataset: evaluation.open_store(own.out, protocols[dataset]) for dataset, own in options.items()}
    first = next(iter(stores.values()))
    for model, folder in tuned.items():
        if args.models == "mini" and not (folder / RUN).exists():
            finetuning.make(names[model], pairs.open_pairs("shapes"), tune_settings(before[model]), folder)
        names[model] = str(folder)
    found = {}
    for exhibit in chosen:
        if exhibit.key in ("table3", "table4"):
            found |= rivals.find(exhibit.key, names[exhibit.models[0]], first, captions)
    chosen = exhibits.gather(args.exhibits, found)
    times = reproduction.time_plans(first, chosen, names, args.rounds) if args.rounds else {}
    sections, facts, answers = [], {}, []
    for dataset, store in stores.items():
        group = [exhibit for exhibit in chosen if exhibit.dataset == dataset]
        made, told, answered = make(options[dataset], group, names, store, protocols[dataset], times)
        sections += made
        answers += answered if dataset == "coco2014" else []
        facts |= told if store is first else {f"{dataset}: {key}": value for key, value in told.items()}
    legend = LEGEND + (MINI_LEGEND if args.models == "mini" else "")
    where = ", ".join({took.machine for took in times.values()}) or "nothing: none of these exhibits has seconds"
    facts |= {
        "latency": f"one image, decoding included, text encoded before; {args.rounds} rounds after one to warm up, on "
        f"{where}" if args.rounds else "not measured (--rounds 0)",
        "machine": workers.machine(),
        "commit": report.commit(),
    }  # fmt: skip
    sections.sort(key=lambda of: list(exhibits.EXHIBITS).index(of[0].key))
    body = "\n".join(html for _, html, _ in sections)
    counts = ", ".join(f"{len(of.prompts)} prompts ({dataset}'s role)" for dataset, of in protocols.items())
    facts = {"run": f"{len(chosen)} exhibits, {counts}"} | facts
    headline = "Fewer denoising steps, or cheaper steps?" if answers else f"{len(chosen)} exhibits."
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in answers)
    above = f'<ul>{listed}</ul>\n<p class="dim">{escape(legend)}</p>'
    page = report.page("postdiff: the paper, reproduced", headline, f"{above}\n{body}", facts)
    first.put("answer.md", "".join(f"- {sentence}\n" for sentence in answers).encode())
    first.put("report.html", page.encode())
    for exhibit, _, markdown in sections:
        print(f"\n{exhibit.key}: {exhibit.title}\n{markdown}")
    print("\n".join(["", *answers, f"report: {first.url}/report.html"]))


def tuned_folder(args: argparse.Namespace, model: str) -> Path:
    """Where `model` lies after fine-tuning: of a mini model beside the store, and made here."""
    if args.models == "mini":
        if "://" in args.out:
            raise ValueError(f"Table 7 fine-tunes mini models into --out, which must be a local folder, got {args.out}")
        settings = sha256(repr(tune_settings(model)).encode()).hexdigest()[:8]
        return Path(args.out).absolute() / "finetuned" / f"{exhibits.MINI[model]}-{settings}"
    given = dict(pair.partition("=")[::2] for pair in args.finetuned)
    if not (Path(given.get(model, "")) / RUN).is_file():
        raise ValueError(
            f"Table 7 needs --finetuned {model}=FOLDER, a folder that jobs/finetune.py made; got {given.get(model)!r}"
        )
    return Path(given[model]).absolute()


def tune_settings(model: str) -> finetuning.Settings:
    """App. F's beta and s; a hundredth of its steps, with a learning rate to match."""
    line = next(line for line in published.lines("table7") if line.model == model)
    few = {"steps": 100, "batch": 32, "lr": 1e-4, "warm_up": 10, "ema": 0.95}
    return finetuning.Settings(beta=line.settings["beta"], s=line.settings["s"], **few)


def make(
    args: argparse.Namespace,
    group: list[Exhibit],
    names: dict[str, str],
    store: Store,
    protocol: Protocol,
    times: dict[reproduction.Key, Latency],
) -> tuple[list[tuple[Exhibit, str, str]], dict[str, str], list[str]]:
    """All exhibits of one data set: (exhibit, its HTML, its Markdown) each, the facts that the report tells, and the
    answer to the paper's question, a sentence a model."""
    names = {model: name for model, name in names.items() if any(model in exhibit.models for exhibit in group)}
    runs = reproduction.distinct(group)
    prices = reproduction.count_costs(runs, names)
    points = reproduction.points_of(args, runs, prices, names)
    resources = evaluation.connect(args, list(names.values()))
    rows = evaluation.evaluate(store, points, protocol, resources)
    configurations = {key: point.configuration for key, point in zip(runs, points, strict=True)}
    tasks = {task.name: task for exhibit in group for task in figures.tasks(exhibit, configurations, protocol)}
    units = [task.unit for task in tasks.values()]
    evaluation.run_units(units, partial(dynamics.Watcher, store), store, resources, "steps")
    results = {key: paper.Measured(row, prices[key].there, times.get(key)) for key, row in zip(runs, rows, strict=True)}
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
    return made, facts, reproduction.answers(results, names)


def describe(of: Configuration) -> str:
    return f"{of.backbone} (weights {of.weights}), {of.size} px, solver {of.solver}, guidance {of.guidance}"


def print_dry_run(args: argparse.Namespace, chosen: list[Exhibit], names: dict[str, str]) -> None:
    groups = []
    for dataset in dict.fromkeys(exhibit.dataset for exhibit in chosen):
        try:
            n = of_dataset(args, dataset).limit or budget.PROMPTS[dataset]
        except ValueError:  # no file of captions yet
            n = max(4, round(args.scale * budget.PROMPTS[dataset]))
        groups.append(budget.Group(dataset, n, tuple(e for e in chosen if e.dataset == dataset)))
    print(budget.text(groups, names, args.models == "real", args.price, latency.measured(Store(args.out))))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("exhibits", nargs="*", default=["all"], help=f"all, or any of {', '.join(exhibits.EXHIBITS)}")
    add("--models", choices=("mini", "real"), default="mini")
    add("--scale", type=float, default=1.0, help="share of the prompts")
    add("--calibration", help="prompts of the searches of Tables 3 and 4: a file (default: Shapes' train split)")
    add("--recaption", help="captions of Table 6's data set (jobs/fetch.py imagenet21k-recaption), as --prompts takes")
    add("--recaption-reference", help="folder of its reference images")
    add(
        "--finetuned", nargs="+", default=[], metavar="MODEL=FOLDER", help="of Table 7's real models (jobs/finetune.py)"
    )
    add("--rounds", type=int, default=7, help="of the latency measurement; 0: none")
    evaluation.add_options(parser)
    add("--out", default="out/paper", help="the store: a folder or any pyarrow.fs or fsspec URL")
    add("--price", type=float, help="of a GPU hour, for --dry-run")
    add("--dry-run", action="store_true", help="print what would run, and stop")
    args = evaluation.settle_options(parser.parse_args(argv))
    args.exhibits = args.exhibits or ["all"]
    if not 0 < args.scale <= 1:
        raise ValueError(f"--scale must be above 0 and at most 1, got {args.scale:g}")
    return args


def main(argv: list[str] | None = None) -> None:
    evaluation.job(run, parse, argv)


if __name__ == "__main__":
    main()
