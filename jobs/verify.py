"""Is a store what it says? Reads every file, and names what is damaged, missing, foreign or left over.

    python jobs/verify.py out/sweep
    python jobs/verify.py s3://bucket/sweep --repair      sets damaged files aside (NAME.bad): run the sweep again, and
                                                          it makes them again

Exits with 0 if all that is there is what its name says, with 1 if something is damaged or missing. A run that is not
done has missing shards: jobs/status.py says how far it is.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import verification
from pipelines.command_line import Parser, job
from pipelines.engine.store import Store


@dataclass(frozen=True)
class Options:
    store: str
    repair: bool


def parse(argv: list[str] | None = None) -> Options:
    parser = Parser(__doc__)
    parser.add_argument("store", help="a folder or any pyarrow.fs or fsspec URL")
    parser.add_argument("--repair", action="store_true", help="set damaged files aside, remove half-written ones")
    given = parser.parse_args(argv)
    return Options(given.store, given.repair)


def run(given: Options) -> None:
    store = Store(given.store)
    verdict = verification.verify(store)
    print(verdict)
    if given.repair:
        verification.repair(store, verdict)
        print(f"{len(verdict.damaged)} files are set aside: run the job again, and it makes them again")
    if not verdict.is_whole:
        raise SystemExit(1)


def main(argv: list[str] | None = None) -> None:
    job(run, parse, argv)


if __name__ == "__main__":
    main()
