"""Intervals that decide hold as often as they say: 500 simulated sweeps of each metric, in which four plans are held
against a fifth, and all four intervals must hold the true difference. Those of the sequential rule: test_sequential.py.
"""

import numpy as np
import pytest

from pipelines.metrics import fid
from pipelines.metrics.intervals import mean_interval, together
from pipelines.metrics.metric import METRICS

SWEEPS = 500


def coverage(metric, scores, true, sweeps=SWEEPS):
    """Share of sweeps whose intervals all hold `true`, the differences of plans 1 to 4 from plan 0; and that of sweeps
    in which one of them is called on the wrong side of 0, or at all where it is nothing."""
    held = false = 0
    for sweep in range(sweeps):
        first, *others = scores(np.random.default_rng([sweep, len(metric.key)]))
        told = together([metric.difference(one, [(1.0, first)]) for one in others])
        held += all(one.low <= value <= one.high for one, value in zip(told, true, strict=True))
        false += any((one.low > 0 >= value) or (one.high < 0 <= value) for one, value in zip(told, true, strict=True))
    return held / sweeps, false / sweeps


def as_often_as_they_say(metric, scores, true):
    held, false = coverage(metric, scores, true)
    assert 0.93 <= held <= 0.97
    assert false <= 0.05


def as_fid(width, n):
    """Plans of one noise, some shifted, some less diverse, n images of `width` features. What their intervals must hold
    is the distances of ever more images."""
    setup = np.random.default_rng(0)
    reference = fid.moments(setup.normal(size=(4000, width)) * np.linspace(0.5, 1.5, width))
    spreads, shifts, own = np.array([1.0, 1.0, 0.9, 1.0, 1.1]), np.array([0.3, 0.3, 0.3, 0.35, 0.25]), 0.5

    def scores(rng):
        shared = rng.normal(size=(n, width))
        images = [a * (shared + own * rng.normal(size=(n, width))) + b for a, b in zip(spreads, shifts, strict=True)]
        return [fid.frechet_interval(x, reference) for x in images]

    population = [
        fid.frechet_distance(fid.Moments(n, np.full(width, b), a**2 * (1 + own**2) * np.eye(width)), reference)
        for a, b in zip(spreads, shifts, strict=True)
    ]
    return scores, [value - population[0] for value in population[1:]]


def test_of_paired_fid():
    as_often_as_they_say(METRICS["fid"], *as_fid(width=6, n=256))


@pytest.mark.slow
def test_of_paired_fid_of_as_few_images_a_feature_as_the_minis_have():
    """512 images by mini-CLIP's 128 features: four times as many."""
    as_often_as_they_say(METRICS["fid"], *as_fid(width=64, n=256))


def test_of_the_clip_score():
    """Cosines of embeddings, of which a prompt does the same to all plans."""
    width, n, metric = 16, 128, METRICS["clip"]
    noise = np.array([1.0, 1.0, 1.1, 0.9, 1.0])

    def scores(rng, n=n):
        text = rng.normal(size=(n, width))
        shared = text + rng.normal(size=(n, width))
        return [metric.score(shared + own * rng.normal(size=(n, width)), text) for own in noise]

    long = [one.value for one in scores(np.random.default_rng(1), 400_000)]
    long[1] = long[4] = long[0]  # the same plan with other noise
    as_often_as_they_say(metric, scores, [value - long[0] for value in long[1:]])


def test_of_psnr():
    """Decibels of 64 images, skewed, as those of real plans are: easy prompts are far better kept than others."""
    n, metric = 64, METRICS["psnr"]
    mean, spread = np.array([25.0, 25.0, 22.0, 26.0, 25.0]), np.array([4.0, 4.0, 3.0, 5.0, 4.0])

    def scores(rng):
        shared = rng.gamma(4, 0.5, size=n) - 2  # of variance 1
        values = [m + s * shared + 1.5 * (rng.gamma(4, 0.5, size=n) - 2) for m, s in zip(mean, spread, strict=True)]
        return [metric.score(np.stack([value, value], 1), np.empty(0)) for value in values]

    as_often_as_they_say(metric, scores, list(mean[1:] - mean[0]))


def test_of_what_judges_say():
    """Shares of right answers, near to 100 %, where few images differ between plans."""
    n, metric = 256, METRICS["content"]
    wrong = np.array([0.10, 0.10, 0.15, 0.10, 0.05])

    def scores(rng):
        shared = rng.uniform(size=n)
        mixed = [np.where(rng.uniform(size=n) < 0.3, rng.uniform(size=n), shared) for _ in wrong]
        return [mean_interval(100.0 * (own >= share)) for own, share in zip(mixed, wrong, strict=True)]

    as_often_as_they_say(metric, scores, list(100 * (wrong[0] - wrong[1:])))
