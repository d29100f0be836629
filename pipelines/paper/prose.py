"""Numbers of the paper's sentences, beside what its own tables say of the same, and what was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.metrics.intervals import Interval, together
from pipelines.paper import presets, published
from pipelines.paper.exhibit import FID, Cell, Exhibit
from pipelines.report import tables
from postdiff import methods
from postdiff.plan import Plan

if TYPE_CHECKING:
    from pipelines.paper.exhibit_text import Measured, Results

AGAINST = {  # what a number is held against, as published.csv names it
    "the model as it is": methods.dense(20),
    "DeepCache": presets.plan("table3.deepcache"),
    "Faster Diffusion": presets.plan("table3.faster_diffusion"),
}
SAVED = "_saved"  # percent of a number that the tables print
KINDS = {"tmacs": "FLOPs saved, %", "fid_lower": "FID lower by", f"{published.SECONDS}a5000": "latency saved, %"}
HEADER = ("section", "plan", "from", "number", "the paper", "its tables", "here", "on")
TEXT_COLUMNS = 4
LEGEND = (
    "Its tables: the same of what the paper's tables print. Here: of FLOPs, the paper's own model counted by the "
    "paper's rule; of FID, the paired difference without bias, whose intervals hold at once (max-t); of latency, "
    "medians of rounds in which both plans were timed. –: not measured, or not printed."
)


@dataclass(frozen=True)
class Number:
    """What the paper says in a sentence: `plan` against another. key: of KINDS, with SAVED where it is percent."""

    section: str
    model: str
    plan: Plan
    against: str
    key: str
    value: float
    note: str = ""

    @property
    def other(self) -> Plan:
        return AGAINST[self.against]


def numbers() -> list[Number]:
    listed = []
    for line in published.lines("prose"):
        section, _, against = line.label.partition(": from ")
        note = " ".join(line.notes)
        listed += [
            Number(section, line.model, published.plan(line), against, key, value, note)
            for key, value in line.values.items()
        ]
    return listed


def exhibit(_searched: Mapping[str, Plan]) -> Exhibit:
    listed = numbers()
    cells = {
        (one.model, plan.id): Cell(plan.name.replace("_", " "), one.model, plan)
        for one in listed
        for plan in (one.plan, one.other)
    }
    return Exhibit(
        "prose", "Numbers of the paper's sentences", tuple(cells.values()), (FID,), timed=True, numbers=tuple(listed)
    )


def lines(listed: tuple[Number, ...], results: Results, names: Mapping[str, str]) -> list[list[str]]:
    """Under HEADER. names: the paper's model -> the one that ran."""
    printed = presets.printed(("tmacs", "fid", f"{published.SECONDS}a5000"))
    moved = _falls(listed, results)
    table = []
    for one in listed:
        keys = (one.model, one.plan.id), (one.model, one.other.id)
        name = "PostDiff" if one.plan.name == "postdiff" else one.plan.name.replace("_", " ")
        own, other = (printed.get(key, {}) for key in keys)
        text = f"{one.note} {one.value:g}".strip()
        kind, here = KINDS[one.key.removesuffix(SAVED)], _here(one, moved.get(one), *(results[key] for key in keys))
        on = one.model if one.key == f"tmacs{SAVED}" else names[one.model]
        table.append([one.section, name, one.against, kind, text, _of_tables(one, own, other), here, on])
    return table


def _of_tables(one: Number, own: Mapping[str, float], other: Mapping[str, float]) -> str:
    key = one.key.removesuffix(SAVED).removesuffix("_lower")
    if key not in own or key not in other:
        return "–"
    return f"{saved(own[key], other[key]):.2f}" if one.key.endswith(SAVED) else f"{other[key] - own[key]:.2f}"


def _falls(listed: tuple[Number, ...], results: Results) -> dict[Number, Interval]:
    """What was measured of each number of FID; the intervals hold at once (max-t)."""
    differences = {}
    for one in listed:
        own, other = (results[one.model, plan.id].row for plan in (one.plan, one.other))
        if one.key == "fid_lower" and tables.measured([own, other], FID):
            differences[one] = FID.difference(other.interval(FID), [(1.0, own.interval(FID))])
    return dict(zip(differences, together(list(differences.values())), strict=True))


def _here(one: Number, moved: Interval | None, own: Measured, other: Measured) -> str:
    if one.key == f"tmacs{SAVED}":
        assert own.there  # no plan of these is searched
        assert other.there
        return f"{saved(own.there.macs_paper, other.there.macs_paper):.2f}"
    if one.key == "fid_lower":
        return FID.text(moved, "+") if moved else "–"
    if not own.latency or not other.latency:
        return "–"
    return f"{saved(own.latency.p50, other.latency.p50):.1f}"


def saved(own: float, other: float) -> float:
    """Percent."""
    return 100 * (1 - own / other)
