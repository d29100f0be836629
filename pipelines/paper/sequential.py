"""A sequential rule for the claims: looked at several times, and those that are still open get more prompts.

A group-sequential design (Lan and DeMets, 1983). The probability of an error, 5 % for the whole table, is spent over
the looks in step with their prompts (the spending function alpha * n / n_max of Kim and DeMets, 1987), and at each look
the intervals of the whole table hold together (max-t) at what is spent there. A claim stops at the first look whose
interval gives a verdict, and keeps that interval. That none misses has a probability of 95 % or more by the sum of what
is spent, whatever made a claim stop and however the looks depend on each other: no boundary need be simulated, and
looks that large |t| are seldom shared between leave little unused. At 512, 1024 and 2048 prompts a last interval is 6
to 17 % wider than that of one look at all of them: more where there are few groups (FID) or differences move together.

All of this holds for looks that were planned: to ask for more prompts once the last look was seen is another design.
Intervals hold, numbers do not: that of a claim that stopped early is biased towards what stopped it (tests).

The limits of |t| of all looks are those of the whole table as the first look found it: claims that stop leave behind
those whose |t| is large, so a table of these alone would promise too much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log2

from pipelines.metrics.intervals import ERROR, critical, widened
from pipelines.paper import claims
from pipelines.paper.claims import OPEN, Judged, Rows

More = Callable[[int, "set[tuple[str, str]]"], Rows]


def sizes(first: int, most: int) -> list[int]:
    """Prompts at each look, from the `first` to the `most`, each about twice as many as the one before.

    Raises: ValueError if `most` is less than twice the `first`.
    """
    if most < 2 * first:
        raise ValueError(f"--up-to must be at least twice the {first} prompts of the first look, got {most}")
    return [*(first * 2**look for look in range(round(log2(most / first)))), most]


def spent(looks: Sequence[int]) -> list[float]:
    """Of the probability of an error, what each of `looks` at so many prompts spends."""
    return [ERROR * (now - before) / looks[-1] for before, now in pairwise([0, *looks])]


def judge(rows: Rows, looks: Sequence[int], more: More) -> list[Judged]:
    """All claims, each by the first of `looks` that gives it a verdict, else by the last.

    Args:
        rows: of the first look. looks: prompts at each. more: called with the number of a later look, 1 for the second,
            and the keys of all plans that open claims are of; returns their rows over all prompts of that look. A plan
            that it leaves out costs its claims the look.
    """
    first = claims.differences(rows)
    limits = [dict(zip(first, critical(list(first.values()), level), strict=True)) for level in spent(looks)]
    measured = _held(first, limits[0])
    for look in range(1, len(looks)):
        undecided = [one.claim for one in claims.judged_by(measured) if one.verdict == OPEN]
        if not undecided:
            break
        rows = more(look, {(one.model, plan.id) for one in undecided for plan in one.plans})
        again = claims.differences(rows, undecided)
        measured |= _held({key: value for key, value in again.items() if key in first}, limits[look])
    return claims.judged_by(measured)


def _held(differences: claims.Differences, limits: dict) -> claims.Differences:
    wider = widened(list(differences.values()), [limits[key] for key in differences])
    return dict(zip(differences, wider, strict=True))
