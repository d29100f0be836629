"""The paper's Tables 3 and 4 as settings, each with what the paper left open; `published` has what it printed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

from pipelines.paper import published
from postdiff import methods
from postdiff.arguments import shown
from postdiff.plan import Plan

if TYPE_CHECKING:
    from postdiff.models.loading import Backbone
    from postdiff.models.spec import SamplingSettings


@dataclass(frozen=True)
class Preset:
    """A row of a table.

    settings: of the method; of a search, those of the search, on top of the dense plan.
    note: what the paper leaves open, and what is chosen here.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def searched(self) -> bool:
        """Must it be found on calibration prompts, with the model?"""
        return self.method == "ditfastattn"

    @property
    def needs_model(self) -> bool:
        """Is it searched, or are its costs measured with the model?"""
        return self.searched or self.method == "ca_tome"


PRESETS = {
    "table3.dense": Preset("dense"),
    "table3.deepcache": Preset("deepcache", {"k": 2, "branch": 1}, "the branch is told by Table 1's MACs"),
    "table3.tgate": Preset("tgate", {"gate_step": 5}, "its latency fits version 1: self-attention is not reused"),
    "table3.todo": Preset("todo", {"factor": 2}, "the authors' setting for about 1024 px, at every step"),
    "table3.tome": Preset("tome", {"ratio": 0.3}),
    "table3.faster_diffusion": Preset(
        "faster_diffusion", {"ahead": True}, "the list for 50 steps, below T; decoder batched"
    ),
    "table3.ca_tome": Preset("ca_tome", {}, "threshold 0.7; the list for 50 steps, below T"),
    "table3.postdiff": Preset("postdiff", {"beta": 0.5, "s": 0.5, "k": 2, "m": 15}),
    "table4.dense": Preset("dense"),
    "table4.tgate": Preset("tgate", {"gate_step": 8}, "version 1, as in Table 3"),
    "table4.ditfastattn": Preset(
        "ditfastattn", {"threshold": 0.0725, "window": 0.125}, "threshold of the authors' 1k example"
    ),
    "table4.duca": Preset(
        "duca", {"interval": 3, "fresh_ratio": 0.3}, "the programme's defaults; its README's command says 0.75"
    ),
    "table4.postdiff": Preset("postdiff", {"beta": 0.75, "s": 0.5, "k": 1, "m": 15}),
}


def printed(metrics: Sequence[str] = ("fid", "clip")) -> dict[tuple[str, str], dict[str, float]]:
    """{(the paper's model, plan id): numbers}, as the tables on COCO print them of plans without search."""
    printed_values: dict[tuple[str, str], dict[str, float]] = {}
    for key in ("table1", "table2", "table3", "table4", "table5"):
        for line in published.lines(key):
            preset = f"{key}.{line.method}"
            if preset in PRESETS and PRESETS[preset].needs_model:
                continue
            plan_of_line = plan(preset) if preset in PRESETS else published.plan(line)
            values = {name: value for name, value in line.values.items() if name in metrics}
            whose = line.model, plan_of_line.id
            # The first table's, where a later one has fewer digits.
            printed_values[whose] = values | printed_values.get(whose, {})
    return printed_values


def that_need_the_model(table: str) -> tuple[str, ...]:
    """Presets of a table whose plans are searched, or their costs measured, with the model."""
    return tuple(name for name, preset in PRESETS.items() if name.startswith(f"{table}.") and preset.needs_model)


def plan(name: str, steps: int = 20) -> Plan:
    """The plan of a preset that needs no model. Steps that the table names (m = 15) are scaled with T.

    Raises: ValueError if there is no such preset, or it must be searched.
    """
    preset = _preset(name)
    if preset.searched:
        raise ValueError(f"{name} is found by a search with the model: presets.find, or `postdiff search`")
    return methods.METHODS[preset.method](steps, **_scaled(preset.settings, steps))


def find(
    name: str,
    backbone: "Backbone",
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 20,
    on_step: Callable[[int], None] | None = None,
    **sampling: "Unpack[SamplingSettings]",
) -> Plan:
    """The plan of any preset; searched, or its cost measured, on these calibration prompts where it needs that.

    sampling: guidance, solver and size, as `postdiff.sample` takes them.
    """
    from postdiff import search

    preset = _preset(name)
    if preset.searched:
        search_on = getattr(search, preset.method)
        return search_on(backbone, prompts, seeds, methods.dense(steps), **preset.settings, on_step=on_step, **sampling)
    searched = plan(name, steps)
    if not preset.needs_model:
        return searched
    return search.ca_tome(backbone, prompts, seeds, searched, on_step=on_step, **sampling)


def _preset(name: str) -> Preset:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset {shown(name)}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _scaled(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Settings for another number of steps than the tables' 20: a step becomes that share of T."""
    return {key: value / 20 if key in ("m", "gate_step") and steps != 20 else value for key, value in settings.items()}
