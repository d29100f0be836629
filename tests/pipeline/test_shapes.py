"""Shapes: a pure function of (split, index); evaluation prompts never occur in training."""

import time

import numpy as np
import pytest

from pipelines.data import shapes
from pipelines.data.procedural import SHAPES


def test_a_scene_is_a_pure_function_of_split_and_index():
    later = [shapes.scene("train", i) for i in (5, 3, 4)]
    again = [shapes.scene("train", i) for i in (3, 4, 5)]
    assert later[1:] == again[:2]
    np.testing.assert_array_equal(shapes.render(later[0]), shapes.render(again[2]))
    assert shapes.scene("train", 3) != shapes.scene("val", 3)


def test_evaluation_prompts_never_occur_in_training():
    train = {shapes.scene("train", i).caption for i in range(5000)}
    prompts = {scene.caption for scene in SHAPES.distinct("prompts", 500)}
    assert len(prompts) == 500
    assert not train & prompts
    words = {word for caption in train for word in caption.split()}
    assert words == set(shapes.vocabulary())
    assert {word for caption in prompts for word in caption.split()} <= words


def test_two_objects_stand_as_the_caption_says_and_inside():
    for i in range(300):
        scene = shapes.scene("train", i)
        for thing in scene.objects:
            assert thing.x - thing.radius >= 0
            assert thing.x + thing.radius <= 1
            assert thing.y - thing.radius >= 0
            assert thing.y + thing.radius <= 1
        if len(scene.objects) == 2:
            a, b = scene.objects
            apart = {
                "left of": b.x - a.x,
                "right of": a.x - b.x,
                "above": b.y - a.y,
                "below": a.y - b.y,
            }
            relation = next(relation for relation in apart if f" {relation} " in scene.caption)
            assert apart[relation] >= a.radius + b.radius


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_a_shape_is_drawn_within_its_radius(shape):
    thing = shapes.Object("big", "plain", "black", shape, 0.5, 0.5, 0.2, 0.0)
    empty = shapes.Scene("", "snow", (0, 0, 0), ())
    drawn = shapes.render(shapes.Scene("", "snow", (0, 0, 0), (thing,)), 128)
    dark = drawn.mean(2) < 80
    y, x = np.nonzero(dark)
    assert 0.25 * np.pi * 0.2**2 * 128**2 < dark.sum() < 1.3 * np.pi * 0.2**2 * 128**2
    assert np.hypot(x - 63.5, y - 63.5).max() < 1.35 * 0.2 * 128  # a square's corners
    assert shapes.render(empty).shape == (64, 64, 3)


def test_drawing_is_fast():
    began = time.process_time()
    for i in range(200):
        shapes.render(shapes.scene("train", i))
    assert 200 / (time.process_time() - began) > 250  # a core: 500 on two


def test_unknown_split_is_told():
    with pytest.raises(ValueError, match=r"train, val, prompts.*'test'"):
        shapes.scene("test", 0)
