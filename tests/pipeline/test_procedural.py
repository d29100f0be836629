"""Shapes and Scenes as values: captions are read as what was drawn, questions are of what stands where."""

import shutil

import numpy as np
import pytest

from pipelines.data import prompts, scenes, shapes
from pipelines.data.procedural import COUNTS, PROCEDURAL, SCENES, SHAPES, drawn_by, layout
from pipelines.evaluation import Protocol
from pipelines.metrics.metric import METRICS
from pipelines.stages.features import SOURCES, real_image, reference_name
from postdiff.models.checkpoints import fingerprint, resolve, write_run
from postdiff.models.minis import MINI

BOTH = pytest.mark.parametrize("data", PROCEDURAL.values(), ids=PROCEDURAL)


@BOTH
def test_every_caption_is_read_as_the_scene_it_was_made_of(data):
    for split in shapes.SPLITS:
        for i in range(200):
            scene = data.scene(split, i)
            told, objects, background = data.parse(scene.caption)
            assert (told, background) == (layout(scene), scene.background)
            assert objects == [(thing.size, thing.texture, thing.colour, thing.shape) for thing in scene.objects]
            assert data.caption(scene.objects, told, background) == scene.caption
            assert len(scene.caption.split()) + 2 <= data.tokens


@BOTH
def test_questions_are_of_the_objects_as_they_stand_in_the_picture(data):
    for i in range(300):
        scene = data.scene("val", i)
        answers = dict(zip(data.questions, data.answers(scene.caption), strict=True))
        x, y = (np.array([getattr(thing, axis) for thing in scene.objects]) for axis in "xy")
        wide = np.ptp(x) > np.ptp(y)
        expected = {1: ["alone"], 2: ["above", "beside"], 3: ["column", "row"], 4: ["grid"] * 2}[len(scene.objects)]
        arrangement = expected[int(wide) if len(expected) > 1 else 0]
        if data is SCENES:
            assert data.arrangements[answers["arrangement"]] == arrangement
        else:
            assert answers["count"] == len(scene.objects) - 1
            assert answers["axis"] == {"alone": -1, "beside": 0, "above": 1}[arrangement]
        rows = y > 0.5 if arrangement == "grid" else np.zeros(len(x))
        order = np.lexsort((x if arrangement in ("beside", "row", "grid") else y, rows))
        for place, thing in enumerate(scene.objects[j] for j in order):
            for name, values in data.attributes.items():
                assert values[answers[f"{name}{place}"]] == getattr(thing, name), scene.caption
        unasked = [value for name, value in answers.items() if name[-1].isdigit() and int(name[-1]) >= len(order)]
        assert set(unasked) <= {-1}


@BOTH
@pytest.mark.parametrize(
    "text",
    ["", "a dog", "a big plain red star on snow", "a big red star on snow ", "a big red star in snow",
     "a big star on snow", "a big red star left of on snow", "a big red star and a big red star on snow",
     "a red big star on snow",
     "a big red star left of a big red star and a big red star in a row on snow"],
)  # fmt: skip
def test_what_is_no_caption_is_refused(data, text):
    with pytest.raises(ValueError, match=f"expected a caption of {data.name} \\('a .*, got "):
        data.answers(text)


def test_scenes_have_one_to_four_objects_inside_the_image_and_apart():
    counts = dict.fromkeys(scenes.COUNTS, 0)
    for i in range(1000):
        scene = scenes.scene("train", i)
        counts[len(scene.objects)] += 1
        for thing in scene.objects:
            low, high = scenes.SIZES[thing.size]
            assert low <= thing.radius <= high
            assert min(thing.x, thing.y) - thing.radius >= 0.015
            assert max(thing.x, thing.y) + thing.radius <= 0.985
            assert not (thing.shape == "ring" and thing.texture in scenes.LETTERS)
        for one in scene.objects:
            for other in scene.objects:
                apart = max(abs(one.x - other.x), abs(one.y - other.y))
                assert one is other or apart >= one.radius + other.radius + 0.015, scene.caption
        told = layout(scene)
        if len(scene.objects) == 2:
            a, b = scene.objects
            across = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
            assert across[told] > 0
        assert COUNTS.get(told, 2) == len(scene.objects)
    assert all(abs(counts[n] / 1000 - share) < 0.05 for n, share in scenes.COUNTS.items())


