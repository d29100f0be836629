"""What the jobs' command lines have in common: what a number may be, options from a dataclass, how a job ends."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pipelines.engine.cluster import DamagedError, Stopped
from pipelines.engine.urls import clean
from postdiff.terminal import one_line, warnings_as_lines

ROOT = Path(__file__).parents[1]
TRACEBACK = "POSTDIFF_TRACEBACK"  # set to anything, it shows where an unexpected error was raised
# What no machine holds, and the reason that a refusal gives.
MOST_PROMPTS = 10_000_000, "a list that is planned as a whole"
MOST_OF_SHAPES = 100_000, "more of Shapes would take hours to draw, and tell no more"
MOST_REFERENCES = 1_000_000, "features of 2048 numbers each: 8 GB"
MOST_IN_A_SHARD = 100_000, "one worker holds the images of a unit"
MOST_IN_A_BATCH = 4096, "one forward pass"
AUTO = 0  # of a batch size: what fits
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Names and values are taken as they stand: no option is guessed from its beginning, and none is given twice.
    `given` of the parsed namespace holds the options that were given, so that defaults can be told from them."""

    def __init__(self, description: str | None):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=kind, allow_abbrev=False)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)
        self.register("action", "store_true", _Flag)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        for argument in args:
            if re.search("[\udc80-\udcff]", argument):
                self.error(f"arguments must be UTF-8, got {argument}")
        namespace = namespace or argparse.Namespace()
        namespace.given = frozenset()
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        line = re.sub(r"^argument ([^:]+): (must|is given) ", r"\1 \2 ", one_line(message))
        self.exit(2, f"error: {line} (--help lists the options)\n")


class _Once(argparse._StoreAction):
    """Keeps what an option is given, and refuses to be given it twice: argparse would keep the last."""

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string and self.dest in namespace.given:
            raise argparse.ArgumentError(self, "is given twice")
        if option_string:
            namespace.given |= {self.dest}
        super().__call__(parser, namespace, values, option_string)


class _Flag(argparse._StoreTrueAction):
    def __call__(self, parser, namespace, values, option_string=None):
        namespace.given |= {self.dest}
        super().__call__(parser, namespace, values, option_string)


def flag(help: str | None = None, type: Callable[[str], Any] | None = None, **more) -> dict[str, Any]:
    """Metadata of a dataclass's field, `Annotated[int, flag("help", whole(1, 9))]`: what `add_argument` takes."""
    return {"help": help, "type": type, **more}


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """An option for each field of the dataclass `kind` that has a `flag`: its own fields first, then inherited ones."""
    hints = get_type_hints(kind, include_extras=True)
    inherited = {field.name for base in kind.__mro__[1:] if is_dataclass(base) for field in fields(base)}
    for field in sorted(fields(kind), key=lambda field: field.name in inherited):
        for more in getattr(hints[field.name], "__metadata__", ()):
            settings = {key: value for key, value in more.items() if value is not None}
            if field.default is False:
                settings["action"] = "store_true"
            elif field.default is MISSING:
                settings["required"] = True
            else:
                settings["default"] = field.default
            parser.add_argument(f"--{field.name.replace('_', '-')}", **settings)


def read(parser: Parser, kind: type[T], argv: Sequence[str] | None) -> T:
    """The dataclass `kind` as the command line has it; `kind` has a field `given`, and one for each option that
    `parser` has already."""
    add_flags(parser, kind)
    values = vars(parser.parse_args(argv))
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def again(job: str, options: Any) -> str:
    """The command that asks for `options` again: those that were given, without the credentials of any URL."""
    words = ["python", job, *getattr(options, "exhibits", ())]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in options.given:
            words.append(f"--{field.name.replace('_', '-')}")
            words += [] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]
    return shlex.join(map(clean, words))


def refuse(options: Any, why: str, *names: str) -> None:
    """Raise ValueError if one of the options `names` (as attributes) was given: it has no effect `why`."""
    for name in names:
        if name in options.given:
            raise ValueError(f"--{name.replace('_', '-')} has no effect {why}")


def whole(least: int, most: int, why: str = "") -> Callable[[str], int]:
    """A converter for argparse: whole numbers from `least` to `most`, in digits. why: what `most` is the most of."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", text) or len(text) > 20:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text[:40]!r}")
        return int(check(int(text), least, most, why))

    return convert


def number(least: float, most: float, above: bool = False) -> Callable[[str], float]:
    """A converter for argparse: finite numbers from `least` (with `above`, from above it) to `most`."""

    def convert(text: str) -> float:
        try:
            if "_" in text:
                raise ValueError
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, got {text[:40]!r}") from None
        return check(value, least, most, above=above)

    return convert


def check(value: float, least: float, most: float, why: str = "", above: bool = False) -> float:
    """`value`, if it is in bounds. Raises argparse.ArgumentTypeError; NaN is in no bounds."""
    if above and not value > least:
        raise argparse.ArgumentTypeError(f"must be above {least:g}, got {value:g}")
    if not value >= least:
        raise argparse.ArgumentTypeError(f"must be {least:g} or more, got {value:g}")
    if not value <= most:
        shown, reason = most if isinstance(most, int) else f"{most:g}", f" ({why})" if why else ""
        raise argparse.ArgumentTypeError(f"must be at most {shown}{reason}, got {value}")
    return value


def images_a_batch(text: str) -> int:
    """For argparse: images of a forward pass, or `auto` (AUTO)."""
    return AUTO if text == "auto" else whole(1, *MOST_IN_A_BATCH)(text)


def rounds(zero: bool = False) -> Callable[[str], int]:
    """A converter for argparse, of a latency measurement: at least 3 rounds. zero: 0 is taken too, and means none."""

    def convert(text: str) -> int:
        value = whole(0, 10_000)(text)
        if value < 3 and not (zero and value == 0):
            none = "0 (no latencies) or " if zero else ""
            raise argparse.ArgumentTypeError(f"must be {none}3 or more (a median of fewer says little), got {value}")
        return value

    return convert


def gpus(text: str) -> float:
    """GPUs of a worker, for argparse: a share of one, or a whole number, as Ray gives them out."""
    value = number(0, 64)(text)
    if value > 1 and value != int(value):
        raise argparse.ArgumentTypeError(f"must be a share of one GPU or a whole number of them, got {value:g}")
    return value


def job(run: Callable, parse: Callable, argv: Sequence[str] | None) -> None:
    """`run(parse(argv))`. What is wrong with the input, or stops the work, is one line and exit status 1 (2 if the
    options themselves are wrong); so is what nobody foresaw, with what was being done and where. Ctrl-C is 130."""
    try:
        with warnings_as_lines():
            run(parse(argv))
    except KeyboardInterrupt:
        print("\nstopped; run again to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        raise SystemExit(f"error: {in_words(error)}") from None


def in_words(error: Exception) -> str:
    """An error in one line: its message where we wrote it, else also its type, what was being done, and where."""
    if isinstance(error, OSError | FloatingPointError | Stopped | DamagedError) or type(error) is ValueError:
        return one_line(error)
    notes = (note for note in getattr(error, "__notes__", ()) if note.startswith("while "))
    what = next(notes, "while this job was at work")
    where, at = "", error.__traceback__
    while at:
        file = Path(at.tb_frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and "site-packages" not in file.parts:
            where = f" in {file.relative_to(ROOT)}, line {at.tb_lineno}"
        at = at.tb_next
    return f"{what}: {type(error).__name__}: {one_line(error)}{where} ({TRACEBACK}=1 shows the whole traceback)"
