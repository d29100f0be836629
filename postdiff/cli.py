"""The console script: `postdiff generate | cost | advise | search | methods | models`.

It ends with 0; with 2 if the command line is wrong; with 1 if it cannot be done or failed; with 130 if it was
interrupted; each but the first with one line on stderr.
"""

import argparse
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from postdiff import commands
from postdiff.arguments import meant
from postdiff.settings import GROUPS, SEARCHES, SETTINGS, default, flag, kind, shown
from postdiff.terminal import error_line, flush, one_line, warnings_as_lines

MOST_STEPS = 1000  # the training schedules of all families
WIDEST = 120  # columns of a help text
BACKBONE = (
    "a name (postdiff models), a folder, ORG/REPOSITORY@COMMIT, or FILE.safetensors+config=MODEL; then "
    "+lora=FILE.safetensors:0.8, +vae=FOLDER, +variant=fp16"
)
METHOD = "a name (postdiff methods), or a plan's JSON file"
MESSAGES = {  # argparse's error messages: ours, which say what was expected and what was given
    r"^argument (\S+): (?=must )": r"\1 ",
    r"^argument (\S+): expected one argument$": r"\1 must be followed by a value (one that begins with - is written "
    r"\1=VALUE), got none",
    r"^argument (\S+): not allowed with argument (\S+)$": r"expected \2 or \1, got both",
    r"^the following arguments are required: (.*)$": r"expected \1, got none",
    r"^argument (\S+): ignored explicit argument (.*)$": r"\1 must be without a value, got \2",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Raises SystemExit unless it is done."""
    try:
        try:
            args = _parse(sys.argv[1:] if argv is None else argv)
            with warnings_as_lines():
                args.run(args)
        finally:
            flush()
    except KeyboardInterrupt:
        _stop("interrupted", 130)
    except BrokenPipeError:  # whoever read has what they wanted (`| head`)
        raise SystemExit(141) from None
    except Exception as error:
        _stop(f"error: {error_line(error)}", 1)


def _stop(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code) from None


class _Parser(argparse.ArgumentParser):
    """Flags are written out, help is as wide as the terminal up to 120 columns, an error is one line."""

    def __init__(self, **options: Any) -> None:
        width = min(shutil.get_terminal_size().columns, WIDEST) - 2
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=width),
            **options,
        )

    def error(self, message: str) -> NoReturn:
        for theirs, ours in MESSAGES.items():
            message = re.sub(theirs, ours, message)
        _stop(f"error: {one_line(message)} (see {self.prog} --help)", 2)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser, by_name = _parser()
    for word in argv:
        if any("\ud800" <= c <= "\udfff" for c in word) or "\0" in word:
            parser.error(f"the command line must be UTF-8 text, got {_short(word)}")
    first = [*by_name, "--help", "--version"]
    if not argv or argv[0] not in (*first, "-h"):
        parser.error(
            f"expected a command first: {', '.join(by_name)}; got {_meant(argv[0], first) if argv else 'none'}"
        )
    args, extra = parser.parse_known_args(argv)
    if extra:
        command = by_name[argv[0]]
        flags = re.findall(r"--[\w-]+", command.format_help())
        command.error(f"{command.prog} does not take {_meant(extra[0], flags)}")
    return args


def _meant(word: str, words: Sequence[str]) -> str:
    """What came, and what it may have been meant to be."""
    return f"{_short(word)}{meant(word.split('=')[0], words)}"


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each command by name."""
    parser = _Parser(
        prog="postdiff",
        usage="postdiff COMMAND ...",
        description="Fewer denoising steps, or cheaper steps? Pretrained diffusion models, cheaper without training.",
        epilog="postdiff COMMAND --help tells what a command takes.",
    )
    parser.add_argument("--version", action="version", version=f"postdiff {version('postdiff')}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, summary: str, takes: str = "", example: str = "") -> argparse.ArgumentParser:
        about = f"{summary[0].upper()}{summary[1:]}."
        added = subparsers.add_parser(
            name,
            prog=f"postdiff {name}",
            help=summary,
            usage=f"postdiff {name} {takes}".rstrip(),
            description=f"{about} Defaults are in [brackets]." if takes else about,
            epilog=f"example: postdiff {name} {example}" if example else None,
        )
        added.set_defaults(run=run)
        return added

    generate = command(
        "generate", commands.generate, "prompts and a method in, PNGs out", "PROMPT ... [OPTION ...]",
        '"a big red star on snow" --method tgate --gate-step 8 --n 4 --out images',
    )  # fmt: skip
    generate.add_argument("prompt", metavar="PROMPT", type=_prompt, nargs="+", help="one or more texts, each quoted")
    _add(generate, "--backbone", "MODEL", _home, BACKBONE, "mini-sd")
    how = generate.add_mutually_exclusive_group()
    _add(how, "--method", "METHOD", _home, f"{METHOD} [postdiff]")
    _add(how, "--plan", "FILE", _path, "a plan's JSON file instead of a method")
    _add(generate, "--n", "N", _whole(1), "images a prompt", 1)
    _add(generate, "--seed", "N", _seed, "of the first image; the next has the next seed", 0)
    _add(generate, "--size", "N|HxW", _size, "of the images in pixels, or height and width [the backbone's own]")
    _add(generate, "--guidance", "W", _number, "w of classifier-free guidance [the backbone's own]")
    _add(
        generate,
        "--solver",
        "SOLVER",
        str,
        "ddim, dpm, euler, unipc, dpm_3m, dpm_sde, euler_a, deis, heun, pndm or plms [the backbone's own]",
    )
    _add(generate, "--batch-size", "N", _whole(1), "images a forward pass, at most", 4)
    _add(generate, "--out", "FOLDER", _path, "where the PNGs go", Path())
    _add_settings(generate)

    summary = "MACs and FLOPs of a method on a backbone, without weights"
    cost = command(
        "cost", commands.cost, summary, "MODEL METHOD [OPTION ...]", "sd15 postdiff --s 0.3 --m 15 --per-step"
    )
    cost.add_argument("backbone", metavar="MODEL", type=_home, help=BACKBONE)
    cost.add_argument("method", metavar="METHOD", type=_home, help=METHOD)
    _add(cost, "--size", "N|HxW", _size, "of the image in pixels, or height and width [the backbone's own]")
    cost.add_argument("--per-step", action="store_true", help="a line for each step")
    cost.add_argument("--json", action="store_true", help="integers for one image")
    _add_settings(cost)

    summary = "the plan to deploy for a share of the cost, and what is known of it"
    advise = command("advise", commands.advise, summary, "MODEL --share X [--calibration FILE]", "sdxl --share 0.5")
    advise.add_argument("backbone", metavar="MODEL", type=_home, help=BACKBONE)
    share = "of the FLOPs of the model as it is, above 0, at most 1"
    advise.add_argument("--share", metavar="X", type=_number, required=True, help=share)
    _add(advise, "--calibration", "FILE", _path, "plan.json of jobs/calibrate.py on this model [not measured]")

    summary = "find a schedule for each module, and write the plan"
    search = command(
        "search", commands.search, summary, "SEARCH PROMPT ... [OPTION ...]",
        'ditfastattn "a red star" "a blue ring" --backbone mini-pixart --out found.json',
    )  # fmt: skip
    search.add_argument("search", metavar="SEARCH", type=_one_of(SEARCHES), help=", ".join(SEARCHES))
    search.add_argument("prompt", metavar="PROMPT", type=_prompt, nargs="+", help="calibration prompts, 6 to 8 of them")
    _add(search, "--backbone", "MODEL", _home, BACKBONE, "mini-sd")
    _add(search, "--method", "METHOD", _home, "what is searched on top of [dense; of ca_tome: itself]")
    _add(search, "--seed", "N", _seed, "of the first prompt; the next has the next seed", 0)
    _add(search, "--out", "FILE", _path, "the plan's file", Path("plan.json"))
    _add_settings(search, SEARCHES)

    command("methods", commands.methods, "the methods, the searches and their settings")
    command("models", commands.models, "the backbones, and how each is run")
    return parser, dict(subparsers.choices)


def _add(parser: Any, name: str, metavar: str, kind: Callable, text: str, default: Any = None) -> None:
    default_text = "" if default is None else f" [{default}]"
    parser.add_argument(name, metavar=metavar, type=kind, default=default, help=f"{text}{default_text}")


def _add_settings(
    parser: argparse.ArgumentParser, searches: dict[str, dict[str, tuple[str, float, str]]] | None = None
) -> None:
    """Every setting of every method as a flag, by method, after those of the searches; a method takes those that its
    signature has. None where it is not given: the paper's setting for the backbone goes before the method's own."""
    _add(parser, "--plan-picture", "PNG", _path, "draw the plan as a strip of its steps")
    searched = {key for settings in (searches or {}).values() for key in settings}
    for name, settings in (searches or {}).items():
        if settings:
            group = parser.add_argument_group(f"{name}, the search")
            for key, (meaning, value, _) in settings.items():
                also = f"; of the method ca_tome: {SETTINGS[key]}" if key in SETTINGS else ""
                _add(group, flag(key), "X", _number, f"{meaning} [{value}]{also}")
    for listed in GROUPS:
        group = parser.add_argument_group(listed.title, listed.note)
        for name, meaning in listed.settings.items():
            if name not in searched:
                text = f"{meaning} [{shown(default(listed.method, name))}]"
                _add_setting(group, name, kind(listed.method, name), text)


def _add_setting(group: Any, name: str, kind: Any, text: str) -> None:
    if kind is bool:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)
    elif get_origin(kind) is Literal:
        choices = get_args(kind)
        _add(group, flag(name), "|".join(choices), _one_of(choices), text)
    elif get_origin(kind) is tuple:
        _add(group, flag(name), "N,N,...", _numbers, text)
    elif kind is int:
        _add(group, flag(name), "N", _whole(1, MOST_STEPS) if name == "steps" else _whole(), text)
    elif kind is float:
        _add(group, flag(name), "X", _number, text)
    else:
        _add(group, flag(name), "N|X", _step_or_share, text)


def _short(text: str) -> str:
    return one_line(repr(text), 60)


def _whole(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes a whole number in a range."""
    within = "" if least is None else f" of {least} or more" if most is None else f" from {least} to {most}"

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or (least is not None and number < least) or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be a whole number{within}, got {_short(text)}")
        return number

    return whole


_seed = _whole(-(2**63), 2**63 - 1)


def _size(text: str) -> int | tuple[int, int]:
    """N of a square, or HxW: height and width."""
    if pair := re.fullmatch(r"(\d{1,9})x(\d{1,9})", text):
        return int(pair[1]), int(pair[2])
    try:
        return _whole()(text)
    except argparse.ArgumentTypeError:
        message = f"must be a whole number or HEIGHTxWIDTH, got {_short(text)}"
        raise argparse.ArgumentTypeError(message) from None


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {_short(text)}")
    return number


def _step_or_share(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else _number(text)


def _numbers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise argparse.ArgumentTypeError(f"must be whole numbers with commas between, got {_short(text)}")
    return tuple(int(part) for part in text.split(","))


def _one_of(choices: Iterable[str]) -> Callable[[str], str]:
    def one_of(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got {_meant(text, list(choices))}")
        return text

    return one_of


def _prompt(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a text, got {_short(text)}")
    if odd := [c for c in text if unicodedata.category(c) == "Cc"]:
        raise argparse.ArgumentTypeError(f"must have no control characters, got {odd[0]!r} in {_short(text)}")
    return text


def _home(text: str) -> str:
    """A quoted ~ is what the shell would have made of it."""
    if not text:
        raise argparse.ArgumentTypeError("must be a name or a path, got ''")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise argparse.ArgumentTypeError(f"must be the home folder of a user, or begin with ./, got {_short(text)}")
    return expanded


def _path(text: str) -> Path:
    return Path(_home(text))


if __name__ == "__main__":
    main()
