"""Scores of folders of images that any program made, by the code that scores a sweep's.

A folder becomes a configuration of a store: its images are kept as a sweep keeps them (lossless, so the pixels are
those of the files), and features, scores and intervals are made of them as of any other. All in this process.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from pipelines import graph, options
from pipelines.command_line import Parser, flag, read
from pipelines.data import named_images, prompts
from pipelines.data.named_images import NamedImages
from pipelines.engine import provenance, records
from pipelines.engine.cluster import Unit
from pipelines.engine.lease import lease
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.metrics.intervals import Interval, together
from pipelines.metrics.metric import METRICS, Metric
from pipelines.options import Options as Evaluation
from pipelines.options import Out
from pipelines.report import tables
from pipelines.stages import beside, features, fidelity, generation, scores
from pipelines.stages.beside import Threads
from postdiff.terminal import doing

# What one folder's images are held against the other's by: a sweep's to the solution, with another baseline.
FIDELITY = [metric for metric in METRICS.values() if metric.needs == "solution"]
NOT_HERE = "not computed: this job has none of its weights"
ABSENT = ("LPIPS", "HPS v2", "PickScore", "ImageReward")
LEGEND = (
    "Intervals are 95 %. Difference: the first folder less the second, paired prompt by prompt; FID's and CMMD's are "
    "freed of the bias that few images bring. The intervals of all differences hold together (max-t); where one leaves "
    "out 0 the better folder is named."
)


@dataclass(frozen=True, kw_only=True)
class Options(Evaluation):
    """folder: of the images to score. What makes images, and machines, are fields without a flag: they have no effect
    here."""

    folder: str
    prompts: Annotated[
        str,
        flag("what the images are of: csv, tsv, jsonl, parquet with ids and captions, txt, COCO's json, or 'shapes'"),
    ] = field()
    against: Annotated[str | None, flag("another folder of images of the same prompts: differences are paired")] = None
    out: Out = "out/score"
    shard: int = 0
    batch_size: int = 8
    guidance: float | None = None
    solver: str | None = None
    dtype: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    hang_after: float = 120.0


@dataclass(frozen=True)
class Line:
    """A metric of each folder. better: the name of the clearly better one, "" where none is, or only one was given.

    values: one a folder; of `FIDELITY` the first's alone, which is to the second. difference: first less second.
    """

    metric: Metric
    title: str
    values: tuple[Interval, ...]
    difference: Interval | None = None
    better: str = ""


def parse(doc: str | None, argv: Sequence[str] | None) -> Options:
    """Raises ValueError for options that have no effect together."""
    parser = Parser(doc)
    parser.add_argument("folder", metavar="FOLDER", help="images, each named by its prompt's id: 17.png, cat.jpg")
    given = options.settled(read(parser, Options, argv))
    options.refuse_unused(given)
    return given


def folders(given: Options) -> list[NamedImages]:
    """The folders that are given, paired with the prompts and each other. Raises ValueError as `named_images` does."""
    listed = options.read_prompts(given)
    beyond: list[records.Prompt] = []
    if "limit" in given.given and given.prompts not in prompts.DRAWN:
        beyond = options.read_prompts(replace(given, limit=None, given=frozenset()))[len(listed) :]
    paths = [Path(path) for path in (given.folder, given.against) if path is not None]
    result = [named_images.read(path, listed, beyond) for path in paths]
    if len(result) > 1:
        named_images.check_pair(*result)
    return result


def names(of: Sequence[NamedImages]) -> list[str]:
    """What the tables call the folders: by their last part, where that tells them apart."""
    short = [one.folder.resolve().name for one in of]
    return short if len(set(short)) == len(short) else [str(one.folder) for one in of]


def evaluate(store: Store, of: Sequence[NamedImages], protocol: Protocol) -> list[tables.Row]:
    """A row a folder, of all that `protocol` can measure; the first one's has the fidelity to the second too.

    What the store has is read. Raises Stopped if another driver runs it.
    """
    shared, paired = graph.shared_features(protocol), []
    own = [graph.own_features(one.id, protocol) for one in of]
    if len(of) > 1:
        where = fidelity.folder(of[1].id, of[0].id)
        images, others = (generation.shard_names(one.id, len(protocol.shards)) for one in of)
        own[0] = [*own[0], *fidelity.units(images, others, where)]
        paired = [scores.Input(metric.key, where, "") for metric in FIDELITY]
    with lease(store), doing("scoring images"):
        committed = store.names("features")
        lacking = [unit for units in (shared, *own) for unit in units if unit.name not in committed]
        for encoder in set(protocol.encoders).intersection(unit.group for unit in lacking):
            with doing(f"loading {encoder}"):  # before the images are read
                features.loaded_encoder(encoder)
        for one in of:
            keep(store, one, protocol)
        make(store, lacking)
        rows = []
        for one, units, more in zip(of, own, (paired, []), strict=False):
            task = graph.scoring(store, one.id, protocol, (*units, *shared), more)
            scored = scores.read(store, task.name) if store.has(task.name) else scores.score(task)
            rows.append(tables.Row(one.id, str(one.folder), "", 0, 0, 0, scored.seconds, scored.intervals))
    return rows


def keep(store: Store, of: NamedImages, protocol: Protocol) -> None:
    """Commit the images of a folder as the shards of a configuration."""
    committed = store.names(f"images/{of.id}")
    threads = _threads()

    def compressed(i: int) -> dict:
        return {"bytes": records.encode_image(of.pixels(i)), "path": of.files[i].name}

    with tqdm(total=len(of.files), desc=f"reading {of.folder}", unit="image", delay=2) as bar:
        begins = 0
        for name, shard in zip(generation.shard_names(of.id, len(protocol.shards)), protocol.shards, strict=True):
            if name not in committed:
                columns: dict[str, Sequence] = {
                    "prompt_id": [prompt.id for prompt in shard],
                    "prompt": [prompt.text for prompt in shard],
                    "seed": [None] * len(shard),  # not known, as what made them is not
                    "configuration": [of.id] * len(shard),
                    "plan": [None] * len(shard),
                    "image": threads.map(compressed, range(begins, begins + len(shard))),
                }
                store.commit(name, records.to_parquet(records.IMAGES, columns, name, prompts.fingerprint(shard)))
            begins += len(shard)
            bar.update(len(shard))


def make(store: Store, units: Sequence[Unit]) -> None:
    """Commit `units` of features, with a bar that says how long it will take."""
    extract = features.Extractor(store, _threads())
    for unit in tqdm(units, desc="scoring", unit="unit", delay=2):
        with doing(f"making {unit.name}"):
            commit = extract(unit.task)  # type: ignore[arg-type]
            if callable(commit):
                commit()


def _threads() -> Threads:
    return Threads(min(beside.MOST, (os.cpu_count() or 1) - 1))


def table(rows: Sequence[tables.Row], labels: Sequence[str]) -> list[Line]:
    """A line a metric that was measured, in the order of METRICS."""
    lines = []
    for metric in METRICS.values():
        if metric.key in rows[0].scores:
            title = f"{metric.title} to {labels[-1]}" if metric in FIDELITY else metric.title
            values = tuple(row.interval(metric) for row in rows if metric.key in row.scores)
            lines.append(Line(metric, title, values))
    compared = [line for line in lines if len(line.values) > 1]
    changes = [line.metric.difference(line.values[0], [(1.0, line.values[1])]) for line in compared]
    decided = {
        line.metric.key: replace(line, difference=change, better=_better(line.metric, change, labels))
        for line, change in zip(compared, together(changes), strict=True)
    }
    return [decided.get(line.metric.key, line) for line in lines]


def _better(metric: Metric, change: Interval, labels: Sequence[str]) -> str:
    better, worse = tables.clear([change], metric)
    return labels[0] if better else labels[1] if worse else ""


def header(labels: Sequence[str]) -> list[str]:
    """Of `cells`."""
    return ["metric", *labels, *(["difference", "clearly better"] if len(labels) > 1 else [])]


def cells(lines: Sequence[Line], labels: Sequence[str]) -> list[list[str]]:
    texts = []
    for line in lines:
        values = [line.metric.text(value) for value in line.values]
        change = line.metric.text(line.difference, "+") if line.difference else ""
        wanted = len(header(labels))
        row = [line.title, *values]
        row += [""] * (1 + len(labels) - len(row))
        row += [change, line.better or ("neither" if line.difference else "")]
        texts.append(row[:wanted])
    return texts


def answer(lines: Sequence[Line], labels: Sequence[str]) -> str:
    """A sentence: which folder is better, by what, and how sure that is."""
    n = max(value.n for line in lines for value in line.values)
    if len(labels) == 1:
        return (
            f"{labels[0]}: {', '.join(f'{line.title} {line.metric.text(line.values[0])}' for line in lines)}; n = {n}."
        )
    parts = []
    for label in (*labels, ""):
        by = ", ".join(line.title for line in lines if line.difference and line.better == label)
        if by:
            parts.append(f"{label} is clearly better by {by}" if label else f"neither is clearly better by {by}")
    return f"{'; '.join(parts)} (paired 95 % intervals that hold together, n = {n})."


def facts(of: Sequence[NamedImages], labels: Sequence[str], protocol: Protocol) -> dict[str, str]:
    """What was measured on what, metric by metric, and where."""
    compared = f"pixel by pixel, {labels[0]} to {labels[-1]}, {len(protocol.prompts)} images; Student's t over images"
    own = {metric.title: protocol.definition(metric) for metric in METRICS.values() if not metric.only_where_measured}
    judged = {m.title: protocol.definition(m) for m in protocol.alone if m.only_where_measured}
    between = {metric.title: compared for metric in FIDELITY} if len(of) > 1 else {}
    shared = protocol.facts()
    return {
        **{label: f"{one} (id {one.id})" for label, one in zip(labels, of, strict=True)},
        "protocol": shared["protocol"],
        "prompts": shared["prompts"],
        **own,
        **between,
        **judged,
        **dict.fromkeys(ABSENT, NOT_HERE),
        "machine": provenance.machine(),
        "commit": provenance.commit(),
    }


def to_csv(lines: Sequence[Line], labels: Sequence[str], protocol: str) -> str:
    """One line a metric and folder, or difference of the two."""
    each = [
        (line, what, value)
        for line in lines
        for what, value in [*zip(labels, line.values, strict=False), ("difference", line.difference)]
        if value
    ]
    numbers = [
        {name: f"{number:.{line.metric.digits + 2}f}" for name, number in value.columns("value").items()}
        for line, _, value in each
    ]
    columns = {"metric": [line.title for line, *_ in each], "of": [what for _, what, _ in each]}
    columns |= {name: [row[name] for row in numbers] for name in numbers[0]}
    return tables.csv_of({**columns, "n": [value.n for *_, value in each], "protocol": [protocol] * len(each)})


def to_json(lines: Sequence[Line], labels: Sequence[str], notes: dict[str, str]) -> str:
    """All of it: facts, and each metric's numbers with their bounds and n, not rounded."""
    numbers = {}
    for line in lines:
        each = [*zip(labels, line.values, strict=False), ("difference", line.difference)]
        numbers[line.metric.key] = {what: {**value.columns("value"), "n": value.n} for what, value in each if value} | {
            "title": line.title,
            "clearly_better": line.better,
        }
    return json.dumps({"facts": notes, "scores": numbers}, indent=2) + "\n"


