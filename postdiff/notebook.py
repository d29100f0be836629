"""How a plan shows itself in a notebook: its picture, and its text where it cannot be drawn."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postdiff.plan import Plan


def png(plan: Plan) -> bytes | None:
    """The picture of `plan` as a PNG file. None without Pillow, or if the plan is too large to be drawn."""
    try:
        from postdiff.picture import as_png

        return as_png(plan)
    except (ImportError, ValueError):
        return None


def html(plan: Plan) -> str:
    """The picture of `plan` at the size that it was drawn for, with its text for who cannot see it; else the text."""
    picture = png(plan)
    if picture is None:
        return f"<pre>{escape(str(plan))}</pre>"
    from postdiff.picture import SCALE

    width = int.from_bytes(picture[16:20], "big") // SCALE  # a PNG begins with its size
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f'<img src="{source}" alt="{escape(str(plan))}" style="width:{width}px;max-width:100%">'
