"""Is it right on this device? Every method and solver of every family: in float32 beside the CPU, in half precision
beside float32, and on the real architectures with random weights.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
import torch

import postdiff
from pipelines.gpu.random_backbones import random_text
from pipelines.gpu.runs import Budget, Outcome, Settings, count_waits, free, latents
from postdiff import decoding, methods
from postdiff.mechanisms import ScheduledModules, TokenCache, TokenMerging
from postdiff.mechanisms.attach import runners
from postdiff.models.anatomy import anatomy
from postdiff.models.evaluations import goes_with
from postdiff.models.families import FAMILIES, adapt
from postdiff.plan import Plan
from postdiff.text import Embeddings

STEPS, THIN_STEPS = 6, 3
PROMPTS = ["a big red star on snow", "a white circle on night"]
SEEDS = [11, 12]
HALF = (torch.float16, torch.bfloat16)
ARCHITECTURES = ("sd15", "lcm", "sdxl", "pixart", "bk-sdm-tiny")
# What rounding may change: in float32, of the largest latent (one CPU's kernels among themselves: 1e-5); in half
# precision, of all latents in the mean, beyond which it is another picture. More of plans that choose tokens by
# comparing numbers: near-ties are chosen otherwise.
OFF = {"plain": 1e-3, "choosing": 0.1}
FAR = {"plain": 0.2, "choosing": 0.6}
LEVELS = 2  # of 255, in float32
FINITE = "finite"
SOLVED_BY_ALL = ("dense", "mixed_resolution", "postdiff")  # plans that run with every solver; the others with one


@dataclass(frozen=True)
class Case:
    label: str
    plan: Plan
    solver: str

    @property
    def merges(self) -> bool:
        return self.plan.get(TokenMerging) is not None

    @property
    def kind(self) -> str:
        """Of OFF and FAR."""
        return "choosing" if self.merges or self.plan.get(TokenCache) else "plain"


def cases(backbone: postdiff.Backbone, settings: Settings, refused: dict[str, str]) -> list[Case]:
    """Every method, each at both resolutions too, with the solvers that are offered; in a thin rehearsal each once.

    refused: gets what the family cannot run, and why.
    """
    family, listed = backbone.spec.family, []
    plans = _plans(backbone, THIN_STEPS if settings.thin else STEPS)
    if not settings.thin:
        plans |= _at_both_resolutions(backbone.spec.name, plans, refused)
    for name, plan in plans.items():
        try:
            plan = adapt(plan, family)
            runners(backbone.denoiser, plan)
        except ValueError as error:
            refused[f"{backbone.spec.name} {name}"] = str(error)
            continue
        all_solvers = name == "dense" or (name in SOLVED_BY_ALL and not settings.thin)
        solvers = FAMILIES[family].solvers if all_solvers else (backbone.spec.solver,)
        listed += [Case(f"{name} {solver}", _longer(plan, name, family, solver), solver) for solver in solvers]
    return listed


def _longer(plan: Plan, name: str, family: str, solver: str) -> Plan:
    """The plan, of so many more steps that the solver takes it: some run the model more often than they take steps."""
    lengths = count(len(plan) + 1)
    while not goes_with(solver, plan):
        plan = adapt(methods.METHODS[name](next(lengths), **_settings(name, family)), family)
    return plan


def _bearable(all_cases: list[Case], dtype: torch.dtype, settings: Settings) -> list[Case]:
    """Float16 takes a CPU ten times as long as float32: there it rehearses one case."""
    return all_cases[:1] if dtype == torch.float16 and settings.device == "cpu" else all_cases


def _plans(backbone: postdiff.Backbone, steps: int) -> dict[str, Plan]:
    """{name: plan}, those of methods that are searched with schedules that are made up."""
    family = backbone.spec.family
    plans = {name: make(steps, **_settings(name, family)) for name, make in methods.METHODS.items()}
    plans["faster_diffusion ahead"] = methods.faster_diffusion(steps, key_steps=(0, 2, 4), ahead=True)
    plans |= {plan.name: plan for plan in scheduled(backbone.denoiser, steps, FAMILIES[family].guided)}
    return plans


def _at_both_resolutions(model: str, plans: dict[str, Plan], refused: dict[str, str]) -> dict[str, Plan]:
    """Those that are at one resolution, at half of it first."""
    low = {}
    for name, plan in plans.items():
        if plan.steps[0].scale == 1:
            try:
                low[f"{name} low"] = postdiff.low_first(plan, 0.5, 0.5)
            except ValueError as error:
                refused[f"{model} {name} low"] = str(error)
    return low


def _settings(name: str, family: str) -> dict[str, Any]:
    """What makes a method do all that it can in few steps, on every family that it goes with. (The first tokens of SDXL
    and PixArt are two latents wide.)"""
    settings: dict[str, dict[str, Any]] = {
        "tome": {"max_downsample": 2},
        "ca_tome": {"max_downsample": 2, "match_steps": (0, 2, 4)},
        "todo": {"factor_2": 2},
        "faster_diffusion": {"key_steps": (0, 2, 4)},
        "tgate": {"sp_interval": 2, "warm_up": 1},
        "postdiff": {"k": 1} if FAMILIES[family].no_deep else {},
    }
    return settings.get(name, {})


def scheduled(denoiser: torch.nn.Module, steps: int, guided: bool) -> list[Plan]:
    """Plans of block caching and DiTFastAttn whose schedules are made up: a search would need real weights."""
    parts = anatomy(denoiser)

    def plan(name: str, modules: Sequence[str], marks: str) -> Plan:
        repeated = (marks * steps)[:steps]
        return Plan(name, methods.dense(steps).steps, (ScheduledModules(tuple((m, repeated) for m in modules)),))

    return [
        plan("block_caching", parts.transformers, "#."),
        plan("ditfastattn", parts.layers("self-attention"), "S.xcw#" if guided else "S.w#"),
    ]


def agree(settings: Settings, budget: Budget) -> Outcome:
    """The mini models in float32, without TF32: beside the CPU, the same bits twice, an image alone and in a batch."""
    outcome = Outcome()
    with exact_float32():
        for name, share in budget.shares(settings.minis):
            host, here = (postdiff.load(name, device, torch.float32) for device in ("cpu", settings.device))
            texts = [postdiff.encode(host, PROMPTS[:n], n) for n in (1, len(PROMPTS))]
            work = {
                case.label: partial(_agreement, host, here, texts, case, settings.device)
                for case in cases(host, settings, outcome.refused)
            }
            outcome.run(name, work, share, _disagreement)
            outcome.run(name, {"pixels": partial(_pixel_agreement, host, here, texts)}, share, _pixel_disagreement)
    compared = {key: measured for key, measured in outcome.numbers.items() if isinstance(measured, dict)}
    unordered = [key for key, measured in compared.items() if not measured["repeats"] and measured["merges"]]
    if unordered:
        outcome.notes.append(
            f"merging adds tokens up in no fixed order, so these do not repeat to the last bit: {', '.join(unordered)}"
        )
    lines: Counter[str] = Counter()
    for measured in compared.values():
        lines.update(measured["waits"])
    outcome.notes.append(
        "waits for the GPU in the steps of all cases, by line: "
        + (", ".join(f"{line} ({n})" for line, n in lines.most_common(12)) or "none")
    )
    return outcome


@contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 off inside: 10 bits of a product are no reason to doubt a method."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def _agreement(
    host: postdiff.Backbone, here: postdiff.Backbone, texts: list[Embeddings], case: Case, device: str
) -> dict[str, Any]:
    """How far the device is from the CPU, and a batch from its first image alone, as shares of the largest latent."""
    alone, both = texts
    expected = latents(host, both, case.plan, case.solver, SEEDS)
    waits: Counter[str] = Counter()
    got = latents(here, both, case.plan, case.solver, SEEDS, count_waits(device, waits)).cpu()
    again = latents(here, both, case.plan, case.solver, SEEDS).cpu()
    first = latents(here, alone, case.plan, case.solver, SEEDS[:1]).cpu()
    largest = _finite(expected).abs().max()
    return {
        "off": float((_finite(got) - expected).abs().max() / largest),
        "alone": float((_finite(first) - got[:1]).abs().max() / largest),
        "repeats": bool(torch.equal(got, again)),
        "merges": case.merges,
        "kind": case.kind,
        "waits": dict(waits),
    }


def _disagreement(measured: dict[str, Any]) -> str:
    """Why numbers of `_agreement` are wrong, or ""."""
    tolerance = OFF[measured["kind"]]
    why = [
        f"{measured[key]:.1e} {what}, more than {tolerance:g}"
        for key, what in (("off", "off the CPU"), ("alone", "between an image alone and in a batch"))
        if measured[key] > tolerance
    ]
    if not measured["repeats"] and not measured["merges"]:
        why.append("another result the second time")
    return "; ".join(why)


def _pixel_agreement(host: postdiff.Backbone, here: postdiff.Backbone, texts: list[Embeddings]) -> int:
    """Levels of 255 that a pixel of the dense plan is at most away from the CPU's."""
    plan = adapt(methods.dense(THIN_STEPS), host.spec.family)
    expected, got = (decoding.decode(b, latents(b, texts[1], plan, None, SEEDS)) for b in (host, here))
    return int(np.abs(expected.astype(int) - got.astype(int)).max())