def test_evaluation_prompts_of_scenes_never_occur_in_training_and_have_every_word():
    train = {scenes.scene("train", i).caption for i in range(3000)}
    drawn = [prompt.text for prompt in prompts.load_prompts("scenes", 500)]
    assert not train & set(drawn)
    assert all(shapes.is_held_out(caption) for caption in drawn)
    words = set(scenes.vocabulary())
    assert {word for caption in train for word in caption.split()} == words
    assert {word for caption in drawn for word in caption.split()} <= words


@pytest.mark.parametrize("texture", scenes.TEXTURES)
def test_each_texture_and_letter_looks_like_no_other(texture):
    def image(name: str, phase: float = 0.25) -> np.ndarray:
        thing = shapes.Object("big", name, "blue", "square", 0.5, 0.5, 0.14, phase)
        return scenes.render(shapes.Scene("", "sky", (0, 0, 0), (thing,))).astype(int)

    for other in scenes.TEXTURES:
        changed = np.abs(image(texture) - image(other)).max(2) > 40
        assert changed.sum() == 0 if other == texture else changed.sum() > 40
        rows, columns = np.nonzero(changed)
        assert all(abs(axis - 63.5).max(initial=0) <= 0.14 * 128 for axis in (rows, columns))  # inside the square


def test_scenes_scale_and_are_drawn_within_their_windows():
    """A scene of 256 px, averaged over 2x2 pixels, is the scene of 128 px but for edges and fine lines."""
    for i in range(20):
        scene = scenes.scene("val", i)
        large = scenes.render(scene, 256).reshape(128, 2, 128, 2, 3).mean((1, 3))
        assert np.abs(large - scenes.render(scene)).mean() < 3


@BOTH
def test_real_images_of_prompts_and_references_are_drawn_by_their_names(data):
    prompt = prompts.load_prompts(data.name, 3)[2]
    scene = data.scene("prompts", 2)
    assert prompt.text == scene.caption
    assert np.array_equal(real_image(prompts.scene(prompt)), data.render(scene))
    keys = prompts.references(data.name, 3)
    assert np.array_equal(real_image(keys[1]), data.render(data.scene("reference", 1)))
    assert reference_name(keys) == reference_name(keys)
    assert SOURCES[data.name][-1].__name__.endswith(f".{data.name}")


def test_what_is_scored_depends_on_what_was_trained_on_the_data_set():
    """Each has a CLIP; judges, and the distance of what they see, where it has judges."""
    for name, data in PROCEDURAL.items():
        listed = tuple(prompts.load_prompts(name, 32))
        keys = tuple(prompts.references(name, 8))
        protocol = Protocol(name, listed, 4, keys, data.clip, data.clip)
        judged = {metric.key for metric in METRICS.values() if metric.encoder in ("judge", "grid")}
        lacking = {key for key in judged if protocol.lacks(METRICS[key])}
        assert lacking == (set() if data.judges else judged)
        assert protocol.encoder(METRICS["clip"]) == data.clip
        assert protocol.encoder(METRICS["fid_content"]) == (f"{data.judges}-grid" if data.judges else "")


def test_references_of_the_data_sets_have_names_of_their_own():
    assert reference_name(prompts.references("shapes", 3)) != reference_name(prompts.references("scenes", 3))
    assert (
        prompts.references("shapes-recaption", 2) == prompts.references("shapes", 2) == ["reference/0", "reference/1"]
    )
    assert prompts.references("captions.txt", 2) == []


def test_mini_models_draw_one_data_set_and_others_may_draw_any():
    assert drawn_by("mini-sd") is drawn_by(f"mini-lcm+vae={MINI}/mini-sd/vae") is SHAPES
    assert drawn_by("mini-sd-scenes") is SCENES
    assert drawn_by("sd15") is drawn_by("out/mini-sd") is None


def test_a_folder_draws_what_it_says(tmp_path):
    copy = shutil.copytree(MINI / "mini-bk-sdm", tmp_path / "any name")
    assert drawn_by(str(copy)) is SHAPES
    spec = resolve(copy)
    for prompts_, data in (("scenes", SCENES), ("", None)):
        write_run(spec, copy, prompts=prompts_)
        assert drawn_by(str(copy)) is data
    assert fingerprint(resolve(copy)) == fingerprint(spec)  # the weights are the same
    write_run(spec, copy, prompts="coco")
    with pytest.raises(ValueError, match=r"prompts in .*any name must be one of shapes, scenes, got coco"):
        drawn_by(str(copy))
    write_run(spec, copy, prompts=3)
    with pytest.raises(ValueError, match=r"prompts in .*postdiff\.json must be the name of a data set, got 3"):
        drawn_by(str(copy))
