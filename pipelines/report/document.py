"""The report of a sweep: one HTML file that needs nothing else. Prompts and names are data, and escaped."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from pipelines.engine.provenance import commit as commit
from pipelines.engine.store import Store
from pipelines.report import plots, tables
from pipelines.report.tables import Row

EXAMPLES = 8  # prompts in the grid of images
THUMBNAIL = 192  # pixels: two a pixel of the page
CSS = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 86rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.answer { font-size: 1.2rem; border-left: 4px solid #d62728; padding: .4rem 1rem; margin: 1.2rem 0; }
.dim { color: var(--dim); } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots div { flex: 0 1 auto; background: white; border-radius: 6px; } .plots svg { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:first-child, th:first-child, .protocol td { text-align: left; } tr.front td { font-weight: 600; }
.protocol td, .text + .text { white-space: normal; } .text { text-align: left; }
.images td, .images th { padding: 2px; border: 0; text-align: center; vertical-align: bottom; }
.images th.prompt { width: 96px; font-weight: normal; font-size: .72rem; white-space: normal; text-align: center; }
.images td.name { text-align: right; padding-right: .6rem; font-size: .8rem; vertical-align: middle; }
.images img { width: 96px; height: 96px; image-rendering: pixelated; border-radius: 3px; display: block; }
"""


def image_table(prompts: Sequence[str], rows: Sequence[tuple[str, Sequence[bytes]]]) -> str:
    """A table of images: a column a prompt (same noise down it), a row a configuration: (label, WebP images)."""
    head = "".join(f'<th class="prompt">{escape(prompt)}</th>' for prompt in prompts)
    body = ""
    for label, images in rows:
        cells = "".join(
            f'<td><img alt="" src="data:image/webp;base64,{base64.b64encode(image).decode()}"></td>' for image in images
        )
        body += f'<tr><td class="name">{escape(label)}</td>{cells}</tr>\n'
    return f'<table class="images"><tr><th></th>{head}</tr>\n{body}</table>'


def thumbnail(image: bytes) -> bytes:
    """An image as the page shows it: one that is larger is made smaller, or a page of real models has 200 MB."""
    opened = Image.open(io.BytesIO(image), formats=("WEBP",))
    if max(opened.size) <= THUMBNAIL:
        return image
    opened.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    opened.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


def examples(store: Store, rows: Sequence[Row], labels: Sequence[str] | None = None) -> str:
    """The first images of every configuration: a column a prompt, the same noise down it."""
    lines, texts = [], []
    for row, label in zip(rows, labels or [row.label for row in rows], strict=True):
        first = store.shards(f"images/{row.configuration}")[0]
        table = store.table(first, ["prompt", "image"]).slice(0, EXAMPLES)
        texts = table["prompt"].to_pylist()
        lines.append((label, [thumbnail(image["bytes"]) for image in table["image"].to_pylist()]))
    return f'<div class="scroll">{image_table(texts, lines)}</div>'


def table(
    header: Sequence[str], lines: Sequence[Sequence[str]], marked: Sequence[bool] | None = None, text_columns: int = 1
) -> str:
    """marked: which lines are bold. text_columns: how many are sentences, to the left; the others hold numbers."""
    styles = [' class="text"'] * text_columns + [""] * (len(header) - text_columns)
    head = "".join(f"<th{style}>{escape(name)}</th>" for style, name in zip(styles, header, strict=True))
    body = ""
    for cells, bold in zip(lines, marked or [False] * len(lines), strict=True):
        mark = ' class="front"' if bold else ""
        row = "".join(f"<td{style}>{escape(cell)}</td>" for style, cell in zip(styles, cells, strict=True))
        body += f"<tr{mark}>{row}</tr>\n"
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def page(title: str, answer: str, body: str, facts: dict[str, str]) -> str:
    """One HTML file. body: HTML; all others are text. facts: protocol, machine, commit, and the like."""
    lines = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in facts.items())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{CSS}</style>
<h1>{escape(title)}</h1>
<p class="answer">{escape(answer)}</p>
{body}
<h2>Protocol</h2>
<table class="protocol">{lines}</table>
</html>
"""


def sweep_body(
    note: str, rows: Sequence[Row], fronts: set[str], figures: Sequence["plots.plt.Figure"], images: str
) -> str:
    """What a sweep's page shows. note: a sentence; fronts: ids of the configurations on a front; images: HTML."""
    pictures = "".join(f"<div>{plots.as_svg(figure)}</div>" for figure in figures)
    bold = [row.configuration in fronts for row in rows]
    titles = " or of ".join(metric.title for metric in tables.columns(rows))
    return f"""<p>{escape(note)}</p>
<div class="plots">{pictures}</div>
<h2>Configurations</h2>
<p class="dim">Cost is the denoiser's, for one image. Intervals are 95 %. Bold: on the front of {titles}.
GFLOPs count everything (2 x MAC, attention included); GMACs follow the paper's rule, without attention products.
Gain: over fewer steps at the same FLOPs (linear between the two nearest), paired image by image; its
interval decides: what an image does to both cancels, and it is wide enough that all of a column hold at once
(max-t). {tables.directions(rows)}</p>
{table(tables.header(rows), tables.cells(rows), bold)}
<h2>The same prompts and noise</h2>
{images}"""
