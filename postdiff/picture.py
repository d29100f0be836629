"""A plan as a picture: a strip of its steps, one column each."""

import io
from math import ceil

from PIL import Image, ImageDraw, ImageFont

from postdiff.arguments import instance
from postdiff.plan import Plan, extra_marks, notes

FULL, STORE, PART, REUSE, INK, PAPER = "#2b6cb0", "#1a365d", "#8fb8de", "#dbe7f3", "#1a202c", "#ffffff"
COLOURS = {"#": FULL, "S": STORE, ".": REUSE}  # else PART
THIN = 7  # height of a row of a module with a schedule of its own
CELL, GAP, LEFT, SCALE = 22, 3, 118, 2  # in points; drawn at SCALE pixels a point
MAX_PIXELS = 2**28  # 805 MB


def _notes(plan: Plan) -> str:
    """What a strip of steps does not show."""
    half = ["without guidance: the unconditional half"] if plan.half == "uncond" else []
    return ";  ".join([*half, *notes(plan)])


def draw_plan(plan: Plan) -> Image.Image:
    """Column height is the step's resolution; rows below show guidance and what is stored and reused.

    Raises: ValueError if the plan has so many steps and modules that the picture would not fit into memory.
    """
    thick = [m for m in instance("plan", plan, Plan).mechanisms if not m.thin]
    shown = {title: marks for mechanism in thick for title, marks in mechanism.rows().items()}
    rows = ["guidance", *shown]
    words, modules = _modules(plan)
    top, band = 34, 3 * CELL
    thin = len(modules) * THIN + (GAP if modules else 0)
    height = top + band + 10 + len(rows) * (CELL + GAP) + thin + 48
    legend = [(FULL, "computed"), (STORE, "computed and stored"), (REUSE, "reused or skipped")]
    if extra := extra_marks(plan):
        legend.append((PART, "; ".join(meaning for _, meaning in extra)))
    title, subtitle = f"{plan.name}, {len(plan)} steps", _notes(plan)
    font, small = ImageFont.load_default(12 * SCALE), ImageFont.load_default(10 * SCALE)

    def length(words: str, font=small) -> int:
        return ceil(font.getlength(words) / SCALE)

    ends = (
        LEFT + len(plan) * (CELL + GAP),
        24 + length(title, font) + length(subtitle),
        sum(32 + length(w) for _, w in legend),
    )
    width = 16 + max(ends)
    if width * height * SCALE**2 > MAX_PIXELS:
        raise ValueError(
            f"a picture must have at most {MAX_PIXELS} pixels, got {width * SCALE}x{height * SCALE} "
            f"of {len(plan)} steps and {len(modules)} modules"
        )
    image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(image)

    def text(x: float, y: float, words: str, font=font, anchor: str = "lm") -> None:
        draw.text((x * SCALE, y * SCALE), words, INK, font, anchor)

    def box(x: float, y: float, w: float, h: float, colour: str) -> None:
        draw.rectangle([x * SCALE, y * SCALE, (x + w) * SCALE - 1, (y + h) * SCALE - 1], colour)

    text(12, 16, title)
    text(24 + length(title, font), 17, subtitle, small)
    text(12, top + band - CELL / 2, "resolution")
    for r, name in enumerate(rows):
        text(12, top + band + 10 + r * (CELL + GAP) + CELL / 2, name)
    for i, step in enumerate(plan.steps):
        x = LEFT + i * (CELL + GAP)
        box(x, top + band * (1 - step.scale), CELL, band * step.scale, FULL)
        y = top + band + 10
        box(x, y, CELL, CELL, FULL)
        if not step.guided:  # one half only
            box(x, y, CELL, CELL / 2, REUSE)
        for r, marks in enumerate(shown.values(), 1):
            box(x, y + r * (CELL + GAP), CELL, CELL, COLOURS.get(marks[i], PART))
        y += len(rows) * (CELL + GAP)
        for r, marks in enumerate(modules):
            box(x, y + r * THIN, CELL, THIN - 1, COLOURS.get(marks[i], PART))
        text(x + CELL / 2, y + thin + 6, str(i), small, "mm")
    if modules:
        text(12, top + band + 10 + len(rows) * (CELL + GAP) + thin / 2, words)
    x = 12
    for colour, word in legend:
        box(x, height - 22, 12, 12, colour)
        text(x + 17, height - 16, word, small)
        x += 32 + length(word)
    return image


def as_png(plan: Plan) -> bytes:
    """The picture of `plan` as a file. Raises as `draw_plan` does."""
    buffer = io.BytesIO()
    draw_plan(plan).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _modules(plan: Plan) -> tuple[str, list[str]]:
    """What the thin rows are of, and their marks, modules in their order."""
    words, rows = [], []
    for mechanism in plan.mechanisms:
        if mechanism.thin:
            words.append(mechanism.thin)
            names = sorted(mechanism.rows(), key=lambda name: [(p.isdigit() and int(p), p) for p in name.split(".")])
            rows += [mechanism.rows()[name] for name in names]
    return ", ".join(words), rows
