"""Does a change of the model or of its conditions help? The same plans, prompts and noise, differences paired.

    python jobs/compare.py --backbones .train/mini-sd-full out/mini-sd-tuned    before and after fine-tuning (Table 7)
    python jobs/compare.py --backbones mini-sdxl --size-conditions target current   what SDXL and PixArt are told at low
                                                                                    resolution

Each method runs at the first backbone's own settings. Ends in results.md, results.csv and report.html in the store. Run
it again and it goes on where it stopped.
"""

import argparse
import csv
import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import evaluation, generate, report, tables, workers
from pipelines.evaluation import Point
from pipelines.tables import METRICS, Row
from postdiff import cost, methods
from postdiff.backbones import resolve
from postdiff.metrics import Interval, difference
from postdiff.plan import SIZE_CONDITIONS

HEADER = ("plan", "variant", "GFLOPs", "FID", "change", "CLIP score", "change")


@dataclass(frozen=True)
class Compared:
    """A row beside its plan's first one. change: {metric: paired difference}, none for the first itself."""

    variant: str
    row: Row
    change: dict[str, Interval]


def plan_variants(args: argparse.Namespace) -> list[list[tuple[str, Point]]]:
    """For each method (variant, point); the first is what the others are compared with."""
    if len(set(args.backbones)) * len(set(args.size_conditions)) < 2:
        raise ValueError("nothing to compare: give two --backbones, or --size-conditions target current")
    settings = resolve(args.backbones[0]).settings
    short = {backbone: Path(backbone).name for backbone in args.backbones}
    if len(set(short.values())) < len(short):  # folders of one name
        short = {backbone: backbone for backbone in args.backbones}
    found = []
    for method in args.methods:
        accepted = methods.settings_of(method)
        plan = methods.METHODS[method](**{name: value for name, value in settings.items() if name in accepted})
        text = " ".join(f"{name}={settings[name]:g}" for name in ("beta", "s", "k", "m") if name in accepted)
        points: dict[str, tuple[str, Point]] = {}
        for backbone in args.backbones:
            for told in args.size_conditions:
                changed = replace(plan, size_condition=told)
                configuration = generate.configure(
                    backbone, changed, args.guidance, args.solver, args.batch_size, args.dtype
                )
                price = cost(changed, resolve(backbone))
                names = [short[backbone] if len(short) > 1 else "", told if told != "target" else ""]
                variant = ", ".join(filter(None, names)) or told
                point = Point(method, text, configuration, price.macs_paper, price.flops)
                points.setdefault(configuration.id, (variant, point))  # a plan at one size has no size condition
        found.append(list(points.values()))
    return found


def compare(groups: list[list[tuple[str, Point]]], rows: list[Row]) -> list[Compared]:
    """Intervals of changes hold for all of a metric's together (Bonferroni)."""
    n = max(1, sum(len(group) - 1 for group in groups))
    metrics = [metric for metric in METRICS if tables.measured(rows, metric)]
    of, found = {row.configuration: row for row in rows}, []
    for group in groups:
        first = of[group[0][1].configuration.id]
        for i, (variant, point) in enumerate(group):
            row = of[point.configuration.id]
            change = {m: difference(row.interval(m), [(1.0, first.interval(m))], n) for m in metrics if i}
            found.append(Compared(variant, row, change))
    return found


def answer(found: list[Compared]) -> str:
    """A sentence a metric: in how many plans a change is clear."""
    parts = []
    for metric, name in METRICS.items():
        changes = [of.change[metric] for of in found if metric in of.change]
        above, below = sum(c.low > 0 for c in changes), sum(c.high < 0 for c in changes)
        better, worse = (below, above) if metric == "fid" else (above, below)
        if changes:
            parts.append(f"{name}: {better} of {len(changes)} changes are clearly better, {worse} clearly worse")
    n = found[0].row.clip.n
    return "; ".join(parts) + f" (paired 95 % intervals that hold together, n = {n})."


def cells(found: list[Compared]) -> list[list[str]]:
    lines = []
    for of in found:
        line = [of.row.label, of.variant, f"{of.row.flops / 1e9:.2f}"]
        for metric in METRICS:
            change = of.change.get(metric)
            value = str(of.row.interval(metric)) if metric == "clip" or of.row.fid else "no reference"
            line += [value, f"{change:+}" if change else ""]
        lines.append(line)
    return lines


def run(args: argparse.Namespace) -> None:
    protocol = evaluation.protocol(args)
    groups = plan_variants(args)
    points = [point for group in groups for _, point in group]
    store = evaluation.open_store(args.out, protocol)
    resources = evaluation.connect(args, args.backbones)
    rows = evaluation.evaluate(store, points, protocol, resources)
    found = compare(groups, rows)
    lines = cells(found)
    markdown = "\n".join(
        f"| {' | '.join(line)} |" for line in [HEADER, ["---", "---", *["---:"] * (len(HEADER) - 2)], *lines]
    )
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([HEADER, *lines])
    models = {
        c.backbone: f"{c.backbone} (weights {c.weights}): solver {c.solver}, guidance {c.guidance}, {c.size} px, "
        f"batches of {c.batch_size}"
        for c in (point.configuration for point in points)
    }
    facts = {
        "models": "; ".join(models.values()),
        **protocol.facts(),
        "machine": workers.machine(),
        "commit": report.commit(),
    }
    labels = [f"{of.variant}: {of.row.label}" for of in found]
    page = report.page(
        f"postdiff: {' and '.join(Path(name).name for name in args.backbones)}",
        answer(found),
        report.table(HEADER, lines)
        + "<h2>The same prompts and noise</h2>\n"
        + report.examples(store, [of.row for of in found], labels),
        facts,
    )
    for name, text in (("results.md", markdown + "\n"), ("results.csv", table.getvalue()), ("report.html", page)):
        store.put(name, text.encode())
    print(f"{markdown}\n\n{answer(found)}\n\nreport: {store.url}/report.html")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbones", nargs="+", required=True, help="names, folders, or ORG/REPOSITORY@COMMIT; the first is compared")
    add("--methods", nargs="+", default=["dense", "mixed_resolution", "postdiff"], help="(postdiff methods)")
    add("--size-conditions", nargs="+", choices=SIZE_CONDITIONS, default=["target"])
    evaluation.add_options(parser)
    add("--out", default="out/compare", help="the store: a folder or any pyarrow.fs or fsspec URL")
    return evaluation.settle_options(parser.parse_args(argv))


def main(argv: list[str] | None = None) -> None:
    try:
        run(parse(argv))
    except (ValueError, OSError, workers.WorkersError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
