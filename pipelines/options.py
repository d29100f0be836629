"""What the jobs' command lines have in common: what a number may be, which options fit together, how a job ends.

Prompts, and with them pyarrow, are imported by the options of an evaluation alone: a bare GPU machine has none.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from postdiff.arguments import DTYPES, LARGEST_GUIDANCE
from postdiff.backbones import HUB
from postdiff.terminal import one_line, warnings_as_lines

ROOT = Path(__file__).parents[1]
TRACEBACK = "POSTDIFF_TRACEBACK"  # set to anything, it shows where an unexpected error was raised
# What no machine holds, and the reason that a refusal gives.
MOST_PROMPTS = 10_000_000, "a list that is planned as a whole"
MOST_OF_SHAPES = 100_000, "Shapes has 442,098 captions, and the last of them would take hours to draw"
MOST_REFERENCES = 1_000_000, "features of 2048 numbers each: 8 GB"
MOST_IN_A_SHARD = 100_000, "one worker holds the images of a unit"
MOST_IN_A_BATCH = 4096, "one forward pass"


class Stopped(RuntimeError):
    """The work cannot go on, for the reason that the message tells."""


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
        told = re.sub(r"^argument ([^:]+): (must|is given) ", r"\1 \2 ", one_line(message))
        self.exit(2, f"error: {told} (--help lists the options)\n")


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


def refuse(args: argparse.Namespace, why: str, *names: str) -> None:
    """Raise ValueError if one of the options `names` (as attributes) was given: it has no effect `why`."""
    for name in names:
        if name in args.given:
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
        raise SystemExit(f"error: {told(error)}") from None


def told(error: Exception) -> str:
    """An error in one line: its message where we wrote it, else also its type, what was being done, and where."""
    if isinstance(error, OSError | FloatingPointError | Stopped) or type(error) is ValueError:
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every job that evaluates; `settle_options` fills what depends on others."""
    from pipelines import protocols

    parser.set_defaults(given=frozenset())  # of another kind of parser than ours
    add = parser.add_argument
    add(
        "--prompts",
        default="shapes",
        help="'shapes' ('shapes-recaption': others), or a file: txt, csv, tsv, parquet, jsonl, COCO annotation json",
    )
    add("--limit", type=whole(1, *MOST_PROMPTS),
        help="use the first N prompts (default: 256 of Shapes, all of a file)")  # fmt: skip
    add("--reference", help="folder of reference images for FID (default: Shapes' val split for Shapes)")
    add("--matched", action="store_true", help="of --reference only the images that the prompts are captions of (COCO)")
    add("--shuffled", action="store_true", help="draw the prompts of a file by a fixed hash, not from its top")
    add("--protocol", help=f"fix these by name: {', '.join(protocols.PROTOCOLS)} (of COCO's captions_val2014.json)")
    add("--n-reference", type=whole(2, *MOST_REFERENCES), default=2000,
        help="reference images drawn from Shapes (default: 2000)")  # fmt: skip
    add("--shard", type=whole(1, *MOST_IN_A_SHARD),
        help="prompts a unit of work (default: 32 of Shapes, 256 of a file)")  # fmt: skip
    add("--batch-size", type=whole(1, *MOST_IN_A_BATCH), default=8,
        help="images a forward pass; part of a configuration (default: 8)")  # fmt: skip
    add("--guidance", type=number(1, LARGEST_GUIDANCE),
        help="w of classifier-free guidance (default: the backbone's)")  # fmt: skip
    add("--solver", help="ddim, dpm, euler, unipc (default: the backbone's)")
    add("--clip", help="CLIP model of the CLIP score (default: mini-clip, or ViT-g-14/laion2b_s34b_b88k)")
    add(
        "--fid",
        help="encoder of FID: a CLIP model, or the path of clean-fid's inception-2015-12-05.pt on every worker "
        "(default: mini-clip for Shapes, inception-2015-12-05.pt else)",
    )
    add("--dtype", choices=DTYPES, help="of weights and latents (default: float16 for hub models)")
    add("--workers", type=whole(1, 10_000), help="actors (default: one a GPU that is up, else one a core)")
    add("--gpus-per-worker", type=gpus, help="(default: 1 if a GPU is up, else 0)")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tflops", type=number(0, 1e6, above=True),
        help="sustained TFLOP/s of a worker, for --dry-run's time (default: 0.03, or 30 on hub models)")  # fmt: skip
    add("--dry-run", action="store_true", help="print what would run, and stop")


def settle_dry_run(args: argparse.Namespace) -> None:
    if not args.dry_run:
        refuse(args, "without --dry-run", "tflops")
    args.tflops = args.tflops or (30.0 if args.backbone in HUB or "@" in args.backbone else 0.03)


def refuse_unused(args: argparse.Namespace, fid: str = "", other: str | None = None) -> None:
    """Raise ValueError for an option that was given, and that others leave without effect. fid: why a job has none.
    other: another folder of references that a job has."""
    from pipelines import prompts

    shapes = args.prompts in prompts.SHAPES
    if fid:
        refuse(args, fid, "reference", "n_reference", "fid", "matched")
    if args.reference or not shapes:
        refuse(args, "where the references are not drawn from Shapes", "n_reference")
    if not args.reference and not other and not shapes:
        refuse(args, "without --reference, a folder of images", "fid")
    if shapes and args.shuffled:
        raise ValueError("--shuffled has no effect on Shapes: it draws the prompts of a file")


def settle_options(args: argparse.Namespace) -> argparse.Namespace:
    from pipelines import prompts, protocols

    if args.protocol:
        protocols.apply(args)
    mini = args.prompts in prompts.SHAPES
    args.clip = args.clip or ("mini-clip" if mini else "ViT-g-14/laion2b_s34b_b88k")
    args.fid = args.fid or ("mini-clip" if mini else "inception-2015-12-05.pt")
    args.limit = args.limit if args.limit is not None else (256 if mini else None)
    args.shard = args.shard if args.shard is not None else (32 if mini else 256)
    if mini:
        try:
            check(args.limit, 1, *MOST_OF_SHAPES)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--limit {error}") from None
    return args
