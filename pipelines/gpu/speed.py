"""How fast is it on this device? The plans of the paper's Tables 2 to 6 on the real architectures with random weights:
the latency of one image, batches up to where memory ends, and the denoiser compiled.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import postdiff
from pipelines.gpu.random_backbones import random_text, thin
from pipelines.gpu.runs import Budget, Outcome, Settings, decode, free, latents, now, peak_from_here, peak_gib, reason
from pipelines.metrics.pace import at_one_pace
from pipelines.paper import exhibits, presets
from pipelines.paper.exhibit import Exhibit
from postdiff import methods
from postdiff.mechanisms import ScheduledModules, TokenMerging
from postdiff.models.anatomy import anatomy
from postdiff.models.checkpoints import HUB
from postdiff.models.families import adapt
from postdiff.models.loading import outline
from postdiff.models.spec import Spec
from postdiff.plan import Plan
from postdiff.text import Embeddings

TABLES = ("table2", "table3", "table4", "table5", "table6")
OTHER_VAE = "sdxl-fp16-vae"  # not in the paper: what SDXL's decoding takes in half precision
# DiTFastAttn's schedule is found on real weights. This one is made up: in full, reused, in a window, reused.
MADE_UP = "S.w."
WARM_UP = 2  # rounds that do not count, of a GPU; of a CPU one
BATCHED = ("sd15", "sdxl", "pixart")
BATCHES, THIN_BATCHES = (1, 2, 4, 8, 16, 32), (1, 2)
COMPILED = "sd15"
COMPILED_BATCHES, THIN_COMPILED_BATCHES = (1, 8), (1,)


def tables(thinned: bool) -> list[Exhibit]:
    """Tables 2 to 6 as exhibits whose plans all run without weights."""
    spec = thin(HUB["pixart"]) if thinned else HUB["pixart"]
    dense = methods.dense(20)
    marks = (MADE_UP * len(dense))[: len(dense)]
    schedule = tuple((name, marks) for name in anatomy(outline(spec)).layers("self-attention"))
    searched = {
        "table3.ca_tome": presets.plan("table3.ca_tome"),
        "table4.ditfastattn": Plan("ditfastattn", dense.steps, (ScheduledModules(schedule),)),
    }
    return exhibits.gather(list(TABLES), searched)


def plans_of(shown: list[Exhibit]) -> dict[str, dict[str, Plan]]:
    """{model: {id: plan}}: what the tables share is run once. SDXL's dense plan and PostDiff are run with both of its
    autoencoders."""
    by_model: dict[str, dict[str, Plan]] = {}
    for exhibit in shown:
        for cell in exhibit.cells:
            by_model.setdefault(cell.model, {})[cell.plan.id] = adapt(cell.plan, HUB[cell.model].family)
    compared = ends(by_model["sdxl"])
    by_model[OTHER_VAE] = {key: plan for key, plan in by_model["sdxl"].items() if plan in compared.values()}
    return by_model


def ends(plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """The reference, and the first PostDiff: the paper's for that model."""
    return {"dense": plans[reference(plans)], "PostDiff": next(p for p in plans.values() if p.name == "postdiff")}


def reference(plans: Mapping[str, Plan]) -> str:
    """The id of the plan that speed-ups are over: the model as it is, at its most steps."""
    return max((key for key, plan in plans.items() if plan.name == "dense"), key=lambda key: len(plans[key]))


def latency(settings: Settings, budget: Budget) -> Outcome:
    """Seconds of one image, noise to pixels, text encoded before: the plans of a model alternate."""
    outcome = Outcome()
    plans = plans_of(tables(settings.thin))
    flops = {name: _flops(settings.spec(name), group) for name, group in plans.items()}
    for name, share in budget.shares(list(plans), [float(sum(group.values())) for group in flops.values()]):
        backbone = settings.backbone(name)
        runs, peaks = _alternate(backbone, plans[name], settings, share, outcome)
        counted = min(map(len, runs.values()), default=0)
        if counted:
            stages = {key: np.array(took[:counted]) for key, took in runs.items()}
            numbers = summarise(plans[name], stages, peaks, flops[name])
            outcome.numbers |= {f"{name} {key}": row for key, row in numbers.items()}
        if counted < settings.rounds:
            outcome.left_out.append(f"{name}: {settings.rounds - counted} of {settings.rounds} rounds")
        del backbone
        free(settings.device)
    return outcome


