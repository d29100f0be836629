"""The paper's sentences as claims that a run can contradict: each a difference of two plans, and its expected sign.

A claim's verdict comes from its interval alone; all intervals of the table hold together (max-t), so that in 19 of 20
tables like this none of the differences that are nothing is called one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pipelines.metrics.intervals import Interval, together
from pipelines.metrics.metric import METRICS, Metric
from pipelines.paper import presets
from pipelines.paper.exhibit import Cell, Exhibit
from pipelines.report import tables
from pipelines.report.tables import Row
from postdiff import methods
from postdiff.plan import Plan

Expected = Literal["better", "worse", "alike"]
# Within this, a difference is taken for none: what a user would hardly see, and the paper calls comparable. Points of FID
# (free of bias) and of the CLIP score, dB, percent.
MARGINS = {"fid": 1.0, "clip": 1.0, "psnr": 1.0, "attributes": 2.0, "content": 5.0, "relation": 5.0}
HEADER = (
    "section", "claim", "model", "plan", "against", "metric", "expected", "measured", "smallest effect seen",
    "n", "the paper", "verdict",
)  # fmt: skip
LEGEND = (
    "Measured: the plan less what it is held against, on the same prompts and noise, FID without its bias; the 95 % "
    "intervals of the whole table hold together (max-t). Smallest effect seen: half of the interval's width; a true "
    "difference below it would seldom be told from none. Agrees, contradicts: the interval leaves out 0 on the side "
    "that the claim says, or on the other; of `alike`, it lies within the margin, or leaves 0 and the margin out. "
    "Equivalent: a difference was claimed, and the whole interval lies within the margin. Margins: "
    + ", ".join(f"{METRICS[key].title} {margin:g}" for key, margin in MARGINS.items())
    + ". The minis were trained at low resolution too, which SD1.5 was not: stock SD1.5 at beta = s = 1/2 falls to FID "
    "63.64 and CLIP score 19.47 (the paper's Table 7)."
)


@dataclass(frozen=True)
class Claim:
    """`plan` is expected to be `expected` than `against` by `metric`.

    section: of the paper. text: its sentence, in our words. model: the paper's name. besides: a second pair of plans,
        whose difference is taken off the first one's. ours: the sentence is the paper's, the metric is not.
    """

    section: str
    text: str
    model: str
    plan: Plan
    against: Plan
    metric: str
    expected: Expected
    besides: tuple[Plan, Plan] | None = None

    @property
    def plans(self) -> tuple[Plan, ...]:
        return self.plan, self.against, *(self.besides or ())

    @property
    def setting(self) -> tuple[str, str]:
        """The plans as the table names them."""
        pairs = [(self.plan, self.against), *([self.besides] if self.besides else [])]
        return tuple(" less ".join(one) for one in zip(*[map(name, pair) for pair in pairs], strict=True))  # type: ignore[return-value]


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


NAMES: dict[str, str] = {}


def _named(label: str, plan: Plan) -> Plan:
    NAMES.setdefault(plan.id, label)
    return plan


DENSE, DC = few(20), _named("DC k=2", methods.deepcache(20, 2))
NO_CFG = _named("no CFG", methods.no_cfg(20))
RIVALS = {
    key: _named(label, presets.plan(key))
    for key, label in {
        "table3.tgate": "T-GATE (5)",
        "table3.tome": "ToMe",
        "table3.faster_diffusion": "Faster Diffusion",
        "table4.tgate": "T-GATE (8)",
    }.items()
}
XL_MIX, XL = mixed(s=0.2, beta=0.75), ours(s=0.2, beta=0.75)
PIXART_MIX, PIXART = mixed(beta=0.75), ours(1, beta=0.75)
LCM_MIX, LCM = mixed(8), ours(1, 4, steps=8)


def _claims() -> list[Claim]:
    found: list[Claim] = []

    def claim(section: str, text: str, model: str, plan: Plan, against: Plan, **metrics: Expected) -> None:
        found.extend(Claim(section, text, model, plan, against, key, way) for key, way in metrics.items())

    sd = "sd15"
    claim(
        "2.3 (1)",
        "a moderate share of low-resolution steps improves the final image",
        sd,
        mixed(s=0.3),
        DENSE,
        clip="better",
        attributes="better",
        content="better",
    )
    claim(
        "2.1", "layout is decided early, so low resolution is enough for it", sd, mixed(s=0.3), DENSE, relation="alike"
    )
    claim("2.4 (1)", "mixed resolution lowers FID", sd, mixed(), DENSE, fid="better", clip="alike")
    claim("2.4 (2)", "s = 0.5 is better than s = 0.1", sd, mixed(), mixed(s=0.1), fid="better")
    claim("2.4 (2)", "s = 0.6 is past the optimum", sd, mixed(s=0.6), mixed(), fid="worse")
    claim("2.4 (3)", "for high fidelity mixed resolution beats fewer steps", sd, mixed(), few(12), fid="better")
    claim("2.4 (3)", "for extreme efficiency fewer steps win", sd, mixed(8), few(5), fid="worse")
    claim(
        "2.5",
        "features are alike from step to step, so they can be cached",
        sd,
        DC,
        DENSE,
        fid="alike",
        clip="alike",
        attributes="alike",
    )
    claim("2.5", "caching keeps more of the image than fewer steps of its cost", sd, DC, few(12), psnr="better")
    claim(
        "2.5 (1)",
        "without guidance quality collapses",
        sd,
        NO_CFG,
        DENSE,
        fid="worse",
        clip="worse",
        attributes="worse",
    )
    claim(
        "2.5 (1)",
        "cached cross-attention balances better than no guidance",
        sd,
        cached(15),
        NO_CFG,
        fid="better",
        clip="better",
    )
    claim(
        "2.5 (2)",
        "cached cross-attention costs a slight decrease on top of DC",
        sd,
        cached(15),
        DC,
        clip="worse",
        psnr="worse",
    )
    claim(
        "2.5 (2)",
        "guidance dropped earlier costs quality",
        sd,
        cached(5),
        cached(15),
        clip="worse",
        psnr="worse",
        attributes="worse",
    )
    claim(
        "2.5 (3)",
        "Cond slightly surpasses Ave at larger m",
        sd,
        cached(15),
        cached(15, "ave"),
        clip="better",
        psnr="better",
    )
    claim("2.5 (3)", "Cond beats Uncond", sd, cached(5), cached(5, "uncond"), clip="better", psnr="better")
    claim(
        "2.5 (3)",
        "Cond beats CFG at small m",
        sd,
        cached(5),
        cached(5, "cfg"),
        fid="better",
        clip="better",
        psnr="better",
    )
    claim("3.2 (1)", "PostDiff beats fewer steps of its cost", sd, ours(), few(8), fid="better")
    claim("3.2 (2)", "and its CLIP score is comparable", sd, ours(), few(8), clip="alike", attributes="alike")
    claim(
        "3.3 (1)",
        "fewer steps lose quality",
        sd,
        few(8),
        DENSE,
        fid="worse",
        clip="worse",
        psnr="worse",
        attributes="worse",
        content="worse",
    )
    claim("3.3 (1)", "PostDiff improves on the model as it is", sd, ours(), DENSE, fid="better")
    claim("3.3 (2)", "it works on a distilled model", "lcm", LCM, few(4), fid="better", clip="alike")
    claim("3.3 (2)", "mixed resolution does", "lcm", LCM_MIX, few(8), fid="better", clip="alike")
    claim("3.3 (2)", "it works on a larger model", "sdxl", XL, few(8), fid="better", clip="alike")
    claim("3.3 (2)", "mixed resolution does, held against 16 steps", "sdxl", XL_MIX, few(16), fid="better")
    claim("3.3 (2)", "it works on a transformer", "pixart", PIXART, few(8), fid="better", clip="alike")
    claim("3.3 (2)", "mixed resolution does", "pixart", PIXART_MIX, few(16), fid="better", clip="alike")
    claim("3.3 (1)", "PostDiff improves on the model as it is", "pixart", PIXART, DENSE, fid="better")
    for key, who in (("tgate", "T-GATE"), ("tome", "ToMe"), ("faster_diffusion", "Faster Diffusion")):
        claim("3.4", f"PostDiff has a lower FID than {who}", sd, ours(), RIVALS[f"table3.{key}"], fid="better")
    claim("3.4", "and than DeepCache", sd, ours(), DC, fid="better")
    claim("3.4", "PostDiff has a lower FID than T-GATE", "pixart", PIXART, RIVALS["table4.tgate"], fid="better")
    claim("App. B (1)", "a scale of 0.375 is too small", sd, mixed(beta=0.375), mixed(), fid="worse")
    claim("App. B (2)", "a scale of 0.875 is slightly worse than 0.5", sd, mixed(beta=0.875), mixed(), fid="worse")
    claim("App. C", "a larger k costs quality", sd, ours(3), ours(), fid="worse", clip="worse")
    claim("App. C", "and a still larger one more", sd, ours(5), ours(3), fid="worse", clip="worse", attributes="worse")
    claim("App. C", "a smaller m costs quality", sd, ours(m=9), ours(), clip="worse")
    found.append(
        Claim("1", "fewer steps are more sensitive to compression", sd,
              _named("DC k=2 T=8", methods.deepcache(8, 2)), few(8), "psnr", "worse", (DC, DENSE))
    )  # fmt: skip
    return found


CLAIMS = tuple(_claims())


def exhibit(_found: Mapping[str, Plan]) -> Exhibit:
    cells = {
        (claim.model, plan.id): Cell(name(plan), claim.model, plan, values=printed(claim.model, plan))
        for claim in CLAIMS
        for plan in claim.plans
    }
    return Exhibit("claims", "What the paper says, claim by claim", tuple(cells.values()), claims=CLAIMS)


@cache
def _printed() -> dict[tuple[str, str], dict[str, float]]:
    return presets.printed()


def printed(model: str, plan: Plan) -> dict[str, float]:
    return _printed().get((model, plan.id), {})


@dataclass(frozen=True)
class Judged:
    """A claim and what came of it. measured: None where the metric was not. paper: its own difference, if printed."""

    claim: Claim
    measured: Interval | None
    paper: float | None

    @property
    def metric(self) -> Metric:
        return METRICS[self.claim.metric]

    @property
    def verdict(self) -> str:
        """Agrees, contradicts, equivalent, not resolved, or not measured."""
        if self.measured is None:
            return "not measured"
        margin, sign = MARGINS[self.claim.metric], self.metric.sign
        low, high = sorted((sign * self.measured.low, sign * self.measured.high))  # above 0 is better
        within = -margin < low and high < margin
        if self.claim.expected == "alike":
            away = (low > 0 or high < 0) and abs(self.measured.value) > margin
            return "agrees" if within else "contradicts" if away else "not resolved"
        better, worse = low > 0, high < 0
        if better or worse:
            return "agrees" if better == (self.claim.expected == "better") else "contradicts"
        return "equivalent" if within else "not resolved"


def judge(rows: Mapping[tuple[str, str], Row]) -> list[Judged]:
    """All claims. rows: {(the paper's model, plan id): its row}."""
    measured: dict[Claim, Interval] = {}
    for claim in CLAIMS:
        metric, own = METRICS[claim.metric], [rows[claim.model, plan.id] for plan in claim.plans]
        if tables.measured(own, metric) and all(tables.judges(metric, row) for row in own):
            first, *others = [row.interval(metric) for row in own]
            weights = (1.0, 1.0, -1.0)  # plan - against - (plan - against)
            measured[claim] = metric.difference(first, list(zip(weights, others, strict=False)))
    wider = dict(zip(measured, together(list(measured.values())), strict=True))
    return [Judged(claim, wider.get(claim), _paper(claim)) for claim in CLAIMS]


def _paper(claim: Claim) -> float | None:
    values = [printed(claim.model, plan).get(claim.metric) for plan in claim.plans]
    if any(value is None for value in values):
        return None
    return round(sum(sign * value for sign, value in zip((1, -1, -1, 1), values, strict=False) if value is not None), 4)


def lines(judged: list[Judged], names: Mapping[str, str]) -> list[list[str]]:
    """Under HEADER. names: the paper's model -> the one that ran."""
    found = []
    for one in judged:
        claim, measured, metric = one.claim, one.measured, one.metric
        text = metric.text(measured, "+") if measured else "–"
        effect = f"{(measured.high - measured.low) / 2:.{metric.digits}f}" if measured else "–"
        found.append([
            claim.section, claim.text, names[claim.model], *claim.setting, metric.title, claim.expected, text, effect,
            str(measured.n) if measured else "–", "–" if one.paper is None else f"{one.paper:+.2f}", one.verdict,
        ])  # fmt: skip
    return found


def to_csv(judged: list[Judged], names: Mapping[str, str], protocol: str) -> str:
    columns: dict[str, list[str]] = {
        key: [line[i] for line in lines(judged, names)] for i, key in enumerate(HEADER) if key != "measured"
    }
    measured = {f"measured{end}": value for end, value in _bounds(judged).items()}
    return tables.csv_of({**columns, **measured, "protocol": [protocol] * len(judged)})


def _bounds(judged: list[Judged]) -> dict[str, list[str]]:
    intervals = [one.measured for one in judged]
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {end: [f"{getattr(one, field):.5f}" if one else "" for one in intervals] for end, field in ends.items()}


def answer(judged: list[Judged]) -> str:
    """A sentence: how many claims there are of each verdict."""
    counts = {
        verdict: sum(one.verdict == verdict for one in judged)
        for verdict in ("agrees", "contradicts", "equivalent", "not resolved", "not measured")
    }
    words = {"agrees": "agree", "contradicts": "contradict it", "equivalent": "show no difference that matters",
             "not resolved": "cannot be told with so few images", "not measured": "were not measured"}  # fmt: skip
    parts = [f"{count} {words[verdict]}" for verdict, count in counts.items() if count]
    return f"Of {len(judged)} claims of the paper, {', '.join(parts)}."
