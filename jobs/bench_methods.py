"""Speed of the denoising loop, as ratios measured side by side: alternating runs in one process, medians; JSON last.

python jobs/bench_methods.py speedup    PostDiff over dense on SD1.5's real topology, beside what their FLOPs allow
python jobs/bench_methods.py authors    DeepCache, T-GATE and ToMe: ours beside their authors' packages (extra: test)
python jobs/bench_methods.py execution  mini-SD with channels last, compiled, and both, beside mini-SD as it is
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pipelines import bench_methods, command_line
from pipelines.engine.provenance import commit
from postdiff.terminal import doing

WHAT = {"speedup": bench_methods.speedup, "authors": bench_methods.authors, "execution": bench_methods.execution}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("what", choices=list(WHAT))
    pairs = command_line.whole(1, 10_000)
    parser.add_argument("--pairs", type=pairs, default=5, help="alternating runs of each side (default: 5)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    with doing(f"measuring {args.what}"):
        measured = WHAT[args.what](args.pairs)
    about = {"commit": commit(), "torch": torch.__version__, "cores": os.cpu_count()}
    print(json.dumps({**about, args.what: measured}))


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
