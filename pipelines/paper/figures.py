"""The picture of an exhibit, and the numbers behind it, from what the store holds.

Exhibits name these functions, and are read where there is neither matplotlib nor pyarrow: those that need them import
them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.metrics.intervals import Interval, mean_interval
from pipelines.metrics.metric import Metric
from pipelines.paper.published import PROMPTS_A_MODEL
from pipelines.report import tables

if TYPE_CHECKING:
    from pipelines.engine.store import Store
    from pipelines.evaluation import Protocol
    from pipelines.paper.exhibit import Exhibit
    from pipelines.paper.exhibit_text import Results
    from pipelines.report import plots
    from pipelines.report.pictures import Gallery
    from pipelines.stages import trajectories
    from pipelines.stages.analysis import Profile
    from pipelines.stages.generation import Configuration

    Configurations = Mapping[tuple[str, str], Configuration]  # (the paper's model, plan id)

GALLERY_LIMIT = 1_000_000  # characters that the images of a panel take on the page
WATCHED = 32  # prompts that profiles and trajectories are averaged over
CALIBRATION = (500, 1000)  # App. D, of the paper's 30,000 prompts


@dataclass(frozen=True)
class Source:
    """What a picture is drawn from. names: the paper's model -> the one that ran. metrics: those that were measured."""

    store: Store
    exhibit: Exhibit
    results: Results
    names: Mapping[str, str]
    protocol: Protocol
    configurations: Configurations
    metrics: list[Metric]

    @property
    def name(self) -> str:
        """The model that ran, of an exhibit of one."""
        return self.names[self.exhibit.models[0]]

    @property
    def points(self) -> list[plots.Labelled]:
        from pipelines.report import plots

        return [
            plots.Labelled(cell.model, cell.curve, cell.label, self.results[cell.key].row)
            for cell in self.exhibit.cells
        ]


def tasks(exhibit: Exhibit, configurations: Configurations, protocol: Protocol) -> list[trajectories.Recording]:
    """What must be done for the picture beside the images that are scored."""
    from pipelines.stages import trajectories

    if exhibit.watched is None:
        return []
    prompts = protocol.prompts[:WATCHED]
    return [
        trajectories.Recording(exhibit.watched, configurations[cell.key], prompts, protocol.clip)
        for cell in exhibit.cells
    ]


@dataclass(frozen=True)
class Drawn:
    """numbers: as csv, where the exhibit's own csv has not all that is drawn. note: a sentence about the picture.
    galleries: of images, (title, images) a model, which a page shows in the figure's place."""

    figure: plots.plt.Figure
    numbers: str = ""
    note: str = ""
    galleries: tuple[tuple[str, Gallery], ...] = ()


def draw(
    store: Store,
    exhibit: Exhibit,
    results: Results,
    names: Mapping[str, str],
    protocol: Protocol,
    configurations: Configurations,
) -> Drawn | None:
    """The picture; None for a table, and for quality against cost where nothing of it was measured."""
    rows = [results[cell.key].row for cell in exhibit.cells]
    metrics = [metric for metric in exhibit.metrics if tables.measured(rows, metric)]
    if exhibit.draw is None or not metrics:
        return None
    return exhibit.draw(Source(store, exhibit, results, names, protocol, configurations, metrics))


def plane(source: Source) -> Drawn:
    """Quality against cost of all models."""
    from pipelines.report import plots

    (metric,) = source.metrics
    return Drawn(plots.plane_plot(source.points, source.names, metric))


def front(source: Source) -> Drawn:
    """Quality against cost, a panel a model and metric."""
    from pipelines.report import plots

    return Drawn(plots.exhibit_plot(source.points, source.names, source.metrics))


def subsets(source: Source) -> Drawn:
    """A metric against s on parts of the prompts."""
    from pipelines.report import plots

    (metric,) = source.metrics
    curves = subset_scores(source.store, source.exhibit, source.results, source.protocol, metric)
    rows = [[size, s, *_cells(interval)] for size, points in curves.items() for s, interval in points]
    numbers = to_csv(["prompts", "s", *INTERVAL], rows)
    return Drawn(plots.subsets_plot(curves, metric, f"{source.name}, T = 20"), numbers, agreement(curves))


def gallery(source: Source) -> Drawn:
    """Images, a row a run."""
    from pipelines.data.images import decode
    from pipelines.report import pictures, plots

    panels = gallery_panels(source.store, source.exhibit, source.results, source.names)
    decoded = [(title, texts, [(label, list(map(decode, images))) for label, _, images in rows])
               for title, texts, rows in panels]  # fmt: skip
    shown = [(title, pictures.gallery(source.store, texts, rows, GALLERY_LIMIT)) for title, texts, rows in panels]
    return Drawn(plots.gallery_plot(decoded), galleries=tuple(shown))


