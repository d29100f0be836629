"""The paper's exhibits, each declared once: which runs it shows, under which labels, beside which printed numbers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Literal

from pipelines.metrics.metric import METRICS
from pipelines.paper import claims, figures, presets, prose, published
from pipelines.paper.exhibit import CLIP_SCORE, FID, TUNED, Cell, Exhibit, before
from postdiff import methods
from postdiff.plan import Plan, Switch

STEPS = (8, 10, 12, 14, 16, 18, 20)  # sec. 2.4
ENOUGH = (8, 14, 20)  # of them, where a mini model draws
FEWEST = (4, 6)  # ours: PostDiff saves more than T = 8 does, and must be held against something
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
WATCHED = (0.0, 0.1, 0.2, 0.3, 0.5)  # s of the rows of Fig. 3 and 12
SCALES = (0.375, 0.5, 0.625, 0.75, 0.875)  # App. B
# What plays each of the paper's models in the laptop's edition, by the data set that is drawn.
MINI: dict[str, dict[str, str]] = {
    "shapes": {
        "sd15": "mini-sd", "lcm": "mini-lcm", "sdxl": "mini-sdxl", "pixart": "mini-pixart",
        "sd15-original": "mini-sd", "bk-sdm-tiny": "mini-bk-sdm",
    },
    "scenes": {
        "sd15": "mini-sd-scenes", "lcm": "mini-lcm-scenes", "sdxl": "mini-sdxl-scenes",
        "sd15-original": "mini-sd-full-scenes", "bk-sdm-tiny": "mini-bk-sdm-scenes",
    },
}  # fmt: skip
ABLATED: dict[Switch, str] = {  # in words
    "literal": "Eq. 5 as written, T+1 evaluations",
    "same-noise": "the noise that the run began with",
    "kept": "solver's history kept",
}
Found = Mapping[str, Plan]  # plans that a search found, {"table4.ditfastattn": plan}


def players(data: str, models: Iterable[str]) -> dict[str, str]:
    """{model of the paper: the mini model that plays it} on a data set. Raises ValueError where there is none."""
    plays = MINI[data]
    if lacking := [model for model in models if before(model) not in plays]:
        raise ValueError(f"no mini model of {data} plays {', '.join(lacking)}: expected exhibits of {', '.join(plays)}")
    return {model: plays[before(model)] for model in models}


def table(key: str, title: str, timed: bool, answers: Literal["", "all"], searched: Found) -> Exhibit:
    cells: list[Cell] = []
    for line in published.lines(key):
        preset = f"{key}.{line.method}"
        notes, plan = _notes(line), searched.get(preset)
        if preset in presets.PRESETS and presets.PRESETS[preset].note:
            notes = (*notes, f"{line.label}, not told by the paper: {presets.PRESETS[preset].note}")
        if plan is None:
            plan = _plan(preset) if preset in presets.PRESETS else published.plan(line)
        cells.append(
            Cell(line.label, line.model, plan, values=line.values, notes=notes, searched=preset in searched)
        )  # fmt: skip
    dataset = published.lines(key)[0].dataset
    return Exhibit(
        key, title, tuple(cells), timed=timed, dataset=dataset, searches=presets.that_need_the_model(key),
        answers=answers,
    )  # fmt: skip


def _notes(line: published.Line) -> tuple[str, ...]:
    return tuple(f"of the paper's: {note}" for note in line.notes)


@cache
def _printed() -> dict[tuple[str, str], dict[str, float]]:
    return presets.printed()


def _point(label: str, model: str, plan: Plan, curve: str = "", x: float = 0.0) -> Cell:
    """A point of a figure, with what the paper's tables have of its plan."""
    return Cell(label, model, plan, curve, x, _printed().get((model, plan.id), {}))


def _plan(preset: str) -> Plan:
    """Of what needs the model, and is not found yet, the dense plan: it costs no less."""
    return methods.dense() if presets.PRESETS[preset].needs_model else presets.plan(preset)


def figure1(searched: Found) -> Exhibit:
    cells = [
        Cell(f"T={line.settings['steps']}", line.model, published.plan(line),
            "PostDiff" if line.method == "postdiff" else "fewer steps", values=line.values, notes=_notes(line))
        for line in published.lines("table2") if line.method in ("dense", "postdiff")
    ]  # fmt: skip
    return Exhibit(
        "fig1", "PostDiff on four models", tuple(cells), (FID,), note="its points are Table 2's", draw=figures.plane,
        answers="all",
    )  # fmt: skip