def _flops(spec: Spec, plans: Mapping[str, Plan]) -> dict[str, int]:
    """By plan; how much CA-ToMe merges, and so what it costs, depends on the image."""
    merging = {key: plan.get(TokenMerging) for key, plan in plans.items()}
    unknown = {key for key, tokens in merging.items() if tokens and tokens.threshold is not None}
    priced = {key: plan for key, plan in plans.items() if key not in unknown}
    costs = postdiff.costs(list(priced.values()), spec)
    return {key: cost.flops for key, cost in zip(priced, costs, strict=True)}


def _alternate(
    backbone: postdiff.Backbone, plans: Mapping[str, Plan], settings: Settings, budget: Budget, outcome: Outcome
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float | None]]:
    """Seconds of denoising and decoding of every counted run, by plan, and GiB at the peak of each plan.

    A plan that fails is told in `found`, and not run again. Ends when there is no time left, within a round too.
    """
    name, device, text = backbone.spec.name, settings.device, random_text(backbone, 1)
    warm_up = 1 if device == "cpu" else WARM_UP
    running = dict(plans)
    runs: dict[str, list[tuple[float, float]]] = {key: [] for key in running}
    peaks: dict[str, float | None] = dict.fromkeys(running)
    with tqdm(total=(warm_up + settings.rounds) * len(running), desc=name, unit="run", leave=False) as bar:
        for i in range(warm_up + settings.rounds):
            for key, plan in list(running.items()):
                if budget.left <= 0:
                    return runs, peaks
                try:
                    seconds, peak = _draw(backbone, text, plan, 1, device)
                except Exception as error:  # the other plans are still worth their minutes
                    outcome.failed[f"{name} {plan.name} {key}"] = reason(error)
                    del running[key], runs[key], peaks[key]
                    continue
                if i >= warm_up:
                    runs[key].append(seconds)
                    peaks[key] = peak if peak is None else max(peak, peaks[key] or 0.0)
                bar.update()
    return runs, peaks


def _draw(
    backbone: postdiff.Backbone, text: Embeddings, plan: Plan, n: int, device: str
) -> tuple[tuple[float, float], float | None]:
    """Draw `n` images: seconds of denoising (the initial noise too) and of decoding, GiB at the peak."""
    peak_from_here(device)
    began = now(device)
    clean = latents(backbone, text, plan, None, list(range(n)))
    denoised = now(device)
    decode(backbone, clean)
    return (denoised - began, now(device) - denoised), peak_gib(device)


