"""The judges of Scenes: what they answer follows from where they find objects, and from what they read there."""

import numpy as np
import pytest
import torch

from pipelines.data.procedural import ARRANGEMENTS, SCENES, layout
from pipelines.metrics import detectors
from pipelines.metrics.detectors import SIDE, Detector, arranged, peaks, targets
from pipelines.metrics.judge import data_of
from pipelines.metrics.judge_models import GridEncoder, JudgeEncoder, architectures
from pipelines.training import judges

SOME = [SCENES.scene("val", i) for i in range(300)]


class Oracle(Detector):
    """Says of every cell what it is to say of the scenes that it is given; nothing of one part, if it is `dumb`."""

    def __init__(self, scenes, dumb=None):
        super().__init__(SCENES, torch.nn.Identity())
        self.scenes, self.dumb = scenes, dumb

    def read(self, images):
        heat, _, right = targets(SCENES, self.scenes)
        one_hot = torch.nn.functional.one_hot
        values = [one_hot(right[:, i], size).permute(0, 3, 1, 2) for i, size in enumerate(self.sizes)]
        at = [SCENES.answers(scene.caption)[1] for scene in self.scenes]
        background = one_hot(torch.tensor(at), self.background.out_features)
        parts = [torch.logit(heat, 1e-4), 9.0 * torch.cat(values, 1), 9.0 * background]
        return [part * (i != self.dumb) for i, part in enumerate(parts)]


def answered(logits):
    return torch.stack([part.argmax(1) for part in logits.split(list(SCENES.questions.values()), 1)], 1)


def test_who_says_of_each_cell_what_is_there_answers_every_question_rightly():
    given = answered(Oracle(SOME)(torch.zeros(len(SOME), 3, 128, 128)))
    right = torch.tensor([SCENES.answers(scene.caption) for scene in SOME])
    assert given.shape == right.shape
    assert given[right >= 0].equal(right[right >= 0])


@pytest.mark.parametrize(("part", "least"), [(0, 15.0), (1, 6.0), (2, 1.7)])
def test_its_loss_grows_by_each_part_that_says_nothing(part, least):
    """Of attributes the log of how many there are, of backgrounds log 6; of centres a quarter of log 2 a cell."""
    loss, dumb = (float(who.loss(who.read(None), SOME[:8])) for who in (Oracle(SOME[:8]), Oracle(SOME[:8], part)))
    assert loss < 0.5
    assert dumb - loss > least


def test_its_loss_asks_for_centres_and_for_none_elsewhere():
    oracle = Oracle(SOME[:8])
    centre, *others = oracle.read(None)
    of = lambda wrong: float(oracle.loss((wrong, *others), SOME[:8]))  # noqa: E731
    right = of(centre)
    assert of(torch.full_like(centre, -9.0)) > right + 8  # log(1e-4) an object
    assert of(torch.full_like(centre, 9.0)) > right + 100


def test_an_object_is_each_cells_by_its_share_of_the_centre():
    scene = SOME[0]
    heat, weights, _ = targets(SCENES, [scene])
    assert heat.max() == 1
    assert int((heat == 1).sum()) == len(scene.objects)
    assert float(weights.sum()) == pytest.approx(len(scene.objects))
    thing = scene.objects[0]
    axis = torch.arange(SIDE) + 0.5
    near = ((axis - SIDE * thing.x).abs() < 1)[None] & ((axis - SIDE * thing.y).abs() < 1)[:, None]
    share = weights[0][near]
    assert float((share * (axis.expand(SIDE, SIDE)[near])).sum()) == pytest.approx(SIDE * thing.x, abs=1e-4)


def test_a_centre_between_cells_is_one_object_and_its_place_is_between_them():
    likely = torch.zeros(1, SIDE, SIDE)
    likely[0, 4, 6:8] = torch.tensor([0.8, 0.6])
    likely[0, 12, 3] = 0.39  # too little
    places, found, _ = peaks(likely, torch.zeros(1, 2, SIDE, SIDE), 4)
    assert found.tolist() == [[True, False, False, False]]
    assert places[0, 0].tolist() == pytest.approx([6 + 0.6 / 1.4, 4])


