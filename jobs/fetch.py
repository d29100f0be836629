"""The paper's data sets, from their publishers into a folder that every job reads.

    python jobs/fetch.py coco2014 --out data/coco2014                            captions and 40,504 images, 6.9 GB
    python jobs/fetch.py imagenet21k-recaption --out data/recaption              Table 6: 10,000 drawn pairs
    python jobs/fetch.py laion-art --out data/laion-art                          Table 7: all of it, to train on
    python jobs/fetch.py 'hf://datasets/ORG/NAME@COMMIT/data/*.parquet' --text caption --n 500 --out data/mine

Then jobs/reproduce.py takes --prompts data/coco2014/annotations/captions_val2014.json, --reference
data/coco2014/val2014, --recaption data/recaption/metadata.jsonl and --recaption-reference data/recaption;
jobs/finetune.py takes --data data/laion-art.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import datasets, prompts
from pipelines.evaluation import job


def run(args: argparse.Namespace) -> None:
    if args.what == "coco2014":
        datasets.fetch_coco(args.out)
        file = args.out / "annotations" / "captions_val2014.json"
    else:
        source = datasets.SOURCES.get(args.what)
        if source is None:
            if "*" not in args.what and not args.what.endswith(".parquet"):
                known = ", ".join(["coco2014", *datasets.SOURCES])
                raise ValueError(f"unknown data set {args.what!r}: expected {known}, or a glob of Parquet files")
            source = datasets.Source(args.what, args.text or "text")
        given = {"text": args.text, "n": args.n, "per_file": args.per_file}
        datasets.draw(replace(source, **{key: value for key, value in given.items() if value}), args.out)
        file = args.out / datasets.METADATA
    listed = prompts.load_prompts(str(file))
    print(f"{file}: {len(listed)} captions, checksum {prompts.fingerprint(listed)}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", help=f"coco2014, {', '.join(datasets.SOURCES)}, or a glob of Parquet files with images")
    add("--out", type=Path, required=True, help="a folder")
    add("--text", help="column of the captions (default: the data set's own, else text)")
    add("--n", type=int, help="pairs to draw (default: as many as the paper, else all)")
    add("--per-file", type=int, help="at most so many of one file: fewer files are read with more")
    args = parser.parse_args(argv)
    for name in ("n", "per_file"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
    return args


def main(argv: list[str] | None = None) -> None:
    job(run, parse, argv)


if __name__ == "__main__":
    main()
