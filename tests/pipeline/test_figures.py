"""What is seen rather than read: trajectories, profiles, galleries."""

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.data import images, prompts
from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.metrics.intervals import Interval
from pipelines.paper import exhibit_text, exhibits, figures, published
from pipelines.report import plots
from pipelines.report.tables import Row

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import reproduce  # a job is a script, not a package


@pytest.mark.slow
def test_what_is_seen_rather_than_read_is_a_picture(ray_session, tmp_path, capsys):
    few = ["--limit", "4", "--n-reference", "16", "--rounds", "0", "--shard", "2", "--batch-size", "2"]
    args = ["fig3", "fig7", "fig11", "fig12", *few, "--out", str(tmp_path)]
    reproduce.main(args)
    capsys.readouterr()
    made = {file.name for file in (tmp_path / "exhibits").iterdir()}
    kinds = ("md", "csv", "tex", "svg", "png", "points.csv")
    assert made == {f"{key}.{kind}" for key in ("fig3", "fig7", "fig12") for kind in kinds}
    page = (tmp_path / "report.html").read_text()
    assert page.count('<table class="images">') == 2  # Fig. 11: a gallery a model, in place of its picture
    assert 'href="appendix_j/exhibits/fig11.csv"' in page
    assert 'href="exhibits/fig3.csv"' in page
    there = {file.name for file in (tmp_path / "appendix_j" / "exhibits").iterdir()}
    assert there == {f"fig11.{kind}" for kind in kinds[:5]}
    assert (tmp_path / "report.html").read_text().count("<svg") == 3
    rows = list(csv.DictReader(io.StringIO((tmp_path / "exhibits/fig3.points.csv").read_text())))
    assert [(row["plan"], row["step"]) for row in rows] == [
        (f"s={s:g}", str(i)) for s in (0, 0.1, 0.2, 0.3, 0.5) for i in range(20)
    ]
    assert sum(row["scale"] == "0.5" for row in rows) == 2 + 4 + 6 + 10
    # What the last step predicts is the image that is scored.
    shown = csv.DictReader(io.StringIO((tmp_path / "exhibits/fig3.csv").read_text()))
    scored = {row["label"]: float(row["clip"]) for row in shown if row["label"] != "real images"}
    last = {row["plan"]: float(row["clip"]) for row in rows if row["step"] == "19"}
    assert last == pytest.approx(scored, abs=0.2)
    store = Store(str(tmp_path))
    made_by_hand = store.names("dynamics")
    assert len(made_by_hand) == 1 + 5  # Fig. 3 and 12 share theirs
    before = {name: store.get(name) for name in made_by_hand}
    reproduce.main(args)
    assert {name: store.get(name) for name in store.names("dynamics")} == before


def test_a_gallery_shows_a_models_own_prompts(tmp_path):
    listed = prompts.load_prompts(str(published.APPENDIX_J))
    assert [prompt.id for prompt in listed] == [
        f"{m}-{i}" for m in ("sd15", "pixart", "lcm", "sdxl") for i in range(1, 7)
    ]
    assert all(prompt.text == " ".join(prompt.text.split()) for prompt in listed)
    exhibit = exhibits.gather(["fig6"], {})[0]
    results, store = {}, Store(str(tmp_path))
    for at, cell in enumerate(exhibit.cells):
        id = f"configuration{at}"
        row = Row(id, "dense", "", 20, 1, 1, 0.1, {"clip": Interval(1, 0, 2, 24)})
        results[cell.model, cell.plan.id] = exhibit_text.Measured(row, 1)
        pictures = [np.full((8, 8, 3), 10 * at + i, np.uint8) for i in range(24)]
        columns = {
            "prompt_id": [p.id for p in listed],
            "prompt": [p.text for p in listed],
            "seed": range(24),
            "configuration": [id] * 24,
            "plan": [""] * 24,
            "image": [{"bytes": records.encode_image(p), "path": ""} for p in pictures],
        }
        name = f"images/{id}/00000-of-00001.parquet"
        store.put(name, records.to_parquet(records.IMAGES, columns, name, "m"))
    (first, texts, rows), (_, others, there) = figures.gallery_panels(store, exhibit, results, exhibits.MINI["shapes"])
    assert first == "sd15: mini-sd"
    assert texts == [p.text for p in listed[:6]]
    assert others == [p.text for p in listed[6:12]]
    assert [label for label, _, _ in rows] == ["original", "PostDiff"]
    assert [int(images.decode(image)[0, 0, 0]) for image in rows[1][2]] == [10, 11, 12, 13, 14, 15]
    assert [int(images.decode(image)[0, 0, 0]) for image in there[0][2]] == [26, 27, 28, 29, 30, 31]
    source = figures.Source(store, exhibit, results, exhibits.MINI["shapes"], None, {}, [])
    drawn = figures.gallery(source)
    assert len([axes for axes in drawn.figure.axes if axes.images]) == 24
    assert [(title, len(shown.lines), len(shown.prompts)) for title, shown in drawn.galleries] == [
        ("sd15: mini-sd", 2, 6), ("pixart: mini-pixart", 2, 6)
    ]  # fmt: skip


def test_rank_agreement_is_that_of_the_settings_order():
    def curve(*values):
        return [(s, Interval(value, 0, 0, 4)) for s, value in zip((0.0, 0.3, 0.5, 0.6), values, strict=True)]

    told = figures.agreement(
        {"8 prompts": curve(4, 3, 2, 1), "16 prompts": curve(1, 2, 3, 4), "all": curve(8, 7, 6, 5)}
    )
    assert told.endswith("(Kendall's tau): +1.00 on 8 prompts, -1.00 on 16 prompts.")
    ties = figures.agreement({"8 prompts": curve(1, 1, 1, 1), "all": curve(8, 7, 6, 5)})
    assert ties.endswith("(Kendall's tau): none (ties) on 8 prompts.")
    assert figures.agreement({"all": curve(8, 7, 6, 5)}) == ""  # so few that there is no smaller part


def test_a_prompt_with_dollars_is_text():
    image = np.zeros((8, 8, 3), np.uint8)
    figure = plots.gallery_plot([("a $^_^$ model", ["prices $5_$ to $10"], [("row", [image])])])
    assert plots.as_png(figure)[:4] == b"\x89PNG"
