"""The pictures: the only file that imports matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import Metric
from pipelines.report import labels, palette
from pipelines.report.tables import Row, front, judges
from postdiff.plan import Plan

if TYPE_CHECKING:
    from pipelines.stages.analysis import Profile

mpl.rcParams["text.parse_math"] = False  # prompts are data: a dollar sign begins no formula
MODELS = tuple(zip(palette.MODELS, "osD^v", strict=True))
Words = tuple[str, float, float, str]  # a label: its text, the point that it names in units of the axes, its colour


@dataclass(frozen=True)
class Labelled:
    """A row as a figure shows it: a point `label` of the series `curve`, of a model."""

    model: str
    curve: str
    label: str
    row: Row


def front_plot(rows: Sequence[Row], metric: Metric, title: str) -> plt.Figure:
    """Quality against FLOPs with 95 % intervals; the fewer-step curve and the front are lines. What `metric` cannot
    judge is not drawn."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    rows = [row for row in rows if judges(metric, row)]
    best = front(rows, metric)
    words: list[Words] = []
    for family, look in palette.LOOKS.items():
        own = sorted((row for row in rows if row.family == family), key=lambda r: r.flops)
        if not own:
            continue
        x = [row.flops / 1e9 for row in own]
        y = _errorbars(axes, x, [row.interval(metric) for row in own], fmt=look.mark, color=look.light, label=family)
        if family == "fewer steps":
            axes.plot(x, y, "-", color=look.light, lw=1, alpha=0.6)
        words += [
            (row.word, px, py, look.light)
            for row, px, py in zip(own, x, y, strict=True)
            if row.method == "dense" or row in best
        ]
    x, y = [row.flops / 1e9 for row in best], [row.interval(metric).value for row in best]
    axes.plot(x, y, "-", color="#bbbbbb", lw=5, alpha=0.5, zorder=0, label="front")
    axes.set(xlabel="GFLOPs an image", ylabel=metric.axis, title=title)
    _plain(axes)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=len(palette.LOOKS) + 1)
    _label(figure, {axes: words})
    return figure


