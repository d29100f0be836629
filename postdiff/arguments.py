"""Checks of arguments by kind: each gives the plain Python value that was meant, or raises ValueError and says what was
expected and what came.

What numpy and torch hold is what it says (np.int64(3), a tensor without dimensions), and a list, an array, a pandas
Series is its values. Nothing else is guessed: True and 2.0 are no whole numbers, "20" is no number, 1 is no flag, and
neither infinity nor what is not a number is a number. Equal values come out alike, so that equal plans have one id.
"""

import re
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from difflib import SequenceMatcher, get_close_matches
from numbers import Real
from typing import Any, TypeVar

DTYPES = ("float32", "float16", "bfloat16")
LARGEST_SIDE = 2**15  # of an image, in pixels: of SD1.5 each activation at the latents' own grid would be 21 GB
LARGEST_BATCH = 2**14  # images a forward pass
LARGEST_GUIDANCE = 1000  # w, far above any in use: 1e30 would be told as images that are not finite, after all steps
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100

Choice = TypeVar("Choice", bound=str)
Kind = TypeVar("Kind")


def printable(text: str) -> str:
    """`text` on one line, with escapes for what would change the terminal that it is printed to."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """`value` as an error message shows it: short, and on one line."""
    return printable(" ".join(_SHORT.repr(value).split()))


def meant(word: object, names: Collection[str]) -> str:
    """What an error says of the known name that is nearest to `word`: "; did you mean sd15?", or nothing."""
    nearest = max(get_close_matches(str(word), names, 3), key=lambda name: _alike(name, str(word)), default="")
    return f"; did you mean {nearest}?" if nearest else ""


def _alike(name: str, word: str) -> tuple[float, int]:
    """Share of letters in common; of names that are equal in it, how many they begin with."""
    differs = (i for i, (a, b) in enumerate(zip(name, word, strict=False)) if a != b)
    return SequenceMatcher(None, name, word).ratio(), next(differs, len(word))


def put(target: Any, **values: object) -> None:
    """Set fields of a frozen dataclass, in its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(target, name, value)


def plain(value: Any) -> Any:
    """A number or truth value of numpy or torch as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def whole_number(name: str, value: Any, least: int | None = 1, most: int | None = None, note: str = "") -> int:
    """`value` as an int, from `least` to `most`; None is no bound. note: what an error says besides."""
    native = plain(value)
    whole = isinstance(native, int) and not isinstance(native, bool)
    if whole and (least is None or native >= least) and (most is None or native <= most):
        return int(native)
    bounds = {
        (False, False): "",
        (True, False): f" of {least} or more",
        (False, True): f" of at most {most}",
        (True, True): f" from {least} to {most}",
    }[least is not None, most is not None]
    raise ValueError(f"{name} must be a whole number{bounds}, got {shown(native)}{note}")


def number(name: str, value: Any, interval: str, note: str = "") -> float:
    """`value` as a finite float in `interval`, such as "(0, 1]" or "[1, inf)". note: what an error says besides."""
    low, high = map(float, interval[1:-1].split(","))
    native = plain(value)
    real = isinstance(native, Real) and not isinstance(native, bool)
    # Each is False for what is not a number. Python compares an int with a float exactly, however large it is.
    above = real and (low <= native if interval[0] == "[" else low < native)
    below = real and (native <= high if interval[-1] == "]" else native < high)
    if above and below and abs(native) <= sys.float_info.max:
        return float(native) + 0.0  # -0.0 is 0.0
    expected = f"in {interval}"
    if high == float("inf"):
        expected = f"{low:g} or more" if interval[0] == "[" else f"a number above {low:g}"
    raise ValueError(f"{name} must be {expected}, got {shown(native)}{note}")


def flag(name: str, value: Any) -> bool:
    native = plain(value)
    if isinstance(native, bool):
        return native
    raise ValueError(f"{name} must be True or False, got {shown(native)}")


def one_of(name: str, value: Any, choices: Iterable[Choice]) -> Choice:
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")


def listed(name: str, value: Any, elements: str) -> list:
    """The values of a list, tuple, range, array or Series. A text, a mapping and a set are none: they have no order, or
    are one value."""
    single = isinstance(value, (str, bytes, bytearray, Mapping, Set)) or getattr(value, "ndim", 1) != 1
    if single or not isinstance(value, Collection):
        raise ValueError(f"{name} must be a list of {elements}, got {shown(value)}")
    return list(value)


def whole_numbers(name: str, value: Any, least: int | None = None) -> tuple[int, ...]:
    values = listed(name, value, "whole numbers")
    return tuple(whole_number(f"{name}[{i}]", element, least) for i, element in enumerate(values))


def strings(name: str, value: Any) -> list[str]:
    """A list of plain strings. A lone surrogate is half a character, which no tokenizer takes."""
    texts = listed(name, value, "strings")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or _SURROGATE.search(text):
            raise ValueError(f"{name} must be a list of strings of whole characters, got {shown(text)} at {i}")
    return [str.__str__(text) for text in texts]  # numpy's are a kind of their own


def instance(name: str, value: Any, kind: type[Kind]) -> Kind:
    if isinstance(value, kind):
        return value
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    hint = ": call it" if callable(value) else ""  # a method instead of its plan
    raise ValueError(f"{name} must be {article} {kind.__name__}, got {shown(value)}{hint}")


def by_module(field: str, value: Any) -> tuple[tuple[str, Any], ...]:
    """(name of a module, its row) of each. Raises ValueError if a name is none, or is there twice."""
    rows = {}
    for pair in listed(field, value, "(name of a module, its row)"):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{field} must be a list of (name of a module, its row), got {shown(pair)}")
        name, row = pair
        # Strict, since a name from a file is printed: no escapes of terminals.
        if not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII):
            raise ValueError(f"a module's name is words of letters, digits and _ with dots between, got {shown(name)}")
        if name in rows:
            raise ValueError(f"{field} must name a module once, got {name} twice")
        rows[name] = row
    return tuple(rows.items())


def callback(name: str, value: Any) -> Callable | None:
    if value is None or callable(value):
        return value
    raise ValueError(f"{name} must be a function or None, got {shown(value)}")


def size(value: Any) -> tuple[int, int]:
    """(height, width) of an image in pixels; a whole number is both."""
    pair = isinstance(value, (tuple, list)) or getattr(value, "ndim", 0) == 1
    sides = list(value) if pair else [value, value]
    if len(sides) != 2:
        raise ValueError(f"size must be a whole number or (height, width), got {shown(value)}")
    h, w = (whole_number("size", side, None, LARGEST_SIDE, "; no machine holds a larger image") for side in sides)
    return h, w


def one_size(size: tuple[int, int]) -> int | tuple[int, int]:
    """(height, width) as a user says it: a square's is one number."""
    return size[0] if size[0] == size[1] else size


def shown_size(size: tuple[int, int]) -> str:
    """64 of a square, else 64x96: height, width."""
    return "x".join(map(str, dict.fromkeys(size)))


def batch_size(value: Any) -> int:
    """Images a forward pass."""
    return whole_number("batch_size", value, 1, LARGEST_BATCH)


def as_dtype(value: Any):
    """torch.float32, torch.float16 or torch.bfloat16, from itself or its name."""
    import torch  # takes seconds, and no other check needs it

    name = str(value).removeprefix("torch.") if isinstance(value, (str, torch.dtype)) else value
    return getattr(torch, one_of("dtype", name, DTYPES))
