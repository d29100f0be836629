"""How often what reads real renders is right, as rows of a CSV: kind, accuracy, low, high, n."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

Row = dict[str, str | float | int]


def row(kind: str, right: np.ndarray) -> Row:
    """The share of `right`, booleans, with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    hits, n = int(right.sum()), right.size
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return {"kind": kind, "accuracy": hits / n, "low": interval.low, "high": interval.high, "n": n}


def write(rows: Iterable[Row], file: Path) -> None:
    rows = list(rows)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for numbers in rows:
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()})
