"""A second run of the claims, of other prompts and noise, held against the first: which verdicts come again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.data import rows
from pipelines.data.prompts import DRAWN
from pipelines.metrics.metric import METRICS
from pipelines.paper import claims
from pipelines.paper.claims import Judged
from pipelines.paper.datasets import Options
from pipelines.report import tables

HEADER = (
    "section", "claim", "setting", "metric", "expected", "first verdict", "second verdict", "kept", "first", "second",
)  # fmt: skip
TEXT_COLUMNS = 8
KEY = HEADER[:5]
BOUNDS = ("measured", "measured_low", "measured_high")
COLUMNS = (*KEY, "verdict", *BOUNDS, "n", "protocol")
BY_MEAN = "by the judges' mean"  # what a version said of judged claims that had no column `judges`: not held against
Key = tuple[str, ...]  # under KEY


@dataclass(frozen=True)
class Verdict:
    """What a run said of a claim. bounds: its number and interval as its csv has them, empty where it had none."""

    verdict: str
    bounds: tuple[str, str, str]

    def text(self, digits: int) -> str:
        if not all(self.bounds):
            return "–"
        value, low, high = (f"{float(bound):+.{digits}f}" for bound in self.bounds)
        return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Run:
    """most: prompts behind a verdict, at the most (0 if none was measured)."""

    protocol: str
    verdicts: Mapping[Key, Verdict]
    most: int = 0


def read(file: str, names: Mapping[str, str]) -> Run:
    """A run's claims.csv. names: the paper's model -> the one that runs.

    Raises: ValueError, naming the file, if it is none, or of other claims or models than this run; OSError if it cannot
        be read.
    """
    path = Path(file)
    _, records = rows.table(path, ",")
    listed = [row for _, row in records]
    if lacking := [name for name in COLUMNS if not listed or name not in listed[0]]:
        raise ValueError(f"--against {file!r} must be a claims.csv, which has a column {lacking[0]!r}")
    protocols = {row["protocol"] for row in listed}
    try:
        verdicts = {_key(row): Verdict(_verdict(row), _bounds(row)) for row in listed}
    except ValueError as error:
        raise ValueError(f"--against {file!r} must hold numbers under {', '.join(BOUNDS)}: {error}") from None
    expected = set(_keys(names))
    if len(listed) != len(verdicts) or len(protocols) != 1 or set(verdicts) != expected:
        here = len(expected & set(verdicts))
        raise ValueError(
            f"--against {file!r} must hold the {len(expected)} claims of this version, of the same models, once each, "
            f"got {len(listed)} lines, {here} of them of these claims: make it again by this version"
        )
    return Run(protocols.pop(), verdicts, max([0, *(int(row["n"]) for row in listed if row["n"].isdecimal())]))


def check(first: Run, protocol: str, options: Options) -> None:
    """Raise ValueError if `first` is of the protocol, and so of the prompts and noise, of this run, whose `options`
    these are; or if it had so many prompts of a file (--up-to, or a larger --limit) that this draw's are among them."""
    if first.protocol == protocol:
        raise ValueError(f"--against must be a run of other prompts (--draw), got one of the same protocol, {protocol}")
    begins = options.draw * (options.limit or 0)
    if options.prompts not in DRAWN and options.draw and begins < first.most:
        raise ValueError(
            f"--against must be a run of other prompts, got one of {first.most}: draw {options.draw} of "
            f"{options.prompts!r} begins at prompt {begins}; take a --draw of {-(-first.most // (options.limit or 1))} "
            "or more"
        )


def _keys(names: Mapping[str, str]) -> list[Key]:
    untold = [Judged(claim, None, None) for claim in claims.CLAIMS]
    lines = [dict(zip(claims.HEADER, line, strict=True)) for line in claims.lines(untold, names)]
    return [_key(line) for line in lines]


def _key(line: Mapping[str, str]) -> Key:
    return tuple(line[name] for name in KEY)


def _verdict(row: Mapping[str, str]) -> str:
    judged = any(metric.title == row["metric"] and metric.judges for metric in METRICS.values())
    return BY_MEAN if judged and "judges" not in row else row["verdict"]


def _bounds(line: Mapping[str, str]) -> tuple[str, str, str]:
    value, low, high = (line[name] for name in BOUNDS)
    for bound in filter(None, (value, low, high)):
        float(bound)  # raises for what is no number
    return value, low, high


def lines(first: Run, judged: list[Judged], names: Mapping[str, str]) -> list[list[str]]:
    """Under HEADER. A claim that either run could not measure, or judged by another rule, is not kept, and not lost."""
    told = []
    for one, key in zip(judged, _keys(names), strict=True):
        before, digits = first.verdicts[key], one.metric.digits
        measured = not {"not measured", BY_MEAN} & {before.verdict, one.verdict}
        kept = ("yes" if before.verdict == one.verdict else "no") if measured else "–"
        second = one.metric.text(one.measured, "+") if one.measured else "–"
        told.append([*key, before.verdict, one.verdict, kept, before.text(digits), second])
    return told


def answer(told: list[list[str]], first: Run, protocol: str) -> str:
    """A sentence: how many verdicts come again, and which do not."""
    compared = [dict(zip(HEADER, line, strict=True)) for line in told if line[HEADER.index("kept")] != "–"]
    lost = [line for line in compared if line["kept"] == "no"]
    turned = [line for line in lost if {line["first verdict"], line["second verdict"]} == {"agrees", "contradicts"}]
    listed = "; ".join(
        f"{line['setting']}, {line['metric']}: {line['first verdict']}, then {line['second verdict']}" for line in lost
    )
    return (
        f"Of {len(compared)} verdicts of a first run ({first.protocol}) {len(compared) - len(lost)} came again in a "
        f"second of other prompts and noise ({protocol}), and {len(turned)} turned into their opposites"
        + (f". Not kept: {listed}." if lost else ".")
    )


def markdown(told: list[list[str]], first: Run, protocol: str) -> str:
    return f"{answer(told, first, protocol)}\n\n{tables.markdown(HEADER, told, TEXT_COLUMNS)}"


def to_csv(told: list[list[str]], first: Run, protocol: str) -> str:
    columns = {name: [line[i] for line in told] for i, name in enumerate(HEADER)}
    pair = {"first protocol": [first.protocol] * len(told), "second protocol": [protocol] * len(told)}
    return tables.csv_of({**columns, **pair})
