"""Frechet distance, CLIP score, and how sure they are: pure functions on arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.linalg import eigh, eigvalsh

from postdiff.arguments import whole_number

GROUPS = 20  # of the jackknife


@dataclass(frozen=True)
class Interval:
    """A number, its 95 % interval, and the number of images behind it.

    left_out: the number without each group of images in turn (image i is in group i modulo their number): what paired
        differences are made of.
    """

    value: float
    low: float
    high: float
    n: int
    left_out: tuple[float, ...] = ()

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, sign: str) -> str:
        """`sign` is a format's sign: `+` for differences."""
        return f"{self.value:{sign}.2f} [{self.low:{sign}.2f}, {self.high:{sign}.2f}]"


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


def expect_finite(values: np.ndarray) -> None:
    """Raises ValueError if a value is infinite or not a number: every number made of it would be none either."""
    if wrong := int((~np.isfinite(values)).sum()):
        raise ValueError(f"expected finite numbers, got {wrong} of {np.size(values)} that are not")


def lengths(embeddings: np.ndarray) -> np.ndarray:
    """Lengths [N, 1] of embeddings [N, D]. Raises ValueError if one is not finite, or 0: it has no direction."""
    expect_finite(embeddings)
    found = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if empty := int((found == 0).sum()):
        raise ValueError(f"expected embeddings longer than 0, got {empty} of {len(embeddings)} that are not")
    return found


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al., 2017; FID on Inception features).

    The trace of the root is taken from the eigenvalues of S_b^(1/2) S_a S_b^(1/2), which is symmetric: unlike a
    general matrix root it has no imaginary part to drop, and it is right where a covariance is singular.
    """
    return _frechet(a, b, _root(b.covariance))


def frechet_interval(features: np.ndarray, reference: Moments) -> Interval:
    """Frechet distance of features [N, D] to `reference`, with a 95 % interval over the choice of images.

    Delete-a-group jackknife: a bootstrap draws images twice, and FID, which is biased by the number of different
    images, would move with it. The reference set is taken as given; so is FID's own bias at this N.
    Raises: ValueError for fewer than 4 images.
    """
    root = _root(reference.covariance)
    value = _frechet(moments(features), reference, root)
    rest = [_frechet(part, reference, root) for part in _moments_without_each_group(features)]
    return _jackknife(value, rest, len(features))


def extrapolated(of: Interval, comparisons: int = 1) -> Interval:
    """What a jackknifed number tends to with ever more images, from `of` alone (for FID: Chong and Forsyth, 2020).

    A bias that falls as 1/n, as that of the Frechet distance does to first order, is what leaving images out shows and
    what the jackknife takes off (Quenouille, 1956): G * value - (G - 1) * mean of the G left-out numbers. The
    reference set stays as it is, and so does what is biased by its size. On Gaussian features of full rank D the rest
    of the bias is as wide as the interval at n = 2 D, and small beside it from n = 4 D on (tests).

    comparisons: as `difference` takes it.
    """
    groups = len(of.left_out)
    value = groups * of.value - (groups - 1) * float(np.mean(of.left_out))
    return _jackknife(value, of.left_out, of.n, comparisons)


def difference(a: Interval, parts: Sequence[tuple[float, Interval]], comparisons: int = 1) -> Interval:
    """`a` less the weighted sum of `parts`, of numbers on the same prompts and noise: the 95 % interval is paired.

    What one prompt does to all of them cancels, so it is tighter where their images are alike. FID's bias does not
    cancel: it grows with the spread of the images, so of two sets the less diverse is favoured at small n, at the worst
    with the wrong sign. `frechet_difference` takes it off.
    comparisons: differences that are looked at together; the intervals hold for all of them at once (Bonferroni).
    Raises: ValueError if they are not of equally many images.
    """
    if any((b.n, len(b.left_out)) != (a.n, len(a.left_out)) for _, b in parts):
        raise ValueError(f"a paired difference needs the same images: got n = {[a.n, *(b.n for _, b in parts)]}")
    value = a.value - sum(w * b.value for w, b in parts)
    rest = np.asarray(a.left_out) - sum(w * np.asarray(b.left_out) for w, b in parts)
    return _jackknife(value, rest, a.n, comparisons)


def frechet_difference(a: Interval, parts: Sequence[tuple[float, Interval]], comparisons: int = 1) -> Interval:
    """`difference` of Frechet distances, as it is for ever more images (see `extrapolated`)."""
    return extrapolated(difference(a, parts, comparisons), comparisons)


def _without_each_group(values: np.ndarray) -> Iterator[np.ndarray]:
    groups = _groups(len(values))
    yield from (np.delete(values, slice(g, None, groups), 0) for g in range(groups))


def _moments_without_each_group(features: np.ndarray) -> Iterator[Moments]:
    """`moments` of what `_without_each_group` leaves: sums are made once and each group's taken off, which is a
    twentieth of the work."""
    n, groups = len(features), _groups(len(features))
    raw: np.ndarray = features.astype(np.float64)
    middle = raw.mean(0)
    x = raw - middle  # about the mean, so that nothing is lost where sums are taken off
    whole = x.T @ x
    for g in range(groups):
        part = x[g::groups]
        left = n - len(part)
        mean = -part.sum(0) / left  # x sums to 0
        yield Moments(left, middle + mean, (whole - part.T @ part - left * np.outer(mean, mean)) / (left - 1))


def _groups(n: int) -> int:
    groups = min(GROUPS, n // 2)
    if groups < 2:
        raise ValueError(f"an interval needs at least 4 images, got {n}")
    return groups


def _jackknife(value: float, left_out: Sequence[float] | np.ndarray, n: int, comparisons: int = 1) -> Interval:
    groups = len(left_out)
    spread = np.asarray(left_out) - np.mean(left_out)
    half = student_t(groups - 1, comparisons) * float(np.sqrt((groups - 1) / groups * (spread**2).sum()))
    return Interval(value, value - half, value + half, n, tuple(float(x) for x in left_out))


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
    image, text = (x.astype(np.float64) / lengths(x) for x in (image, text))
    return 100 * (image * text).sum(1).clip(0)


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of independent values [N >= 4] with its 95 % interval (Student's t)."""
    expect_finite(values)
    n, left_out = len(values), tuple(float(part.mean()) for part in _without_each_group(values))
    mean, half = float(np.mean(values)), student_t(n - 1) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n, left_out)


def student_t(df: int, comparisons: int = 1) -> float:
    """97.5 % quantile of Student's t; with several comparisons, what makes all of them hold together at 95 %."""
    from scipy.stats import t  # importing it takes half a second

    return float(t.ppf(1 - 0.025 / whole_number("comparisons", comparisons), whole_number("df", df)))
