"""What a finished store holds, as a table: for notebooks, and for whoever asks more of results than a report does.

Read are the records of runs (`announce`: which configurations, at what cost, scored under which name) and the scores
that they name; nothing is computed. Loads neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import fs

from pipelines import status
from pipelines.engine.store import Store
from pipelines.metrics.intervals import Interval
from pipelines.metrics.metric import METRICS, shown
from pipelines.report import plan_settings, tables
from pipelines.stages import scores
from postdiff import planfile
from postdiff.plan import Plan
from postdiff.terminal import one_line

if TYPE_CHECKING:
    from pipelines.evaluation import Entry, Protocol

HOW = ("guidance", "solver", "size", "dtype", "batch_size")
INTERVAL = ("", "_low", "_high", "_n")
# Columns in this order; between the first and the last are the settings of other mechanisms.
FIRST = ("backbone", "method", *plan_settings.ORDER)
LAST = (
    *("settings", "flops", "macs_paper", "seconds"),
    *(f"{metric.column}{end}" for metric in METRICS.values() for end in INTERVAL),
    *(*HOW, "protocol", "configuration"),
)
MOST_LINES = 100  # of a table in a notebook
LEFT = "text-align:left"


@dataclass(frozen=True)
class Results:
    """A row for each configuration and protocol that a store has scores of, by model, protocol and rising FLOPs.

    table: these columns; a cell without a value is null.
        backbone, method: text. What the plan is, where it is that (`plan_settings`): steps (T), beta, s, k, m, mode,
        and settings of other mechanisms; settings: as tables print them.
        flops, macs_paper: of the denoiser, for one image, 2 x MAC with attention and MACs by the paper's rule.
        seconds: an image, the median.
        For each metric, by its name in results.csv (fid, clip_score, ...): NAME, NAME_low and NAME_high, its 95 %
        interval, and NAME_n, the images behind it.
        guidance, solver, size, dtype, batch_size; protocol, whose numbers alone can be compared; configuration, its id.
    plans: {configuration id: its plan}. protocols: {name: what is measured on what, in words}.
    """

    table: pa.Table
    plans: Mapping[str, Plan]
    protocols: Mapping[str, Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.table)

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame. Raises ImportError if pandas is not installed: nothing here needs it."""
        return self.table.to_pandas()

    def __repr__(self) -> str:
        columns, lines = _shown(self.table)
        cells = [columns, *lines]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([*(row.rstrip() for row in rows), f"({self._caption()})"])

    def _repr_html_(self) -> str:
        """The same as HTML, for notebooks."""
        columns, lines = _shown(self.table)
        head = "".join(f'<th scope="col" style="{LEFT}">{escape(name)}</th>' for name in columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="{LEFT};white-space:nowrap">{escape(cell)}</td>' for cell in line) + "</tr>"
            for line in lines
        )
        return (
            f'<div style="overflow-x:auto"><table><caption style="{LEFT}">{escape(self._caption())}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _caption(self) -> str:
        """What the lines are of, and what they leave out."""
        left_out = f", the first {MOST_LINES} here" if len(self) > MOST_LINES else ""
        protocols = ", ".join(self.protocols)
        return (
            f"{len(self)} rows{left_out}; 95 % intervals; protocol {protocols}; .table and .to_pandas() have all "
            f"{self.table.num_columns} columns"
        )


def _shown(table: pa.Table) -> tuple[list[str], list[list[str]]]:
    """Header and cells of what a person looks at first: names, costs, and the metrics that reports show."""
    metrics = [metric for metric in shown() if metric.column in table.column_names]
    several = [key for key in ("backbone", "protocol") if len(set(table[key].to_pylist())) > 1]
    lines = []
    for row in table.slice(0, MOST_LINES).to_pylist():
        cells = [one_line(row[key]) for key in several]
        cells += [tables.name(row["method"], row["steps"], row["settings"]), f"{row['flops'] / 1e9:.2f}"]
        cells.append("" if row["seconds"] is None else f"{row['seconds']:.3f}")
        for metric in metrics:
            value, low, high, n = (row[f"{metric.column}{end}"] for end in INTERVAL)
            cells.append("" if value is None else metric.text(Interval(value, low, high, n)))
        cells.append(str(max(row[name] or 0 for name in row if name.endswith("_n"))))
        lines.append(cells)
    return [*several, "configuration", "GFLOPs", "seconds", *(metric.title for metric in metrics), "n"], lines


@dataclass(frozen=True)
class FinishedStore:
    """A store that a job has written, to be read. See `open_store`."""

    store: Store

    def results(self, unfinished: bool = False) -> Results:
        """What was scored, as a table.

        unfinished: leave out what has no scores yet, instead of raising.

        Raises: ValueError, in one line, if the store has no results, is not finished, or was written before stores kept
        what this reads; DamagedError if a file is not what its name says.
        """
        announced = list(self._announced())
        names = self.store.names("scores")
        lacking = [facts for facts in announced if facts["scores"] not in names]
        scored = [facts for facts in announced if facts["scores"] in names]
        if lacking and not (unfinished and scored):
            raise ValueError(
                f"{self.store.shown!r} must be finished, got {len(lacking)} of {len(announced)} configurations without "
                "scores: run its job again"
                + (", or read what is there with results(unfinished=True)" if scored else "")
            )
        scored.sort(key=lambda facts: (facts["backbone"], facts["protocol"]["protocol"], facts["flops"]))
        plans = {facts["configuration"]: _plan(facts, self.store) for facts in scored}
        rows = [
            _row(facts, plans[facts["configuration"]], scores.read(self.store, facts["scores"])) for facts in scored
        ]
        protocols = {facts["protocol"]["protocol"]: facts["protocol"] for facts in scored}
        return Results(_table(rows), plans, protocols)

    def _announced(self) -> Iterator[dict[str, Any]]:
        """The facts of every configuration that a run was to score, each once for every protocol."""
        records = [self.store.record(name) for name in sorted(self.store.names("runs"))]
        complete = [record for record in records if "protocol" in record]  # others: before facts were kept
        if not complete:
            why = (
                "a run of an earlier version, which did not keep what results are read from: run its job again"
                if records
                else f"none{_stores_below(self.store)}"
            )
            raise ValueError(f"{self.store.shown!r} must hold the results of an evaluation, got {why}")
        seen = set()
        for record in complete:
            for id, facts in record["configurations"].items():
                if facts["scores"] not in seen:
                    seen.add(facts["scores"])
                    yield {**facts, "configuration": id, "protocol": record["protocol"]}


def open_store(url: str | Path) -> FinishedStore:
    """A store that a job has written (its --out), to be read: `open_store("out/sweep").results()`. Nothing is written.

    url: a folder, s3://BUCKET/PATH, gs://BUCKET/PATH, or what else fsspec knows.

    Raises: ValueError, in one line and without credentials, if there is no store, or it cannot be opened.
    """
    store = Store(url)
    if not store.has("spec.json"):
        raise ValueError(f"{store.shown!r} must be the store of a job, got no spec.json in it{_stores_below(store)}")
    return FinishedStore(store)


def _stores_below(store: Store) -> str:
    """In words, which folders of it are stores: jobs that evaluate several things keep each in its own."""
    listed = store.fs.get_file_info(fs.FileSelector(store.root, allow_not_found=True))
    names = sorted(info.base_name for info in listed if info.type == fs.FileType.Directory)
    below = [name for name in names if store.has(f"{name}/spec.json")]
    return f"; stores are in {', '.join(one_line(name) for name in below)}" if below else ""


def _plan(facts: Mapping[str, Any], store: Store) -> Plan:
    return planfile.from_json(facts["plan"], f"the plan of {facts['label']!r} in {store.shown!r}")


def _row(facts: Mapping[str, Any], plan: Plan, scored: scores.Scores) -> dict[str, Any]:
    """One line of the table."""
    measured: dict[str, float] = {}
    for metric in METRICS.values():
        if interval := scored.intervals.get(metric.key):
            measured |= {**interval.columns(metric.column), f"{metric.column}_n": interval.n}
    return {
        **{key: facts[key] for key in ("backbone", "method")},
        **plan_settings.settings(plan),
        **{key: facts[key] for key in ("settings", "flops", "macs_paper")},
        "seconds": scored.seconds if isfinite(scored.seconds) else None,
        **measured,
        **{key: facts[key] for key in HOW},
        "protocol": facts["protocol"]["protocol"],
        "configuration": facts["configuration"],
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Columns in one order, whichever row has them."""
    used = dict.fromkeys(name for row in rows for name in row)
    others = [name for name in used if name not in FIRST and name not in LAST]
    names = [name for name in (*FIRST, *others, *LAST) if name in used]
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def announce(store: Store, entries: Sequence[Entry], protocol: Protocol, scored_as: Mapping[str, str]) -> None:
    """Say in the store what is going to be made, for jobs/status.py and `results`. scored_as: {id of a configuration:
    the file that will hold its scores}."""
    different = {entry.configuration.id: entry for entry in entries}
    labels = {
        id: f"{one.configuration.backbone} {tables.name(one.method, len(one.configuration.plan), one.settings)}"
        for id, one in different.items()
    }
    costs = {id: one.flops for id, one in different.items()}
    facts = {id: {**_facts(entry), "scores": scored_as[id]} for id, entry in different.items()}
    status.announce(store, labels, costs, len(protocol.shards), protocol.encoders, facts, protocol.facts())


def _facts(entry: Entry) -> dict[str, Any]:
    """What `_row` is made of beside scores, as JSON has it."""
    of_entry = {key: getattr(entry, key) for key in ("method", "settings", "flops", "macs_paper")}
    how = {key: getattr(entry.configuration, key) for key in ("backbone", *HOW)}
    size = how["size"]
    how["size"] = str(size) if isinstance(size, int) else "x".join(map(str, size))  # one type a column
    return {**of_entry, **how, "plan": planfile.to_json(entry.configuration.plan)}
