"""Metrics: closed forms, and equality with clean-fid on the same numbers."""

import numpy as np
import pytest

from pipelines.metrics import clip, fid, intervals
from pipelines.metrics.metric import METRICS

FID = METRICS["fid"]


def test_frechet_distance_equals_clean_fid():
    from cleanfid.fid import frechet_distance

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(64, 64))
    a, b = rng.normal(size=(500, 64)) @ mix, rng.normal(0.3, 1.2, size=(400, 64)) @ mix
    theirs = frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert fid.frechet_distance(fid.moments(a), fid.moments(b)) == pytest.approx(theirs, rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(1)
    scale_a, scale_b, shift = rng.uniform(0.5, 2, 30), rng.uniform(0.5, 2, 30), rng.normal(size=30)
    turn, _ = np.linalg.qr(rng.normal(size=(30, 30)))  # commuting covariances: the root is known
    a = fid.Moments(9, np.zeros(30), turn @ np.diag(scale_a**2) @ turn.T)
    b = fid.Moments(9, shift, turn @ np.diag(scale_b**2) @ turn.T)
    expected = (shift**2).sum() + ((scale_a - scale_b) ** 2).sum()
    assert fid.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert fid.frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)
    assert fid.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_with_fewer_images_than_features():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(10, 40)), rng.normal(size=(12, 40))
    value = fid.frechet_distance(fid.moments(a), fid.moments(b))
    assert np.isfinite(value)
    assert value > 0


def test_frechet_interval_covers_its_own_estimate_and_shrinks():
    rng = np.random.default_rng(3)
    reference = fid.moments(rng.normal(size=(2000, 8)))
    few, many = (fid.frechet_interval(rng.normal(0.5, 1, size=(n, 8)), reference) for n in (100, 1600))
    assert few.low < few.value < few.high
    assert (many.high - many.low) < 0.5 * (few.high - few.low)


def test_frechet_interval_covers_at_its_level():
    """What it covers is the mean over sets of this size: FID's own bias at N is stated, not hidden in the interval."""
    rng = np.random.default_rng(5)
    reference = fid.moments(rng.normal(size=(4000, 6)))
    found = [fid.frechet_interval(rng.normal(0.3, 1.1, size=(200, 6)), reference) for _ in range(300)]
    expected = np.mean([i.value for i in found])
    assert 0.90 <= np.mean([i.low < expected < i.high for i in found]) <= 0.985


def test_paired_differences_cover_and_are_tighter_than_their_parts():
    rng = np.random.default_rng(6)
    reference = fid.moments(rng.normal(size=(4000, 6)))
    found = []
    for _ in range(200):
        a = rng.normal(0.3, 1.1, size=(200, 6))
        b = a + rng.normal(0.05, 0.1, size=a.shape)  # the same prompts and noise, another method
        first, second = fid.frechet_interval(a, reference), fid.frechet_interval(b, reference)
        found.append((intervals.difference(first, [(1.0, second)]), first))
    expected = np.mean([d.value for d, _ in found])
    assert 0.90 <= np.mean([d.low < expected < d.high for d, _ in found]) <= 0.985
    assert np.median([(d.high - d.low) / (i.high - i.low) for d, i in found]) < 0.5
    with pytest.raises(ValueError, match="needs the same images"):
        intervals.difference(found[0][1], [(1.0, intervals.mean_interval(np.arange(10.0)))])


def test_clip_score_equals_the_cosine_and_never_falls_below_zero():
    image, text = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[3.0, 4.0], [-1.0, 0.0]])
    assert clip.clip_scores(image, text).tolist() == pytest.approx([100.0, 0.0])
    with pytest.raises(ValueError, match="one text an image"):
        clip.clip_scores(image, text[:1])


def test_mean_interval_covers_at_its_level():
    rng = np.random.default_rng(4)
    found = [intervals.mean_interval(rng.normal(2, 3, 20)) for _ in range(1000)]
    assert 0.93 < np.mean([i.low < 2 < i.high for i in found]) < 0.97


def test_too_few_is_told():
    with pytest.raises(ValueError, match="N >= 2"):
        fid.moments(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="at least 4 images"):
        fid.frechet_interval(np.zeros((3, 4)), fid.Moments(2, np.zeros(4), np.eye(4)))


