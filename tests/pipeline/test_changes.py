"""Changed captions: each says something else than the scene shows, by the judges' own reading of captions."""

import numpy as np
import pytest

from pipelines.data import changes, shapes
from pipelines.data.changes import CHANGES
from pipelines.data.procedural import PROCEDURAL, SHAPES, layout

BOTH = pytest.mark.parametrize("data", PROCEDURAL.values(), ids=PROCEDURAL)
DRAWN = {data.name: [data.scene("val", i) for i in range(600)] for data in PROCEDURAL.values()}


def allowed(data, kind) -> set[str]:
    """What alone may change in the answers to a caption, by kind; the others change which object is which."""
    if kind in data.attributes:
        return {f"{kind}{i}" for i in range(data.most)}
    return {"background"} if kind == "background" else set(data.questions)


def differences(data, caption: str, other: str) -> set[str]:
    pairs = zip(data.questions, data.answers(caption), data.answers(other), strict=True)
    return {question for question, one, two in pairs if one != two}


@BOTH
@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_caption_is_wrong_in_that_and_in_nothing_else(data, kind):
    rng = np.random.default_rng(0)
    changed = [(scene.caption, wrong) for scene in DRAWN[data.name] if (wrong := CHANGES[kind](data, scene, rng))]
    assert len(changed) > 80
    for own, wrong in changed:
        differing = differences(data, own, wrong)
        assert differing
        assert differing <= allowed(data, kind), (own, wrong)
        if kind in data.attributes:
            assert len(differing) == 1


@BOTH
def test_order_is_changed_with_the_same_words_and_only_where_there_is_one(data):
    """Of two objects, the attributes of both, read in canonical order, change places."""
    rng = np.random.default_rng(0)
    relations = {"left and right": ("left of", "right of"), "above and below": ("above", "below")}
    for scene in DRAWN[data.name]:
        told, objects, _ = data.parse(scene.caption)
        for kind in changes.ORDER:
            wrong = CHANGES[kind](data, scene, rng)
            there = kind not in relations or told in relations[kind]
            assert (wrong is not None) == (there and len(set(objects)) > 1)
            if wrong:
                assert sorted(data.parse(wrong)[1]) == sorted(objects)
            if wrong and len(objects) == 2:
                own, other = data.answers(scene.caption), data.answers(wrong)
                start, kinds = list(data.questions).index("background") + 1, len(data.attributes)
                swapped = own[start + kinds : start + 2 * kinds] + own[start : start + kinds]
                assert other == own[:start] + swapped + own[start + 2 * kinds :]


def test_two_alike_have_no_other_order():
    one = shapes.Object("big", "plain", "red", "star", 0.3, 0.5, 0.2, 0.0)
    twins = shapes.Scene("a big red star left of a big red star on snow", "snow", (0, 0, 0), (one, one))
    for kind in (*changes.ORDER, "attribute swapped"):
        assert CHANGES[kind](SHAPES, twins, np.random.default_rng(0)) is None
    hard = changes.hard_negatives(SHAPES, twins, np.random.default_rng(0))
    assert all(SHAPES.answers(wrong) != SHAPES.answers(twins.caption) for wrong in hard)


@BOTH
def test_four_hard_negatives_of_every_scene_are_wrong_and_of_several_objects_one_has_another_order(data):
    rng = np.random.default_rng(0)
    for scene in DRAWN[data.name]:
        wrong = changes.hard_negatives(data, scene, rng)
        assert len(wrong) == 4
        assert all(differences(data, scene.caption, caption) for caption in wrong)
        objects = data.parse(scene.caption)[1]
        if len(set(objects)) > 1:
            orders = [data.parse(caption) for caption in wrong]
            same_words = [own for own in orders if sorted(own[1]) == sorted(objects) and own[2] == scene.background]
            assert any(own[:2] != (layout(scene), objects) for own in same_words)
