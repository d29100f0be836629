"""The paper's question, answered from what was run, beside the paper's own answer."""

from collections.abc import Sequence

from pipelines import tables
from pipelines.exhibits import Exhibit
from pipelines.paper import Results

LEGEND = (
    "Plans of Figures 1, 4, 5 and Table 2, each held against fewer steps of the same model at equal FLOPs, paired; the "
    "intervals of a model and metric hold together at 95 %. Here: the direction that a quarter of the plans or more "
    "take clearly, if that is more than take the other."
)
HEADER = ("model", "metric", "FLOPs saved", "plans", "clearly better", "clearly worse", "here", "the paper", "agrees")
RECOMMENDED = ("fig1", "fig4", "fig5", "table2")  # where the paper answers its question; the others hold ablations too
FEW_FLOPS = 0.4  # "e.g., reducing >60% FLOPs" is where fewer steps become "increasingly beneficial" (sec. 2.4)
CLAIMS = {  # (metric, is more than that saved): what the paper finds, sec. 2.4 and 3.2
    ("fid", False): "cheaper steps",
    ("fid", True): "cheaper steps",
    ("clip", False): "comparable",
    ("clip", True): "fewer steps, slightly",
}


def lines(results: Results, names: dict[str, str], chosen: Sequence[Exhibit]) -> list[list[str]]:
    """The paper's question for each model, lines under `HEADER`: its plans against fewer steps at equal FLOPs."""
    runs = [run for exhibit in chosen if exhibit.key in RECOMMENDED for run in exhibit.runs]
    keys = list(dict.fromkeys((run.model, run.plan.id) for run in runs))
    told = []
    for model, name in names.items():
        found = {results[key].row.configuration: results[key].row for key in keys if key[0] == model}
        rows = sorted(found.values(), key=lambda row: row.flops)
        dense = [row for row in rows if row.family == "fewer steps"]
        if not dense:
            continue
        for metric in tables.METRICS:
            gains = tables.gains(rows, metric) if tables.measured(rows, metric) else {}
            for few in (False, True):
                own = [gain for id, gain in gains.items() if (found[id].flops < FEW_FLOPS * dense[-1].flops) == few]
                if own:
                    better, worse = tables.clear(own, metric)
                    here, there = tables.verdict(better, worse, len(own)), CLAIMS[metric, few]
                    saved = f"{'over' if few else 'up to'} {1 - FEW_FLOPS:.0%}"
                    counts = [str(count) for count in (len(own), better, worse)]
                    told.append([f"{name} ({model})", tables.METRICS[metric], saved, *counts, here, there,
                                  agrees(here, there)])  # fmt: skip
    return told


def agrees(here: str, there: str) -> str:
    """Of verdicts: yes, no, or open. Plans that cannot be told apart may be comparable, or too few were drawn."""
    if there == "comparable":
        return {tables.OPEN: "not contradicted", tables.CHEAPER: "better"}.get(here, "no")
    return "open" if here == tables.OPEN else "yes" if there.startswith(here) else "no"
