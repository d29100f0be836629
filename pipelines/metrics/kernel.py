"""Distances between sets of features that assume no Gaussians: KID and CMMD, both a maximum mean discrepancy (MMD).

Both take features [N, D] of generated and [M, D] of reference images, and work in float64, block by block. Intervals
are a jackknife over the generated images; the reference set is taken as given.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pipelines.metrics.clip import lengths
from pipelines.metrics.intervals import Interval, expect_finite, group_membership, groups_kept, jackknife
from postdiff.arguments import number

BLOCK = 1024  # rows of a matrix of pairs in memory at once

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [N, D] and [M, D] -> [N, M]


def kid(generated: np.ndarray, reference: np.ndarray) -> Interval:
    """KID (Binkowski et al., 2018): the unbiased squared MMD under (x.y / D + 1)^3, of all images at once.

    clean-fid and others average over subsets of 1,000 images, which have the same expectation.
    Raises: ValueError for fewer than 4 generated or 2 reference images, or if a feature is not finite.
    """
    width = check_features(generated, reference)
    return _mmd(generated, reference, lambda x, y: (x @ y.T / width + 1) ** 3, unbiased=True)


def cmmd(generated: np.ndarray, reference: np.ndarray, sigma: float = 10.0) -> Interval:
    """CMMD (Jayasumana et al., 2024): 1000 times the squared MMD under exp(-|x - y|^2 / (2 sigma^2)) of CLIP embeddings
    of length 1, an image with itself included, as its authors count.

    Raises: ValueError as `kid` does, or if an embedding has length 0.
    """
    check_features(generated, reference)
    sigma = number("sigma", sigma, "(0, inf)")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 1000 * np.exp((x @ y.T - 1) / sigma**2)  # |x - y|^2 = 2 - 2 x.y

    a, b = (v / lengths(v) for v in (generated, reference))
    return _mmd(a, b, kernel, unbiased=False)


def check_features(a: np.ndarray, b: np.ndarray) -> int:
    """Width of features [N, D] and [M, D]. Raises ValueError if it differs, for fewer than 2, or if not finite."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected features [N, D] and [M, D] of at least 2 images, got {a.shape} and {b.shape}")
    expect_finite(a)
    expect_finite(b)
    return a.shape[1]


def blocks(n: int) -> Iterator[slice]:
    """`n` rows, BLOCK at a time."""
    yield from (slice(start, start + BLOCK) for start in range(0, n, BLOCK))


def _mmd(a: np.ndarray, b: np.ndarray, kernel: Kernel, unbiased: bool) -> Interval:
    a, b = a.astype(np.float64), b.astype(np.float64)
    groups = group_membership(len(a))
    masks, whole = groups_kept(groups.shape[1]), np.ones((len(b), 1))
    across = masks @ _sums(a, b, kernel, groups, whole)[:, 0] / (masks @ groups.sum(0) * len(b))
    values = _own(a, kernel, groups, masks, unbiased) + _own(b, kernel, whole, np.ones((1, 1)), unbiased) - 2 * across
    return jackknife(float(values[0]), values[1:], len(a))


def _own(x: np.ndarray, kernel: Kernel, groups: np.ndarray, masks: np.ndarray, unbiased: bool) -> np.ndarray:
    """Mean of the kernel over pairs of the images of the groups kept, a number a row of `masks`. unbiased: over pairs
    of different images."""
    n = masks @ groups.sum(0)
    total = np.einsum("sg,gh,sh->s", masks, _sums(x, x, kernel, groups, groups), masks)
    if not unbiased:
        return total / n**2
    with_itself = np.concatenate([np.diagonal(kernel(x[part], x[part])) for part in blocks(len(x))])
    return (total - masks @ (with_itself @ groups)) / (n * (n - 1))


def _sums(x: np.ndarray, y: np.ndarray, kernel: Kernel, of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    """Sums of the kernel over every group of x with every group of y."""
    return np.sum([of_x[part].T @ (kernel(x[part], y) @ of_y) for part in blocks(len(x))], axis=0)
