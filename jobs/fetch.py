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

from pipelines.command_line import MOST_PROMPTS, Parser, job, refuse, whole
from pipelines.data import fetch, prompts


def folder(text: str) -> Path:
    """A folder, for argparse; an empty text would be the current one."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a folder, got {text!r}")
    return Path(text)


def run(args: argparse.Namespace) -> None:
    if args.what == "coco2014":
        refuse(args, "on coco2014, which is whole", "text", "n", "per_file")
        fetch.fetch_coco(args.out)
        file = args.out / "annotations" / "captions_val2014.json"
    else:
        source = fetch.SOURCES.get(args.what)
        if source is None:
            if "*" not in args.what and not args.what.endswith(".parquet"):
                known = ", ".join(["coco2014", *fetch.SOURCES])
                raise ValueError(f"unknown data set {args.what!r}: expected {known}, or a glob of Parquet files")
            source = fetch.Source(args.what, "text")
        given = {"text": args.text, "n": args.n, "per_file": args.per_file}
        chosen = replace(source, **{key: value for key, value in given.items() if value is not None})
        drawn, left_out = fetch.draw(chosen, args.out)
        reasons = "".join(f", {count} left out {reason}" for reason, count in left_out.most_common())
        print(f"{args.out}: {drawn} pairs{reasons}")
        file = args.out / fetch.METADATA
    listed = prompts.load_prompts(str(file))
    print(f"{file}: {len(listed)} captions, checksum {prompts.fingerprint(listed)}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("what", help=f"coco2014, {', '.join(fetch.SOURCES)}, or a glob of Parquet files with images")
    add("--out", type=folder, required=True, help="a folder")
    add("--text", help="column of the captions (default: the data set's own, else text)")
    add("--n", type=whole(1, *MOST_PROMPTS), help="pairs to draw (default: as many as the paper, else all)")
    add(
        "--per-file",
        type=whole(1, *MOST_PROMPTS),
        help="at most so many of one file: fewer files are read with more",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    job(run, parse, argv)


if __name__ == "__main__":
    main()
