"""Fine-tune a U-Net for mixed resolution (App. F), from a backbone to a folder that `postdiff.load` takes.

    python jobs/finetune.py --backbone sd15-original --data laion-art.parquet --out out/sd15-mixed
    accelerate launch jobs/finetune.py ...            on all GPUs of a machine
    python jobs/finetune.py --backbone mini-sd --data shapes --out out/mini-mixed --steps 200 --batch 32 --lr 1e-4

The defaults are the paper's: batches of 128, 15,000 steps, learning rate 1e-5, beta 1/2, and the backbone's own s.
Data: 'shapes', a folder (x.jpg beside x.txt, or metadata.jsonl), or a parquet with columns URL and TEXT. What cannot be
read is skipped and counted. Run it again to go on from the last checkpoint: it ends with the same weights.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line
from pipelines.data import pairs
from pipelines.engine.urls import clean, local_path
from pipelines.training.finetune_settings import Settings, check_model
from postdiff.models.checkpoints import resolve
from postdiff.terminal import doing

# What argparse takes for each field of Settings; Settings itself says what fits together.
KINDS = {
    "beta": command_line.number(0, 1, above=True),
    "s": command_line.number(0, 1),
    "steps": command_line.whole(1, 10_000_000),
    "batch": command_line.whole(1, 100_000),
    "micro_batch": command_line.whole(1, *command_line.MOST_IN_A_BATCH),
    "lr": command_line.number(0, 1, above=True),
    "warm_up": command_line.whole(1, 10_000_000),
    "ema": command_line.number(0, 1),
    "drop": command_line.number(0, 1),
    "mixed_precision": str,
    "seed": command_line.whole(0, 2**40),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("--backbone", default="mini-sd", help="a name, a folder, or ORG/REPOSITORY@COMMIT of the family sd")
    add("--data", required=True, help="'shapes', 'scenes', a folder of images with captions, or a parquet of URLs")
    add("--limit", type=command_line.whole(1, 2**40), help="use the first N pairs")
    add("--out", required=True, help="the finished pipeline; checkpoints go to OUT-work")
    add("--checkpoint-every", type=command_line.whole(1, 10_000_000), default=500, help="steps")
    for field in fields(Settings):
        choices = ["no", "fp16", "bf16"] if field.name == "mixed_precision" else None
        default = None if field.name in ("beta", "s") else field.default
        add(f"--{field.name.replace('_', '-')}", type=KINDS[field.name], default=default, choices=choices)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    spec, folder = resolve(args.backbone), local_path(args.out)
    if folder is None:
        raise ValueError(f"--out must be a local folder, got {clean(args.out)!r}")
    for name in ("beta", "s"):  # the paper's for this backbone
        if getattr(args, name) is None:
            setattr(args, name, spec.settings[name])
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    check_model(spec)
    examples = pairs.open_pairs(args.data, args.limit)
    from accelerate import PartialState

    from pipelines.training import finetuning

    with doing(f"fine-tuning {args.backbone}"):
        finetuning.make(args.backbone, examples, settings, Path(folder), args.checkpoint_every)
    if PartialState().is_main_process:
        print(f"{args.out}: for beta={settings.beta:g}, s={settings.s:g}; {len(examples.skipped)} pairs were skipped")


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
