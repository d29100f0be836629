"""What W&B is told of an evaluation, as plain values: runs with flat keys, and the facts that a dashboard is made of.

Nothing here imports W&B (`tracking.py` does), and nothing names the machine's folders, its user or a command line.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from pipelines.engine.identity import digest
from pipelines.engine.store import Store
from pipelines.metrics.metric import METRICS
from pipelines.report import plan_settings, real_images, tables
from pipelines.report.real_images import Real
from pipelines.report.tables import Row
from pipelines.stages.generation import Configuration
from postdiff.models.additions import pieces
from postdiff.models.checkpoints import resolve
from postdiff.plan import strip
from postdiff.terminal import one_line

LONGEST = 80  # characters of what is evaluated in a group's name, which a digest ends: W&B takes 128 of a run's id
VERSION = 3  # of what a run holds: an older sweep is logged again, once
DENSE, FRONT, BEST = "dense", "front", "best"  # tags
METHOD, VARIANT = "method", "variant"  # keys of the config that a colour is given by


@dataclass(frozen=True)
class Run:
    """A configuration as W&B has it. config: flat. summary: finite numbers and switches. about: of the config, what
    another machine or commit would say otherwise."""

    id: str
    name: str
    config: dict[str, Any]
    summary: dict[str, float | bool]
    tags: tuple[str, ...]
    about: dict[str, str]

    @property
    def state(self) -> str:
        """Changes when a run would tell something else: on a front that has moved, of a metric that is new."""
        return digest([VERSION, self.name, self.config, self.summary, self.tags], 16)


@dataclass(frozen=True, kw_only=True)
class Logbook:
    """What a job has to tell W&B.

    sweep: what is evaluated, as `sweep-mini-sd`; with `protocol` it names the group, so that two protocols share none.
    protocol: `Protocol.facts()`: prompts and scoring networks, each under its title.
    configurations: {id: what it is}, of every row.
    stores: where their images and timings are; empty for the store that is logged in.
    protocols: {id: the facts of a row that was scored under others}, of a calibration's early losers.
    variants: {id: what differs between rows of one plan}: they are one comparison, with a colour a variant.
    measured: {id: further numbers}, as latencies.
    real: scores of the prompts' real images, which are no run: a line of the tables of rows under `protocol`.
    about: machine and commit. answer: a sentence or more. exhibits: (title, Markdown) in their order.
    pictures: {name: PNG}. private: what models, prompts and encoders were named by: of those that are paths W&B is told
    the last part alone.
    """

    sweep: str
    protocol: Mapping[str, str]
    rows: Sequence[Row]
    configurations: Mapping[str, Configuration]
    stores: Sequence[Store] = ()
    protocols: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    real: Real | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    answer: str = ""
    exhibits: Sequence[tuple[str, str]] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    private: Sequence[str | None] = ()

    @cached_property
    def group(self) -> str:
        sweep = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.public(self.sweep))[:LONGEST]
        return f"{sweep}-{digest([self.sweep, dict(self.protocol)], 8)}"

    @cached_property
    def grid(self) -> str:
        """Names the rows: a larger grid has a summary of its own."""
        return digest("".join(sorted(row.configuration for row in self.rows)).encode(), 8)

    def public(self, text: str) -> str:
        """`text` with no folder of this machine in it: of each path that is private, its last part."""
        named = {piece for name in self.private if name for piece in pieces(name)}
        for path in sorted(filter(is_path, named), key=len, reverse=True):
            text = text.replace(path, Path(path).name)
        return text

    def facts(self, row: Row) -> dict[str, str]:
        """The protocol that a row was scored under."""
        own = self.protocols.get(row.configuration, self.protocol)
        return {name: self.public(value) for name, value in own.items()}

    @cached_property
    def parts(self) -> list[list[Row]]:
        """Rows that may share a plot: of one model, but where variants are compared, and of one protocol. In order."""
        among: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            weights = "" if self.variants else self.configurations[row.configuration].weights
            among.setdefault((weights, self.facts(row)["protocol"]), []).append(row)
        return list(among.values())

    @cached_property
    def standings(self) -> dict[str, dict[str, bool]]:
        """{id: {metric: is it on that metric's front?}} of every row, of the metrics that all of its part have."""
        standings: dict[str, dict[str, bool]] = {row.configuration: {} for row in self.rows}
        for part in self.parts:
            for metric in tables.comparable(part):
                front = {row.configuration for row in tables.front(part, metric)}
                for row in part:
                    standings[row.configuration][metric.column] = row.configuration in front
        return standings

    @cached_property
    def best(self) -> set[str]:
        """Ids of the best row of each method by the first metric that all of its part have and that can judge it."""
        best: dict[tuple[int, str], Row] = {}
        for number, part in enumerate(self.parts):
            for metric in tables.comparable(part)[:1]:
                for row in part:
                    key = number, self.series(row)
                    if key not in best or tables.quality(row, metric) > tables.quality(best[key], metric):
                        best[key] = row
        return {row.configuration for row in best.values()}

    @cached_property
    def families(self) -> dict[str, str]:
        """{backbone: its family}."""
        return {name: resolve(name).family for name in {one.backbone for one in self.configurations.values()}}

    def series(self, row: Row) -> str:
        """What it has one colour with."""
        return plain(self.public(self.variants[row.configuration]) if self.variants else row.method)

    def run_id(self, row: Row) -> str:
        return f"{self.group}-{row.configuration}"

    def runs(self) -> list[Run]:
        """A run for each row."""
        return [self._run(row) for row in self.rows]

    def _run(self, row: Row) -> Run:
        configuration = self.configurations[row.configuration]
        size = configuration.size
        model = self.public(configuration.backbone)
        config = {
            METHOD: plain(row.method),
            VARIANT: self.series(row) if self.variants else model,
            "kind": row.family,
            "backbone": model,
            "family": self.families[configuration.backbone],
            **plan_settings.settings(configuration.plan),
            "settings": row.settings,
            "solver": configuration.solver,
            "guidance": configuration.guidance,
            "size": size if isinstance(size, int) else "x".join(map(str, size)),
            "dtype": configuration.dtype,
            "batch_size": configuration.batch_size,
            "weights": configuration.weights,
            "plan": strip(configuration.plan),
            "plan_id": configuration.plan.id,
            "configuration": row.configuration,
            **self.facts(row),
        }
        fronts = self.standings[row.configuration]
        standing = {"on_front": any(fronts.values()), **{f"on_front_{name}": on for name, on in fronts.items()}}
        measured = {
            name: value for name, value in self.measured.get(row.configuration, {}).items() if value is not None
        }
        tags = {
            DENSE: row.method == "dense",
            FRONT: standing["on_front"],
            BEST: row.configuration in self.best,
        }
        return Run(
            self.run_id(row),
            f"{self.series(row)}: {row.label}" if self.variants else row.label,
            config,
            {**numbers(row), **finite(measured), **standing},
            tuple(tag for tag, has in tags.items() if has),
            {name: self.public(value) for name, value in self.about.items()},
        )

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Every row as a line of numbers: columns, and lines with None where a row has no such number."""
        lines = [{"configuration": run.name, "backbone": run.config["backbone"],
                  **{key: run.config.get(key) for key in plan_settings.ORDER}, **run.summary}
                 for run in self.runs()]  # fmt: skip
        if self.real:
            lines.append({"configuration": real_images.LABEL, **finite(real_images.numbers(self.real))})
        columns = list(dict.fromkeys(name for line in lines for name in line))
        columns = [name for name in columns if any(line.get(name) is not None for line in lines)]
        return columns, [[line.get(name) for name in columns] for line in lines]

    def record(self) -> dict[str, Any]:
        """What a dashboard is made of, as JSON has it: kept in the store, and read by jobs/dashboard.py."""
        columns, lines = self.table()
        return {
            "version": VERSION,
            "group": self.group,
            "sweep": self.public(self.sweep),
            "grid": self.grid,
            "answer": self.public(self.answer),
            "protocol": {name: self.public(value) for name, value in {**self.protocol, **self.about}.items()},
            "series": VARIANT if self.variants else METHOD,
            "parts": [self._part(part) for part in self.parts if len(part) > 1] or [self._part(self.rows)],
            "exhibits": [[title, self.public(text)] for title, text in self.exhibits],
            "pictures": sorted(self.pictures),
            "table": {"columns": columns, "lines": lines},
        }

    def _part(self, rows: Sequence[Row]) -> dict[str, Any]:
        configuration, first = self.configurations[rows[0].configuration], self.series(rows[0])
        runs = {run.id: run for run in map(self._run, sorted(rows, key=lambda row: row.flops))}
        dense = [row for row in rows if row.method == "dense" and (not self.variants or self.series(row) == first)]
        varied = {key: {run.config.get(key) for run in runs.values()} for key in plan_settings.ORDER}
        own_protocol = any(row.configuration in self.protocols for row in rows)
        variants = " and ".join(dict.fromkeys(map(self.series, rows)))
        title = variants if self.variants else self.public(configuration.backbone)
        return {
            "title": f"{title}, n = {rows[0].n}" if self.protocols else title,
            "where": {
                "protocol": self.facts(rows[0])["protocol"],
                **({} if self.variants else {"weights": configuration.weights}),
            },
            "series": list(dict.fromkeys(map(self.series, rows))),
            "runs": [[run.id, run.config[VARIANT if self.variants else METHOD]] for run in runs.values()],
            "baseline": self.run_id(max(dense, key=lambda row: row.steps)) if dense else "",
            "best": [run.id for run in runs.values() if BEST in run.tags],
            "metrics": [[metric.column, metric.title, metric.lower_is_better] for metric in tables.comparable(rows)],
            "settings": [key for key, values in varied.items() if len(values) > 1],
            "markdown": self.public(real_images.to_markdown(rows, None if own_protocol else self.real)),
        }


def is_path(name: str) -> bool:
    """Is it a path of this machine or of a worker's, and no short name, hub id or name of an encoder?"""
    return "/" in name and (name.startswith(("/", "~", ".")) or os.path.exists(name))


def plain(text: str) -> str:
    """`text` as a value that W&B's filters can be given: they take quotes for ends, and change = inside a value."""
    return re.sub(r"[^\w .,+/@:-]", "_", one_line(text))


def numbers(row: Row) -> dict[str, float]:
    """The summary of a run: costs, and each metric that was measured, with its interval. What is not finite is left
    out: W&B draws nothing for it."""
    values: dict[str, float] = {"flops": row.flops, "macs_paper": row.macs_paper, "seconds_p50": row.seconds}
    for metric in METRICS.values():
        score = row.scores.get(metric.key)
        values |= score.columns(metric.column) if score else {}
    return finite({**values, "n": row.n})


def finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isfinite(value)}
