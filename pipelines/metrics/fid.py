"""Frechet distance of two sets of features: FID, where Inception made them (Heusel et al., 2017)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.linalg import eigh, eigvalsh

from pipelines.metrics.intervals import Interval, expect_finite, group_count, jackknife


@dataclass(frozen=True)
class Moments:
    """n, mean [D] and covariance [D, D] (n - 1 in the denominator) of features, float64."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Moments of features [N, D]. Raises ValueError for fewer than 2, or if one is not finite."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"moments need features [N, D] with N >= 2, got shape {features.shape}")
    expect_finite(features)
    x: np.ndarray = features.astype(np.float64)
    mean = x.mean(0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al., 2017; FID on Inception features).

    The trace of the root is taken from the eigenvalues of S_b^(1/2) S_a S_b^(1/2), which is symmetric: unlike a
    general matrix root it has no imaginary part to drop, and it is right where a covariance is singular.
    """
    return _frechet(a, b, _root(b.covariance))


def fid(features: np.ndarray, reference: np.ndarray) -> Interval:
    """`frechet_interval` of features [N, D] to those of reference images [M, D]."""
    return frechet_interval(features, moments(reference))


def frechet_interval(features: np.ndarray, reference: Moments) -> Interval:
    """Frechet distance of features [N, D] to `reference`, with a 95 % interval over the choice of images.

    Delete-a-group jackknife: a bootstrap draws images twice, and FID, which is biased by the number of different
    images, would move with it. The reference set is taken as given; so is FID's own bias at this N.
    Raises: ValueError for fewer than 4 images.
    """
    root = _root(reference.covariance)
    value = _frechet(moments(features), reference, root)
    rest = [_frechet(part, reference, root) for part in _moments_without_each_group(features)]
    return jackknife(value, rest, len(features))


def _moments_without_each_group(features: np.ndarray) -> Iterator[Moments]:
    """`moments` of what is left without each group of the jackknife: sums are made once and each group's taken off,
    which is a twentieth of the work."""
    n, groups = len(features), group_count(len(features))
    raw: np.ndarray = features.astype(np.float64)
    middle = raw.mean(0)
    x = raw - middle  # about the mean, so that nothing is lost where sums are taken off
    whole = x.T @ x
    for g in range(groups):
        part = x[g::groups]
        left = n - len(part)
        mean = -part.sum(0) / left  # x sums to 0
        yield Moments(left, middle + mean, (whole - part.T @ part - left * np.outer(mean, mean)) / (left - 1))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def _frechet(a: Moments, b: Moments, root_b: np.ndarray) -> float:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features differ in width: {a.mean.shape[0]} and {b.mean.shape[0]}")
    cross = np.sqrt(eigvalsh(root_b @ a.covariance @ root_b).clip(0)).sum()
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)
