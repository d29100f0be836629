"""The picture of an exhibit, and the numbers behind it, from what the store holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.evaluation import Protocol
from pipelines.metrics.intervals import Interval, mean_interval
from pipelines.metrics.metric import Metric
from pipelines.paper import exhibit_text, exhibits
from pipelines.paper.exhibits import Exhibit
from pipelines.report import plots, tables
from pipelines.stages import features, scores, trajectories
from pipelines.stages.generation import Configuration

if TYPE_CHECKING:
    from pipelines.paper.analysis import Profile

WATCHED = 32  # prompts that profiles and trajectories are averaged over
COLUMNS = 6  # prompts of a gallery, as in Fig. 6 and 11
Configurations = Mapping[tuple[str, str], Configuration]  # (the paper's model, plan id)


def tasks(exhibit: Exhibit, configurations: Configurations, protocol: Protocol) -> list[trajectories.Task]:
    """What must be done for the picture beside the images that are scored."""
    if exhibit.kind not in ("profile", "trajectory"):
        return []
    return [
        trajectories.Task(
            exhibit.kind,  # type: ignore[arg-type]
            configurations[run.model, run.plan.id],
            protocol.prompts[:WATCHED],
            protocol.clip,
        )
        for run in exhibit.runs
    ]


@dataclass(frozen=True)
class Drawn:
    """numbers: as csv, where the exhibit's own csv has not all that is drawn. note: a sentence about the picture."""

    figure: plots.plt.Figure
    numbers: str = ""
    note: str = ""


def draw(
    store: Store,
    exhibit: Exhibit,
    results: exhibit_text.Results,
    names: Mapping[str, str],
    protocol: Protocol,
    configurations: Configurations,
) -> Drawn | None:
    """The picture; None for a table, and for quality against cost where nothing of it was measured."""
    name = names[exhibit.models[0]]
    runs = [exhibit_text.of(results, run).row for run in exhibit.runs]
    measured = [metric for metric in exhibit.metrics if tables.measured(runs, metric)]
    if exhibit.kind == "table" or not measured:
        return None
    if exhibit.kind == "plane":
        return Drawn(plots.plane_plot(exhibit, results, names))
    if exhibit.kind == "front":
        return Drawn(plots.exhibit_plot(exhibit, results, names, measured))
    if exhibit.kind == "subsets":
        (metric,) = exhibit.metrics
        curves = subsets(store, exhibit, results, protocol, metric)
        rows = [[of, s, *_cells(interval)] for of, points in curves.items() for s, interval in points]
        numbers = to_csv(["prompts", "s", *INTERVAL], rows)
        return Drawn(plots.subsets_plot(curves, metric, f"{name}, T = 20"), numbers, agreement(curves))
    if exhibit.kind == "gallery":
        return Drawn(plots.gallery_plot(gallery(store, exhibit, results, names)))
    made = tasks(exhibit, configurations, protocol)
    if exhibit.kind == "profile":
        found = trajectories.read_profile(store, made[0])
        return Drawn(plots.profile_plot(found, f"{name}, {len(exhibit.runs[0].plan)} steps"), profile_csv(found))
    paths = {run.label: task for run, task in zip(exhibit.runs, made, strict=True)}
    return draw_trajectories(store, paths, exhibit.shown, name)


def draw_trajectories(store: Store, tasks: Mapping[str, trajectories.Task], shown: Sequence[int], name: str) -> Drawn:
    """{label: task} -> a row each, for each of the prompts `shown`."""
    paths = {
        label: (task.configuration.plan, trajectories.read_trajectory(store, task)) for label, task in tasks.items()
    }
    prompts = next(iter(tasks.values())).prompts
    groups = {
        f"“{prompts[p].text}”": [
            (label, plan, [step[p] for step in path.images], path.scores[:, p]) for label, (plan, path) in paths.items()
        ]
        for p in shown
    }
    title = f"{name}: CLIP score of the image that each step predicts"
    return Drawn(plots.trajectory_plot(groups, title), trajectory_csv(paths))


def subsets(
    store: Store, exhibit: Exhibit, results: exhibit_text.Results, protocol: Protocol, metric: Metric
) -> dict[str, list]:
    """Fig. 9: {set of prompts: [(s, interval of the metric)]}: the first n of the prompts, and all."""
    n = len(protocol.prompts)
    first = exhibits.CALIBRATION if n > max(exhibits.CALIBRATION) else (max(4, n // 8), max(4, n // 4))
    curves: dict[str, list] = {}
    there = scores.read_features(store, protocol.against(metric))
    for run in exhibit.runs:
        folder = features.folder(protocol.encoder(metric), exhibit_text.of(results, run).row.configuration)
        ids, images = scores.read_features(store, folder)
        texts = scores.held_against(metric, ids, *there)
        for size in dict.fromkeys([*first, n]):
            curves.setdefault(f"{size} prompts", []).append((run.x, metric.score(images[:size], texts[:size])))
    return curves


def agreement(curves: Mapping[str, Sequence[tuple[float, Interval]]]) -> str:
    """A sentence: how alike the order of the settings is on a part of the prompts and on all (Kendall's tau)."""
    from scipy.stats import kendalltau

    *parts, (everything, full) = curves.items()
    told = [
        f"{kendalltau([i.value for _, i in points], [i.value for _, i in full]).statistic:+.2f} on {name}"
        for name, points in parts
    ]
    return f"Rank agreement with {everything} over the {len(full)} settings (Kendall's tau): {', '.join(told)}."


def gallery(
    store: Store, exhibit: Exhibit, results: exhibit_text.Results, names: Mapping[str, str]
) -> list[tuple[str, list[str], list[tuple[str, list[np.ndarray]]]]]:
    """A panel a model: (its title, prompts, [(label, an image a prompt)]). A model's own prompts where it has any."""
    panels = []
    for model in exhibit.models:
        rows, texts = [], {}
        for run in (run for run in exhibit.runs if run.model == model):
            shards = sorted(store.names(f"images/{exhibit_text.of(results, run).row.configuration}"))
            parts = [store.table(shard, ["prompt_id", "prompt", "image"]).to_pylist() for shard in shards]
            found = {row["prompt_id"]: row for part in parts for row in part}
            own = [row for id, row in found.items() if id.startswith(f"{model}-")] or list(found.values())
            texts = {row["prompt_id"]: row["prompt"] for row in own[:COLUMNS]}
            rows.append((run.label, [records.decode_image(row["image"]["bytes"]) for row in own[:COLUMNS]]))
        panels.append((f"{model}: {names[model]}", list(texts.values()), rows))
    return panels


INTERVAL = ("clip", "low", "high", "n")


def _cells(of: Interval) -> list[float]:
    return [round(x, 3) for x in (of.value, of.low, of.high)] + [of.n]


def profile_csv(found: Profile) -> str:
    rows = [["relative L1", name, *np.round(values, 5)] for name, values in found.blocks.items()]
    rows += [["L2 (RMS)", name, *np.round(values, 5)] for name, values in found.layers.items()]
    return to_csv(["distance", "of", *range(1, 1 + len(next(iter(found.blocks.values()))))], rows)


def trajectory_csv(paths) -> str:
    """{label: (plan, Trajectory)} -> the mean CLIP score of every step over all prompts, with its interval."""
    rows = [
        [label, i, plan.steps[i].scale, *_cells(mean_interval(scores))]
        for label, (plan, path) in paths.items()
        for i, scores in enumerate(path.scores)
    ]
    return to_csv(["plan", "step", "scale", *INTERVAL], rows)


def to_csv(header: Sequence, rows: Iterable[Sequence]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()