def figure4(searched: Found) -> Exhibit:
    cells = [
        _point(f"s={s:g}", "sd15", methods.mixed_resolution(steps, 0.5, s) if s else methods.dense(steps), f"T={steps}",
               s)
        for steps in STEPS
        for s in SHARES
    ]  # fmt: skip
    note = (
        "s T is rounded: at T = 8 s = 0.2 and 0.3 are one plan, and so are others at few steps; the paper's optimum, "
        "s = 0.4 to 0.5 from T = 14 on, is of FID (sec. 2.4)"
    )
    return Exhibit(
        "fig4",
        "Denoising steps against mixed resolution",
        tuple(cells),
        (FID,),
        note=note,
        draw=figures.front,
        answers="all",
        fewer=ENOUGH,
    )


def figure5(searched: Found) -> Exhibit:
    cells = []
    # m of SD1.5: 0.45, 0.6, 0.75 and 0.9 of T are Table 5's.
    for model, beta, k, shares, gates in (
        ("sd15", 0.5, 2, (0.5,), (5, 9, 12, 15, 18)),
        ("pixart", 0.75, 1, (0.2, 0.3, 0.5), (5, 10, 12, 15, 18)),
    ):
        cells += [_point(f"T={steps}", model, methods.dense(steps), "fewer steps") for steps in (*FEWEST, *STEPS)]
        cells += [
            _point(f"m={m}", model, methods.postdiff(20, beta, s, k, m), f"PostDiff s={s:g}")
            for s in shares
            for m in gates
        ]
    note = (
        "the paper varies m on SD1.5, m and s on PixArt-alpha, and does not list their values: of SD1.5 these are "
        "Table 5's and m = 5, of PixArt-alpha ours; T = 4 and 6 are added, since PostDiff costs less than T = 8"
    )
    return Exhibit(
        "fig5", "Fewer steps or cheaper steps", tuple(cells), note=note, draw=figures.front, answers="printed"
    )


def figure8(searched: Found) -> Exhibit:
    cells = [
        _point(f"beta={beta:g}", "sd15",
               methods.mixed_resolution(steps, beta, 0.5) if beta < 1 else methods.dense(steps), f"T={steps}", beta)
        for steps in STEPS
        for beta in (*SCALES, 1.0)
    ]  # fmt: skip
    note = "the paper does not list its numbers of steps; these are Fig. 4's; beta=1, full resolution, is added"
    return Exhibit(
        "fig8", "Scale of the low resolution", tuple(cells), (FID,), note=note, draw=figures.front, fewer=ENOUGH
    )


def figure9(searched: Found) -> Exhibit:
    cells = [
        _point("Full" if s == 0 else f"s={s:g}", "sd15",
               methods.mixed_resolution(20, 0.5, s) if s else methods.dense(), x=s)
        for s in (0.0, 0.3, 0.5, 0.6)
    ]  # fmt: skip
    note = (
        "the paper tells neither T nor beta: 20 and 1/2; its small sets are drawn at random, these are the first "
        "prompts of the list, and part of the full set; the optimum of Fig. 4, s = 0.4 to 0.5, is of FID, this of the "
        "CLIP score"
    )
    return Exhibit("fig9", "Small calibration sets", tuple(cells), (CLIP_SCORE,), note=note, draw=figures.subsets)


def trajectory(key: str, shown: tuple[int, ...], searched: Found) -> Exhibit:
    cells = [
        Cell(f"s={s:g}", "sd15", methods.mixed_resolution(20, 0.5, s) if s else methods.dense(20), x=s) for s in WATCHED
    ]
    note = "the paper names neither its prompts nor its s; row 1 is full resolution, rows 2 to 5 are mixed, as there"
    draw = partial(figures.trajectory, shown=shown)
    return Exhibit(
        key, "CLIP score after each denoising step", tuple(cells), note=note, draw=draw, watched="trajectory"
    )


def figure7(searched: Found) -> Exhibit:
    note = "the paper does not say how L2 distances of layers of different sizes are averaged: here root mean squares"
    cells = (Cell("Original", "sd15", methods.dense(20)),)
    return Exhibit("fig7", "Features from step to step", cells, note=note, draw=figures.profile, watched="profile")


def table7(searched: Found) -> Exhibit:
    cells = [
        Cell(line.label, f"{line.model}{TUNED if line.label.endswith(TUNED) else ''}",
            methods.postdiff(20, line.settings["beta"], line.settings["s"]), values=line.values, notes=_notes(line))
        for line in published.lines("table7")
    ]  # fmt: skip
    tuned = {line.model: (line.settings["beta"], line.settings["s"]) for line in published.lines("table7")}
    note = (
        "the paper does not tell k and m: these are its usual k = 2, m = 15 of 20; changes are from before fine-tuning"
    )
    return Exhibit("table7", "PostDiff with fine-tuning", tuple(cells), note=note, tuned=tuned)


