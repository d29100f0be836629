"""A number with its 95 % interval, and paired differences of two: pure functions on arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from postdiff.arguments import whole_number

ERROR = 0.05  # the probability that a 95 % interval misses
GROUPS = 20  # of the jackknife of what is costly to compute anew without a group
GROUPS_OF_MEANS = 200  # of what is not
LEVEL = "Intervals are 95 %."  # what legends say of them
PAIRED = (  # and of a column of paired differences, `Gain: from ..., ` before it
    "paired image by image; its interval decides: what an image does to both cancels, and it is wide enough that all "
    "of a column hold at once (max-t)"
)
FLIPS = 2_000, 20_000  # of signs, for intervals that hold together: the fewest and the most
FEWEST_GROUPS = 10  # of which signs are flipped: of fewer there are too few ways


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

    """
    groups = len(interval.left_out)
    value = groups * interval.value - (groups - 1) * float(np.mean(interval.left_out))
    return jackknife(value, interval.left_out, interval.n)


def difference(a: Interval, parts: Sequence[tuple[float, Interval]]) -> Interval:
    """`a` less the weighted sum of `parts`, of numbers on the same prompts and noise: the 95 % interval is paired.

    What one prompt does to all of them cancels, so it is tighter where their images are alike. A bias of few images
    does not cancel: that of FID grows with the spread of the images, so of two sets the less diverse is favoured at
    small n, at the worst with the wrong sign. `extrapolated` takes it off.

    Raises: ValueError if they are not of equally many images.
    """
    if any((b.n, len(b.left_out)) != (a.n, len(a.left_out)) for _, b in parts):
        raise ValueError(f"a paired difference needs the same images: got n = {[a.n, *(b.n for _, b in parts)]}")
    value = a.value - sum(w * b.value for w, b in parts)
    rest = np.asarray(a.left_out) - sum(w * np.asarray(b.left_out) for w, b in parts)
    return jackknife(value, rest, a.n)


def together(differences: Sequence[Interval]) -> list[Interval]:
    """The same differences with wider 95 % intervals, which hold for all of them at once.

    Where differences are of the same images they move together, and fewer go astray than of independent ones: the
    distribution of the largest |t| among them is what groups of images show whose signs are flipped at random, alike
    in all differences (max-t: Westfall and Young, 1993; Romano and Wolf, 2005). Its 95 % quantile takes the place of
    Student's, but never less than one difference alone needs, nor more than Bonferroni's. Differences of other images
    are sets of their own, each with its share of the 5 %.
    """
    return widened(differences, critical(differences))


def critical(differences: Sequence[Interval], level: float = ERROR) -> list[float]:
    """The |t| up to which each of `differences` is taken for nothing, so that with the probability 1 - `level` none of
    those that are nothing is taken for something; see `together`."""
    sets: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(differences):
        sets.setdefault((one.n, len(one.left_out)), []).append(i)
    limits = [0.0] * len(differences)
    for members in sets.values():
        left_out = np.array([differences[i].left_out for i in members])
        limit = _largest_t(left_out, level, len(members), len(differences))
        for i in members:
            limits[i] = limit
    return limits


def widened(differences: Sequence[Interval], limits: Sequence[float]) -> list[Interval]:
    """`differences`, each with its own of `limits` (of |t|) in the place of Student's quantile."""
    wider = []
    for one, limit in zip(differences, limits, strict=True):
        half = limit / student_t(len(one.left_out) - 1) * (one.high - one.low) / 2
        wider.append(replace(one, low=one.value - half, high=one.value + half))
    return wider


def _largest_t(left_out: np.ndarray, whole: float, members: int, comparisons: int) -> float:
    """The value that the largest |t| of all rows of left_out [C, groups] exceeds with their share of the probability
    `whole`: they are `members` of so many `comparisons`."""
    groups, level = left_out.shape[1], whole * members / comparisons
    most, least = student_t(groups - 1, comparisons, whole), student_t(groups - 1, 1, whole)
    parts = left_out.mean(1, keepdims=True) - left_out  # of each group, to the mean
    parts = parts[(parts**2).sum(1) > 1e-24 * (left_out**2).sum(1)]  # equal images have no t
    if groups < FEWEST_GROUPS or not len(parts):
        return most
    if len(parts) == 1:
        return student_t(groups - 1, 1, level)
    flips = int(np.clip(100 / level, *FLIPS))  # enough to see what is as seldom as that
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (groups, flips))
    means, squares = parts @ signs / groups, (parts**2).mean(1, keepdims=True)
    t = means / np.sqrt((squares - means**2).clip(1e-300) / (groups - 1))
    return float(np.clip(np.quantile(np.abs(t).max(0), 1 - level), least, most))


def group_count(n: int, most: int = GROUPS) -> int:
    """Groups of the jackknife among `n` images. Raises ValueError for fewer than 4 images."""
    groups = min(most, n // 2)
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


def jackknife(value: float, left_out: Sequence[float] | np.ndarray, n: int) -> Interval:
    """The interval of `value`, the number of all `n` images, from the numbers without each group."""
    groups = len(left_out)
    spread = np.asarray(left_out) - np.mean(left_out)
    half = student_t(groups - 1) * float(np.sqrt((groups - 1) / groups * (spread**2).sum()))
    return Interval(value, value - half, value + half, n, tuple(float(x) for x in left_out))


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of independent values [N >= 4] with its 95 % interval (Student's t)."""
    expect_finite(values)
    n, groups = len(values), group_count(len(values), GROUPS_OF_MEANS)
    sums, sizes = (np.array([terms[g::groups].sum() for g in range(groups)]) for terms in (values, np.ones(n)))
    left_out = tuple(float(x) for x in (values.sum() - sums) / (n - sizes))
    mean, half = float(np.mean(values)), student_t(n - 1) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n, left_out)


def student_t(df: int, comparisons: int = 1, level: float = ERROR) -> float:
    """97.5 % quantile of Student's t; with several comparisons, what makes all of them hold together at 95 %. level: of
    error, where it is not 5 %."""
    from scipy.stats import t  # importing it takes half a second

    return float(t.ppf(1 - level / 2 / whole_number("comparisons", comparisons), whole_number("df", df)))
