"""What plays each of the paper's data sets: which prompts, how many, which reference images, in which store."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pipelines import options
from pipelines.command_line import flag, number
from pipelines.command_line import rounds as at_least_3
from pipelines.data.prompts import DRAWN
from pipelines.engine.urls import below
from pipelines.options import A_NUMBER, Out
from pipelines.paper.published import APPENDIX_J, GALLERY, PROMPTS_A_MODEL


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """What a reproduction is asked. exhibits: their keys, or `all`."""

    exhibits: tuple[str, ...] = ("all",)
    models: Annotated[Literal["mini", "real"], flag(choices=("mini", "real"))] = "mini"
    scale: Annotated[float, flag("share of the prompts", number(0, 1, above=True))] = 1.0
    calibration: Annotated[
        str | None,
        flag("prompts of the searches of Tables 3 and 4: a file (default: the train split of Shapes or Scenes)"),
    ] = None
    recaption: Annotated[
        str | None,
        flag("captions of Table 6's data set (jobs/fetch.py imagenet21k-recaption), as --prompts takes"),
    ] = None
    recaption_reference: Annotated[str | None, flag("folder of its reference images")] = None
    finetuned: Annotated[
        tuple[str, ...], flag("of Table 7's real models (jobs/finetune.py)", nargs="+", metavar="MODEL=FOLDER")
    ] = ()
    against: Annotated[
        str | None,
        flag("claims.csv of a run of other prompts (--draw): which verdicts came again (claims-replication.csv, .md)"),
    ] = None
    up_to: Annotated[
        int | None,
        flag(
            "of claims: prompts at the most, chosen before anything is seen. Those that are not resolved at --limit go "
            "on to twice as many, and so on; the intervals of all looks hold together",
            A_NUMBER,
        ),
    ] = None
    rounds: Annotated[int, flag("of the latency measurement; 0: none", at_least_3(zero=True))] = 7
    whole: Annotated[
        bool, flag("Fig. 4 and 8 of the mini models at every number of steps, not at T = 8, 14 and 20 alone")
    ] = False
    price: Annotated[float | None, flag("of a GPU hour, for --dry-run of the real models", number(0, 1e6))] = None
    dry_run: Annotated[bool, flag("print what would run, and stop")] = False
    out: Out = "out/paper"

    @property
    def mini(self) -> bool:
        return self.models == "mini"

    @property
    def drawn(self) -> str:
        """The data set that plays the paper's on mini models: that of --prompts, Shapes where they are a file."""
        return DRAWN[self.prompts][0].name if self.prompts in DRAWN else "shapes"

    @property
    def all_steps(self) -> bool:
        """Do all figures have all of their numbers of steps?"""
        return self.whole or not self.mini


@dataclass(frozen=True)
class Dataset:
    """size: prompts that the paper has. captions, references: the options that name them on real models, as attributes;
    "" where the prompts are the paper's own. play: the options of what plays it. on_drawn: what a drawn data set
    cannot play of it, a footnote of its exhibits."""

    size: int
    captions: str
    references: str
    play: Callable[[Options], Options]
    on_drawn: str = ""


def play_coco(given: Options) -> Options:
    """COCO 2014's validation captions, as is usual (the paper does not say): --prompts and --reference."""
    return given if given.mini else replace(given, limit=given.limit or DATASETS["coco2014"].size)


def play_recaption(given: Options) -> Options:
    """App. E: --recaption and --recaption-reference, in a store of its own."""
    key = "imagenet21k_recaption"
    own = replace(
        given, out=below(given.out, key), protocol=None, matched=False, shuffled=True,
        reference=given.recaption_reference,
        prompts=f"{given.drawn}-recaption" if given.mini else given.recaption or "shapes",
    )  # fmt: skip
    size = DATASETS[key].size
    if given.limit and given.limit > size:  # the paper's number is not the one that was given: of a shorter file, all
        own = replace(own, given=given.given - {"limit"})
    return own if given.mini else replace(own, limit=min(given.limit or size, size))


def play_gallery(given: Options) -> Options:
    """App. J: the paper's own prompts, a few images of each."""
    return replace(
        given, out=below(given.out, GALLERY), protocol=None, matched=False, shuffled=False,
        prompts=given.drawn if given.mini else str(APPENDIX_J), limit=PROMPTS_A_MODEL if given.mini else None,
        draw=given.draw if given.mini else 0,  # the paper's own prompts are one draw
        batch_size=min(given.batch_size, 8), given=given.given - {"batch_size"},
    )  # fmt: skip


DATASETS = {
    "coco2014": Dataset(30_000, "prompts", "reference", play_coco),
    "imagenet21k_recaption": Dataset(
        10_000,
        "recaption",
        "recaption_reference",
        play_recaption,
        "here it is no other data set: other captions and noise of the same generator, held against the same reference",
    ),
    GALLERY: Dataset(24, "", "", play_gallery),
}


def has_captions(given: Options, dataset: str) -> bool:
    """Are the prompts of a real data set there, or named by an option?"""
    name = DATASETS[dataset].captions
    return not name or getattr(given, name) not in (None, "shapes")


def share(given: Options) -> int:
    """How many prompts `--scale` leaves of those that --prompts and --limit name."""
    return max(4, round(given.scale * len(options.read_prompts(given))))


def of_dataset(given: Options, dataset: str) -> Options:
    """The options of a data set of the paper. Raises ValueError if real models have no captions."""
    if not given.mini and not has_captions(given, dataset):
        raise ValueError(
            f"--models real needs --{DATASETS[dataset].captions}, a file of captions ({dataset}'s are the paper's)"
        )
    settled = options.settled(DATASETS[dataset].play(given))
    return replace(settled, limit=share(settled)) if DATASETS[dataset].captions else settled
