"""The judges of content: what captions ask, what scores count, and that the shipped two read real renders."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.procedural import PROCEDURAL, SCENES, SHAPES
from pipelines.data.prompts import DRAWN, load_prompts
from pipelines.metrics import judge
from pipelines.metrics.judge_models import GridEncoder, JudgeEncoder
from pipelines.metrics.metric import METRICS
from pipelines.training.judges import asked_loss
from postdiff.models.checkpoints import MINI

ROOT = Path(__file__).parents[2]
TWO = "a small striped blue ring left of a big green heart on sand"


def read(*captions: str) -> np.ndarray:
    """Features of images that show exactly what `captions` say, to both judges."""
    return np.tile(judge.one_hot(captions, SHAPES), (1, judge.JUDGES))


def scored(key: str, shown: str, asked: str) -> float:
    return METRICS[key].score(read(*[shown] * 4), read(*[asked] * 4)).value


@pytest.mark.parametrize("key", ["attributes", "content", "objects", "binding", "relation", "backgrounds", "agreement"])
def test_an_image_of_its_caption_has_every_point(key):
    assert scored(key, TWO, TWO) == 100


SWAPPED = "a big green heart left of a small striped blue ring on sand"
MIXED = "a small striped green ring left of a big blue heart on sand"  # the colours went to the other object
ABOVE = TWO.replace("left of", "above")
ONE = "a small striped blue ring on sand"


@pytest.mark.parametrize(
    ("shown", "points"),
    [
        (SWAPPED, {"attributes": 100, "binding": 100, "objects": 100, "relation": 0, "content": 0}),
        (MIXED, {"attributes": 75, "binding": 0, "objects": 100, "relation": 100, "content": 0}),
        (ABOVE, {"attributes": 100, "binding": 100, "objects": 100, "relation": 0, "content": 0}),
        (ONE, {"attributes": 50, "binding": 50, "objects": 0, "relation": 0, "content": 0, "backgrounds": 100}),
        ("a big green heart on sand", {"attributes": 50, "binding": 50, "objects": 0, "relation": 0, "content": 0}),
        (TWO.replace("sand", "snow"), {"attributes": 100, "backgrounds": 0, "relation": 100, "content": 0}),
    ],
)
def test_points_are_lost_for_what_is_wrong_alone(shown, points):
    assert {key: scored(key, shown, TWO) for key in points} == points


def test_one_object_is_right_wherever_the_judge_takes_the_second_for():
    """Of a caption of one object nothing is asked of a second, nor of relations."""
    shown = read(*[ONE] * 4)
    assert METRICS["content"].score(shown, read(*[ONE] * 4)).value == 100
    assert METRICS["objects"].score(read(*[TWO] * 4), read(*[ONE] * 4)).value == 0
    assert not METRICS["relation"].applies(ONE)
    assert METRICS["relation"].applies(TWO)


def guessed(asked: str, shown: str) -> np.ndarray:
    """What a judge says of an image of one object, where its guess at a second one that is not there is right."""
    answers = judge.one_hot([asked] * 4, SHAPES)
    answers[:, :2] = judge.one_hot([shown], SHAPES)[0, :2]  # one object
    return np.tile(answers, (1, judge.JUDGES))


def test_what_is_guessed_of_an_object_that_is_not_there_counts_nothing():
    shown = guessed(TWO, ONE)
    assert METRICS["attributes"].score(shown, read(*[TWO] * 4)).value == 50
    assert METRICS["binding"].score(shown, read(*[TWO] * 4)).value == 50


def test_of_two_that_share_attributes_the_one_that_is_there_is_credited_once():
    """Both are big and on sand: the heart's size is not the star's too."""
    pair = "a big green heart left of a big red star on sand"
    shown = guessed(pair, "a big green heart on sand")
    assert METRICS["attributes"].score(shown, read(*[pair] * 4)).value == 50


ROW = "a big red star and a small blue ring and a big green heart in a row on sand"
GRID = "a big red star and a small blue ring and a big green heart and a big white circle marked x in a grid on sand"


@pytest.mark.parametrize(
    ("shown", "asked", "points"),
    [
        (ROW, ROW, {"attributes": 100, "binding": 100, "objects": 100, "relation": 100, "content": 100}),
        (ROW.replace("row", "column"), ROW, {"attributes": 100, "objects": 100, "relation": 0, "content": 0}),
        (
            "a small blue ring and a big green heart and a big red star in a row on sand",
            ROW,
            {"attributes": 100, "binding": 100, "objects": 100, "relation": 0, "content": 0},
        ),
        (
            ROW.replace("blue", "green"),
            ROW,
            {"attributes": 1100 / 12, "binding": 200 / 3, "relation": 100, "content": 0},
        ),
        (ROW, GRID, {"attributes": 75, "binding": 75, "objects": 0, "relation": 0, "content": 0}),
        (GRID, ROW, {"attributes": 100, "binding": 100, "objects": 0, "relation": 0, "content": 0}),
        (GRID.replace("x", "t"), GRID, {"attributes": 1500 / 16, "binding": 75, "relation": 100, "content": 0}),
        ("a small blue ring left of a big green heart on sand", ROW, {"attributes": 200 / 3, "objects": 0}),
    ],
)
def test_of_up_to_four_objects_points_are_lost_for_what_is_wrong_alone(shown, asked, points):
    images, captions = (np.tile(judge.one_hot([text] * 4, SCENES), (1, judge.JUDGES)) for text in (shown, asked))
    assert {key: METRICS[key].score(images, captions).value for key in points} == pytest.approx(points)


def test_every_metric_of_scenes_is_complete_for_images_of_their_captions():
    captions = [SCENES.scene("val", i).caption for i in range(200)]
    read = np.tile(judge.one_hot(captions, SCENES), (1, judge.JUDGES))
    for key in ("attributes", "content", "objects", "binding", "relation", "backgrounds", "agreement"):
        assert METRICS[key].score(read, read).value == 100
    assert METRICS["content"].score(read, np.roll(read, 1, 0)).value < 1


TWINS = "a big red star left of a big red star on snow"


def test_objects_that_are_alike_stand_in_either_order_and_what_is_not_recognised_in_none():
    assert scored("relation", TWINS, TWINS) == 100
    nothing = "a big checkered black circle left of a big checkered black circle on sand"
    assert scored("relation", nothing, "a small red star left of a small blue ring on sand") == 0


def test_scores_are_means_of_both_judges_and_say_where_they_differ():
    one, other = (judge.one_hot([text] * 4, SHAPES) for text in (TWO, TWO.replace("blue", "red")))
    shown = np.concatenate([one, other], 1)
    assert METRICS["attributes"].score(shown, read(*[TWO] * 4)).value == pytest.approx(100 * (1 + 7 / 8) / 2)
    assert METRICS["agreement"].score(shown, read(*[TWO] * 4)).value == pytest.approx(100 * 10 / 11)


def test_features_of_another_layout_are_refused():
    with pytest.raises(ValueError, match=r"both \[N, 100 or 224\], got \[4, 3\] and \[4, 3\]"):
        judge.attributes(np.zeros((4, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        judge.attributes(np.full((4, 100), np.nan), read(*[TWO] * 4))


@pytest.mark.parametrize("data", PROCEDURAL.values(), ids=PROCEDURAL)
def test_the_shipped_judges_read_real_renders(data):
    judges = JudgeEncoder(MINI / data.judges)
    scenes = data.distinct("prompts", 200)
    images = judges.images(data.drawn(scenes))
    asked = np.array([data.answers(scene.caption) for scene in scenes])
    right = judge.answers(images, data) == asked
    assert right[0][asked >= 0].mean() > 0.97
    assert right[1][asked >= 0].mean() > 0.97
    texts = judges.texts([scene.caption for scene in scenes])
    assert METRICS["content"].score(images, texts).value > 90
    others = np.roll(texts, 1, 0)
    assert METRICS["content"].score(images, others).value < 5


@pytest.mark.parametrize("data", PROCEDURAL.values(), ids=PROCEDURAL)
def test_what_a_judge_sees_is_the_mean_of_its_grid_and_is_far_for_other_textures(data):
    encoder = GridEncoder(MINI / data.judges)
    scenes = [data.scene("val", i) for i in range(300)]
    real = data.drawn(scenes)
    features = encoder.images(real[:150])
    with torch.no_grad():
        grid = encoder.judges[0].grid(torch.stack([encoder.prepare(image) for image in real[:4]]))
    np.testing.assert_allclose(features[:4], grid.mean((2, 3)), rtol=0, atol=1e-5)
    plain = [replace(s, objects=tuple(replace(t, texture="plain") for t in s.objects)) for s in scenes[150:]]
    same, other = (METRICS["fid_content"].score(features, encoder.images(x)) for x in (real[150:], data.drawn(plain)))
    assert other.low > same.high


def test_a_batch_that_asks_nothing_of_a_fourth_object_has_a_loss():
    sizes = list(SCENES.questions.values())
    right = torch.tensor([SCENES.answers(ROW), SCENES.answers(TWO)])
    logits = torch.zeros(2, sum(sizes), requires_grad=True)
    loss = asked_loss(logits, right, sizes)
    asked = (right >= 0).any(0)
    assert float(loss) == pytest.approx(sum(np.log(n) for n, there in zip(sizes, asked, strict=True) if there))
    loss.backward()
    assert logits.grad.isfinite().all()


def test_their_accuracy_is_told_and_above_95_percent_by_question():
    rows = list(csv.DictReader((ROOT / "jobs/results/accuracy-judge.csv").open()))
    assert list(rows[0]) == ["kind", "accuracy", "low", "high", "n"]
    plain = {row["kind"]: float(row["accuracy"]) for row in rows if "," not in row["kind"]}
    assert len(plain) == 3 * (7 + 6)  # by each judge and both alike: kinds of questions, of Shapes and of Scenes
    assert min(plain.values()) >= 0.95
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) for row in rows)
    assert max(int(row["n"]) for row in rows) >= 1000


def test_prompts_are_captions_that_the_judges_read():
    for name, (data, _) in DRAWN.items():
        assert all(data.answers(prompt.text) for prompt in load_prompts(name, 300))
