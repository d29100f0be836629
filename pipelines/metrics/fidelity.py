"""How real and how diverse images are, by nearest neighbours: precision and recall (Kynkaanniemi et al., 2019), density
and coverage (Naeem et al., 2020, arXiv 2002.09797).

A ball around an image reaches to its k-th neighbour among its own set. Precision and density ask how the generated
images lie in the balls of the reference; recall and coverage, how much of the reference the generated reach. All take
features [N, D] of generated and [M, D] of reference images, of each the first MOST, and take the reference as given.
"""

import numpy as np

from pipelines.metrics.intervals import Interval, group_membership, groups_kept, jackknife, mean_interval
from pipelines.metrics.kernel import blocks, check_features
from postdiff.arguments import whole_number

MOST = 10_000  # images a side: the work grows with their product


def precision(generated: np.ndarray, reference: np.ndarray, k: int = 3) -> Interval:
    """Share of the generated images that lie in a ball of the reference; Student's t over images.

    Raises: ValueError if the reference has k images or fewer, or a feature is not finite.
    """
    return mean_interval(np.where(_balls_around(generated, reference, k) > 0, 1.0, 0.0))


def density(generated: np.ndarray, reference: np.ndarray, k: int = 5) -> Interval:
    """Balls of the reference around a generated image, on average, by k; Student's t over images.

    One outlier of the reference, whose ball is large, makes precision high but not this. It is 1 on average where both
    sets are drawn alike, and may be above. Raises ValueError as `precision` does.
    """
    return mean_interval(_balls_around(generated, reference, k) / k)


def recall(generated: np.ndarray, reference: np.ndarray, k: int = 3) -> Interval:
    """Share of the reference images that lie in a ball of the generated; jackknife over generated images.

    Raises: ValueError if without a group of the jackknife k generated images or fewer are left, or a feature is not
    finite.
    """
    generated, reference = _checked(generated, reference, k)
    groups = group_membership(len(generated))
    masks = groups_kept(groups.shape[1]) @ groups.T > 0  # [1 + groups, N]
    if masks.sum(1).min() <= k:
        raise _too_few(generated, reference, k)
    radii = _radii(generated, k, masks)
    reached = [
        np.stack([(squares <= radius).any(1) for radius in radii], 1)
        for squares in (_squares(reference[part], generated) for part in blocks(len(reference)))
    ]
    value, *rest = np.concatenate(reached).mean(0)
    return jackknife(float(value), rest, len(generated))


def coverage(generated: np.ndarray, reference: np.ndarray, k: int = 5) -> Interval:
    """Share of the reference images in whose ball a generated one lies; jackknife over generated images.

    Unlike recall, one generated outlier reaches little. For two sets drawn alike it is on average
    1 - (M - 1)...(M - k) / ((N + M - 1)...(N + M - k)), whatever they are drawn from (Lemma 2 of Naeem et al.).
    Raises: ValueError as `precision` does.
    """
    generated, reference = _checked(generated, reference, k, in_reference=True)
    radii, groups = _radii(reference, k)[0], group_membership(len(generated))
    masks = groups_kept(groups.shape[1])
    reached = [
        ((_squares(reference[part], generated) <= radii[part, None]) @ groups) @ masks.T > 0
        for part in blocks(len(reference))
    ]
    value, *rest = np.concatenate(reached).mean(0)
    return jackknife(float(value), rest, len(generated))


def _checked(generated: np.ndarray, reference: np.ndarray, k: int, in_reference: bool = False) -> list[np.ndarray]:
    """Both in float64, the first MOST. in_reference: balls are those of the reference."""
    check_features(generated, reference)
    if min(len(reference), MOST) <= whole_number("k", k) and in_reference:
        raise _too_few(generated, reference, k)
    return [features[:MOST].astype(np.float64) for features in (generated, reference)]


def _too_few(generated: np.ndarray, reference: np.ndarray, k: int) -> ValueError:
    return ValueError(f"k = {k} neighbours need more images, got {len(generated)} and {len(reference)}")


def _balls_around(generated: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    """How many balls of the reference each of the generated images lies in -> [N]."""
    generated, reference = _checked(generated, reference, k, in_reference=True)
    radii = _radii(reference, k)[0]
    return np.concatenate([(_squares(generated[part], reference) <= radii).sum(1) for part in blocks(len(generated))])


def _radii(x: np.ndarray, k: int, masks: np.ndarray | None = None) -> np.ndarray:
    """Squared distances to the k-th neighbour -> [S, N], a row a row of `masks`, bool [S, N], in which images that are
    not kept are no neighbours and have a ball of nothing. Without `masks`: [1, N] of all."""
    masks = np.ones((1, len(x)), bool) if masks is None else masks
    radii = [
        np.stack([np.partition(squares[:, own], k, axis=1)[:, k] for own in masks])
        for squares in (_squares(x[part], x) for part in blocks(len(x)))
    ]
    return np.where(masks, np.concatenate(radii, axis=1) * (1 + 1e-9), -1)


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances, by one matrix product. Their rounding is about 1e-16 of the squares of the lengths, so radii
    are given a little more."""
    lengths = (x**2).sum(1)[:, None] + (y**2).sum(1)
    return (lengths - 2 * x @ y.T).clip(0)
