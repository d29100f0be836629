"""One GPU, ten minutes, no network: does everything here run on it, is it right, and how fast is it? (docs/gpu.md)

python jobs/bench_gpu.py                                  all parts but compile, in this order
python jobs/bench_gpu.py agree latency batch              some of them
python jobs/bench_gpu.py --device cpu --thin              a rehearsal without a GPU, on thin models

agree    the mini models, every method and solver: float32 beside the CPU's, the same bits twice, an image alone and in
         a batch, and what makes the host wait for the GPU, by line
latency  the plans of the paper's Tables 2 to 6 on the real architectures: seconds of one image, by stage, and memory
batch    images a second and memory at 1 to 32 images
full     the real architectures in float16 and bfloat16: all that comes out is finite
half     the mini models in float16 and bfloat16 beside float32
compile  SD1.5's denoiser compiled: minutes

Weights of the real architectures are random: none need be there. A part ends when its share of --minutes is over, and
says what it left out. OUT gets a JSON file a part, and the tables as Markdown. The exit status is 1 if anything failed.
Imports neither ray, open_clip nor pyarrow: torch, diffusers and transformers are enough.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare machine has it not installed

import torch

from pipelines import command_line
from pipelines.gpu import checks, session, speed
from pipelines.gpu.runs import Settings
from postdiff.models import minis

PARTS: dict[str, session.Part] = {
    "agree": checks.agree,
    "latency": speed.latency,
    "batch": speed.batch,
    "full": checks.full,
    "half": checks.half,
    "compile": speed.compiled,
}
ROUNDS, THIN_ROUNDS = 7, 1


def carried() -> list[str]:
    """The mini models that are here: a bare machine is sent some."""

    def is_here(name: str) -> bool:
        try:
            return minis.folder(name).is_dir()
        except FileNotFoundError:
            return False

    return [name for name in minis.NAMES if is_here(name)]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all but compile)")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--thin", action="store_true", help="thin models, few steps, small batches: a rehearsal")
    add("--minis", nargs="+", default=carried(), help="of agree and half (default: those that are here)")
    add(
        "--minutes",
        type=command_line.number(0, 24 * 60, above=True),
        default=9.0,
        help="for all parts together (default: 9)",
    )
    add("--rounds", type=command_line.whole(1, 10_000),
        help=f"of latency: runs of every plan (default: {ROUNDS}, with --thin {THIN_ROUNDS})")  # fmt: skip
    add("--out", type=Path, default=Path("out/gpu"), help="a folder (default: out/gpu)")
    args = parser.parse_args(argv)
    args.parts = list(dict.fromkeys(args.parts)) or [part for part in PARTS if part != "compile"]
    args.rounds = args.rounds if args.rounds is not None else THIN_ROUNDS if args.thin else ROUNDS
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before any of it is. Raises ValueError."""
    for what, given, known in (("part", args.parts, list(PARTS)), ("mini model", args.minis, carried())):
        for name in given:
            if name not in known:
                raise ValueError(
                    f"unknown {what} {name!r}: expected one of {', '.join(known) or 'none (none is here)'}"
                )
    if not args.minis and {"agree", "half"} & set(args.parts):
        raise ValueError("agree and half need a mini model: expected a folder below postdiff/mini, got none")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; --device cpu --thin rehearses without one")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.out):
            pass
    except OSError as error:
        raise ValueError(f"--out {args.out} must be a folder that can be written to: {error.strerror}") from None


def run(args: argparse.Namespace) -> None:
    check(args)
    settings = Settings(args.device, args.thin, tuple(args.minis), args.rounds)
    raise SystemExit(session.run(PARTS, args.parts, settings, args.minutes, args.out))


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
