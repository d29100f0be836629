"""A plan in a notebook."""

import base64
import io
import sys
from html import escape

from PIL import Image

from postdiff import methods
from postdiff.picture import draw_plan


def test_a_plan_draws_itself_in_a_notebook():
    """As the picture of the command line, with its text for who cannot see it."""
    plan = methods.postdiff(8, 0.5, 0.25, 2, 6)
    png = plan._repr_png_()
    drawn, shown = Image.open(io.BytesIO(png)), draw_plan(plan)
    assert (drawn.size, drawn.tobytes()) == (shown.size, shown.tobytes())
    page = plan._repr_html_()
    assert base64.b64encode(png).decode() in page
    assert f'alt="{escape(str(plan))}"' in page
    assert f"width:{shown.width // 2}px" in page


def test_a_plan_that_cannot_be_drawn_shows_its_text(monkeypatch):
    plan = methods.dense(3)
    monkeypatch.setattr("postdiff.picture.MAX_PIXELS", 10)
    assert plan._repr_png_() is None
    assert plan._repr_html_() == f"<pre>{escape(str(plan))}</pre>"
    monkeypatch.setitem(sys.modules, "postdiff.picture", None)  # no Pillow
    assert plan._repr_png_() is None
    assert plan._repr_html_() == f"<pre>{escape(str(plan))}</pre>"
