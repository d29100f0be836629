"""Can a model draw at the low resolution of a plan at all? Asked with a few images, before hours are spent on many.

Mixed resolution needs a model that can: most are trained at one resolution. The paper's Table 7 has stock SD1.5, of
512 px, under PostDiff with beta = s = 1/2 at an FID of 63.64 and a CLIP score of 19.47 (30.80 as it is), and at 22.28
and 28.68 once it is fine-tuned for it.
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
from postdiff.resolution import latent_size

PROMPTS = 16
LOSS = 0.1  # of the CLIP score at full size: with less a model can draw; the stock SD1.5 of Table 7 loses over a third
CLIP_SCORE = METRICS["clip"]


def warnings(options: OfOneModel, plans: Sequence[Plan], protocol: Protocol, resources: Resources) -> list[str]:
    """A line for each low resolution of `plans` at which the model cannot draw; each is printed, too.

    Images of the model as it is, at those sizes and at its own, are kept in OUT/low-resolution.
    """
    entries = sizes(options, plans)
    if len(entries) < 2:
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


def sizes(options: OfOneModel, plans: Sequence[Plan]) -> list[Entry]:
    """The model as it is at its own size, and at every low resolution of `plans`, the largest first."""
    spec = resolve(options.backbone)
    dense = methods.dense(spec.settings["steps"])
    full = evaluation.configure(options, options.backbone, dense)
    full = replace(full, batch_size=min(full.batch_size, PROMPTS))
    (cost,) = postdiff.costs([dense], spec)
    latents = spec.latents(full.sampling.size)
    pixels = full.sampling.size[0] // latents[0]  # of a latent's side
    scales = sorted({step.scale for plan in plans for step in plan.steps} | {1.0}, reverse=True)
    found = {}
    for scale in scales:
        height, width = (pixels * side for side in latent_size(latents, scale, spec.patch))
        size = height if height == width else (height, width)
        flops = round(cost.flops * scale**2)  # about: it is for the order of work
        of = replace(full, size=size) if scale < 1 else full
        found[of.id] = Entry("dense", f"{height}x{width} px", of, round(cost.macs_paper * scale**2), flops)
    return list(found.values())


def losses(backbone: str, rows: Sequence[Row]) -> list[str]:
    """A line for each row whose CLIP score is clearly below the first one's, by more than LOSS of it."""
    first, *others = rows
    best = first.interval(CLIP_SCORE)
    lines = []
    for row in others:
        change = CLIP_SCORE.difference(row.interval(CLIP_SCORE), [(1.0, best)])
        if change.high < -LOSS * best.value:
            lines.append(
                f"{backbone} cannot draw at {row.settings}: CLIP score {row.interval(CLIP_SCORE).value:.2f} there, "
                f"{best.value:.2f} at {first.settings} (change {change:+.2f}, n = {best.n}); plans that begin at that "
                "resolution will fail as the paper's Table 7 does, unless it is fine-tuned for it (jobs/finetune.py)"
            )
    return lines
