"""The colours: each family of methods has the same one in every figure and on every page, and a mark of its own.

Those of Okabe and Ito (2008), which people with any kind of colour blindness tell apart, a little darker where they
would fade on white (3:1 and more), and a little lighter on black.
"""

import colorsys
from dataclasses import dataclass

from pipelines.report.tables import FAMILIES


@dataclass(frozen=True)
class Look:
    """light, dark: the colour on a white and on a dark ground, #rrggbb. mark: as matplotlib names it."""

    light: str
    dark: str
    mark: str


LOOKS = dict(
    zip(
        FAMILIES,
        (
            Look("#444444", "#c4c4c4", "o"),
            Look("#0072b2", "#56b4e9", "s"),
            Look("#00845f", "#2fc79a", "^"),
            Look("#d55e00", "#ff9248", "D"),
            Look("#a8488c", "#e595c9", "v"),
        ),
        strict=True,
    )
)
MODELS = ("#0072b2", "#d55e00", "#00845f", "#a8488c", "#7a6a00")  # of a figure of the models alone


def shades(colour: str, count: int) -> list[str]:
    """`count` shades of a colour, from light to dark: of one method's curves."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    if count == 1:
        return [colour]
    steps = [light * (1.2 - 0.65 * at / (count - 1)) for at in range(count)]
    shaded = [colorsys.hls_to_rgb(hue, min(step, 0.6), saturation) for step in steps]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in parts) for parts in shaded]


def family_of_curve(curve: str) -> str:
    """What kind of plans a curve of the paper's figures is: `PostDiff s=0.5`, `fewer steps`, or, of a number of steps
    (`T=20`), the settings of mixed resolution."""
    named = next((family for family in FAMILIES if curve.startswith(family)), "")
    return named or "mixed resolution"


def of_curves(curves: list[str]) -> dict[str, str]:
    """A colour for each curve of a figure: its family's, in shades where several are of one."""
    colours: dict[str, str] = {}
    for family, look in LOOKS.items():
        own = [curve for curve in curves if family_of_curve(curve) == family]
        colours |= dict(zip(own, shades(look.light, len(own)), strict=True))
    return colours
