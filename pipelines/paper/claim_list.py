"""What the paper says, sentence by sentence: plans of its models, and which of two should be better by what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.paper import presets
from postdiff import methods
from postdiff.plan import Plan

Expected = Literal["better", "worse", "alike"]


@dataclass(frozen=True)
class Claim:
    """`plan` is expected to be `expected` than `against` by `metric`.

    section: of the paper. text: its sentence, in our words; the metrics beside FID and CLIP score are ours. model: the
    paper's name.
    """

    section: str
    text: str
    model: str
    plan: Plan
    against: Plan
    metric: str
    expected: Expected

    @property
    def plans(self) -> tuple[Plan, Plan]:
        return self.plan, self.against


NAMES: dict[str, str] = {}  # plan id: how the table names it


def name(plan: Plan) -> str:
    return NAMES.get(plan.id, f"{plan.name.replace('_', ' ')} T={len(plan)}")


def mixed(steps: int = 20, s: float = 0.5, beta: float = 0.5) -> Plan:
    return _named(f"+Mix T={steps} beta={beta:g} s={s:g}", methods.mixed_resolution(steps, beta, s))


def cached(m: int, mode: str = "cond") -> Plan:
    plan = methods.postdiff(20, s=0.0, k=2, m=m, mode=mode)  # type: ignore[arg-type]
    return _named(f"DC+CA ({m}, {mode.title()})", plan)


def ours(k: int = 2, m: float = 15, s: float = 0.5, beta: float = 0.5, steps: int = 20) -> Plan:
    return _named(f"PostDiff T={steps} beta={beta:g} s={s:g} k={k} m={m:g}", methods.postdiff(steps, beta, s, k, m))


def few(steps: int) -> Plan:
    return _named(f"T={steps}", methods.dense(steps))


def _named(label: str, plan: Plan) -> Plan:
    NAMES.setdefault(plan.id, label)
    return plan


DENSE, DC = few(20), _named("DC k=2", methods.deepcache(20, 2))
NO_CFG = _named("no CFG", methods.no_cfg(20))
DC_FEW = _named("DC k=2 T=8", methods.deepcache(8, 2))
RIVALS = (
    DC,
    _named("T-GATE (5)", presets.plan("table3.tgate")),
    _named("ToMe", presets.plan("table3.tome")),
    _named("Faster Diffusion", presets.plan("table3.faster_diffusion")),
)
PIXART_RIVAL = _named("T-GATE (8)", presets.plan("table4.tgate"))
XL_MIX, XL = mixed(s=0.2, beta=0.75), ours(s=0.2, beta=0.75)
PIXART_MIX, PIXART = mixed(beta=0.75), ours(1, beta=0.75)
LCM_MIX, LCM = mixed(8), ours(1, 4, steps=8)


def _claims() -> list[Claim]:
    listed: list[Claim] = []

    def claim(section: str, text: str, model: str, plan: Plan, against: Plan, **metrics: Expected) -> None:
        listed.extend(Claim(section, text, model, plan, against, key, way) for key, way in metrics.items())

    # fmt: off
    sd = "sd15"
    claim("1", "fewer steps are more sensitive to compression", sd, DC_FEW, DC, psnr_dense="worse")
    claim("2.1", "layout is decided early, so low resolution is enough for it",
          sd, mixed(s=0.3), DENSE, relation="alike")
    claim("2.3 (1)", "a moderate share of low-resolution steps improves the final image",
          sd, mixed(s=0.3), DENSE, clip="better", attributes="better", content="better")
    claim("2.4 (1)", "mixed resolution lowers FID", sd, mixed(), DENSE, fid="better", clip="alike")
    claim("2.4 (2)", "s = 0.5 is better than s = 0.1", sd, mixed(), mixed(s=0.1), fid="better")
    claim("2.4 (2)", "s = 0.6 is past the optimum", sd, mixed(s=0.6), mixed(), fid="worse")
    claim("2.4 (3)", "for high fidelity mixed resolution beats fewer steps", sd, mixed(), few(12), fid="better")
    claim("2.4 (3)", "for extreme efficiency fewer steps win", sd, mixed(8), few(5), fid="worse")
    claim("2.5", "features are alike from step to step, so they can be cached",
          sd, DC, DENSE, fid="alike", clip="alike", attributes="alike")
    claim("2.5", "caching keeps more of the image than fewer steps of its cost", sd, DC, few(12), psnr="better")
    claim("2.5 (1)", "without guidance quality collapses",
          sd, NO_CFG, DENSE, fid="worse", clip="worse", attributes="worse")
    claim("2.5 (1)", "cached cross-attention balances better than no guidance",
          sd, cached(15), NO_CFG, fid="better", clip="better")
    claim("2.5 (2)", "guidance dropped earlier costs quality",
          sd, cached(5), cached(15), fid="worse", clip="worse", psnr="worse", attributes="worse")
    claim("2.5 (3)", "Cond slightly surpasses Ave at larger m",
          sd, cached(15), cached(15, "ave"), fid="better", clip="better", psnr="better")
    claim("2.5 (3)", "Cond beats Uncond",
          sd, cached(5), cached(5, "uncond"), fid="better", clip="better", psnr="better")
    claim("2.5 (3)", "Cond beats CFG at small m",
          sd, cached(5), cached(5, "cfg"), fid="better", clip="better", psnr="better")
    claim("3.2 (1)", "PostDiff beats fewer steps of its cost", sd, ours(), few(6), fid="better")
    claim("3.2 (1)", "PostDiff beats fewer steps of its cost", "pixart", PIXART, few(13), fid="better")
    claim("3.2 (2)", "its CLIP score is comparable at equal cost",
          sd, ours(), few(6), clip="alike", attributes="alike")
    claim("3.2 (2)", "its CLIP score is comparable at equal cost", "pixart", PIXART, few(13), clip="alike")
    claim("3.2 (2)", "for extreme efficiency fewer steps have the higher CLIP score",
          sd, ours(m=9), few(5), clip="worse")
    claim("3.3 (1)", "fewer steps lose quality",
          sd, few(8), DENSE, fid="worse", clip="worse", psnr="worse", attributes="worse", content="worse")
    claim("3.3 (1)", "PostDiff improves on the model as it is", sd, ours(), DENSE, fid="better")
    claim("3.3 (1)", "PostDiff improves on the model as it is", "pixart", PIXART, DENSE, fid="better")
    claim("3.3 (2)", "PostDiff beats fewer steps of its cost on a distilled model",
          "lcm", LCM, few(3), fid="better", clip="alike")
    claim("3.3 (2)", "PostDiff beats fewer steps of its cost on a larger model",
          "sdxl", XL, few(10), fid="better", clip="alike")
    claim("Table 2", "mixed resolution improves a distilled model", "lcm", LCM_MIX, few(8), fid="better", clip="alike")
    claim("Table 2", "mixed resolution costs a larger model nothing", "sdxl", XL_MIX, DENSE, fid="alike", clip="alike")
    claim("Table 2", "mixed resolution improves a transformer",
          "pixart", PIXART_MIX, DENSE, fid="better", clip="alike")
    for plan in RIVALS:
        claim("3.4", "PostDiff has a lower FID than others", sd, ours(), plan, fid="better")
    claim("3.4", "PostDiff has a lower FID than others", "pixart", PIXART, PIXART_RIVAL, fid="better")
    claim("App. B (2)", "a scale of 0.875 is slightly worse than 0.5", sd, mixed(beta=0.875), mixed(), fid="worse")
    claim("App. B (3)", "a scale of 0.375 is too small", sd, mixed(beta=0.375), mixed(), fid="worse")
    claim("App. C", "a larger k costs quality", sd, ours(3), ours(), fid="worse", clip="worse")
    claim("App. C", "a still larger k costs more", sd, ours(5), ours(3), fid="worse", clip="worse", attributes="worse")
    claim("App. C", "a smaller m costs quality", sd, ours(m=9), ours(), fid="worse", clip="worse")
    # fmt: on
    return listed


CLAIMS = tuple(_claims())
