"""A plan as a picture: a strip of its steps, one column each."""

from PIL import Image, ImageDraw, ImageFont

from postdiff.plan import Merge, Plan

FULL, STORE, REUSE, INK, PAPER = "#2b6cb0", "#1a365d", "#dbe7f3", "#1a202c", "#ffffff"
CELL, GAP, LEFT, SCALE = 22, 3, 118, 2  # in points; drawn at SCALE pixels a point


def _notes(plan: Plan) -> str:
    """What a strip of steps does not show."""
    one = "without guidance: the unconditional half" if plan.half == "uncond" else ""
    fewer = ""
    if isinstance(plan.tokens, Merge):
        fewer = f"tokens merged around layers: {plan.tokens.ratio:g} of them"
    elif plan.tokens:
        fewer = f"keys and values: every f-th row and column, f = {', '.join(map(str, plan.tokens.factors))}"
    return ";  ".join(note for note in (one, fewer) if note)


def draw_plan(plan: Plan) -> Image.Image:
    """Column height is the step's resolution; rows below show guidance and what is stored and reused."""
    rows = ["guidance", "deep part", "cross-attention"]
    actions = [[step.deep for step in plan.steps], [step.cross_attention for step in plan.steps]]
    if any(step.self_attention == "reuse" for step in plan.steps):
        rows.append("self-attention")
        actions.append([step.self_attention for step in plan.steps])
    top, band = 34, 3 * CELL
    width = LEFT + len(plan) * (CELL + GAP) + 16
    height = top + band + 10 + len(rows) * (CELL + GAP) + 48
    image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(12 * SCALE), ImageFont.load_default(10 * SCALE)

    def text(x: float, y: float, words: str, font=font, anchor: str = "lm") -> None:
        draw.text((x * SCALE, y * SCALE), words, INK, font, anchor)

    def box(x: float, y: float, w: float, h: float, colour: str) -> None:
        draw.rectangle([x * SCALE, y * SCALE, (x + w) * SCALE - 1, (y + h) * SCALE - 1], colour)

    title = f"{plan.name}, {len(plan)} steps"
    text(12, 16, title)
    if notes := _notes(plan):
        text(12 + draw.textlength(title, font) / SCALE + 12, 17, notes, small)
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
        for r, row in enumerate(actions, 1):
            colour = {"compute": FULL, "store": STORE, "reuse": REUSE}[row[i]]
            box(x, y + r * (CELL + GAP), CELL, CELL, colour)
        text(x + CELL / 2, y + len(rows) * (CELL + GAP) + 6, str(i), small, "mm")
    x = LEFT
    for colour, word in ((FULL, "computed"), (STORE, "computed and stored"), (REUSE, "reused or skipped")):
        box(x, height - 22, 12, 12, colour)
        text(x + 17, height - 16, word, small)
        x += 32 + draw.textlength(word, small) / SCALE
    return image
