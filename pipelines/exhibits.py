"""The paper's exhibits, each declared once: which runs it shows, under which labels, beside which printed numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from pipelines.tables import Metric
from postdiff import methods, presets, published
from postdiff.plan import Plan

STEPS = (8, 10, 12, 14, 16, 18, 20)  # sec. 2.4
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SCALES = (0.375, 0.5, 0.625, 0.75, 0.875)  # App. B
CALIBRATION = (500, 1000)  # App. D, of the paper's 30,000 prompts
# What plays each of the paper's models in the laptop's edition.
MINI = {"sd15": "mini-sd", "lcm": "mini-lcm", "sdxl": "mini-sdxl", "pixart": "mini-pixart"}


@dataclass(frozen=True, eq=False)  # compared by identity: a table may print one run twice
class Run:
    """One plan on one of the paper's models.

    label: as the table prints it; of a figure, the point's on its curve. curve: of a figure, the series it belongs to.
    x: of a figure over a setting, that setting. values, notes: as `published.Line`.
    searched: the plan, or its cost, was found on the model that runs, and is of no other.
    """

    label: str
    model: str
    plan: Plan
    curve: str = ""
    x: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    searched: bool = False


@dataclass(frozen=True)
class Exhibit:
    """kind: `table`; `front`, quality against cost, a panel a model and metric; or `subsets`, the CLIP score against
    s on parts of the prompts. note: what the paper leaves open."""

    key: str
    title: str
    kind: str
    runs: tuple[Run, ...]
    metrics: tuple[Metric, ...] = ("fid", "clip")
    timed: bool = False
    note: str = ""
    dataset: str = "coco2014"

    def name(self, run: Run) -> str:
        """What tells a run from the others: of a figure, its model and curve too."""
        return run.label if self.kind == "table" else " ".join(filter(None, (run.model, run.curve, run.label)))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.model for run in self.runs))

    def reference(self, model: str) -> Run:
        """What changes are from: the model as it is, at its most steps."""
        return max((r for r in self.runs if r.model == model and r.plan.name == "dense"), key=lambda r: len(r.plan))


Found = Mapping[str, Plan]  # plans that a search found, {"table4.ditfastattn": plan}


def table(key: str, title: str, timed: bool, found: Found, note: str = "") -> Exhibit:
    runs = []
    for line in published.lines(key):
        preset = f"{key}.{line.method}"
        notes, plan = line.notes, found.get(preset)
        if preset in presets.PRESETS and presets.PRESETS[preset].note:
            notes = (*notes, f"{line.label}: {presets.PRESETS[preset].note}")
        if plan is None:
            plan = _plan(preset) if preset in presets.PRESETS else published.plan(line)
        runs.append(
            Run(line.label, line.model, plan, values=line.values, seconds=line.seconds, notes=notes,
                searched=preset in found)
        )  # fmt: skip
    return Exhibit(key, title, "table", tuple(runs), timed=timed, note=note, dataset=published.lines(key)[0].dataset)


def _plan(preset: str) -> Plan:
    """Of what needs the model, and is not found yet, the dense plan: it costs no less."""
    return methods.dense() if presets.PRESETS[preset].needs_model else presets.plan(preset)


def figure1(found: Found) -> Exhibit:
    runs = [
        Run(f"T={line.settings['steps']}", line.model, published.plan(line),
            "PostDiff" if line.method == "postdiff" else "fewer steps", values=line.values)
        for line in published.lines("table2") if line.method in ("dense", "postdiff")
    ]  # fmt: skip
    return Exhibit("fig1", "PostDiff on four models", "front", tuple(runs), ("fid",), note="its points are Table 2's")


def figure4(found: Found) -> Exhibit:
    runs = [
        Run(f"s={s:g}", "sd15", methods.mixed_resolution(steps, 0.5, s) if s else methods.dense(steps), f"T={steps}", s)
        for steps in STEPS
        for s in SHARES
    ]
    return Exhibit("fig4", "Denoising steps against mixed resolution", "front", tuple(runs), ("fid",))


def figure5(found: Found) -> Exhibit:
    runs = []
    for model, beta, k, shares in (("sd15", 0.5, 2, (0.5,)), ("pixart", 0.75, 1, (0.2, 0.3, 0.5))):
        runs += [Run(f"T={steps}", model, methods.dense(steps), "fewer steps") for steps in STEPS]
        runs += [
            Run(f"m={m}", model, methods.postdiff(20, beta, s, k, m), f"PostDiff s={s:g}")
            for s in shares
            for m in (5, 10, 12, 15, 18)
        ]
    note = "the paper varies m on SD1.5, m and s on PixArt-alpha, and does not list their values; these are ours"
    return Exhibit("fig5", "Fewer steps or cheaper steps", "front", tuple(runs), note=note)


def figure8(found: Found) -> Exhibit:
    runs = [
        Run(f"beta={beta:g}", "sd15", methods.mixed_resolution(steps, beta, 0.5) if beta < 1 else methods.dense(steps),
            f"T={steps}", beta)
        for steps in STEPS
        for beta in (*SCALES, 1.0)
    ]  # fmt: skip
    note = "the paper does not list its numbers of steps; these are Fig. 4's; beta=1, full resolution, is added"
    return Exhibit("fig8", "Scale of the low resolution", "front", tuple(runs), ("fid",), note=note)


def figure9(found: Found) -> Exhibit:
    runs = [
        Run(
            "Full" if s == 0 else f"s={s:g}",
            "sd15",
            methods.mixed_resolution(20, 0.5, s) if s else methods.dense(),
            x=s,
        )
        for s in (0.0, 0.3, 0.5, 0.6)
    ]
    return Exhibit("fig9", "Small calibration sets", "subsets", tuple(runs), ("clip",))


EXHIBITS: dict[str, Callable[[Found], Exhibit]] = {  # in the paper's order
    "fig1": figure1,
    "fig4": figure4,
    "table1": partial(table, "table1", "Caching strategies", False),
    "fig5": figure5,
    "table2": partial(table, "table2", "PostDiff on four models", True),
    "table3": partial(table, "table3", "Other methods, SD1.5", True),
    "table4": partial(table, "table4", "Other methods, PixArt-alpha", True),
    "fig8": figure8,
    "table5": partial(table, "table5", "Ablation of k and m", True),
    "fig9": figure9,
    "table6": partial(table, "table6", "Another data set", True),
}


def gather(keys: list[str], found: Found) -> list[Exhibit]:
    """The exhibits named, or `all`, in the paper's order. Raises ValueError for one that is not here."""
    unknown = [key for key in keys if key not in (*EXHIBITS, "all")]
    if unknown:
        raise ValueError(f"unknown exhibit {unknown[0]!r}: expected all, or any of {', '.join(EXHIBITS)}")
    return [make(found) for key, make in EXHIBITS.items() if "all" in keys or key in keys]