def profile(source: Source) -> Drawn:
    """How far features move from step to step."""
    from pipelines.report import plots
    from pipelines.stages import trajectories

    (task,) = tasks(source.exhibit, source.configurations, source.protocol)
    profile_of_steps = trajectories.read_profile(source.store, task)
    steps = len(source.exhibit.cells[0].plan)
    return Drawn(plots.profile_plot(profile_of_steps, f"{source.name}, {steps} steps"), profile_csv(profile_of_steps))


def trajectory(source: Source, shown: Sequence[int]) -> Drawn:
    """What each step predicts of the prompts `shown`."""
    made = tasks(source.exhibit, source.configurations, source.protocol)
    paths = {cell.label: task for cell, task in zip(source.exhibit.cells, made, strict=True)}
    return draw_trajectories(source.store, paths, shown, source.name)


def draw_trajectories(
    store: Store, tasks: Mapping[str, trajectories.Recording], shown: Sequence[int], name: str
) -> Drawn:
    """{label: task} -> a row each, for each of the prompts `shown`."""
    from pipelines.report import plots
    from pipelines.stages import trajectories

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


def subset_scores(
    store: Store, exhibit: Exhibit, results: Results, protocol: Protocol, metric: Metric
) -> dict[str, list]:
    """Fig. 9: {set of prompts: [(s, interval of the metric)]}: the first n of the prompts, and all."""
    from pipelines.stages import features, scores

    n = len(protocol.prompts)
    first = CALIBRATION if n > max(CALIBRATION) else (max(4, n // 8), max(4, n // 4))
    curves: dict[str, list] = {}
    against = scores.read_features(store, protocol.against(metric))
    for cell in exhibit.cells:
        folder = features.folder(protocol.encoder(metric), results[cell.key].row.configuration)
        ids, images = scores.read_features(store, folder)
        texts = scores.held_against(metric, ids, *against)
        for size in dict.fromkeys([*first, n]):
            curves.setdefault(f"{size} prompts", []).append((cell.x, metric.score(images[:size], texts[:size])))
    return curves


def agreement(curves: Mapping[str, Sequence[tuple[float, Interval]]]) -> str:
    """A sentence: how alike the order of the settings is on a part of the prompts and on all (Kendall's tau); "" where
    there is no smaller part."""
    from scipy.stats import kendalltau

    *parts, (everything, full) = curves.items()
    taus = {name: kendalltau([i.value for _, i in some], [i.value for _, i in full]).statistic for name, some in parts}
    correlations = [
        f"{tau:+.2f} on {name}" if np.isfinite(tau) else f"none (ties) on {name}" for name, tau in taus.items()
    ]
    if not correlations:
        return ""
    return f"Rank agreement with {everything} over the {len(full)} settings (Kendall's tau): {', '.join(correlations)}."


def gallery_panels(
    store: Store, exhibit: Exhibit, results: Results, names: Mapping[str, str]
) -> list[tuple[str, list[str], list[tuple[str, str, list[bytes]]]]]:
    """A panel a model: (its title, prompts, [(label, configuration, an image a prompt, WebP)]). A model's own prompts
    where it has any."""
    panels = []
    for model in exhibit.models:
        rows, texts = [], {}
        for cell in (cell for cell in exhibit.cells if cell.model == model):
            configuration = results[cell.key].row.configuration
            shards = store.shards(f"images/{configuration}")
            parts = [store.table(shard, ["prompt_id", "prompt", "image"]).to_pylist() for shard in shards]
            row_of = {row["prompt_id"]: row for part in parts for row in part}
            own = [row for id, row in row_of.items() if id.startswith(f"{model}-")] or list(row_of.values())
            texts = {row["prompt_id"]: row["prompt"] for row in own[:PROMPTS_A_MODEL]}
            rows.append((cell.label, configuration, [row["image"]["bytes"] for row in own[:PROMPTS_A_MODEL]]))
        panels.append((f"{model}: {names[model]}", list(texts.values()), rows))
    return panels


INTERVAL = ("clip", "low", "high", "n")


def _cells(interval: Interval) -> list[float]:
    return [round(x, 3) for x in (interval.value, interval.low, interval.high)] + [interval.n]


def profile_csv(profile_of_steps: Profile) -> str:
    rows = [["relative L1", name, *np.round(values, 5)] for name, values in profile_of_steps.blocks.items()]
    rows += [["L2 (RMS)", name, *np.round(values, 5)] for name, values in profile_of_steps.layers.items()]
    return to_csv(["distance", "of", *range(1, 1 + len(next(iter(profile_of_steps.blocks.values()))))], rows)


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