def profile_plot(profile: Profile, title: str) -> plt.Figure:
    """Fig. 7: (a) relative L1 distance between consecutive steps by block, (b) L2 distance by type of layer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(profile.blocks)))
    for (name, values), colour in zip(profile.blocks.items(), colours, strict=True):
        left.plot(np.arange(1, len(values) + 1), values, "o-", ms=3, lw=1.2, color=colour, label=name)
    for name, values in profile.layers.items():
        right.plot(np.arange(1, len(values) + 1), values, "o-", ms=3, lw=1.5, label=name)
    left.set(title="(a) blocks", ylabel="relative L1 distance to the step before")
    right.set(title="(b) types of layers", ylabel="L2 distance to the step before (RMS)")
    for axes in (left, right):
        axes.set(xlabel="step", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _plain(axes)
    for axes, columns in ((left, 3), (right, 2)):
        axes.legend(frameon=False, fontsize=7, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.suptitle(f"{title}, n = {profile.n}", fontsize=10)
    return figure


Watched = tuple[
    str, Plan, Sequence[np.ndarray], Sequence[float] | np.ndarray
]  # label, plan, image a step, CLIP score a step


def trajectory_plot(groups: Mapping[str, Sequence[Watched]], title: str) -> plt.Figure:
    """Fig. 3, 12: what each step predicts: a group a prompt, a row a plan. Frames: green at low resolution, orange at
    full."""
    columns = max(len(plan) for rows in groups.values() for _, plan, _, _ in rows)
    heights = [0.9 * len(rows) + 0.4 for rows in groups.values()]
    figure = plt.figure(figsize=(0.72 * columns + 1, sum(heights) + 0.3), layout="constrained")
    parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (caption, rows) in zip(parts, groups.items(), strict=True):
        grid = part.subplots(len(rows), columns, squeeze=False)
        for at, (line, (label, plan, images, scores)) in enumerate(zip(grid, rows, strict=True), 1):
            for axes in line[len(plan) :]:
                axes.axis("off")
            for i, (axes, step, image, score) in enumerate(zip(line, plan.steps, images, scores, strict=False)):
                axes.imshow(image)
                axes.set_title(f"{score:.1f}", size=7, pad=2)
                axes.set(xticks=[], yticks=[], xlabel=f"{i}" if at == len(rows) else "")
                axes.xaxis.label.set_size(7)
                for spine in axes.spines.values():
                    spine.set(color="#ff7f0e" if step.scale == 1 else "#2ca02c", linewidth=2)
            line[0].set_ylabel(label, size=8)
        part.suptitle(caption, fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def gallery_plot(panels: Sequence[tuple[str, Sequence[str], Sequence[tuple[str, Sequence[np.ndarray]]]]]) -> plt.Figure:
    """Fig. 6, 11, 13: images, a panel a model (its title, prompts, rows of (label, an image a prompt))."""
    columns = max(len(prompts) for _, prompts, _ in panels)
    heights = [1.3 * len(rows) + 0.8 for _, _, rows in panels]
    figure = plt.figure(figsize=(1.3 * columns + 1.4, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (title, prompts, rows) in zip(parts, panels, strict=True):
        grid = part.subplots(len(rows), columns, squeeze=False)
        for at, (line, (label, images)) in enumerate(zip(grid, rows, strict=True)):
            for axes in line[len(images) :]:
                axes.axis("off")
            for axes, image, prompt in zip(line, images, prompts, strict=False):
                axes.imshow(image)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if at == 0:
                    short = textwrap.wrap(prompt, 22, max_lines=3, placeholder=" ...")
                    axes.set_title("\n".join(short), size=6, pad=3)
            line[0].set_ylabel(label, size=7, rotation=0, ha="right", va="center")
        part.suptitle(title, fontsize=9)
    return figure


def exhibit_plot(points: Sequence[Labelled], names: Mapping[str, str], metrics: Sequence[Metric]) -> plt.Figure:
    """Fig. 4, 5, 8: quality against cost, a panel a model and metric, a curve a series; 95 % intervals faint.

    names: the paper's model -> the one that was run. Cost is the paper's "FLOPs" (MACs without attention products).
    """
    panels = [(model, metric) for model in _models(points) for metric in metrics]
    columns = min(len(panels), 2)
    figure, grid = plt.subplots(
        -(-len(panels) // columns), columns, figsize=(5.4 * columns, 4.1 * -(-len(panels) // columns)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    words: dict = {}
    for axes, (model, metric) in zip(grid.flat, panels, strict=True):
        own = [point for point in points if point.model == model]
        colours = palette.of_curves(list(dict.fromkeys(point.curve for point in own)))
        unit, scale = _unit([point.row for point in own])
        outer = list(colours) if len(colours) <= 4 else [next(iter(colours)), list(colours)[-1]]
        for curve, mark in zip(colours, "osD^vPX*", strict=False):
            among = sorted((point for point in own if point.curve == curve), key=lambda p: p.row.macs_paper)
            rows, colour = [point.row for point in among], colours[curve]
            x, y = _curve(axes, rows, metric, scale, fmt=f"{mark}-", color=colour, label=curve)
            if curve in outer:  # of many curves the outer ones alone
                named = [point.label for point in among]
                words.setdefault(axes, []).extend((*one, colour) for one in zip(named, x, y, strict=True))
        axes.set(xlabel=f"{unit} an image (the paper's FLOPs)", ylabel=metric.axis, title=f"{model}: {names[model]}")
        _plain(axes)
        axes.legend(frameon=False, fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    _label(figure, words)
    return figure


def plane_plot(points: Sequence[Labelled], names: Mapping[str, str], metric: Metric) -> plt.Figure:
    """Fig. 1: a metric against cost of all models at once. "-PD": the model under PostDiff, joined to the model as
    it is."""
    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    unit, scale = _unit([point.row for point in points])
    words: list[Words] = []
    for model, (colour, mark) in zip(_models(points), MODELS, strict=False):
        own = [point for point in points if point.model == model]
        dense = sorted((point for point in own if point.curve != "PostDiff"), key=lambda p: p.row.steps)
        ours = [point for point in own if point.curve == "PostDiff"]
        (x, y), (px, py) = (
            _curve(axes, [point.row for point in part], metric, scale, color=colour, **style)
            for part, style in (
                (dense, {"fmt": f"{mark}-", "label": f"{model}: {names[model]}"}),
                (ours, {"fmt": "*", "ms": 13}),
            )
        )
        for at, value in zip(px, py, strict=True):
            arrow = {"arrowstyle": "->", "color": colour, "ls": "--", "lw": 1}
            axes.annotate("", (at, value), (x[-1], y[-1]), arrowprops=arrow)
            words.append((f"{model}-PD", at, value, colour))
        words += [(point.label, at, value, colour) for point, at, value in zip(dense, x, y, strict=True)]
    axes.set(xscale="log", xlabel=f"{unit} an image (the paper's FLOPs)", ylabel=metric.axis)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=7)
    _plain(axes)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=len(_models(points)))
    _label(figure, {axes: words})
    return figure


def _models(points: Sequence[Labelled]) -> list[str]:
    return list(dict.fromkeys(point.model for point in points))


def _unit(rows: Sequence[Row]) -> tuple[str, float]:
    """What a cost axis counts in."""
    return ("T MACs", 1e12) if max(row.macs_paper for row in rows) >= 1e12 else ("GMACs", 1e9)


def _curve(axes, rows: Sequence[Row], metric: Metric, scale: float, **style) -> tuple[list[float], list[float]]:
    """Quality against cost with intervals; returns where the points are."""
    x = [row.macs_paper / scale for row in rows]
    return x, _errorbars(axes, x, [row.interval(metric) for row in rows], lw=1.2, **style)


def _errorbars(axes, x: Sequence[float], intervals: Sequence[Interval], **style) -> list[float]:
    """Points with their 95 % intervals, which are lighter; returns their values."""
    y = [interval.value for interval in intervals]
    spread = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
    _, caps, bars = axes.errorbar(x, y, spread, **{"ms": 5, "elinewidth": 1.1, "capsize": 2, **style})
    for part in (*caps, *bars):
        part.set_alpha(0.55)
    return y


def _label(figure: plt.Figure, words: Mapping[plt.Axes, Sequence[Words]], size: float = 6.5) -> None:
    """Write labels beside their points where they hide nothing, with a thin line where that is farther off. One for
    which there is no room is left out: tables have them all. The last thing that is done to a figure, since it is of
    where all else stands."""
    figure.draw_without_rendering()
    for axes, own in words.items():
        spots = [tuple(axes.transData.transform((x, y))) for _, x, y, _ in own]
        texts = [axes.annotate(text, (x, y), size=size, color=colour) for text, x, y, colour in own]
        boxes = [text.get_window_extent() for text in texts]
        sizes = [(box.width + 1, box.height) for box in boxes]
        lines = [pair for line in axes.lines if line.get_linestyle() != "None"
                 for pair in pairwise(line.get_transform().transform(line.get_xydata()))]  # fmt: skip
        bars = [part for drawn in axes.containers for part in drawn[2]]
        lines += [tuple(ends) for bar in bars for ends in map(axes.transData.transform, bar.get_segments())]
        marks = [tuple(axes.transData.transform(xy)) for drawn in axes.containers for xy in drawn[0].get_xydata()]
        largest = max(drawn[0].get_markersize() for drawn in axes.containers)
        radius = (largest / 2 + 1) * figure.dpi / 72
        area = (axes.bbox.x0, axes.bbox.x1, axes.bbox.y0, axes.bbox.y1)
        centres = labels.place(spots, sizes, area, marks, radius, lines)
        for text, spot, centre, extent in zip(texts, spots, centres, sizes, strict=True):
            text.set_in_layout(False)
            if centre is None:
                text.remove()
                continue
            text.set(ha="center", va="center", position=axes.transData.inverted().transform(centre))
            if labels.is_far(spot, centre, extent, radius):
                ends = axes.transData.inverted().transform([spot, centre]).T
                axes.plot(*ends, color=text.get_color(), lw=0.5, alpha=0.6, zorder=0.5, scalex=False, scaley=False)


def _plain(axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def subsets_plot(curves: Mapping[str, Sequence[tuple[float, Interval]]], metric: Metric, title: str) -> plt.Figure:
    """Fig. 9: a metric against s, a curve a set of prompts: {its name: [(s, interval), ...]}."""
    figure, axes = plt.subplots(figsize=(5.6, 4), layout="constrained")
    for (name, points), (colour, mark) in zip(curves.items(), MODELS, strict=False):
        style = {"fmt": f"{mark}-", "color": colour, "label": name}
        _errorbars(axes, [s for s, _ in points], [interval for _, interval in points], **style)
    axes.set(xlabel="s, share of the steps at low resolution (0: full)", ylabel=metric.axis, title=title)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def halving_plot(curves: Mapping[str, Sequence[Interval]], chosen: str, metric: str, title: str) -> plt.Figure:
    """Scores of plans against the prompts that they were scored on, a line a plan, until it was dropped."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    bold = {"color": palette.LOOKS["PostDiff"].light, "lw": 2.2, "zorder": 3, "label": "chosen"}
    ends = sorted({interval.n for curve in curves.values() for interval in curve})
    for id, curve in curves.items():
        x, y = [interval.n for interval in curve], [interval.value for interval in curve]
        own = bold if id == chosen else {"color": "#8888"}
        axes.plot(x, y, "o-", **{"ms": 3, "lw": 0.8, **own})
        axes.plot(x[-1:], y[-1:], "x" if x[-1] < ends[-1] else "o", ms=5, color=own["color"])
    axes.set_xscale("log", base=2)
    axes.set_xticks(ends, [str(n) for n in ends])
    axes.minorticks_off()
    axes.set(xlabel="prompts (a cross: dropped there)", ylabel=metric, title=title)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def as_svg(figure: plt.Figure, title: str = "") -> str:
    """The figure as an <svg> element, the same bytes for the same figure. title: what it shows, for those who do not
    see it, and for the pointer; text, which is escaped."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "postdiff"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, **({"Title": title} if title else {})})
    text = buffer.getvalue()
    named = f'<svg role="img" aria-label="{escape(title)}"' if title else "<svg"
    return text[text.index("<svg") :].replace("<svg", named, 1)


def as_png(figure: plt.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
