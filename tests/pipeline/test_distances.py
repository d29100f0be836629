"""Distances between sets of features against their definitions, and intervals that hold."""

import numpy as np
import pytest

from pipelines.metrics import distances, statistics


@pytest.fixture
def sets(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 7)  # several blocks, and a last one that is shorter
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 5)), rng.normal(0.5, 1.2, size=(31, 5))


def test_kid_is_the_mean_over_pairs_of_different_images(sets):
    a, b = sets

    def k(x, y):
        return (x @ y / 5 + 1) ** 3

    def pairs(x):
        return np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])

    expected = pairs(a) + pairs(b) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert distances.kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased_and_cmmd_is_not():
    rng = np.random.default_rng(1)
    draws = [rng.normal(size=(2, 20, 4)) for _ in range(400)]
    kid = [distances.kernel_distance(a, b) for a, b in draws]
    assert abs(np.mean(kid)) < 3 * np.std(kid) / 20
    assert min(distances.cmmd(a, b) for a, b in draws) > 0


def test_cmmd_is_its_definition_and_zero_between_a_set_and_itself(sets):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in sets)

    def mean(x, y):
        return np.mean([np.exp(-np.sum((p - q) ** 2) / 200) for p in x for q in y])

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert distances.cmmd(*sets) == pytest.approx(expected, rel=1e-9)
    assert distances.cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_of_sets_that_are_apart_inside_and_the_same(sets):
    a, b = sets
    assert distances.precision_recall(a, a) == (1, 1)
    assert distances.precision_recall(a, b + 100) == (0, 0)
    line = np.arange(20.0)[:, None] * np.ones((1, 2))
    precision, recall = distances.precision_recall(line[8:12], line)  # a few images of the middle: right, not diverse
    assert precision == 1
    assert recall == 10 / 20  # within 3 of 8 to 11's nearest: 5 to 14


def test_bad_features_are_told():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 4\)"):
        distances.kernel_distance(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="k = 3 neighbours need more images, got 3 and 9"):
        distances.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    some = np.ones((5, 2))
    for measure in (distances.kernel_distance, distances.cmmd, distances.precision_recall):
        for sets in ((some * np.nan, some), (some, some * np.inf)):
            with pytest.raises(ValueError, match="expected finite numbers, got 10 of 10 that are not"):
                measure(*sets)
    with pytest.raises(ValueError, match="expected embeddings longer than 0, got 5 of 5 that are not"):
        distances.cmmd(some, 0 * some)
    for sigma in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="sigma must be a number above 0, got"):
            distances.cmmd(some, some, sigma)
    for k in (0, 1.5, True, None):
        with pytest.raises(ValueError, match="k must be a whole number of 1 or more, got"):
            distances.precision_recall(some, some, k)


@pytest.mark.parametrize(("width", "n"), [(4, 200), (8, 400), (16, 400)])
def test_intervals_of_the_extrapolated_distance_cover_the_true_one(width, n):
    """200 sets of Gaussian features whose distance to the reference is known."""
    rng = np.random.default_rng(0)
    mean, scale = np.linspace(-0.3, 0.4, width), np.linspace(0.7, 1.5, width)
    reference = statistics.Moments(10**9, np.zeros(width), np.eye(width))
    true = (mean**2).sum() + ((scale - 1) ** 2).sum()
    covered, raw, values = 0, [], []
    for _ in range(200):
        plain = statistics.frechet_interval(mean + scale * rng.normal(size=(n, width)), reference)
        found = statistics.extrapolated(plain)
        covered += found.low <= true <= found.high
        raw.append(plain.value)
        values.append(found.value)
    assert 0.90 <= covered / 200 <= 0.98
    assert abs(np.mean(values) - true) < 0.2 * abs(np.mean(raw) - true)  # the bias is gone, but for higher orders
