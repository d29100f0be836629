"""The paper's sentences as claims that a run can contradict: each a difference of two plans, and its expected sign.

A claim's verdict comes from its interval alone, of what judges say from each judge's own, which must give one verdict;
all intervals of the table hold together (max-t), so that in 19 of 20 tables like this none of the differences that are
nothing is called one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from pipelines.metrics.intervals import Interval, together
from pipelines.metrics.judge import NAMES as JUDGES
from pipelines.metrics.metric import METRICS, Metric
from pipelines.paper import presets
from pipelines.paper.claim_list import CLAIMS, Claim, name
from pipelines.paper.exhibit import Cell, Exhibit
from pipelines.report import tables
from pipelines.report.tables import Row
from postdiff.plan import Plan

# Within this, a difference is taken for none: what a user would hardly see, and the paper calls comparable. Points of
# FID (free of bias) and of the CLIP score, dB, percent.
MARGINS = {"fid": 1.0, "clip": 1.0, "psnr": 1.0, "psnr_dense": 1.0, "attributes": 2.0, "content": 5.0, "relation": 5.0}
HEADER = (
    "section", "claim", "verdict", "setting", "metric", "expected", "measured", "the paper", "half-width",
    "n", "each judge",
)  # fmt: skip
TEXT_COLUMNS = 6
OPEN = "not resolved"
Rows = Mapping[tuple[str, str], Row]  # {(the paper's model, plan id): its row}
Differences = dict[tuple[Claim, str], Interval]  # {(claim, key of a metric): the first plan less the second}
LEGEND = (
    "Measured: the first plan of the setting less the second, on the same prompts and noise, FID without its bias; "
    "the 95 % intervals of the whole table hold together (max-t). Half-width: of the interval; where "
    "it alone decides between better and worse, a true difference as large is told from none half of the time (of what "
    "judges say less often: each one's own interval must leave out 0). Agrees, contradicts: the interval leaves out "
    "0 on the side that the claim says, or on the other; of `alike`, it lies within the margin, or wholly "
    "outside of it. Equivalent: a difference was claimed, and the whole interval lies within the margin. What judges "
    "say is shown as their mean, and is a verdict only where the intervals of both give it: else it is not resolved, "
    "and the last column says that they differ. Margins: "
    + ", ".join(f"{METRICS[key].title} {margin:g}" for key, margin in MARGINS.items())
    + ". The minis were trained at low resolution too, which SD1.5 was not: stock SD1.5 at beta = s = 1/2 falls to FID "
    "63.64 and CLIP score 19.47 (the paper's Table 7)."
)

ONE_LOOK = "the 95 % intervals of the whole table hold together (max-t)"


def legend(looks: Sequence[int] = ()) -> str:
    """LEGEND, and where claims were looked at at several numbers of prompts what that means."""
    if len(looks) < 2:
        return LEGEND
    *first, last = map(str, looks)
    several = (
        f"looked at with {', '.join(first)} and {last} prompts: a claim that one look does not resolve goes on to the "
        "next, all others keep the verdict and interval that they had (n says at which; PSNR has up to 64 more at "
        "each). A number at which a claim stopped is biased, away from 0 where it is clear and towards 0 where it lies "
        f"within the margin; its interval is not: {ONE_LOOK} over all looks too, each of which spends its share of the "
        "5 %, if --up-to was chosen before the first look was seen. The protocol is of the first look"
    )
    return LEGEND.replace(ONE_LOOK, several)


def exhibit(_searched: Mapping[str, Plan]) -> Exhibit:
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
    """A claim and what came of it. measured: None where the metric was not. paper: its own difference, if printed.
    alone: of a metric that is the mean of judges, the difference by each of them."""

    claim: Claim
    measured: Interval | None
    paper: float | None
    alone: tuple[Interval, ...] = ()

    @property
    def metric(self) -> Metric:
        return METRICS[self.claim.metric]

    @property
    def verdicts(self) -> list[str]:
        """Of the interval, or of each judge's."""
        deciding = self.alone if self.metric.judges else filter(None, [self.measured])
        return [_verdict(self.claim, interval) for interval in deciding]

    @property
    def differ(self) -> bool:
        """Whether the judges give several verdicts."""
        return len(set(self.verdicts)) > 1

    @property
    def verdict(self) -> str:
        """Agrees, contradicts, equivalent, not resolved, or not measured."""
        return "not measured" if not self.verdicts else OPEN if self.differ else self.verdicts[0]


