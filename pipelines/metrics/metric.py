"""What images are scored by: a metric is a row of METRICS, and the table is the only place that knows one by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from pipelines.metrics import clip, fid, fidelity, judge, kernel, pixels
from pipelines.metrics.intervals import Interval, difference, extrapolated

BASELINES = ("dense", "solution")


@dataclass(frozen=True)
class Metric:
    """A metric, and all that tables, plots, reports, calibration and the answer need to know of it.

    key: its name in options, files and the paper's csv.
    title: its name in tables.
    needs: what images are held against: `prompts`, each image its own; `reference` images, set against set; or a
        baseline's images of the same noise, pixel by pixel: `dense`, as many steps with nothing saved, or the
        model's 60-step `solution`.
    encoder: what of a protocol names the network whose features it is of: `fid` (Inception, for real models), `clip`,
        or the `judge` and its `grid`, which prompts of Shapes and Scenes alone have; `pixels` for none.
    definition: a sentence's beginning for the report, with {encoder} and {reference}.
    score: features of N images [N, D] and of their prompts [N, D] or of M reference images [M, D] -> the number with
        its interval. Raises ValueError if they are too few or not finite.
    lower_is_better: its direction.
    biased: by a bias that falls as 1/n, which differences do not have: it is extrapolated away.
    least: prompts of the first round of a calibration, at the least.
    fewest: images, and references, that `score` takes at the least.
    digits: after the point, in tables. A csv has two more.
    shown: in tables, plots, the answer and W&B; the others are columns of csv files.
    applies: whether it is of the image of a caption; of all, if it is not given. `fewest` counts those.
    ranks: whether plans can be chosen by it: not by one judge, nor by what both agree on, nor by how near a plan is to
        as many dense steps, of which few are as near as many.
    judges: of a mean of several judges, the metrics by each of them alone: what a verdict needs all of.
    """

    key: str
    title: str
    needs: Literal["prompts", "reference", "dense", "solution"]
    encoder: Literal["clip", "fid", "judge", "grid", "pixels"]
    definition: str
    score: Callable[[np.ndarray, np.ndarray], Interval]
    lower_is_better: bool
    biased: bool = False
    least: int = 64
    fewest: tuple[int, int] = (4, 2)
    digits: int = 4
    shown: bool = False
    applies: Callable[[str], bool] | None = None
    ranks: bool = True
    judges: tuple["Metric", ...] = ()

    @property
    def is_paired(self) -> bool:
        """It holds images against a baseline's of the same noise, and so cannot judge what draws another image."""
        return self.needs in BASELINES

    @property
    def only_where_measured(self) -> bool:
        """Tables have no column of it where it was not measured, instead of a word that says so."""
        return self.is_paired or self.encoder in ("judge", "grid")

    @property
    def column(self) -> str:
        """Its name in results.csv and W&B."""
        return self.title.lower().replace(" ", "_")

    @property
    def axis(self) -> str:
        return f"{self.title} ({'lower' if self.lower_is_better else 'higher'} is better)"

    @property
    def sign(self) -> float:
        """1 or -1: of a value times this, higher is better."""
        return -1.0 if self.lower_is_better else 1.0

    def text(self, interval: Interval, sign: str = "") -> str:
        """An interval as tables print it. sign: `+` for differences."""
        return f"{interval:{sign}.{self.digits}f}"

    def unbiased(self, interval: Interval) -> Interval:
        """The number as it is for ever more images (see `extrapolated`); itself where it has no such bias."""
        return extrapolated(interval) if self.biased else interval

    def difference(self, a: Interval, parts: Sequence[tuple[float, Interval]]) -> Interval:
        """`a` less the weighted sum of `parts`, paired and without bias; see `intervals.difference`."""
        change = difference(a, parts)
        return extrapolated(change) if self.biased else change


_OVER_IMAGES = "jackknife over generated images"
_OVER_MEAN = "Student's t over generated images"


def _paired(key: str, title: str, needs: Literal["dense", "solution"], score: Callable, **more) -> Metric:
    unit = "PSNR in dB" if key.startswith("psnr") else "SSIM"
    own = "60 steps" if needs == "solution" else "same steps, nothing saved,"
    definition = f"{unit} to the model's {own} from the same noise, {{n}} images; it cannot judge changed resolution"
    return Metric(key, title, needs, "pixels", definition, score, lower_is_better=False, **more)


