"""Tables 3 and 4: the methods that the paper compares with, on one model each, beside what the paper printed.

    python jobs/baselines.py                                          both, on mini-sd and mini-pixart
    python jobs/baselines.py --tables table3 --backbone sd15 --prompts captions.tsv --out s3://bucket/baselines

Quality on the same prompts and noise, differences from the dense plan paired; costs; and latency, one image at a time,
measured in a process of its own before Ray starts, on the machine that runs this: for real ones, with a GPU.
What a method must learn from the model (DiTFastAttn's schedule, CA-ToMe's share of merged tokens) is searched on 8
calibration prompts that are not among those of the table. Ends in OUT/TABLE/table.md, .csv and .html. Run it again and
it goes on where it stopped.
"""

import argparse
import json
import sys
from hashlib import sha256
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

import postdiff
from pipelines import evaluation, generate, latency, prompts, report, shapes, tables, workers
from pipelines.evaluation import Point, Protocol
from pipelines.latency import Latency
from pipelines.store import Store
from postdiff import costs, planfile, presets
from postdiff.backbones import fingerprint, resolve
from postdiff.metrics import difference
from postdiff.plan import Plan

BACKBONES = {"table3": "mini-sd", "table4": "mini-pixart"}
CALIBRATION = 8  # prompts
HEADER = (
    "method", "GMACs", "GFLOPs", "FID", "change", "CLIP score", "change", "s/image p50 (p90)", "speed-up",
    "FLOPs allow", "paper: FID", "CLIP", "s",
)  # fmt: skip
LEGEND = (
    "Intervals are 95 %. Change: from the dense plan, paired image by image; intervals of a column hold all at once "
    "(Bonferroni). Speed-up: the dense plan's seconds over the method's, median of rounds that alternate. The paper's "
    "numbers are of another model and other images: they are here for their order alone."
)


def calibration_prompts(args: argparse.Namespace) -> list[str]:
    """Captions that are not among those of the table: Shapes' train split, or the first of --calibration."""
    if args.calibration:
        return [prompt.text for prompt in prompts.load_prompts(args.calibration, CALIBRATION)]
    if args.prompts != "shapes":
        raise ValueError(
            f"--prompts {args.prompts} needs --calibration, a file of other prompts ({CALIBRATION} are read)"
        )
    return [scene.caption for scene in shapes.distinct_scenes("train", CALIBRATION)]


def find_plans(table: str, name: str, store: Store, steps: int, captions: list[str]) -> dict[str, Plan]:
    """{preset: plan}; what is searched is kept in the store, by weights and prompts, for the next run."""
    of = sha256(json.dumps([fingerprint(resolve(name)), *captions]).encode()).hexdigest()[:12]
    found: dict[str, Plan] = {}
    backbone = None
    for key, preset in presets.PRESETS.items():
        if not key.startswith(f"{table}."):
            continue
        if not preset.searched and preset.method != "ca_tome":
            found[key] = presets.plan(key, steps)
            continue
        file = f"plans/{key}-T{steps}-{of}.json"
        if not store.has(file):
            backbone = backbone or postdiff.load(name)
            plan = presets.find(key, backbone, captions, list(range(len(captions))), steps)
            store.put(file, planfile.to_json(plan, backbone=name, prompts=captions).encode())
        found[key] = planfile.from_json(store.get(file), file)
    return found


def points_of(args: argparse.Namespace, name: str, plans: dict[str, Plan]) -> list[Point]:
    prices = costs(list(plans.values()), resolve(name))
    shared = args.guidance, args.solver, args.batch_size, args.dtype
    return [
        Point(plan.name, "", generate.configure(name, plan, *shared), price.macs_paper, price.flops)
        for plan, price in zip(plans.values(), prices, strict=True)
    ]


