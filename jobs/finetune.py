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

from accelerate import PartialState

from pipelines import finetuning, pairs
from pipelines.finetuning import Settings
from postdiff.backbones import resolve


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", default="mini-sd", help="a name, a folder, or ORG/REPOSITORY@COMMIT of the family sd")
    add("--data", required=True, help="'shapes', a folder of images with captions, or a parquet of URLs")
    add("--limit", type=int, help="use the first N pairs")
    add("--out", type=Path, required=True, help="the finished pipeline; checkpoints go to OUT-work")
    add("--checkpoint-every", type=int, default=500, help="steps")
    for field in fields(Settings):
        choices = ["no", "fp16", "bf16"] if field.name == "mixed_precision" else None
        default = None if field.name in ("beta", "s") else field.default
        add(f"--{field.name.replace('_', '-')}", type=type(field.default), default=default, choices=choices)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    spec = resolve(args.backbone)
    for name in ("beta", "s"):  # the paper's for this backbone
        if getattr(args, name) is None:
            setattr(args, name, spec.settings[name])
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    if spec.family != "sd":
        raise ValueError(f"fine-tuning is written for U-Nets of the family sd, got {spec.family}")
    if args.checkpoint_every < 1:
        raise ValueError(f"--checkpoint-every must be 1 or more, got {args.checkpoint_every}")
    found = pairs.open_pairs(args.data, args.limit)
    finetuning.make(args.backbone, found, settings, args.out, args.checkpoint_every)
    if PartialState().is_main_process:
        print(f"{args.out}: for beta={settings.beta:g}, s={settings.s:g}; {len(found.skipped)} pairs were skipped")


def main(argv: list[str] | None = None) -> None:
    try:
        run(parse(argv))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
