"""What pages are made of, without a browser: text is escaped, the answer is called by a rule, labels do not collide,
colours can be told apart, images fit."""

import io
import re
import sys
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import pages

import pipelines
from pipelines import command_line, comparison, scoring
from pipelines.data import images
from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.metrics import intervals
from pipelines.metrics.metric import METRICS
from pipelines.paper import exhibit_text, verdict
from pipelines.report import answers, chart, document, labels, palette, pictures, tables

FID, CLIP_SCORE = METRICS["fid"], METRICS["clip"]
STYLE = (document.FOLDER / "page.css").read_text()
ANSWER = answers.Answer("The answer", "open", ("A sentence.",))


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_what_prompts_and_names_say_is_escaped(tmp_path, text):
    rows = [*pages.sweep(), pages.row("mine", text, 20, 15 * 10**9, 30.0, 30.0)]
    store = pages.store_of(tmp_path, rows, pages.small, [text] * 4)
    body = document.sweep_body(rows, pictures.examples(store, rows))
    body += document.section("x", text, document.table([text], [[text]], caption=text), text, document.notes([text]))
    body += document.folded(text, text) + document.files([text])
    answer = answers.Answer(text, "open", (text,), (text,))
    page = document.page(text, answer, body, {text: text}, links=[text], contents=[("x", text)], command=text)
    assert text not in page
    assert "alert(1)" in page
    assert page.count("<script") == 2  # ours, and the plans
    assert not re.search(r"(src|href)=.(https?:|//)", page)


# The answer.


def test_the_verdict_is_that_of_the_clear_plans():
    answer = answers.of_sweep(pages.sweep(), "a model")
    assert (answer.verdict, answer.tone) == ("It depends on the metric", "open")
    assert answer.sentences == (
        "For a model, at equal FLOPs, cheaper steps beat fewer steps by CLIP score; fewer steps beat cheaper steps by "
        "FID.",
        "Of the cheaper-step plans that can be held against fewer steps of their cost, none of 9 clearly better and 9 "
        "clearly worse by FID; 9 of 9 clearly better and none clearly worse by CLIP score (paired 95 % intervals that "
        "hold together within a metric, n = 200).",
    )
    assert answer.warnings == ()
    alone = [pages.Row(**{**vars(row), "scores": {"clip": row.scores["clip"]}}) for row in pages.sweep()]
    assert answers.of_sweep(alone, "a model").verdict == "Cheaper steps win"
    twins = [pages.row("caching", f"m={m}", 20, 14 * 10**9, 26.0, 27.0 + (-1) ** m / 100) for m in range(4)]
    unsure = answers.of_sweep([*pages.sweep(plans=0), *twins], "a model")
    assert (unsure.verdict, unsure.tone) == ("Not resolved: neither wins clearly", "open")
    assert unsure.warnings[-1].startswith("Open is not equal: gains below about 0.")


@pytest.mark.parametrize(
    ("n", "called"),
    [(4, []), (19, []), (20, ["CLIP score"]), (127, ["CLIP score"]), (128, ["CLIP score", "FID"])],
)
def test_few_images_call_no_verdict_and_say_so(n, called):
    """At n = 4 of intervals that are next to nothing by chance it said: fewer steps win."""
    rows = pages.sweep(n)
    answer = answers.of_sweep(rows, "a model", ["the probe warns"])
    win = [title for title in ("CLIP score", "FID") if re.search(f"beat [a-z]+ steps by {title}", answer.sentences[0])]
    assert win == called
    assert (answer.tone == "few") == (not called)
    assert (answer.verdict == "Too few images to say") == (not called)
    assert any(line.startswith(f"Only {n} images a plan") for line in answer.warnings) == (len(called) < 2)
    assert "the probe warns." in answer.warnings
    sentence = tables.answer(rows, "a model")
    assert ("steps win on FID" in sentence) == ("FID" in called)
    gains = tables.gains(rows, CLIP_SCORE).values()
    assert tables.called(gains, CLIP_SCORE) == (tables.CHEAPER if called else tables.TOO_FEW)


def test_without_rivals_there_is_no_verdict():
    only = [row for row in pages.sweep() if row.method == "dense"]
    assert answers.of_sweep(only, "a model").verdict == "More steps, or fewer"
    off = [*only[1:], pages.row("postdiff", "s=0.5", 20, 10**9, 30.0, 30.0)]
    assert answers.of_sweep(off, "a model").verdict == "Nothing can be compared"
    assert tables.cells(off)[-1][-1] == tables.ALONE
    assert tables.ALONE in tables.words(tables.cells(off))
    assert tables.REDRAWN not in tables.words(tables.cells(off))


