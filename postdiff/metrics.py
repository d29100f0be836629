"""Frechet distance, CLIP score, and how sure they are: pure functions on arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.linalg import eigh, eigvalsh


@dataclass(frozen=True)
class Interval:
    """A number, its 95 % interval, and the number of images behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Moments:
    """n, mean [D] and covariance [D, D] (n - 1 in the denominator) of features, float64."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Moments of features [N, D]. Raises ValueError for fewer than 2."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"moments need features [N, D] with N >= 2, got shape {features.shape}")
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


def frechet_interval(features: np.ndarray, reference: Moments, groups: int = 20) -> Interval:
    """Frechet distance of features [N, D] to `reference`, with a 95 % interval over the choice of images.

    Delete-a-group jackknife: a bootstrap draws images twice, and FID, which is biased by the number of different
    images, would move with it. The reference set is taken as given; so is FID's own bias at this N.
    """
    n = len(features)
    groups = min(groups, n // 2)
    if groups < 2:
        raise ValueError(f"an interval needs at least 4 images, got {n}")
    root = _root(reference.covariance)
    value = _frechet(moments(features), reference, root)
    left_out = [
        _frechet(moments(np.delete(features, slice(g, None, groups), 0)), reference, root) for g in range(groups)
    ]
    spread = np.asarray(left_out) - np.mean(left_out)
    error = float(np.sqrt((groups - 1) / groups * (spread**2).sum()))
    half = student_t(groups - 1) * error
    return Interval(value, value - half, value + half, n)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def _frechet(a: Moments, b: Moments, root_b: np.ndarray) -> float:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features differ in width: {a.mean.shape[0]} and {b.mean.shape[0]}")
    cross = np.sqrt(eigvalsh(root_b @ a.covariance @ root_b).clip(0)).sum()
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def clip_scores(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """100 * max(cos, 0) of image and text embeddings [N, D], each with its own (Hessel et al., 2021) -> [N]."""
    if image.shape != text.shape:
        raise ValueError(f"one text an image: got embeddings of shape {image.shape} and {text.shape}")
    image, text = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return 100 * (image * text).sum(1).clip(0)


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of independent values [N] with its 95 % interval (Student's t)."""
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 values, got {n}")
    mean, half = float(np.mean(values)), student_t(n - 1) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


def student_t(df: int) -> float:
    """97.5 % quantile of Student's t."""
    from scipy.stats import t  # scipy comes with clean-fid; importing it takes half a second

    return float(t.ppf(0.975, df))