def write(store: Store, of: Sequence[NamedImages], rows: Sequence[tables.Row], protocol: Protocol) -> str:
    """Write scores.csv, .md, .json and .html; returns what is to be printed."""
    from pipelines.report import answers, document

    labels = names(of)
    lines, notes = table(rows, labels), facts(of, labels, protocol)
    shown = cells(lines, labels)
    markdown = tables.markdown(header(labels), shown)
    lacking = "".join(f"\n{name}: {fact}" for name, fact in notes.items() if fact.startswith("not computed"))
    legend = LEGEND if len(of) > 1 else "Intervals are 95 %."
    told, n = answer(lines, labels), max(value.n for line in lines for value in line.values)
    body = document.section("scores", "Metric by metric", document.table(header(labels), shown), legend)
    body += document.section("images", "The images", document.gallery(document.examples(store, rows, labels)))
    files = ("scores.csv", "scores.md", "scores.json")
    page = document.page(f"postdiff: {' and '.join(labels)}", answers.of_changes(told, n), body, notes, links=files)
    whole = f"{markdown}\n{told} {legend}\n\n"
    whole += "".join(f"- {tables.escape_markdown(f'{name}: {fact}')}\n" for name, fact in notes.items())
    for name, text in (
        ("scores.csv", to_csv(lines, labels, notes["protocol"])),
        ("scores.md", whole),
        ("scores.json", to_json(lines, labels, notes)),
        ("scores.html", page),
    ):
        store.put(name, text.encode())
    return f"{markdown}\n{told}\n{lacking}\n\nreport: {store.shown}/scores.html"
