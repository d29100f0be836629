"""Train the mini models from nothing: python jobs/train_mini.py {STAGE,export,evaluate,restore,accuracy,all}

Stages, in order: autoencoder, clip, text, unet (mini-SD), tiny (mini-BK-SDM), lcm (mini-LCM), xl (mini-SDXL), t5,
pixart and refine (mini-PixArt), full (mini-SD that knows full-size images alone, to fine-tune),
judge-convolutional and judge-transformer (who read scenes, and judge content), clip-reads (a CLIP that tells left
from right; what is shipped was trained with --workers 1); unet-on and clip-reads-on train a restored one on. Each
trains on Shapes, or with `--data scenes` on Scenes, with two single-threaded processes that average their gradients
(on two cores a third faster than one process with two threads; NOTES.md; and a quarter faster still with
`LD_PRELOAD=libtcmalloc_minimal.so.4`), checkpoints every few minutes, resumes from the checkpoint after a kill, and
appends its losses to `<work>/<stage>.csv`. `export` writes the finished folders, fp16 safetensors, that the
pipelines' own `from_pretrained` (open_clip's `create_model("local-dir:FOLDER")`) load:

    postdiff/mini/{mini-sd,mini-bk-sdm,mini-lcm,mini-sdxl,mini-pixart}, and what scores: mini-clip, mini-clip-reads,
    mini-judges; those of Scenes end in -scenes

`accuracy` asks the judges about 1,000 real renders, and the CLIPs whether a render's own caption suits it better than a
changed one, and writes how often they are right: accuracy-judge.csv and accuracy-clip.csv.

`evaluate` measures them, and draws a grid of 64 samples of each. `restore` makes checkpoints of the shipped folders,
for a stage that starts from them: of fp16 weights and without an optimizer, so the stages they stand for cannot go on
(but mini-SD and the CLIP that reads, by unet-on and clip-reads-on).
"""

import argparse
import json
import os
import sys
from itertools import chain
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line
from pipelines.data.procedural import PROCEDURAL
from pipelines.metrics.encoders import JUDGES
from pipelines.training import accuracy, judges, models, reading
from postdiff.models.checkpoints import MINI

RESULTS = Path(__file__).resolve().parent / "results"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("stage", choices=[*models.STAGES, "export", "evaluate", "restore", "accuracy", "all"])
    add("--work", type=Path, default=Path(".train"), help="checkpoints, logs and drawn images")
    add("--data", choices=list(PROCEDURAL), default="shapes", help="the data set; each needs a work folder of its own")
    add("--models", nargs="+", choices=list(models.MODELS), help="to export or evaluate (default: all trained)")
    add("--out", type=Path, default=MINI, help="finished folders")
    add(
        "--workers",
        type=command_line.whole(1, 64),
        default=2,
        help="processes; part of what the weights depend on, as is the processor: some multiply in bfloat16",
    )
    args = parser.parse_args(argv)
    if args.stage not in ("export", "evaluate", "accuracy", "all"):
        command_line.refuse(args, f"on {args.stage}", "models", *([] if args.stage == "restore" else ["out"]))
    if args.stage == "accuracy":
        command_line.refuse(args, "on accuracy, which is of all data sets", "models", "work", "data")
    if args.stage not in (*models.STAGES, "all"):
        command_line.refuse(args, f"on {args.stage}", "workers")
    if args.data != "shapes" and args.stage == "clip":
        raise ValueError(f"mini-clip is of shapes alone: what scores {args.data} is trained by clip-reads")
    return args


def run(args: argparse.Namespace) -> None:
    for stage in [name for name in models.STAGES if not name.endswith("-on")] if args.stage == "all" else [args.stage]:
        if stage in models.STAGES and (stage != "clip" or args.data == "shapes"):
            models.train(stage, args.work, PROCEDURAL[args.data], args.workers)
    names = args.models or [name for name, stage in models.MODELS.items() if (args.work / f"{stage}.pt").exists()]
    if args.stage == "accuracy":
        read = chain.from_iterable(judges.accuracy(args.out / name) for name in JUDGES)
        accuracy.write(read, RESULTS / "accuracy-judge.csv")
        accuracy.write(reading.accuracy(args.out), RESULTS / "accuracy-clip.csv")
    if args.stage == "restore":
        models.restore(args.work, args.out, PROCEDURAL[args.data])
    if args.stage in ("export", "all"):
        models.export(args.work, args.out, names, PROCEDURAL[args.data])
    if args.stage in ("evaluate", "all"):
        print(json.dumps(models.evaluate(args.out, names, PROCEDURAL[args.data]), indent=2))


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
