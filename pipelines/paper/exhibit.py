"""What an exhibit of the paper is: plans under labels, beside printed numbers, with its picture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipelines.metrics.metric import METRICS, Metric
from pipelines.paper import published
from postdiff.plan import Plan

FID, CLIP_SCORE = METRICS["fid"], METRICS["clip"]  # what the paper prints
TUNED = " fine-tuned"  # after a model's name: its weights after App. F


def before(model: str) -> str:
    """The model before fine-tuning."""
    return model.removesuffix(TUNED)


@dataclass(frozen=True, eq=False)  # compared by identity: a table may print one cell twice
class Cell:
    """One plan on one of the paper's models.

    label: as the table prints it; of a figure, the point's on its curve. curve: of a figure, the series it belongs to.
    x: of a figure over a setting, that setting. values: as `published.Line`, of a figure those that a table has of the
        same plan. notes: what the paper says of it, or leaves open.
    searched: the plan, or its cost, was found on the model that runs, and is of no other.
    """

    label: str
    model: str
    plan: Plan
    curve: str = ""
    x: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    searched: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.model, self.plan.id

    @property
    def seconds(self) -> float | None:
        """Seconds an image that the paper printed."""
        return next((value for key, value in self.values.items() if key.startswith(published.SECONDS)), None)

    @property
    def gpu(self) -> str:
        """The GPU of those seconds."""
        keys = [key for key in self.values if key.startswith(published.SECONDS)]
        return keys[0].removeprefix(published.SECONDS).upper() if keys else ""


@dataclass(frozen=True)
class Exhibit:
    """What the paper shows in one place, how it is drawn, and what must run for it beside the images that are scored.

    draw: its picture, a function of paper/figures.py; None for a table. watched: what is looked at step by step.
    searches: presets whose plans need the model. tuned: {model that is fine-tuned: (beta, s)}. answers: which of its
    plans the paper's question is answered on: all, those that a table has printed too, or none. claims, numbers: of
    paper/claims.py and paper/prose.py, in whose place no table of cells is written. fewer: the numbers of steps that
    are enough on the mini models.
    note: what the paper leaves open.
    """

    key: str
    title: str
    cells: tuple[Cell, ...]
    metrics: tuple[Metric, ...] = (FID, CLIP_SCORE)
    timed: bool = False
    note: str = ""
    dataset: str = "coco2014"
    draw: Callable[[Any], Any] | None = None
    watched: Literal["profile", "trajectory"] | None = None
    searches: tuple[str, ...] = ()
    tuned: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    answers: Literal["", "all", "printed"] = ""
    claims: tuple[Any, ...] = ()
    numbers: tuple[Any, ...] = ()
    fewer: tuple[int, ...] = ()

    @property
    def thinned(self) -> "Exhibit":
        """With its `fewer` numbers of steps alone; itself where it has none."""
        if not self.fewer:
            return self
        few = tuple(cell for cell in self.cells if len(cell.plan) in self.fewer)
        note = f"only T = {', '.join(map(str, self.fewer))} are drawn (--whole draws all)"
        return replace(self, cells=few, note="; ".join(filter(None, (self.note, note))))

    @property
    def is_table(self) -> bool:
        return self.draw is None

    def name(self, cell: Cell) -> str:
        """What tells a cell from the others: of a figure, its model and curve too."""
        if self.is_table or self.watched:
            return cell.label
        return " ".join(filter(None, (cell.model, cell.curve, cell.label)))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    def reference(self, model: str) -> Cell:
        """What changes are from: the model as it is, at its most steps; of a table without it, the model's first cell
        before fine-tuning."""
        own = [cell for cell in self.cells if cell.model == before(model)]
        return max((cell for cell in own if cell.plan.name == "dense"), key=lambda cell: len(cell.plan), default=own[0])
