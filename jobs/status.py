"""How far a run is, from its store alone: python jobs/status.py s3://BUCKET/sweep [--watch 60]

What is done and what is set aside, with the first reasons; how fast images come, and when they will be there; each
configuration; whether a driver is alive. Reads one listing, and changes nothing.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import status
from pipelines.command_line import Parser, job, number
from pipelines.engine.store import Store


def run(given: argparse.Namespace) -> None:
    store = Store(given.store)
    state = status.read(store)
    print(status.describe(state))
    while given.watch and not state.complete:
        time.sleep(given.watch)
        state = status.read(store)
        print("\x1b[2J\x1b[H" if sys.stdout.isatty() else "", status.describe(state), sep="\n", flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("store", metavar="STORE", help="a folder or any pyarrow.fs or fsspec URL")
    parser.add_argument("--watch", metavar="SECONDS", type=number(1, 86400), help="print it again and again")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    job(run, parse, argv)


if __name__ == "__main__":
    main()
