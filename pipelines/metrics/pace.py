"""Seconds of plans that alternate: the pace of a machine changes, and what a round tells of two plans is a ratio."""

import numpy as np


def at_one_pace(stages: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """stages: seconds of denoising and decoding [rounds, plans, 2], all above 0 -> p50, p90, and what of p50 is
    denoising, [plans] each: of the first plan as they were, of the others its median second times their share of it in
    the same round."""
    seconds = stages.sum(2)
    first = np.median(seconds[:, 0])
    shares = seconds / seconds[:, :1]
    p50, p90 = first * np.median(shares, axis=0), first * np.percentile(shares, 90, axis=0)
    p90[0] = np.percentile(seconds[:, 0], 90)
    return p50, p90, p50 * np.median(stages[:, :, 0] / seconds, axis=0)