def test_fid_differences_are_of_the_distances_and_not_of_their_bias():
    """B is A with less spread, and further from the reference: its FID is lower, since its bias is smaller."""
    rng = np.random.default_rng(0)
    reference = fid.moments(rng.normal(size=(20_000, 64)))
    true, plain, corrected = 64 * 0.1**2, [], []
    for _ in range(40):
        a = rng.normal(size=(192, 64))
        first, second = (fid.frechet_interval(x, reference) for x in (a, 0.9 * a))
        plain.append(intervals.difference(second, [(1.0, first)]))
        corrected.append(FID.difference(second, [(1.0, first)]))
    assert np.mean([of.high < true for of in plain]) > 0.9
    assert np.mean([of.low <= true <= of.high for of in corrected]) >= 0.8
    assert abs(np.mean([of.value for of in corrected]) - true) < 0.1 * true


def test_moments_without_a_group_are_those_of_the_rest():
    features = np.random.default_rng(1).normal(3, 1, (107, 9)).astype(np.float32)
    parts = [fid.moments(np.delete(features, slice(g, None, intervals.GROUPS), 0)) for g in range(intervals.GROUPS)]
    for fast, slow in zip(fid._moments_without_each_group(features), parts, strict=True):
        assert fast.n == slow.n
        np.testing.assert_allclose(fast.mean, slow.mean, rtol=1e-12)
        np.testing.assert_allclose(fast.covariance, slow.covariance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_and_become_no_answer(wrong):
    features = np.ones((8, 3), np.float32)
    features[4, 1] = wrong
    rest = np.random.default_rng(0).normal(size=(8, 3))
    for measure in (
        lambda: fid.moments(features),
        lambda: fid.frechet_interval(features, fid.moments(rest)),
        lambda: clip.clip_scores(features, rest),
        lambda: intervals.mean_interval(features[:, 1]),
    ):
        with pytest.raises(ValueError, match=r"expected finite numbers, got 1 of (8|24) that are not"):
            measure()


def test_an_embedding_of_no_length_has_no_score():
    image = np.eye(3)
    image[1] = 0
    with pytest.raises(ValueError, match="expected embeddings longer than 0, got 1 of 3 that are not"):
        clip.clip_scores(np.eye(3), image)


def differences(rng, n: int, comparisons: int, shared: float) -> list[intervals.Interval]:
    """Of plans that are all alike: every true difference is 0. shared: how much of the spread all of them share."""
    values = shared**0.5 * rng.normal(size=(n, 1)) + (1 - shared) ** 0.5 * rng.normal(size=(n, comparisons))
    return [intervals.mean_interval(column) for column in values.T]


def all_hold(found: list[intervals.Interval]) -> bool:
    return all(one.low < 0 < one.high for one in found)


@pytest.mark.parametrize(("n", "shared"), [(32, 0.0), (256, 0.5)])
def test_intervals_that_hold_together_do_so_as_often_as_they_say(n, shared):
    rng = np.random.default_rng(7)
    found = [differences(rng, n, 12, shared) for _ in range(150)]
    assert np.mean([all_hold(alone) for alone in found]) < 0.85
    assert 0.90 <= np.mean([all_hold(intervals.together(alone)) for alone in found]) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("n", "comparisons", "shared"), [(64, 10, 0.5), (256, 20, 0.0), (256, 20, 0.5)])
def test_false_clear_verdicts_over_a_whole_table_are_five_percent(n, comparisons, shared):
    rng = np.random.default_rng(8)
    held = np.mean([all_hold(intervals.together(differences(rng, n, comparisons, shared))) for _ in range(500)])
    assert 0.93 <= held <= 0.97


def test_intervals_that_hold_together_are_between_those_alone_and_bonferronis():
    rng = np.random.default_rng(9)
    alone = differences(rng, 256, 20, 0.9)
    wider = [(b.high - b.low) / (a.high - a.low) for a, b in zip(alone, intervals.together(alone), strict=True)]
    assert wider == pytest.approx([wider[0]] * 20)
    groups = len(alone[0].left_out)
    assert 1.1 < wider[0] < 0.97 * intervals.student_t(groups - 1, 20) / intervals.student_t(groups - 1)
    assert intervals.together(alone[:1]) == pytest.approx(alone[:1])
    assert intervals.together([]) == []
    assert [b.value for b in intervals.together(alone)] == [a.value for a in alone]


def test_differences_of_other_images_are_sets_of_their_own():
    rng = np.random.default_rng(10)
    many, few = differences(rng, 256, 5, 0.0), differences(rng, 64, 15, 0.0)
    mixed = intervals.together([*many, *few])
    assert len(mixed) == 20
    assert mixed[0].high - mixed[0].low > intervals.together(many)[0].high - intervals.together(many)[0].low


def test_equal_images_do_not_move_the_intervals_of_others():
    rng = np.random.default_rng(11)
    alone = differences(rng, 64, 3, 0.0)
    nothing = intervals.mean_interval(np.zeros(64))
    assert (nothing.low, nothing.high) == (0, 0)
    assert intervals.together([*alone, nothing])[3] == nothing