def summarise(
    plans: Mapping[str, Plan],
    stages: Mapping[str, np.ndarray],
    peaks: Mapping[str, float | None],
    flops: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    """{plan id: its numbers}. stages: seconds of denoising and decoding, [rounds, 2], by plan, equally many rounds.

    Seconds are of one pace (`at_one_pace`): the reference's, times a plan's share of them in the same round, so
    that no speed-up contradicts them. Without the reference they are of the first plan's, and there are no speed-ups.
    """
    first = reference(plans)
    keys = sorted(stages, key=lambda key: key != first)  # the order is kept else
    paced = np.stack(at_one_pace(np.stack([stages[key] for key in keys], 1)), 1) if keys else np.empty((0, 3))
    known = dict(zip(keys, paced, strict=True))
    summaries = {}
    for key, took in stages.items():
        p50, p90, denoise = known[key]
        numbers: dict[str, Any] = {"plan": f"{plans[key].name} T={len(plans[key])}", "rounds": len(took)}
        numbers |= {"p50_s": p50, "p90_s": p90, "denoise_s": denoise, "decode_s": p50 - denoise}
        numbers |= {"peak_gib": peaks[key], "flops": flops.get(key)}
        if first in stages:
            numbers["speedup"] = known[first][0] / p50
            numbers["denoise_speedup"] = known[first][2] / denoise
        if key in flops:
            numbers["flops_allow"] = flops[first] / flops[key]
            numbers["tflop_per_s"] = flops[key] / denoise / 1e12
        summaries[key] = {
            name: round(float(x), 5) if isinstance(x, np.floating | float) else x for name, x in numbers.items()
        }
    return summaries


def batch(settings: Settings, budget: Budget) -> Outcome:
    """Images a second and memory of the dense plan and PostDiff at growing batches, up to where memory ends."""
    outcome = Outcome()
    plans = plans_of(tables(settings.thin))
    for name, share in budget.shares(BATCHED):
        backbone = settings.backbone(name)
        _grow(backbone, ends(plans[name]), settings, share, outcome)
        del backbone
        free(settings.device)
    return outcome


def _grow(
    backbone: postdiff.Backbone, plans: Mapping[str, Plan], settings: Settings, budget: Budget, outcome: Outcome
) -> None:
    """Each batch twice, the second run counts. One that would not end in time, judged by the batch before it, is not
    begun."""
    name, sizes = backbone.spec.name, THIN_BATCHES if settings.thin else BATCHES
    running, took = dict(plans), dict.fromkeys(plans, 0.0)
    for n in tqdm(sizes, desc=name, unit="batch", leave=False):
        text = random_text(backbone, n)
        for label, plan in list(running.items()):
            key = f"{name} {label} x{n}"
            if budget.left <= 2 * took[label]:
                outcome.left_out.append(key)
                continue
            began = now(settings.device)
            try:
                speed = _throughput(backbone, text, plan, n, settings.device)
                outcome.numbers[key] = {"model": name, "plan": label, "batch": n, **speed}
            except torch.OutOfMemoryError:
                outcome.notes.append(f"memory ends: {key}")
                del running[label]
            except Exception as error:  # the other batches are still worth their minutes
                outcome.failed[key] = reason(error)
                del running[label]
            if label not in running:
                free(settings.device)  # here the error, and what it refers to, is gone
            took[label] = now(settings.device) - began


def _throughput(
    backbone: postdiff.Backbone, text: Embeddings, plan: Plan, n: int, device: str
) -> dict[str, float | None]:
    _draw(backbone, text, plan, n, device)
    (denoise, decoding), peak = _draw(backbone, text, plan, n, device)
    seconds = denoise + decoding
    return {"images_per_s": round(n / seconds, 3), "decode_share": round(decoding / seconds, 3), "peak_gib": peak}


def compiled(settings: Settings, budget: Budget) -> Outcome:
    """SD1.5's denoiser compiled by torch, beside itself as it is: seconds of denoising."""
    outcome = Outcome()
    backbone, plans = settings.backbone(COMPILED), ends(plans_of(tables(settings.thin))[COMPILED])
    sizes = THIN_COMPILED_BATCHES if settings.thin else COMPILED_BATCHES
    work = {
        f"{label} x{n}": partial(_compare, backbone, plan, n, settings.device)
        for n in sizes
        for label, plan in plans.items()
    }
    outcome.run(COMPILED, work, budget)
    return outcome


def _compare(backbone: postdiff.Backbone, plan: Plan, n: int, device: str) -> dict[str, float | int]:
    """graphs_while_timed: graphs that were compiled in the run that counts; if any, its seconds are not the model's.

    off: how far the latents are, as a share of those that are not compiled.
    """
    text, seeds = random_text(backbone, n), list(range(n))

    def run() -> tuple[torch.Tensor, float]:
        began = now(device)
        clean = latents(backbone, text, plan, None, seeds)
        return clean, now(device) - began

    run()
    expected, eager = run()
    backbone = replace(backbone, compiled=True)
    _, first = run()
    run()
    graphs = _graphs()
    got, again = run()
    graphs = _graphs() - graphs
    torch._dynamo.reset()
    off = float((got - expected).abs().mean() / expected.abs().mean())
    numbers = {"eager_s": eager, "compiled_s": again, "first_run_s": first, "off": off}
    return {**{key: round(value, 5) for key, value in numbers.items()}, "graphs_while_timed": graphs}


def _graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
