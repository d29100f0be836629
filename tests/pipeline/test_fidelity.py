"""Precision, recall, density, coverage against their definitions, by hand and by a naive loop."""

from math import prod

import numpy as np
import pytest

from pipelines.metrics import fidelity, kernel

FOUR = (fidelity.precision, fidelity.recall, fidelity.density, fidelity.coverage)


@pytest.fixture
def sets(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 7)  # several blocks, and a last one that is shorter
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 5)), rng.normal(0.5, 1.2, size=(31, 5))


def values(generated, reference):
    return [measure(generated, reference).value for measure in FOUR]


def test_sets_that_are_apart_inside_and_the_same(sets):
    a, b = sets
    assert values(a, a)[:2] == [1, 1]
    assert values(a, a)[3] == 1
    assert values(a, b + 100) == [0, 0, 0, 0]
    line = np.arange(20.0)[:, None] * np.ones((1, 2))
    middle = line[6:14]  # a few images of the middle: right, not diverse
    assert fidelity.precision(middle, line).value == 1
    assert fidelity.recall(middle, line).value == 14 / 20  # within 3 of 6's and of 13's: 3 to 16
    # Balls to the 5th neighbour reach 3 to either side (those of 0 and 1 to 5): each of 6 to 13 is in 7 of them.
    assert fidelity.density(middle, line).value == 7 / 5
    assert fidelity.coverage(middle, line).value == 14 / 20  # 3 to 16 have one of 6 to 13 within 3


def test_density_sees_an_outlier_of_the_reference_that_precision_does_not():
    """Of Naeem et al., Fig. 1: one outlier's ball holds everything, and nothing else holds the generated."""
    reference = np.concatenate([np.arange(20.0)[:, None], [[1000.0]]])
    generated = np.linspace(200, 900, 20)[:, None]
    assert fidelity.precision(generated, reference, 5).value == 1
    assert fidelity.density(generated, reference, 5).value == pytest.approx(1 / 5)
    assert fidelity.coverage(generated, reference, 5).value == 1 / 21


def test_all_are_what_a_naive_loop_counts(sets):
    generated, reference = sets

    def radius(x, i, k):
        return sorted(np.linalg.norm(x[i] - other) for j, other in enumerate(x) if j != i)[k - 1]

    def inside(point, x, i, k):
        return np.linalg.norm(point - x[i]) <= radius(x, i, k)

    n, m = len(generated), len(reference)
    precision = np.mean([any(inside(g, reference, i, 3) for i in range(m)) for g in generated])
    recall = np.mean([any(inside(r, generated, j, 3) for j in range(n)) for r in reference])
    density = sum(inside(g, reference, i, 5) for i in range(m) for g in generated) / (5 * n)
    coverage = np.mean([any(inside(g, reference, i, 5) for g in generated) for i in range(m)])
    assert values(generated, reference) == pytest.approx([precision, recall, density, coverage], rel=1e-12)


def test_density_and_coverage_of_sets_drawn_alike_are_those_of_the_papers_lemmas():
    """Whatever they are drawn from: 1, and 1 - (M - 1)...(M - k) / ((N + M - 1)...(N + M - k))."""
    rng = np.random.default_rng(3)
    n, m, k = 60, 40, 5
    draws = [(rng.exponential(size=(n, 3)), rng.exponential(size=(m, 3))) for _ in range(300)]
    density = [fidelity.density(a, b, k).value for a, b in draws]
    coverage = [fidelity.coverage(a, b, k).value for a, b in draws]
    expected = 1 - prod((m - i) / (n + m - i) for i in range(1, k + 1))
    assert np.mean(coverage) == pytest.approx(expected, abs=3 * np.std(coverage) / 300**0.5)
    assert np.mean(density) == pytest.approx(1, abs=3 * np.std(density) / 300**0.5)


def test_only_the_first_are_looked_at_of_very_many(sets, monkeypatch):
    generated, reference = sets
    first = values(generated[:10], reference[:12])
    monkeypatch.setattr(fidelity, "MOST", 12)
    assert values(generated[:10], reference) == first
    assert fidelity.precision(generated, reference).n == 12


@pytest.mark.parametrize("measure", FOUR)
def test_bad_features_are_told(measure):
    few, many = np.zeros((4, 2)), np.zeros((9, 2))
    got = (few, many) if measure is fidelity.recall else (many, few)
    with pytest.raises(ValueError, match=rf"k = 4 neighbours need more images, got {len(got[0])} and {len(got[1])}"):
        measure(*got, 4)
    some = np.ones((8, 2))
    for sets in ((some * np.nan, some), (some, some * np.inf)):
        with pytest.raises(ValueError, match="expected finite numbers, got 16 of 16 that are not"):
            measure(*sets)
    for k in (0, 1.5, True, None):
        with pytest.raises(ValueError, match="k must be a whole number of 1 or more, got"):
            measure(some, some, k)