def _verdict(claim: Claim, measured: Interval) -> str:
    margin, sign = MARGINS[claim.metric], METRICS[claim.metric].sign
    low, high = sorted((sign * measured.low, sign * measured.high))  # above 0 is better
    within = -margin < low and high < margin
    if claim.expected == "alike":
        away = low > margin or high < -margin
        return "agrees" if within else "contradicts" if away else OPEN
    better, worse = low > 0, high < 0
    if better or worse:
        return "agrees" if better == (claim.expected == "better") else "contradicts"
    return "equivalent" if within else OPEN


def judge(rows: Rows) -> list[Judged]:
    """All claims, by differences whose intervals hold together."""
    measured = differences(rows)
    return judged_by(dict(zip(measured, together(list(measured.values())), strict=True)))


def differences(rows: Rows, asked: Sequence[Claim] | None = None) -> Differences:
    """{(claim, key of its metric, or of one judge): the difference of its plans} of all claims, or those that are
    `asked`, which could be measured. Each interval holds alone."""
    measured: Differences = {}
    for claim in CLAIMS if asked is None else asked:
        metric, both = METRICS[claim.metric], [rows.get((claim.model, plan.id)) for plan in claim.plans]
        own = [row for row in both if row]
        if len(own) < len(both) or not all(tables.judges(metric, row) for row in own):
            continue
        for part in (metric, *metric.judges):
            if tables.measured(own, part):
                first, other = [row.interval(part) for row in own]
                measured[claim, part.key] = part.difference(first, [(1.0, other)])
    return measured


def judged_by(measured: Differences) -> list[Judged]:
    """All claims with what was measured of them."""
    judged = []
    for claim in CLAIMS:
        alone = (measured.get((claim, part.key)) for part in METRICS[claim.metric].judges)
        judged.append(Judged(claim, measured.get((claim, claim.metric)), _paper(claim), tuple(filter(None, alone))))
    return judged


def _paper(claim: Claim) -> float | None:
    first, other = (printed(claim.model, plan).get(claim.metric) for plan in claim.plans)
    return None if first is None or other is None else round(first - other, 4)


def lines(judged: list[Judged], names: Mapping[str, str]) -> list[list[str]]:
    """Under HEADER. names: the paper's model -> the one that ran."""
    table = []
    for one in judged:
        claim, measured, metric = one.claim, one.measured, one.metric
        text = metric.text(measured, "+") if measured else "–"
        half = f"{(measured.high - measured.low) / 2:.{metric.digits}f}" if measured else "–"
        plan, against = map(name, claim.plans)
        table.append([
            claim.section, claim.text, one.verdict, f"{names[claim.model]}: {plan} vs {against}", metric.title,
            claim.expected, text, "–" if one.paper is None else f"{one.paper:+.2f}", half,
            str(measured.n) if measured else "–", _judges(one),
        ])  # fmt: skip
    return table


def _judges(one: Judged) -> str:
    """What each judge says, and whether they differ; – where none was asked."""
    text = " and ".join(one.metric.text(interval, "+") for interval in one.alone)
    return f"{text}: the judges differ ({' and '.join(one.verdicts)})" if one.differ else text or "–"


def to_csv(judged: list[Judged], names: Mapping[str, str], protocol: str, draw: int, looks: Sequence[int] = ()) -> str:
    """draw: of the prompts, whose ids seed the noise (--draw). looks: prompts at each, where there were several."""
    table = lines(judged, names)
    columns: dict[str, list[str]] = {
        key: [line[i] for line in table] for i, key in enumerate(HEADER) if key not in ("measured", "each judge")
    }
    columns |= tables.interval_columns("measured", [one.measured for one in judged], 5)
    for i, key in enumerate(JUDGES):
        columns |= tables.interval_columns(key, [one.alone[i] if one.alone else None for one in judged], 5)
    columns["judges"] = ["" if not one.alone else "differ" if one.differ else "as one" for one in judged]
    columns["looks"] = [" ".join(map(str, looks))] * len(judged)
    columns["draw"] = [str(draw)] * len(judged)
    return tables.csv_of({**columns, "protocol": [protocol] * len(judged)})


def agreement(rows: Mapping[tuple[str, str], Row]) -> str:
    """How far the judges of content are one on these images, as a sentence; "" without them."""
    shares = [row.scores["agreement"].value for row in rows.values() if "agreement" in row.scores]
    if not shares:
        return ""
    return (
        f" Content is read by two judges; they give one answer to {min(shares):.1f} to "
        f"{max(shares):.1f} % of the questions about the images of a plan (jobs/results/accuracy-judge.csv)."
    )


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