def gallery(key: str, models: tuple[str, ...], searched: Found) -> Exhibit:
    """Fig. 6 and 11: models as they are and under PostDiff, Table 2's plans; prompts of App. J."""
    cells = []
    for model in models:
        own = [line for line in published.lines("table2") if line.model == model]
        dense = max((line for line in own if line.method == "dense"), key=lambda line: line.settings["steps"])
        ours = next(line for line in own if line.method == "postdiff" and line.settings.get("m"))
        for label, line in (("original", dense), ("PostDiff", ours)):
            cells.append(Cell(label, model, published.plan(line)))
    return Exhibit(
        key,
        "Images without and with PostDiff",
        tuple(cells),
        (CLIP_SCORE,),
        dataset=published.GALLERY,
        draw=figures.gallery,
    )


def figure13(searched: Found) -> Exhibit:
    cached = [line for line in published.lines("table1") if line.settings.get("mode")]
    cells = [Cell("Ori", "sd15", methods.dense(20))]
    cells += [Cell(f"m={line.settings['m']} {line.settings['mode']}", "sd15", published.plan(line)) for line in cached]
    note = (
        "the paper does not list Fig. 13's prompts: these are SD1.5's of Fig. 6; the plans are Table 1's; Ori is the "
        "model as it is"
    )
    return Exhibit(
        "fig13",
        "What the cached cross-attention holds",
        tuple(cells),
        (CLIP_SCORE,),
        note=note,
        dataset=published.GALLERY,
        draw=figures.gallery,
    )


def ablations(searched: Found) -> Exhibit:
    """What the rule at the switch of resolution (postdiff/switching.py) is held against."""
    cells = []
    every: tuple[Switch, ...] = ("literal", "same-noise", "kept")
    models = (("sd15", 0.5, 0.5, every), ("sdxl", 0.75, 0.2, every[:2]), ("pixart", 0.75, 0.5, every))
    for model, beta, share, rules in models:  # SDXL's solver, Euler, has no history
        usual = methods.mixed_resolution(20, beta, share)
        cells.append(Cell(f"{model}: fresh noise, solver restarted", model, usual))
        low = sum(step.scale < 1 for step in usual.steps)
        once_more = methods.mixed_resolution(21, beta, low / 21)
        for rule in rules:
            plan = replace(once_more if rule == "literal" else usual, switch=rule)
            cells.append(Cell(f"{model}: {ABLATED[rule]}", model, plan))
    note = "changes are from fresh noise and a solver that is restarted, as everywhere else; the paper has none of it"
    return Exhibit(
        "ablations", "At the switch of resolution", tuple(cells), (FID, CLIP_SCORE, METRICS["attributes"]), note=note
    )


EXHIBITS: dict[str, Callable[[Found], Exhibit]] = {  # in the paper's order, below what all of it comes to
    "claims": claims.exhibit,
    "prose": prose.exhibit,
    "fig1": figure1,
    "fig3": partial(trajectory, "fig3", (0,)),
    "fig4": figure4,
    "table1": partial(table, "table1", "Caching strategies", False, ""),
    "fig5": figure5,
    "table2": partial(table, "table2", "PostDiff on four models", True, "all"),
    "table3": partial(table, "table3", "Other methods, SD1.5", True, ""),
    "table4": partial(table, "table4", "Other methods, PixArt-alpha", True, ""),
    "fig6": partial(gallery, "fig6", ("sd15", "pixart")),
    "fig7": figure7,
    "fig8": figure8,
    "table5": partial(table, "table5", "Ablation of k and m", True, ""),
    "fig9": figure9,
    "table6": partial(table, "table6", "Another data set", True, ""),
    "table7": table7,
    "fig11": partial(gallery, "fig11", ("lcm", "sdxl")),
    "fig12": partial(trajectory, "fig12", (1, 2)),
    "fig13": figure13,
    "ablations": ablations,
}
ON_REQUEST = ("ablations",)  # what the paper has not: not of `all`


def gather(keys: list[str], searched: Found, whole: bool = True) -> list[Exhibit]:
    """The exhibits named, or `all` of the paper's, in its order. whole: at all of their numbers of steps.

    Raises: ValueError for one that is not here.
    """
    unknown = [key for key in keys if key not in (*EXHIBITS, "all")]
    if unknown:
        raise ValueError(f"unknown exhibit {unknown[0]!r}: expected all, or any of {', '.join(EXHIBITS)}")
    asked = {*keys, *(key for key in EXHIBITS if "all" in keys and key not in ON_REQUEST)}
    chosen = [make(searched) for key, make in EXHIBITS.items() if key in asked]
    return chosen if whole else [exhibit.thinned for exhibit in chosen]