def _judged(key: str, title: str, counted: str, score: Callable, alone: bool = True, **more) -> list[Metric]:
    """The mean of both judges, and before it, unless it is of both (`alone`), what each says alone."""
    own: list[Metric] = []
    for i, name in enumerate(judge.NAMES if alone else ()):
        definition = f"percent of {counted}, by the {name} judge of {{encoder}}; {_OVER_MEAN}"
        few = {**more, "shown": False, "ranks": False}
        by_one = partial(score, judge=i)
        own.append(Metric(f"{key}_{name}", f"{title} by {name}", "prompts", "judge", definition, by_one,
                          lower_is_better=False, digits=1, **few))  # fmt: skip
    definition = f"percent of {counted}, by {{encoder}}, the mean of two judges; {_OVER_MEAN}"
    mean = Metric(key, title, "prompts", "judge", definition, score, lower_is_better=False, digits=1,
                  judges=tuple(own), **more)  # fmt: skip
    return [*own, mean]


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "fid", "FID", "reference", "fid", "Frechet distance of {encoder} features to {reference}; " + _OVER_IMAGES,
            fid.fid, lower_is_better=True, biased=True, digits=2, shown=True,
            least=128,  # fewer images than features are wide, and it is bias alone
        ),
        Metric(
            "clip", "CLIP score", "prompts", "clip", "100 x cosine of {encoder} embeddings; Student's t over prompts",
            clip.clip_score, lower_is_better=False, digits=2, shown=True, least=16,
        ),
        Metric(
            "kid", "KID", "reference", "fid", "KID of {encoder} features to {reference}; " + _OVER_IMAGES,
            kernel.kid, lower_is_better=True,
        ),
        Metric(
            "cmmd", "CMMD", "reference", "clip", "CMMD of {encoder} embeddings to {reference}; " + _OVER_IMAGES,
            kernel.cmmd, lower_is_better=True, biased=True,
        ),
        Metric(
            "precision", "precision", "reference", "fid",
            "share of images among {reference} by {encoder} features; " + _OVER_MEAN,
            fidelity.precision, lower_is_better=False, fewest=(4, 4),
        ),
        Metric(
            "recall", "recall", "reference", "fid",
            "share of {reference} among the images by {encoder} features; " + _OVER_IMAGES,
            fidelity.recall, lower_is_better=False, least=128, fewest=(6, 2),
        ),
        Metric(
            "density", "density", "reference", "fid",
            "balls of {reference} around an image by {encoder} features; " + _OVER_MEAN,
            fidelity.density, lower_is_better=False, fewest=(4, 6),
        ),
        Metric(
            "coverage", "coverage", "reference", "fid",
            "share of {reference} with an image near by {encoder} features; " + _OVER_IMAGES,
            fidelity.coverage, lower_is_better=False, least=128, fewest=(4, 6),
        ),
        Metric(
            "fid_content", "content FID", "reference", "grid",
            "Frechet distance of {encoder} features to {reference}; " + _OVER_IMAGES,
            fid.fid, lower_is_better=True, biased=True, digits=2, least=128,
        ),
        _paired("psnr", "PSNR", "solution", pixels.psnr, digits=2, shown=True),
        _paired("ssim", "SSIM", "solution", pixels.ssim, digits=4),
        _paired("psnr_dense", "PSNR to dense", "dense", pixels.psnr, digits=2, ranks=False),
        _paired("ssim_dense", "SSIM to dense", "dense", pixels.ssim, digits=4, ranks=False),
        *_judged("attributes", "right attributes", "attributes as asked, the objects in their best order",
                judge.attributes, shown=True),
        *_judged("content", "right images", "images in which all is as asked", judge.content),
        *_judged("objects", "right counts", "images with as many objects as asked", judge.objects),
        *_judged("binding", "right objects", "objects with all attributes as asked", judge.binding),
        *_judged("relation", "right relations", "of several objects: those that stand as asked", judge.relation,
                applies=judge.asks_for_several),
        *_judged("backgrounds", "right backgrounds", "images on the background as asked", judge.background),
        *_judged("agreement", "agreement of the judges", "questions to which both give one answer", judge.agreement,
                alone=False, ranks=False),
    )
}  # fmt: skip


def shown() -> list[Metric]:
    """What tables, plots and the answer show, in their order."""
    return [metric for metric in METRICS.values() if metric.shown]