def _pixel_disagreement(levels: int) -> str:
    return f"a pixel is {levels} levels off the CPU's, more than {LEVELS}" if levels > LEVELS else ""


def half(settings: Settings, budget: Budget) -> Outcome:
    """The mini models in float16 and bfloat16: how far latents are from float32's, as a share of these."""
    outcome = Outcome()
    for name, share in budget.shares(settings.minis):
        full = postdiff.load(name, settings.device, torch.float32)
        low = {dtype: postdiff.load(name, settings.device, dtype) for dtype in HALF}
        text = postdiff.encode(full, PROMPTS, len(PROMPTS))
        every = cases(full, settings, outcome.refused)
        expected = {case.label: cache(partial(latents, full, text, case.plan, case.solver, SEEDS)) for case in every}
        work: dict[str, Callable[[], dict[str, Any]]] = {
            f"{case.label} {_short(dtype)}": partial(_distance, b, text, case, expected[case.label])
            for dtype, b in low.items()
            for case in _bearable(every, dtype, settings)
        }
        outcome.run(name, work, share, _too_far)
        outcome.run(name, {f"decoded {_short(dtype)}": partial(_decodes, b, text) for dtype, b in low.items()}, share)
    shares = {key: measured["off"] for key, measured in outcome.numbers.items() if isinstance(measured, dict)}
    far = sorted(shares.items(), key=lambda item: -item[1])[:4]
    outcome.notes.append("farthest from float32: " + (", ".join(f"{key} {share:.3f}" for key, share in far) or "none"))
    return outcome


