"""The settings of methods and searches as flags of the command line. What a method's setting means is the annotation of
its parameter (`postdiff.methods`).
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from postdiff.methods import METHODS, settings_of


@dataclass(frozen=True)
class Group:
    """Settings that help texts list together.

    title: the group's heading.
    method: whose defaults are shown.
    settings: {name: meaning} of those of the method's settings that no group before this one lists.
    note: what all of them have in common.
    """

    title: str
    method: str
    settings: dict[str, str]
    note: str | None


def _groups(*heads: tuple[str, str, str | None]) -> tuple[Group, ...]:
    """A group for each (title, method, note)."""
    groups: list[Group] = []
    listed: set[str] = set()
    for title, method, note in heads:
        settings = {name: meaning(method, name) for name in settings_of(method) if name not in listed}
        groups.append(Group(title, method, settings, note))
        listed |= settings.keys()
    return tuple(groups)


def _parameter(method: str, name: str) -> inspect.Parameter:
    return inspect.signature(METHODS[method]).parameters[name]


def default(method: str, name: str) -> Any:
    """The default of a setting of a method."""
    return _parameter(method, name).default


def kind(method: str, name: str) -> Any:
    """The type of a setting of a method, such as int or Literal["a", "b"]."""
    return _parameter(method, name).annotation.__origin__


def meaning(method: str, name: str) -> str:
    """What a setting of a method means, in a line of help."""
    return _parameter(method, name).annotation.__metadata__[0]


GROUPS = _groups(
    ("every method", "dense", None),
    (
        "PostDiff, and its parts alone",
        "postdiff",
        "A backbone's own setting, where the paper gives one (postdiff models), goes before the default. The other "
        "methods take --beta and --s too, off by default.",
    ),
    ("T-GATE (tgate)", "tgate", None),
    ("ToMe (tome)", "tome", None),
    ("CA-ToMe (ca_tome)", "ca_tome", None),
    ("ToDo (todo)", "todo", None),
    ("Faster Diffusion (faster_diffusion)", "faster_diffusion", None),
    ("DuCa (duca), on transformers", "duca", None),
)
SETTINGS = {name: words for group in GROUPS for name, words in group.settings.items()}

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


def check_taken(taker: str, names: Iterable[str], accepted: Iterable[str]) -> None:
    """Raise ValueError if one of the settings `names` is none that `taker`, a method, search or file, takes."""
    accepted = tuple(accepted)
    if extra := [flag(name) for name in names if name not in accepted]:
        takes = ", ".join(map(flag, accepted)) or "no settings"
        raise ValueError(f"{taker} does not take {', '.join(extra)}; it takes {takes}")


# Arguments of `sample` that `postdiff generate` takes too: what is written after the flag, and what it means.
CALLED: dict[str, tuple[str, str]] = {
    "negative": ("TEXT", "the prompt that guidance leads away from"),
    "guidance_rescale": ("X", "share by which guided predictions keep the conditional half's spread"),
    "clip_skip": ("N", "layers that are left out at CLIP's end"),
    "timesteps": ("N,N,...", "one a step, falling; of dpm, euler and lcm"),
    "sigmas": ("X,X,...", "noise levels, one a step and the last one, falling; of euler"),
    "original_inference_steps": ("N", "those that LCM's are chosen from"),
    "eta": ("X", "of the noise that ddim adds, 0 to 1"),
    "original_size": ("N|HxW", "told to SDXL [the image's]"),
    "crops_coords_top_left": ("N,N,...", "top and left, told to SDXL [0,0]"),
    "target_size": ("N|HxW", "told to SDXL [the image's]"),
}
