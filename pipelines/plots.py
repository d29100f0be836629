"""The pictures of a sweep: the only file that imports matplotlib."""

import io
from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from pipelines.tables import FAMILIES, Metric, Row, front

STYLE = dict(zip(FAMILIES, (("#444444", "o"), ("#1f77b4", "s"), ("#2ca02c", "^"), ("#d62728", "D")), strict=True))
AXES = {"fid": "FID (lower is better)", "clip": "CLIP score (higher is better)"}


def front_plot(rows: Sequence[Row], metric: Metric, title: str) -> plt.Figure:
    """Quality against FLOPs with 95 % intervals; the fewer-step curve and the front are lines."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for family, (colour, marker) in STYLE.items():
        own = sorted((row for row in rows if row.family == family), key=lambda r: r.flops)
        if not own:
            continue
        x = [row.flops / 1e9 for row in own]
        intervals = [row.interval(metric) for row in own]
        y = [interval.value for interval in intervals]
        spread = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
        axes.errorbar(x, y, spread, fmt=marker, ms=5, color=colour, ecolor=colour + "55", elinewidth=1, label=family)
        if family == "fewer steps":
            axes.plot(x, y, "-", color=colour, lw=1, alpha=0.6)
            for row, px, py in zip(own, x, y, strict=True):
                axes.annotate(f"{row.steps}", (px, py), (0, 7), textcoords="offset points", ha="center", size=7)
    best = front(rows, metric)
    axes.plot(
        [r.flops / 1e9 for r in best],
        [r.interval(metric).value for r in best],
        "-",
        color="#bbbbbb",
        lw=5,
        alpha=0.5,
        zorder=0,
        label="front",
    )
    axes.set(xlabel="GFLOPs an image", ylabel=AXES[metric], title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=len(STYLE) + 1)
    return figure


def as_svg(figure: plt.Figure) -> str:
    """The figure as an <svg> element, the same bytes for the same figure."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "postdiff"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: plt.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
