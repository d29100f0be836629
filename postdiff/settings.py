"""The settings of methods and searches as the command line tells them: each a flag, and what it means, told once."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from postdiff.methods import METHODS


@dataclass(frozen=True)
class Group:
    """Settings that belong together.

    method: the one whose defaults are told.
    settings: name, and what it means.
    says: what all of them have in common.
    """

    title: str
    method: str
    settings: dict[str, str]
    says: str | None = None


GROUPS = (
    Group("every method", "dense", {"steps": "T, denoising steps"}),
    Group(
        "PostDiff, and its parts alone",
        "postdiff",
        {
            "beta": "scale of the low resolution",
            "s": "share of the steps at low resolution, the first",
            "k": "DeepCache's interval: every k-th step runs the whole U-Net; 1 is off",
            "branch": "DeepCache's skip branch; 0 is the outermost",
            "m": "guidance ends at this step (15), or share of the steps (0.75)",
            "mode": "which guidance the cached cross-attention holds",
            "size_condition": "the size that SDXL and PixArt are told at low resolution",
        },
        "A backbone's own setting, where the paper gives one (postdiff models), goes before the default. The other "
        "methods take --beta and --s too, off by default.",
    ),
    Group(
        "T-GATE (tgate)",
        "tgate",
        {
            "gate_step": "guidance ends at this step (10), or share of the steps (0.5)",
            "sp_interval": "self-attention is computed every so many steps before the gate",
            "fi_interval": "the same after the gate",
            "warm_up": "first steps, which compute all self-attention",
        },
    ),
    Group(
        "ToMe (tome)",
        "tome",
        {
            "ratio": "share of the tokens that are merged away; 0 is off",
            "sx": "width of a cell that keeps one token to merge into",
            "sy": "its height",
            "random": "that token is drawn, not the upper left; CA-ToMe too",
            "max_downsample": "where the grid is at most so many times smaller than the latents'; CA-ToMe too",
            "attention": "around self-attention",
            "cross_attention": "around cross-attention",
            "mlp": "around the feed-forward layers",
        },
    ),
    Group(
        "CA-ToMe (ca_tome)",
        "ca_tome",
        {
            "threshold": "cosine of two tokens that are merged",
            "match_steps": "steps that match tokens anew",
        },
    ),
    Group(
        "ToDo (todo)",
        "todo",
        {
            "factor": "every so many rows and columns are keys and values, where the grid is the latents'",
            "factor_2": "the same where the grid is half of that",
        },
    ),
    Group(
        "Faster Diffusion (faster_diffusion)",
        "faster_diffusion",
        {
            "key_steps": "steps that run the encoder",
            "prior_noise": "so much of the initial noise is added late",
            "ahead": "steps that reuse the encoder are one batch",
        },
    ),
    Group(
        "DuCa (duca), on transformers",
        "duca",
        {
            "interval": "every so many steps compute everything",
            "fresh_ratio": "about what share of the tokens is refreshed between them",
            "score": "what chooses those tokens",
            "soft": "weight of the steps since a token was computed",
        },
    ),
)
SETTINGS = {name: says for group in GROUPS for name, says in group.settings.items()}

# The searches, and the settings that are theirs, not those of the method that they search on top of. Their module
# needs torch, so the defaults, and the intervals that they lie in, stand here too; a test holds them together.
SEARCHES: dict[str, dict[str, tuple[str, float, str]]] = {
    "block_caching": {"delta": ("a block runs when its relative changes add up to more", 0.5, "[0, inf)")},
    "ca_tome": {},
    "ditfastattn": {
        "threshold": ("how much a step's output may change", 0.0725, "[0, inf)"),
        "window": ("share of the tokens to either side that a window holds", 0.125, "(0, 1]"),
    },
}


def flag(name: str) -> str:
    """The flag of a setting: --gate-step of gate_step."""
    return f"--{name.replace('_', '-')}"


def default(method: str, name: str) -> Any:
    """The default of a setting of a method."""
    return inspect.signature(METHODS[method]).parameters[name].default


def kind(method: str, name: str) -> Any:
    """Its type, as the signature says it."""
    return inspect.signature(METHODS[method]).parameters[name].annotation


def shown(value: Any) -> str:
    """A value of a setting as one reads it: 0.5, cond, 0,1,2, on or off."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def written(name: str, value: Any) -> str:
    """A setting as one writes it: --gate-step 10, --random, --no-random."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {shown(value)}"


def check_taken(who: str, given: Iterable[str], taken: Iterable[str]) -> None:
    """Raise ValueError if a setting is given that `who`, a method or a search, does not take."""
    taken = tuple(taken)
    if extra := [flag(name) for name in given if name not in taken]:
        takes = ", ".join(map(flag, taken)) or "no settings"
        raise ValueError(f"{who} does not take {', '.join(extra)}; it takes {takes}")