def test_no_cell_of_a_sweeps_table_is_blank():
    rows = pages.sweep()
    assert all(cell for line in tables.cells(rows) for cell in line)
    assert len(set(tables.header(rows))) == len(tables.header(rows))  # each gain says of what


def test_the_papers_question_is_answered_from_its_lines():
    def line(here, agrees):
        return ["m", "PostDiff", "FID", "up to 60%", "4", "1", "0", here, "cheaper steps", agrees]

    one = verdict.answer([line("cheaper steps", "yes"), line("not resolved", "open")])
    assert (one.verdict, one.tone) == ("Cheaper steps win in 1 of 2 comparisons", "clear")
    both = verdict.answer([line("cheaper steps", "yes"), line("fewer steps", "no")])
    assert both.verdict.startswith("It depends")
    assert both.sentences[1] == "Beside what the paper finds, 1 agree, 1 do not."
    assert verdict.answer([line("too few images", "–")] * 3).tone == "few"
    assert verdict.answer([line("not resolved", "open")]).verdict == "Not resolved: neither wins clearly"
    assert verdict.agrees(tables.TOO_FEW, "comparable") == "–"


# Labels.


def overlap(a, b):
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def box(centre, size):
    (x, y), (width, height) = centre, size
    return x - width / 2, x + width / 2, y - height / 2, y + height / 2


@pytest.mark.parametrize("seed", range(5))
def test_labels_lie_on_no_point_and_on_no_other_label(seed):
    rng = np.random.default_rng(seed)
    points = [tuple(xy) for xy in rng.uniform((60, 20), (600, 360), (40, 2))]
    sizes = [(float(width), 13.0) for width in rng.uniform(20, 90, 40)]
    lines = list(pairwise(points))
    centres = labels.place(points, sizes, (40, 640, 0, 400), points, 6.0, lines)
    boxes = [box(centre, size) for centre, size in zip(centres, sizes, strict=True) if centre]
    assert len(boxes) >= 20
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    assert not any(overlap(a, box(point, (12, 12))) for a in boxes for point in points)
    assert all(left >= 40 and right <= 640 and low >= 0 and high <= 400 for left, right, low, high in boxes)


def test_a_label_prefers_a_place_beside_a_line_to_one_on_it():
    upright = [((50.0, 0.0), (50.0, 100.0))]  # an interval through the point
    (centre,) = labels.place([(50, 50)], [(20, 10)], (0, 100, 0, 100), [(50, 50)], 4, upright)
    assert abs(centre[0] - 50) > 10
    (free,) = labels.place([(50, 50)], [(20, 10)], (0, 100, 0, 100), [(50, 50)], 4)
    assert free[0] == 50
    assert labels.place([(50, 50)], [(200, 10)], (0, 100, 0, 100)) == [None]


def test_a_chart_has_every_plan_that_its_metric_can_judge():
    rows = [*pages.sweep(), pages.Row(**{**vars(pages.row("postdiff", "x", 20, 10**10, 1, 1)), "redraws": True})]
    drawn = chart.of_metric(rows, FID)
    assert {point.id for point in drawn.points} == {row.configuration for row in rows}
    assert all(drawn.left <= p.x <= drawn.right and drawn.top <= p.y <= drawn.bottom for p in drawn.points)
    assert all(p.low >= 0 >= p.high for p in drawn.points)  # y points down
    assert [p.x for p in drawn.points] == sorted(p.x for p in drawn.points)
    psnr = [pages.Row(**{**vars(row), "scores": {"psnr": row.scores["fid"]}}) for row in rows]
    assert len(chart.of_metric(psnr, METRICS["psnr"]).points) == len(rows) - 1
    assert [text for _, text in drawn.x_ticks] == ["8", "10", "12", "14", "16", "18", "20"]


def test_a_front_of_one_plan_is_drawn_too():
    best = pages.row("dense", "", 4, 10**9, 1.0, 99.0)  # the cheapest and the best
    drawn = chart.of_metric([best, *pages.sweep()], FID)
    (only,) = [point for point in drawn.points if point.name.endswith("on the front")]
    start, width = drawn.front.removeprefix("M").split("h")
    x, y = map(float, start.split())
    assert (x + float(width) / 2, y) == pytest.approx((only.x, only.y), abs=0.1)
    assert float(width) > 2 * chart.RADIUS


