"""Why cheaper steps can work, seen on one model: python jobs/analyse.py --backbone mini-sd

profile.png, profile.csv    Fig. 7: how far feature maps move from step to step, by block and by type of layer
trajectory.png              Fig. 3, 12: what each step would draw, with its CLIP score, at full and at mixed resolution
trajectory.csv              the mean CLIP score of every step over all prompts, with its interval
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

import postdiff
from pipelines import plots, prompts
from postdiff import analysis, methods
from postdiff.encoders import ClipEncoder
from postdiff.metrics import clip_scores, mean_interval

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)  # of steps at low resolution: the rows of Fig. 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini-sd")
    parser.add_argument("--prompts", default="shapes", help="'shapes', or a file (see coco_sweep.py)")
    parser.add_argument("--n", type=int, default=32, help="prompts to average over")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--clip", help="CLIP model of the scores (default: as coco_sweep.py)")
    parser.add_argument("--out", type=Path, default=Path("out/analysis"))
    args = parser.parse_args()
    try:
        run(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def run(args: argparse.Namespace) -> None:
    if args.n < 4:
        raise ValueError(f"intervals need --n of 4 or more, got {args.n}")
    listed = prompts.load_prompts(args.prompts, args.n)
    texts, seeds = [p.text for p in listed], [prompts.seed(p) for p in listed]
    default = "mini-clip" if args.prompts in prompts.SHAPES else "ViT-g-14/laion2b_s34b_b88k"
    clip, backbone = ClipEncoder(args.clip or default), postdiff.load(args.backbone)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = backbone.spec.settings
    dense = methods.dense(settings["steps"])

    found = analysis.profile(backbone, texts, seeds, dense, batch_size=args.batch_size)
    (args.out / "profile.png").write_bytes(
        plots.as_png(plots.profile_plot(found, f"{args.backbone}, {len(dense)} steps"))
    )
    with open(args.out / "profile.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["distance", "of", *range(1, len(dense))])
        writer.writerows(["relative L1", name, *np.round(values, 5)] for name, values in found.blocks.items())
        writer.writerows(["L2 (RMS)", name, *np.round(values, 5)] for name, values in found.layers.items())

    embedded, rows, table = clip.texts(texts), [], []
    plans = [methods.mixed_resolution(settings["steps"], settings["beta"], s) for s in SHARES]
    for s, plan in zip(SHARES, tqdm(plans, desc="trajectories"), strict=True):
        images = None
        scores = np.empty((len(plan), len(texts)))
        for start in range(0, len(texts), args.batch_size):
            chunk = slice(start, start + args.batch_size)
            steps = analysis.trajectory(backbone, texts[chunk], seeds[chunk], plan)
            images = images or [step[0] for step in steps]
            scores[:, chunk] = [clip_scores(clip.images(step), embedded[chunk]) for step in steps]
        rows.append((f"s = {s:g}", plan, images, scores[:, 0]))
        table += [[s, i, plan.steps[i].scale, *vars_of(mean_interval(scores[i]))] for i in range(len(plan))]
    title = f"{args.backbone}: “{texts[0]}”; CLIP score of the image that each step predicts"
    (args.out / "trajectory.png").write_bytes(plots.as_png(plots.trajectory_plot(rows, title)))
    with open(args.out / "trajectory.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["s", "step", "scale", "clip", "low", "high", "n"])
        writer.writerows(table)
    print(f"{args.out}: profile.png, profile.csv, trajectory.png, trajectory.csv")


def vars_of(interval) -> list:
    return [*np.round([interval.value, interval.low, interval.high], 3), interval.n]


if __name__ == "__main__":
    main()