@pytest.mark.parametrize(("apart", "objects"), [(1, 1), (2, 1), (3, 2)])
def test_two_are_found_from_three_cells_apart_on(apart, objects):
    likely = torch.zeros(1, SIDE, SIDE)
    likely[0, 0, 0] = likely[0, 0, apart] = 1.0  # equally likely, in a corner
    places, found, _ = peaks(likely, torch.zeros(1, 2, SIDE, SIDE), 4)
    assert int(found.sum()) == objects
    assert places.isfinite().all()


@pytest.mark.parametrize("likely", [0.0, 0.01])
def test_of_an_image_of_nothing_the_likeliest_place_counts_as_an_object(likely):
    places, found, _ = peaks(torch.full((1, SIDE, SIDE), likely), torch.zeros(1, 2, SIDE, SIDE), 4)
    assert found.tolist() == [[True, False, False, False]]
    assert places.isfinite().all()


@pytest.mark.parametrize(
    ("places", "name", "order"),
    [
        ([(3, 3)], "alone", [0]),
        ([(9, 3), (2, 6)], "beside", [1, 0]),
        ([(9, 12), (7, 2)], "above", [1, 0]),
        ([(12, 7), (2, 8), (7, 6)], "row", [1, 2, 0]),
        ([(7, 12), (8, 7), (6, 2)], "column", [2, 1, 0]),
        ([(11, 12), (3, 11), (12, 2), (4, 4)], "grid", [3, 2, 1, 0]),
    ],
)
def test_objects_are_read_from_left_to_right_and_from_top_to_bottom(places, name, order):
    rest = [(0, 0)] * (4 - len(places))
    found = torch.tensor([[True] * len(places) + [False] * len(rest)])
    names, orders = arranged(torch.tensor([[*places, *rest]]).float(), found)
    assert names == [name]
    assert orders.tolist() == [order + list(range(len(places), 4))]


def test_places_of_scenes_say_their_arrangement():
    heat, _, _ = targets(SCENES, SOME)
    places, found, _ = peaks(heat, torch.zeros(len(SOME), 1, SIDE, SIDE), 4)
    assert arranged(places, found)[0] == [ARRANGEMENTS[layout(scene)] for scene in SOME]


@pytest.mark.parametrize("name", ["convolutional", "transformer"])
def test_a_judge_of_either_architecture_learns_what_eight_scenes_show(name):
    torch.manual_seed(0)
    judge, scenes = architectures(SCENES)[name](SCENES), SOME[:8]
    images = torch.from_numpy(SCENES.drawn(scenes)).permute(0, 3, 1, 2) / 127.5 - 1
    assert judge(images).shape == (8, sum(SCENES.questions.values()))
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = judge.loss(judge.read(images), scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert sum(p.numel() for p in judge.parameters()) < 1_000_000  # both in less than 4 MB


def test_what_a_content_fid_is_made_of_is_128_wide():
    grid = detectors.convolutional(SCENES).grid(torch.zeros(2, 3, 128, 128))
    assert grid.shape == (2, 128, SIDE, SIDE)


def test_judges_of_scenes_are_shipped_and_read_as_they_were_trained(tmp_path):
    """Untrained ones, through fp16 files: features of either judge, and of a grid, are what the networks say."""
    torch.manual_seed(0)
    work = tmp_path / "work"
    work.mkdir()
    made = {name: make(SCENES).eval() for name, make in architectures(SCENES).items()}
    for name, judge in made.items():
        torch.save({"ema": judge.state_dict()}, work / f"judge-{name}.pt")
    judges.export(work, tmp_path / "judges", SCENES)
    images = SCENES.drawn(SOME[:4])
    encoder = JudgeEncoder(tmp_path / "judges")
    features = encoder.images(images)
    assert features.shape == (4, 224)
    assert data_of(features) is SCENES
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        centre, _, background = made["transformer"].read(pixels)
        read, _, places = encoder.judges[1].read(pixels)
        grid = encoder.judges[0].grid(pixels).mean((2, 3))
    torch.testing.assert_close(read, centre, rtol=0, atol=0.05)  # fp16
    torch.testing.assert_close(places, background, rtol=0, atol=0.05)
    np.testing.assert_allclose(GridEncoder(tmp_path / "judges").images(images), grid, rtol=0, atol=1e-5)