# Colours.


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def full(colour):
    return "#" + "".join(2 * digit for digit in colour[1:]) if len(colour) == 4 else colour


def variables(block):
    return {name: full(colour) for name, colour in re.findall(r"--(\w[\w-]*): (#\w+);", block)}


def test_a_method_has_one_colour_in_figures_and_on_pages_and_it_can_be_seen():
    light, dark = (variables(block) for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL))
    for number, look in enumerate(palette.LOOKS.values()):
        assert (light[f"f{number}"], dark[f"f{number}"]) == (look.light, look.dark)
    for own in (light, dark):
        for ground in ("ground", "card"):
            assert min(contrast(own[f"f{n}"], own[ground]) for n in range(5)) >= 3
            assert min(contrast(own[name], own[ground]) for name in ("text", "dim", "accent")) >= 4.5
    assert len({look.mark for look in palette.LOOKS.values()}) == 5


def test_curves_of_one_method_are_shades_of_its_colour():
    colours = palette.of_curves(["fewer steps", "PostDiff s=0.2", "PostDiff s=0.5"])
    assert colours["fewer steps"] == palette.LOOKS["fewer steps"].light
    assert len(set(colours.values())) == 3
    assert palette.of_curves(["PostDiff s=0.5"])["PostDiff s=0.5"] == palette.LOOKS["PostDiff"].light
    assert min(contrast(one, "#ffffff") for one in palette.of_curves([f"T={t}" for t in range(7)]).values()) >= 2.5


# Images.


def test_small_images_are_on_the_page_as_they_are(tmp_path):
    own = records.encode_image(np.full((64, 64, 3), 7, np.uint8))
    store = Store(str(tmp_path))
    assert pictures.fitted(store, [own] * 3, ["a", "b", "c"]) == [pictures.Picture(own)] * 3
    assert store.names() == set()


def test_large_images_are_smaller_on_the_page_and_whole_beside_it(tmp_path):
    own, store = pages.noise(128, distinct=4), Store(str(tmp_path))
    many = [own(0, i) for i in range(8)]
    names = [f"{pictures.FOLDER}/c-{i}.webp" for i in range(8)]
    shown = pictures.fitted(store, many, names, limit=20_000)
    assert sum(len(picture.url) - len("data:image/webp;base64,") for picture in shown) <= 20_000
    assert store.names() == set(names) == {picture.whole for picture in shown}
    before = images.decode(many[3]).astype(int)
    whole = images.decode(store.get(names[3])).astype(int)
    assert whole.shape == (128, 128, 3)
    assert np.abs(whole - before).mean() < 20
    sides = {Image.open(io.BytesIO(picture.shown)).width for picture in shown}
    assert len(sides) == 1
    assert sides < set(pictures.SIDES)
    gallery = pictures.Gallery(["a prompt"] * 8, [pictures.Line("a plan", shown)])
    page = document.gallery(gallery, "Images.", "appendix_j/")
    assert page.count('data-whole="appendix_j/report-images/c-') == 8
    assert "the folder appendix_j/report-images" in page
    store.put(names[3], b"kept")
    assert pictures.fitted(store, many, names, limit=20_000) == shown
    assert store.get(names[3]) == b"kept"  # what is there is not made again


# What makes it again.


@dataclass
class Options:
    out: str = "s3://key:secret@bucket/x?token=abc"
    limit: int = 8
    matched: bool = True
    plans: tuple[str, ...] = ("a b.json", "c.json")
    shard: int = 32
    given: frozenset[str] = field(default=frozenset({"out", "limit", "matched", "plans"}))


def test_the_command_is_what_was_given_without_secrets():
    told = command_line.again("jobs/coco_sweep.py", Options())
    assert told == ("python jobs/coco_sweep.py --out s3://bucket/x --limit 8 --matched --plans 'a b.json' c.json")
    page = document.page("t", ANSWER, "", {}, command=told)
    assert "--limit 8" in page
    assert not re.search("secret|token", page)


def test_what_all_legends_say_of_intervals_stands_once():
    sources = [file.read_text() for file in Path(pipelines.__file__).parent.rglob("*.py")]
    for sentence in (intervals.LEVEL, "does to both cancels", "wide enough that all"):
        assert sum(source.count(sentence) for source in sources) == 1
    for legend in (comparison.LEGEND, exhibit_text.LEGEND):
        assert legend.startswith(intervals.LEVEL)
        assert intervals.PAIRED in legend
    assert scoring.LEGEND.startswith(intervals.LEVEL)
