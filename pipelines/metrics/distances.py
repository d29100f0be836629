"""How far two sets of features are from each other without assuming Gaussians: KID, CMMD, precision and recall.

All take features [N, D] of generated and [M, D] of reference images, and work in float64, block by block.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pipelines.metrics.statistics import expect_finite, lengths
from postdiff.arguments import number, whole_number

BLOCK = 1024  # rows of a kernel matrix in memory at once

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def kernel_distance(generated: np.ndarray, reference: np.ndarray) -> float:
    """KID (Binkowski et al., 2018): the unbiased squared MMD under (x.y / D + 1)^3, of all images at once.

    clean-fid and others average over subsets of 1,000 images, which have the same expectation.
    """
    width = _check(generated, reference)
    return _mmd(generated, reference, lambda x, y: (x @ y.T / width + 1) ** 3, unbiased=True)


def cmmd(generated: np.ndarray, reference: np.ndarray, sigma: float = 10.0) -> float:
    """CMMD (Jayasumana et al., 2024): 1000 times the squared MMD under exp(-|x - y|^2 / (2 sigma^2)) of CLIP embeddings
    of length 1, an image with itself included, as its authors count."""
    _check(generated, reference)
    sigma = number("sigma", sigma, "(0, inf)")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp((x @ y.T - 1) / sigma**2)  # |x - y|^2 = 2 - 2 x.y

    a, b = (v / lengths(v) for v in (generated, reference))
    return 1000 * _mmd(a, b, kernel, unbiased=False)


def precision_recall(generated: np.ndarray, reference: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision: share of the generated that lie among the reference; recall the other way round (Kynkaanniemi et al.,
    2019): nearer to one of the others than that one's k-th neighbour among its own is. Raises ValueError if one of the
    sets has k images or fewer."""
    _check(generated, reference)
    k = whole_number("k", k)
    if min(len(generated), len(reference)) <= k:
        raise ValueError(f"k = {k} neighbours need more images, got {len(generated)} and {len(reference)}")
    return _share_inside(generated, reference, k), _share_inside(reference, generated, k)


def _check(a: np.ndarray, b: np.ndarray) -> int:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected features [N, D] and [M, D] of at least 2 images, got {a.shape} and {b.shape}")
    expect_finite(a)
    expect_finite(b)
    return a.shape[1]


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    yield from (x[i : i + BLOCK].astype(np.float64) for i in range(0, len(x), BLOCK))


def _mmd(a: np.ndarray, b: np.ndarray, kernel: Kernel, unbiased: bool) -> float:
    def total(x: np.ndarray, y: np.ndarray) -> float:
        return sum(float(kernel(part, y.astype(np.float64)).sum()) for part in _blocks(x))

    def own(x: np.ndarray) -> float:
        if not unbiased:
            return total(x, x) / len(x) ** 2
        with_itself = sum(float(np.trace(kernel(part, part))) for part in _blocks(x))
        return (total(x, x) - with_itself) / (len(x) * (len(x) - 1))

    return own(a) + own(b) - 2 * total(a, b) / (len(a) * len(b))


def _share_inside(x: np.ndarray, others: np.ndarray, k: int) -> float:
    """Share of x that is within one of the balls around `others` that reach to their k-th neighbour."""
    others = others.astype(np.float64)
    radii = np.concatenate([np.partition(_squares(part, others), k, axis=1)[:, k] for part in _blocks(others)])
    inside = [(_squares(part, others) <= radii * (1 + 1e-9)).any(1) for part in _blocks(x)]
    return float(np.concatenate(inside).mean())


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances, by one matrix product. Their rounding is about 1e-16 of the squares of the lengths, so radii
    are given a little more."""
    lengths = (x**2).sum(1)[:, None] + (y**2).sum(1)
    return (lengths - 2 * x @ y.T).clip(0)
