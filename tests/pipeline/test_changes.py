"""Changed captions: each says something else than the scene shows, by the judges' own reading of captions."""

import numpy as np
import pytest

from pipelines.data import changes, shapes
from pipelines.data.changes import CHANGES
from pipelines.metrics.judge import QUESTIONS, asked

SCENES = [shapes.scene("val", i) for i in range(600)]
# What alone may change in the answers to a caption, by kind; the others change which object is which.
ALLOWED = {
    "axis": {"axis", *(q for q in QUESTIONS if q[-1] in "01")},
    "background": {"background"},
    **{name: {f"{name}0", f"{name}1"} for name in changes.ATTRIBUTES},
}


def differences(caption: str, other: str) -> set[str]:
    pairs = zip(QUESTIONS, asked(caption), asked(other), strict=True)
    return {question for question, one, two in pairs if one != two}


def test_a_scenes_own_words_are_what_shapes_says():
    for scene in SCENES:
        own = changes.caption(scene.objects, changes.relation(scene), scene.background)
        assert own == scene.caption


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_caption_is_wrong_in_that_and_in_nothing_else(kind):
    rng = np.random.default_rng(0)
    changed = [(scene.caption, wrong) for scene in SCENES if (wrong := CHANGES[kind](scene, rng))]
    assert len(changed) > 100
    for own, wrong in changed:
        differing = differences(own, wrong)
        assert differing
        assert differing <= ALLOWED.get(kind, set(QUESTIONS)), (own, wrong)
        if kind in changes.ATTRIBUTES:
            assert len(differing) == 1


def test_order_is_changed_with_the_same_words_and_only_where_there_is_one():
    """The attributes of both objects, read in canonical order, change places."""
    rng = np.random.default_rng(0)
    for scene in SCENES:
        for kind in changes.ORDER:
            wrong = CHANGES[kind](scene, rng)
            alike = len(scene.objects) == 2 and scene.objects[0].words == scene.objects[1].words
            axis = {"left and right": 0, "above and below": 1}.get(kind, asked(scene.caption)[1])
            assert (wrong is None) == (len(scene.objects) == 1 or alike or asked(scene.caption)[1] != axis)
            if wrong:
                own, other = asked(scene.caption), asked(wrong)
                assert other == own[:3] + own[7:] + own[3:7]


def test_two_alike_have_no_other_order():
    one = shapes.Object("big", "plain", "red", "star", 0.3, 0.5, 0.2, 0.0)
    twins = shapes.Scene("a big red star left of a big red star on snow", "snow", (0, 0, 0), (one, one))
    for kind in (*changes.ORDER, "attribute swapped"):
        assert CHANGES[kind](twins, np.random.default_rng(0)) is None
    hard = changes.hard_negatives(twins, np.random.default_rng(0))
    assert all(asked(wrong) != asked(twins.caption) for wrong in hard)


def test_four_hard_negatives_of_every_scene_are_wrong_and_of_two_objects_one_has_the_other_order():
    rng = np.random.default_rng(0)
    for scene in SCENES:
        wrong = changes.hard_negatives(scene, rng)
        assert len(wrong) == 4
        assert all(differences(scene.caption, caption) for caption in wrong)
        if len(scene.objects) == 2 and scene.objects[0].words != scene.objects[1].words:
            own = asked(scene.caption)
            assert own[:3] + own[7:] + own[3:7] in [asked(caption) for caption in wrong]
