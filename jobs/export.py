"""The images of a finished store as files, where another evaluation tool looks for them, a folder a configuration.

    python jobs/export.py out/sweep --layout folder --out out/images          PNGs, each named by its prompt's id
    python jobs/export.py s3://BUCKET/sweep --layout geneval --metadata evaluation_metadata.jsonl --out out/geneval
    python jobs/export.py out/sweep --layout oneig --metadata OneIG-Bench.csv --out out/oneig
    python jobs/export.py out/sweep --layout dpg --metadata dpg_bench.csv --out out/dpg

--metadata is the benchmark's own file, whose rows are matched with the store's prompts by text. Prompts of one text are
several images of one prompt. Pixels are the store's, bit for bit. --out appears when it is complete, with
configurations.json, which says what each folder is of.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import export, open_store
from pipelines.command_line import Parser, job
from pipelines.data.layouts import LAYOUTS
from postdiff.terminal import doing


def run(given: argparse.Namespace) -> None:
    out = Path(given.out)
    export.check_out(out)
    with doing("reading the store"):
        prepared = export.prepare(open_store(given.store), given.layout, given.metadata, given.plans)
    print(prepared, file=sys.stderr)
    with doing("exporting images"):
        export.write(prepared, out)
    print(f"images: {out}", f"read by: {prepared.contents.reading}", sep="\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("store", metavar="STORE", help="a folder or any pyarrow.fs or fsspec URL")
    parser.add_argument("--layout", required=True, choices=tuple(LAYOUTS), help="what reads the images")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to; not there yet, or empty")
    parser.add_argument("--metadata", type=Path, metavar="FILE", help="the benchmark's own file of prompts")
    parser.add_argument(
        "--plans", nargs="+", default=(), metavar="PLAN", help="ids of configurations, or methods (default: all)"
    )
    given = parser.parse_args(argv)
    export.check_layout(given.layout, given.metadata)
    return given


def main(argv: list[str] | None = None) -> None:
    job(run, parse, argv)


if __name__ == "__main__":
    main()
