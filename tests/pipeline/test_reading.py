"""mini-CLIP-reads: what it is taught, and that what is shipped tells left from right on real renders."""

import csv
from hashlib import sha256
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from pipelines.data import changes, shapes
from pipelines.data.changes import CHANGES
from pipelines.data.procedural import SCENES, SHAPES, layout
from pipelines.metrics.encoders import CLIPS, ClipEncoder
from pipelines.training import mini, reading
from pipelines.training.loop import to_tensor
from postdiff.models.checkpoints import MINI

ROOT = Path(__file__).parents[2]
FOLDER = MINI / "mini-clip-reads"


def test_a_batch_without_an_answer_to_a_question_has_a_finite_loss():
    torch.manual_seed(0)
    model = reading.reader(SHAPES)
    right = torch.full((2, len(SHAPES.questions)), -1)
    assert model.loss(torch.randn(2, 128), right) == 0
    right[0, 0] = 1
    embeddings = torch.randn(2, 128, requires_grad=True)
    model.loss(embeddings, right).backward()
    assert embeddings.grad[0].abs().sum() > 0
    assert embeddings.grad[1].abs().sum() == 0  # asked nothing


def test_the_hard_loss_is_clips_among_an_images_own_captions():
    """Against torch's own cross-entropy of cosines, one image at a time."""
    torch.manual_seed(0)
    image, text, wrong, scale = torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 4, 8), torch.tensor(2.0)
    losses = []
    for own, caption, others in zip(image, text, wrong, strict=True):
        cosines = torch.cosine_similarity(own[None], torch.cat([caption[None], others]))
        losses.append(-torch.log_softmax(scale.exp() * cosines, 0)[0])
    torch.testing.assert_close(reading.hard_loss(image, text, wrong, scale), torch.stack(losses).mean())


def test_what_is_trained_on_is_what_the_encoder_sees():
    """Enlarged as open_clip's own transform does, to two levels of 255, which is 2 here: one pass is 14 off."""
    clip = ClipEncoder(str(FOLDER))
    images = SHAPES.drawn([shapes.scene("val", i) for i in range(4)])
    theirs = torch.stack([clip.prepare(image) for image in images])
    ours = reading.seen(to_tensor(images))
    assert theirs.shape == ours.shape == (4, 3, mini.READING_SIZE, mini.READING_SIZE)
    assert (theirs - ours).abs().max() < 4 / 255


def test_held_out_scenes_are_those_of_no_training_caption():
    scenes = reading.held_out(SHAPES, 0, 20)
    assert len(scenes) == 20
    assert all(shapes.is_held_out(scene.caption) for scene in scenes)
    assert scenes[:5] == reading.held_out(SHAPES, 0, 5)


def test_a_reader_of_captions_is_right_of_every_kind_and_one_of_words_of_no_order():
    """Embeddings that are the answers themselves, and bags of the caption's words."""
    scenes = reading.held_out(SHAPES, 0, 60)
    vocabulary = shapes.vocabulary()

    def bag(captions):
        return np.array([[caption.split().count(word) for word in vocabulary] for caption in captions], float) + 1e-3

    def order(captions):
        return np.array([list(sha256(caption.encode()).digest()) for caption in captions], float)

    bags = reading.compared(SHAPES, scenes, bag([scene.caption for scene in scenes]), bag)
    assert set(bags) == set(CHANGES)
    assert bags["background"].all()
    assert not bags["objects exchanged"].any()  # a tie is not right
    images = order([scene.caption for scene in scenes])
    assert all(right.all() for right in reading.compared(SHAPES, scenes, images, order).values())


def test_a_folder_is_open_clips_own_and_what_the_code_makes(tmp_path):
    """`create_model` of a saved folder gives the same embeddings, within fp16."""
    torch.manual_seed(0)
    words = mini.tokenizer()
    model = mini.reading_clip(words).eval()
    mini.save_clip(model, mini.reading_clip_config(words), words, tmp_path)
    loaded = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a big red star left of a small blue ring on snow"])
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_text(ids), model.encode_text(ids), rtol=0, atol=2e-2)
    weights = load_file(FOLDER / "open_clip_model.safetensors")
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }
    assert (FOLDER / "open_clip_model.safetensors").stat().st_size <= 4_000_000


@pytest.fixture(scope="module")
def clip():
    return ClipEncoder("mini-clip-reads")


def test_it_tells_a_render_from_its_mirror_in_words(clip):
    scenes = [scene for scene in reading.held_out(SHAPES, 0, 200) if len(scene.objects) == 2][:64]
    right = reading.compared(SHAPES, scenes, clip.images(SHAPES.drawn(scenes)), clip.texts)
    assert len(scenes) == 64
    assert right["left and right"].mean() >= 0.8
    assert right["above and below"].mean() >= 0.8
    assert right["objects exchanged"].mean() >= 0.8
    assert right["attribute swapped"].mean() >= 0.8


def test_the_same_said_the_other_way_round_suits_as_well(clip):
    """`a left of b` is `b right of a`: other words, the same meaning."""
    scenes = [scene for scene in reading.held_out(SHAPES, 0, 200) if len(scene.objects) == 2][:64]
    relations = [changes.OPPOSITES[layout(scene)] for scene in scenes]
    same = [shapes.caption(s.objects[::-1], name, s.background) for s, name in zip(scenes, relations, strict=True)]
    wrong = [shapes.caption(s.objects, name, s.background) for s, name in zip(scenes, relations, strict=True)]
    images = clip.images(SHAPES.drawn(scenes))
    suits, does_not = ((images * clip.texts(captions)).sum(1) for captions in (same, wrong))
    assert (suits > does_not).mean() >= 0.8


@pytest.mark.parametrize("kind", ["objects exchanged", "axis", "texture", "object missing"])
def test_the_clip_of_scenes_tells_up_to_four_objects_apart(kind, scenes_clip):
    scenes = [scene for scene in reading.held_out(SCENES, 0, 150) if len(scene.objects) > 2][:32]
    right = reading.compared(SCENES, scenes, scenes_clip.images(SCENES.drawn(scenes)), scenes_clip.texts)
    assert len(scenes) == 32
    assert right[kind].mean() >= 0.85


@pytest.fixture(scope="module")
def scenes_clip():
    return ClipEncoder("mini-clip-scenes")


def test_its_accuracy_is_written_down_for_every_kind():
    rows = list(csv.DictReader((ROOT / "jobs/results/accuracy-clip.csv").open()))
    assert list(rows[0]) == ["kind", "accuracy", "low", "high", "n"]
    shares = {row["kind"]: float(row["accuracy"]) for row in rows}
    assert set(shares) == {f"{name}: {kind}" for name in CLIPS for kind in CHANGES}
    assert set(reading.TRAINED_ON) == set(CLIPS)
    assert all(int(row["n"]) == 1000 for row in rows)
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) for row in rows)
    assert all(0.4 < shares[f"mini-clip: {kind}"] < 0.6 for kind in changes.ORDER)  # chance
    assert min(shares[f"mini-clip-reads: {kind}"] for kind in CHANGES) >= 0.95
    assert min(shares[f"mini-clip-scenes: {kind}"] for kind in CHANGES if kind != "shape") >= 0.95
    assert shares["mini-clip-scenes: shape"] >= 0.9
