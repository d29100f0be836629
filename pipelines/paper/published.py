"""Every number that the paper printed, and the settings that it was printed for (published.csv).

The csv has a line a number: FID and CLIP score as printed, `tmacs` the column that the paper calls FLOPs (T), and
seconds an image by GPU. Its notes say where the print is damaged, or is not what the method costs.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from postdiff import methods
from postdiff.plan import Plan

FILE = Path(__file__).parent / "published.csv"
SECONDS = "latency_s_"  # and the GPU's name: the metric of seconds an image
APPENDIX_J = Path(__file__).parent / "appendix_j.csv"  # the prompts of Fig. 6 and 11
GALLERY = "appendix_j"  # their data set
PROMPTS_A_MODEL = 6  # of it


@dataclass(frozen=True)
class Line:
    """A line of a table. settings: of the method. values: {metric: number}; what cannot be read is left out."""

    exhibit: str
    model: str
    dataset: str
    method: str
    label: str
    settings: dict[str, Any]
    values: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@cache
def lines(exhibit: str) -> tuple[Line, ...]:
    """The lines of `table1` to `table7`, in the paper's order. Raises ValueError if there is no such table."""
    merged: dict[tuple[str, str], Line] = {}
    for row in _rows():
        if row["exhibit"] != exhibit:
            continue
        key = row["model"], row["variant"]
        line = merged.get(key) or Line(
            exhibit, row["model"], row["dataset"], row["method"], row["variant"], _settings(row)
        )
        values = {**line.values, row["metric"]: float(row["value"])} if row["value"] else line.values
        notes = tuple(dict.fromkeys([*line.notes, row["note"]])) if row["note"] else line.notes
        merged[key] = replace(line, values=values, notes=notes)
    if not merged:
        raise ValueError(f"no numbers of {exhibit!r}: expected one of {', '.join(exhibits())}")
    return tuple(_spread(list(merged.values())))


@cache
def exhibits() -> tuple[str, ...]:
    return tuple(dict.fromkeys(row["exhibit"] for row in _rows()))


def plan(line: Line) -> Plan:
    """The plan of a line of the paper's own methods. Raises ValueError for one of another method."""
    if line.method == "deepcache+ca":
        return replace(methods.postdiff(s=0.0, **line.settings), name="deepcache+ca")
    if methods.METHODS.get(line.method) not in methods.PAPER:
        raise ValueError(f"{line.exhibit}, {line.label}: the settings of {line.method} are a preset's")
    settings = {"k": 1, **line.settings} if line.method == "postdiff" else line.settings
    return methods.METHODS[line.method](**settings)


def _settings(row: dict[str, str]) -> dict[str, Any]:
    kinds: dict[str, Callable] = {
        "steps": int,
        "beta": _share,
        "s": _share,
        "k": int,
        "m": _step_or_share,
        "ca_mode": str,
    }
    settings = {name: kind(row[name]) for name, kind in kinds.items() if row[name]}
    if "ca_mode" in settings:
        settings["mode"] = settings.pop("ca_mode")
    return settings


def _share(text: str) -> float:
    return float(Fraction(text))


def _step_or_share(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def _spread(listed: list[Line]) -> Iterator[Line]:
    """Table 1 has one cell of cost for four modes: it is told of each of them."""
    shared = {line.settings["m"]: line for line in listed if line.settings.get("mode") == "*"}
    for line in listed:
        if line.settings.get("mode") == "*":
            continue
        one = shared.get(line.settings.get("m"))
        yield replace(line, values={**one.values, **line.values}, notes=(*one.notes, *line.notes)) if one else line


@cache
def _rows() -> tuple[dict[str, str], ...]:
    with open(FILE, encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
