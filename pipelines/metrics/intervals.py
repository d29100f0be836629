"""A number with its 95 % interval, and paired differences of two: pure functions on arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

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

    def __format__(self, form: str) -> str:
        """`form` is a number's format, as `+.3f`; `+` alone (for differences) and none have two digits."""
        form = form if "." in form else f"{form}.2f"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def columns(self, prefix: str) -> dict[str, float]:
        """The number and its bounds under the names that they have in every table of ours."""
        return dict(zip(column_names(prefix), (self.value, self.low, self.high), strict=True))


def column_names(prefix: str) -> tuple[str, str, str]:
    return prefix, f"{prefix}_low", f"{prefix}_high"


def expect_finite(values: np.ndarray) -> None:
    """Raises ValueError if a value is infinite or not a number: every number made of it would be none either."""
    if wrong := int((~np.isfinite(values)).sum()):
        raise ValueError(f"expected finite numbers, got {wrong} of {np.size(values)} that are not")


def extrapolated(interval: Interval, comparisons: int = 1) -> Interval:
    """What a jackknifed number tends to with ever more images, from `interval` alone (of FID: Chong and Forsyth, 2020).

    A bias that falls as 1/n, as that of the Frechet distance does to first order, is what leaving images out shows and
    what the jackknife takes off (Quenouille, 1956): G * value - (G - 1) * mean of the G left-out numbers. The
    reference set stays as it is, and so does what is biased by its size. On Gaussian features of full rank D the rest
    of the bias is as wide as the interval at n = 2 D, and small beside it from n = 4 D on (tests).

    comparisons: as `difference` takes it.
    """
    groups = len(interval.left_out)
    value = groups * interval.value - (groups - 1) * float(np.mean(interval.left_out))
    return jackknife(value, interval.left_out, interval.n, comparisons)


def difference(a: Interval, parts: Sequence[tuple[float, Interval]], comparisons: int = 1) -> Interval:
    """`a` less the weighted sum of `parts`, of numbers on the same prompts and noise: the 95 % interval is paired.

    What one prompt does to all of them cancels, so it is tighter where their images are alike. A bias of few images
    does not cancel: that of FID grows with the spread of the images, so of two sets the less diverse is favoured at
    small n, at the worst with the wrong sign. `extrapolated` takes it off.

    comparisons: differences that are looked at together; the intervals hold for all of them at once (Bonferroni).
    Raises: ValueError if they are not of equally many images.
    """
    if any((b.n, len(b.left_out)) != (a.n, len(a.left_out)) for _, b in parts):
        raise ValueError(f"a paired difference needs the same images: got n = {[a.n, *(b.n for _, b in parts)]}")
    value = a.value - sum(w * b.value for w, b in parts)
    rest = np.asarray(a.left_out) - sum(w * np.asarray(b.left_out) for w, b in parts)
    return jackknife(value, rest, a.n, comparisons)


def without_each_group(values: np.ndarray) -> Iterator[np.ndarray]:
    groups = group_count(len(values))
    yield from (np.delete(values, slice(g, None, groups), 0) for g in range(groups))


def group_count(n: int) -> int:
    """Groups of the jackknife among `n` images. Raises ValueError for fewer than 4 images."""
    groups = min(GROUPS, n // 2)
    if groups < 2:
        raise ValueError(f"an interval needs at least 4 images, got {n}")
    return groups


def group_membership(n: int) -> np.ndarray:
    """Which of `n` images is in which group: float64 [n, groups] of 0 and 1, so that a product with it sums groups."""
    groups = group_count(n)
    return np.eye(groups)[np.arange(n) % groups]


def groups_kept(groups: int) -> np.ndarray:
    """float64 [1 + groups, groups] of 0 and 1: all groups are kept in the first row, then all but one in turn."""
    return np.concatenate([np.ones((1, groups)), 1 - np.eye(groups)])


def jackknife(value: float, left_out: Sequence[float] | np.ndarray, n: int, comparisons: int = 1) -> Interval:
    """The interval of `value`, the number of all `n` images, from the numbers without each group."""
    groups = len(left_out)
    spread = np.asarray(left_out) - np.mean(left_out)
    half = student_t(groups - 1, comparisons) * float(np.sqrt((groups - 1) / groups * (spread**2).sum()))
    return Interval(value, value - half, value + half, n, tuple(float(x) for x in left_out))


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of independent values [N >= 4] with its 95 % interval (Student's t)."""
    expect_finite(values)
    n, left_out = len(values), tuple(float(part.mean()) for part in without_each_group(values))
    mean, half = float(np.mean(values)), student_t(n - 1) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n, left_out)


def student_t(df: int, comparisons: int = 1) -> float:
    """97.5 % quantile of Student's t; with several comparisons, what makes all of them hold together at 95 %."""
    from scipy.stats import t  # importing it takes half a second

    return float(t.ppf(1 - 0.025 / whole_number("comparisons", comparisons), whole_number("df", df)))
