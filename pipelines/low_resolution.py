"""Does a model bear to begin at the low resolution of a plan? Asked with a few images, before hours are spent on many.

Mixed resolution needs a model that can: most are trained at one resolution. The paper's Table 7 has stock SD1.5, of
512 px, under PostDiff with beta = s = 1/2 at an FID of 63.64 and a CLIP score of 19.47 (30.80 as it is), and at 22.28
and 28.68 once it is fine-tuned for it.

What is asked is what a plan does: images of full size whose first half of the steps were at the low resolution. Images
of that resolution themselves would not tell: fine texture is lost in them, whoever draws them.

A run of few prompts is not asked before: it takes as long as the question, and its own rows answer it.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import postdiff
from pipelines import evaluation
from pipelines.engine.cluster import Resources
from pipelines.engine.urls import below
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics.metric import METRICS
from pipelines.options import OfOneModel
from pipelines.report.tables import Row
from pipelines.stages import worker
from postdiff import methods
from postdiff.models.checkpoints import resolve
from postdiff.plan import Plan

PROMPTS = 16
WORTHWHILE = 4 * PROMPTS  # prompts of a run, from which on it is asked before
LOSS = 0.1  # of the CLIP score at full size: with less a model bears it; the stock SD1.5 of Table 7 loses over a third
SHARE = 0.5  # of the steps, as in Table 7
CLIP_SCORE = METRICS["clip"]


def warnings(options: OfOneModel, plans: Sequence[Plan], protocol: Protocol, resources: Resources) -> list[str]:
    """A line for each low resolution of `plans` at which the model cannot begin; each is printed, too.

    Images of the model as it is, and of those that begin so, are kept in OUT/low-resolution.
    """
    entries = beginnings(options, plans)
    if not asked(entries, protocol):
        if len(entries) > 1:
            reason = f"{len(protocol.prompts)} prompts are fewer than {WORTHWHILE}, and this run itself tells"
            print(f"low resolutions are not tried beforehand: {reason}", file=sys.stderr)
        return []
    listed = protocol.prompts[:PROMPTS]
    few = replace(protocol, prompts=listed, prompts_per_shard=min(protocol.prompts_per_shard, len(listed)),
                  reference=(), only=CLIP_SCORE.key, name="")  # fmt: skip
    store = evaluation.claim_store(below(options.out, "low-resolution"), few)
    evaluated = worker.mending(store, lambda: evaluation.evaluate(store, entries, few, resources))
    evaluated.check()
    lines = losses(options.backbone, evaluated.complete)
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)
    return lines


def asked(entries: Sequence[Entry], protocol: Protocol) -> bool:
    """Whether there is a low resolution, and a run that is long beside the question."""
    return len(entries) > 1 and len(protocol.prompts) >= WORTHWHILE


def beginnings(options: OfOneModel, plans: Sequence[Plan]) -> list[Entry]:
    """The model as it is, and with SHARE of its steps at each low resolution of `plans`, the largest first."""
    spec = resolve(options.backbone)
    from postdiff.resolution import latent_size  # it imports torch

    steps = spec.settings["steps"]
    scales = sorted({step.scale for plan in plans for step in plan.steps} - {1.0}, reverse=True)
    probed = [methods.dense(steps), *(methods.mixed_resolution(steps, scale, SHARE) for scale in scales)]
    configured = [evaluation.configure(options, options.backbone, plan) for plan in probed]
    latents = spec.latents(configured[0].sampling.size)
    pixels = configured[0].sampling.size[0] // latents[0]  # of a latent's side
    entries = {}
    for scale, configuration, price in zip((1.0, *scales), configured, postdiff.costs(probed, spec), strict=True):
        height, width = (pixels * side for side in latent_size(latents, scale, spec.patch))
        configuration = replace(configuration, batch_size=min(configuration.batch_size, PROMPTS))
        entries[configuration.id] = Entry(
            configuration.plan.name, f"{height}x{width} px", configuration, price.macs_paper, price.flops
        )
    return list(entries.values())


def losses(backbone: str, rows: Sequence[Row]) -> list[str]:
    """A line for each row whose CLIP score is clearly below the first one's, by more than LOSS of it."""
    first, *others = rows
    best = first.interval(CLIP_SCORE)
    lines = []
    for row in others:
        change = CLIP_SCORE.difference(row.interval(CLIP_SCORE), [(1.0, best)])
        if change.high < -LOSS * best.value:
            lines.append(
                f"{backbone} cannot begin at {row.settings}: CLIP score {row.interval(CLIP_SCORE).value:.2f} with half "
                f"of the steps there, {best.value:.2f} at {first.settings} (change {change:+.2f}, n = {best.n}); plans "
                "that do will fail as in the paper's Table 7, unless it is fine-tuned for it (jobs/finetune.py)"
            )
    return lines