def _distance(
    backbone: postdiff.Backbone, text: Embeddings, case: Case, expected: Callable[[], torch.Tensor]
) -> dict[str, Any]:
    got = _finite(latents(backbone, text, case.plan, case.solver, SEEDS)).float()
    return {"off": float((got - expected()).abs().mean() / expected().abs().mean()), "kind": case.kind}


def _too_far(measured: dict[str, Any]) -> str:
    far = FAR[measured["kind"]]
    return (
        f"{measured['off']:.2f} of the latents off float32 in the mean, more than {far:g}"
        if measured["off"] > far
        else ""
    )


def full(settings: Settings, budget: Budget) -> Outcome:
    """The real architectures in float16 and bfloat16: all that comes out is finite, and of that dtype."""
    outcome = Outcome()
    pairs = [(name, dtype) for name in ARCHITECTURES for dtype in HALF]
    for (name, dtype), share in budget.shares(pairs):
        backbone = settings.backbone(name, dtype)
        text = random_text(backbone, 1)
        work: dict[str, Callable[[], str]] = {
            case.label: partial(_runs, backbone, text, case, dtype)
            for case in _bearable(cases(backbone, settings, outcome.refused), dtype, settings)
        }
        work["decoded"] = partial(_decodes, backbone, text, 1)
        outcome.run(f"{name} {_short(dtype)}", work, share)
        del backbone, work
        free(settings.device)
    return outcome


def _runs(backbone: postdiff.Backbone, text: Embeddings, case: Case, dtype: torch.dtype) -> str:
    clean = _finite(latents(backbone, text, case.plan, case.solver, SEEDS[:1]))
    if clean.dtype != dtype:
        raise TypeError(f"latents must be {dtype}, got {clean.dtype}")
    return FINITE


def _decodes(backbone: postdiff.Backbone, text: Embeddings, n: int = len(SEEDS)) -> str:
    """Dense latents of `n` images become pixels: `decode` raises for what is not finite."""
    plan = adapt(methods.dense(THIN_STEPS), backbone.spec.family)
    decoding.decode(backbone, latents(backbone, text, plan, None, SEEDS[:n]))
    return FINITE


def _finite(clean: torch.Tensor) -> torch.Tensor:
    broken = int((~clean.isfinite()).sum())
    if broken:
        raise ArithmeticError(f"{broken} of {clean.numel()} latents are not finite in {_short(clean.dtype)}")
    return clean


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
