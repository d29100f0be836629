"""KID and CMMD against their definitions, and intervals that hold."""

import numpy as np
import pytest

from pipelines.metrics import fid, fidelity, intervals, kernel


@pytest.fixture
def sets(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 7)  # several blocks, and a last one that is shorter
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 5)), rng.normal(0.5, 1.2, size=(31, 5))


def test_kid_is_the_mean_over_pairs_of_different_images(sets):
    a, b = sets

    def k(x, y):
        return (x @ y / 5 + 1) ** 3

    def pairs(x):
        return np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])

    expected = pairs(a) + pairs(b) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert kernel.kid(a, b).value == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased_and_cmmd_is_not():
    rng = np.random.default_rng(1)
    draws = [rng.normal(size=(2, 20, 4)) for _ in range(400)]
    kid = [kernel.kid(a, b).value for a, b in draws]
    assert abs(np.mean(kid)) < 3 * np.std(kid) / 20
    assert min(kernel.cmmd(a, b).value for a, b in draws) > 0


def test_cmmd_is_its_definition_and_zero_between_a_set_and_itself(sets):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in sets)

    def mean(x, y):
        return np.mean([np.exp(-np.sum((p - q) ** 2) / 200) for p in x for q in y])

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert kernel.cmmd(*sets).value == pytest.approx(expected, rel=1e-9)
    assert kernel.cmmd(a, a).value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("measure", [kernel.kid, kernel.cmmd, fidelity.recall, fidelity.coverage])
def test_left_out_numbers_are_those_of_the_rest(sets, measure):
    """20 images in 10 groups: group g holds images g and g + 10."""
    a, b = sets
    rest = [np.delete(a, [g, g + 10], 0) for g in range(10)]
    assert measure(a, b).left_out == pytest.approx([measure(part, b).value for part in rest], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("measure", [kernel.kid, kernel.cmmd, fidelity.recall, fidelity.coverage, fidelity.density])
def test_intervals_cover_the_mean_over_sets_of_this_size(measure):
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(150, 4))
    found = [measure(rng.normal(0.4, 0.9, size=(100, 4)), reference) for _ in range(200)]
    expected = np.mean([interval.value for interval in found])
    assert 0.90 <= np.mean([interval.low < expected < interval.high for interval in found]) <= 0.995


def test_bad_features_are_told():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 4\)"):
        kernel.kid(np.zeros((3, 2)), np.zeros((3, 4)))
    some = np.ones((5, 2))
    for measure in (kernel.kid, kernel.cmmd):
        for sets in ((some * np.nan, some), (some, some * np.inf)):
            with pytest.raises(ValueError, match="expected finite numbers, got 10 of 10 that are not"):
                measure(*sets)
    with pytest.raises(ValueError, match="expected embeddings longer than 0, got 5 of 5 that are not"):
        kernel.cmmd(some, 0 * some)
    for sigma in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="sigma must be a number above 0, got"):
            kernel.cmmd(some, some, sigma)


@pytest.mark.parametrize(("width", "n"), [(4, 200), (8, 400), (16, 400)])
def test_intervals_of_the_extrapolated_distance_cover_the_true_one(width, n):
    """200 sets of Gaussian features whose distance to the reference is known."""
    rng = np.random.default_rng(0)
    mean, scale = np.linspace(-0.3, 0.4, width), np.linspace(0.7, 1.5, width)
    reference = fid.Moments(10**9, np.zeros(width), np.eye(width))
    true = (mean**2).sum() + ((scale - 1) ** 2).sum()
    covered, raw, values = 0, [], []
    for _ in range(200):
        plain = fid.frechet_interval(mean + scale * rng.normal(size=(n, width)), reference)
        found = intervals.extrapolated(plain)
        covered += found.low <= true <= found.high
        raw.append(plain.value)
        values.append(found.value)
    assert 0.90 <= covered / 200 <= 0.98
    assert abs(np.mean(values) - true) < 0.2 * abs(np.mean(raw) - true)  # the bias is gone, but for higher orders