def cells(keys: list[str], rows: list[tables.Row], times: list[Latency]) -> list[list[str]]:
    """The first row is the dense plan's."""
    lines, first = [], rows[0]
    for key, row, took in zip(keys, rows, times, strict=True):
        preset = presets.PRESETS[key]
        line = [preset.method, f"{row.macs_paper / 1e9:.2f}", f"{row.flops / 1e9:.2f}"]
        for metric in tables.METRICS:
            if metric == "fid" and row.fid is None:
                line += ["no reference", ""]
                continue
            change = difference(row.interval(metric), [(1.0, first.interval(metric))], len(rows) - 1)
            line += [str(row.interval(metric)), f"{change:+}" if row is not first else ""]
        line += [f"{took.p50:.3f} ({took.p90:.3f})", f"{took.speedup:.2f}", f"{first.flops / row.flops:.2f}"]
        printed = (preset.fid, 2), (preset.clip, 2), (preset.seconds, 3)
        lines.append(line + [f"{value:.{digits}f}" if value else "lost" for value, digits in printed])
    return lines


def make_table(args: argparse.Namespace, table: str, name: str, protocol: Protocol, captions: list[str]) -> None:
    store = evaluation.open_store(f"{args.out}/{table}", protocol)
    plans = find_plans(table, name, store, args.steps, captions)
    points = points_of(args, name, plans)
    times = latency.measure(name, list(plans.values()), args.rounds)
    rows = evaluation.evaluate(store, points, protocol, evaluation.connect(args, [name]))
    lines, of = cells(list(plans), rows, times), points[0].configuration
    notes = [
        f"{preset.method}: {preset.note}" for key, preset in presets.PRESETS.items() if key in plans and preset.note
    ]
    facts = {
        "model": f"{name} (weights {of.weights}), {of.size} px, {of.dtype}, T = {args.steps}",
        "sampling": f"solver {of.solver}, guidance {of.guidance}, batches of {of.batch_size}",
        **protocol.facts(),
        "latency": f"one image, decoding included, text encoded before; {times[0].n} rounds after one to warm up",
        "left open by the paper": "; ".join(notes),
        "machine": workers.machine(),
        "commit": report.commit(),
    }
    body = (
        f'<p class="dim">{escape(LEGEND)}</p>\n{report.table(HEADER, lines)}\n<h2>The same prompts and noise</h2>\n'
        + report.examples(store, rows, [presets.PRESETS[key].method for key in plans])
    )
    title = f"{table.replace('table', 'Table ')}, on {name}"
    page = report.page(f"postdiff: {title}", f"{title}: {len(rows)} methods, n = {rows[0].clip.n}.", body, facts)
    markdown = tables.markdown(HEADER, lines)
    extra = {"p50": [f"{t.p50:.4f}" for t in times], "p90": [f"{t.p90:.4f}" for t in times],
             "speedup": [f"{t.speedup:.4f}" for t in times]}  # fmt: skip
    for file, text in (("table.md", markdown), ("table.csv", tables.to_csv(rows, extra)), ("table.html", page)):
        store.put(file, text.encode())
    print(f"\n{title}\n{markdown}\nreport: {store.url}/table.html")


def run(args: argparse.Namespace) -> None:
    if args.backbone and len(args.tables) > 1:
        raise ValueError("--backbone goes with one of --tables")
    latency.check_rounds(args.rounds)
    if args.steps < 1:
        raise ValueError(f"--steps must be 1 or more, got {args.steps}")
    protocol, captions = evaluation.protocol(args), calibration_prompts(args)
    for table in args.tables:
        make_table(args, table, args.backbone or BACKBONES[table], protocol, captions)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tables", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    add("--backbone", help="for one table: a name, a folder, or ORG/REPOSITORY@COMMIT (default: the mini model)")
    add("--steps", type=int, default=20, help="T of every method")
    add("--calibration", help="prompts of the searches: a file as --prompts takes (default: Shapes' train split)")
    add("--rounds", type=int, default=7, help="of the latency measurement")
    evaluation.add_options(parser)
    add("--out", default="out/baselines", help="the store: a folder or any pyarrow.fs or fsspec URL")
    return evaluation.settle_options(parser.parse_args(argv))


def main(argv: list[str] | None = None) -> None:
    try:
        run(parse(argv))
    except (ValueError, OSError, workers.WorkersError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
