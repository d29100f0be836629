"""Speed of the evaluation, measured side by side: alternating runs in one call, medians; one JSON line last.

python jobs/bench.py overhead    the Ray pipeline's wall time over the bare sampler loop's, same work, same cores
python jobs/bench.py compression units of 512 px images from a stand-in denoiser that sleeps, over that sleep
python jobs/bench.py planning    time and memory to plan 150,000 units
python jobs/bench.py driver      the loop without Ray: planning 150,000 units, and microseconds a unit, 64 workers
python jobs/bench.py listing     time and memory to list a folder of 1,000,000 files
python jobs/bench.py reuse       seconds saved by encoding prompts once for 10 configurations of mini-PixArt
python jobs/bench.py latency     seconds an image of methods on a backbone, alone on a GPU (or this machine), by stage

Denoising itself, beside dense and beside the authors' packages: jobs/bench_methods.py.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pipelines import bench, command_line
from pipelines.engine.provenance import commit
from postdiff.terminal import doing

# The options that each measurement takes; --pairs and --rounds have the defaults of its function.
TAKES = {
    "overhead": ("pairs",),
    "compression": ("pairs",),
    "planning": (),
    "driver": (),
    "listing": (),
    "reuse": ("pairs",),
    "latency": ("backbone", "methods", "rounds"),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("what", choices=list(TAKES))
    add("--pairs", type=command_line.whole(1, 10_000), default=5, help="alternating runs of each side (default: 5)")
    add("--backbone", default="mini-sd", help="of latency: a name, a folder, or ORG/REPOSITORY@COMMIT")
    add("--methods", nargs="+", default=["dense", "postdiff"], help="of latency: or files of plans")
    add("--rounds", type=command_line.rounds(), default=30, help="of latency: runs of each method (default: 30)")
    args = parser.parse_args(argv)
    command_line.refuse(args, f"on {args.what}", *({"pairs", "backbone", "methods", "rounds"} - {*TAKES[args.what]}))
    return args


def run(args: argparse.Namespace) -> None:
    with doing(f"measuring {args.what}"):
        measured = {
            "overhead": lambda: bench.overhead(args.pairs),
            "compression": lambda: bench.compression(args.pairs),
            "planning": bench.planning,
            "driver": lambda: {"free": bench.driver(), "text outstanding": bench.driver(held=True)},
            "listing": bench.listing,
            "reuse": lambda: bench.reuse(args.pairs),
            "latency": lambda: bench.measure_latency(args.backbone, args.methods, args.rounds),
        }[args.what]()
    about = {"commit": commit(), "torch": torch.__version__, "cores": os.cpu_count()}
    print(json.dumps({**about, args.what: measured}))


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
