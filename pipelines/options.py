"""The options of an evaluation: one frozen value, whose command line is made from its fields."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, TypeVar

from pipelines import protocols
from pipelines.command_line import (
    AUTO,
    MOST_IN_A_SHARD,
    MOST_OF_SHAPES,
    MOST_PROMPTS,
    MOST_REFERENCES,
    Parser,
    check,
    flag,
    gpus,
    images_a_batch,
    number,
    read,
    refuse,
    whole,
)
from pipelines.data.procedural import drawn_by
from pipelines.data.prompts import DRAWN, load_prompts
from pipelines.engine.records import Prompt
from pipelines.metrics import preference as preferences
from postdiff.arguments import DTYPES, LARGEST_GUIDANCE
from postdiff.models.checkpoints import is_of_hub

A_NUMBER = whole(1, *MOST_PROMPTS)  # of prompts
Out = Annotated[str, flag("the store: a folder or any pyarrow.fs or fsspec URL")]
Backbone = Annotated[
    str,
    flag(
        "a name (postdiff models), a folder, ORG/REPOSITORY@COMMIT, or FILE.safetensors+config=MODEL; each may be "
        "followed by +lora=FILE.safetensors:0.8 (several), +vae=FOLDER, +variant=fp16. Or pipeline:MODULE:FUNCTION, a "
        "function of yours that returns a diffusers pipeline"
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every job that evaluates is asked: which prompts and references, how to sample and score, on what machines.

    clip, fid, shard: empty until `settled`. given: names of the options that the command line has, to tell them from
    defaults.
    """

    prompts: Annotated[
        str,
        flag(
            "'shapes', 'scenes' (others: 'shapes-recaption'), or a file: txt, csv, tsv, parquet, jsonl, COCO's json "
            "(default: what the mini model draws, else Shapes)"
        ),
    ] = "shapes"
    limit: Annotated[
        int | None, flag("use the first N prompts (default: 256 of Shapes or Scenes, all of a file)", A_NUMBER)
    ] = None
    reference: Annotated[
        str | None, flag("folder of reference images for FID (default: other renders of Shapes or Scenes)")
    ] = None
    matched: Annotated[bool, flag("of --reference only the images that the prompts are captions of (COCO)")] = False
    shuffled: Annotated[bool, flag("draw the prompts of a file by a fixed hash, not from its top")] = False
    draw: Annotated[
        int,
        flag(
            "other prompts, and with them other noise, to see whether a result comes again: 1, 2, ... of Shapes and "
            "Scenes others of the same split, of a file the next --limit prompts (default: 0)",
            whole(0, 10_000),
        ),
    ] = 0
    protocol: Annotated[
        str | None, flag(f"fix these by name: {', '.join(protocols.PROTOCOLS)} (of COCO's captions_val2014.json)")
    ] = None
    n_reference: Annotated[
        int, flag("reference images drawn from Shapes or Scenes (default: 2000)", whole(2, *MOST_REFERENCES))
    ] = 2000
    shard: Annotated[
        int, flag("prompts a unit of work (default: 32 of Shapes or Scenes, 256 of a file)", whole(1, *MOST_IN_A_SHARD))
    ] = 0
    batch_size: Annotated[
        int,
        flag(
            "images a forward pass; part of a configuration (default: 8). auto: as many as fit a GPU, found once and "
            "kept in the store (coco_sweep alone; untried on a GPU)",
            images_a_batch,
        ),
    ] = 8
    guidance: Annotated[
        float | None, flag("w of classifier-free guidance (default: the backbone's)", number(1, LARGEST_GUIDANCE))
    ] = None
    solver: Annotated[
        str | None,
        flag("ddim, dpm, euler, unipc, dpm_3m, dpm_sde, euler_a, deis, heun, pndm, plms (default: the backbone's)"),
    ] = None
    clip: Annotated[
        str, flag("CLIP model of the CLIP score (default: Shapes' or Scenes' own, ViT-g-14/laion2b_s34b_b88k else)")
    ] = ""
    fid: Annotated[
        str,
        flag(
            "encoder of FID: a CLIP model, or the path of clean-fid's inception-2015-12-05.pt on every worker "
            "(default: --clip's default for Shapes and Scenes, inception-2015-12-05.pt else)"
        ),
    ] = ""
    preference: Annotated[
        tuple[str, ...],
        flag(
            "score human preference too, by networks whose files each worker has in FOLDER: pickscore=FOLDER, "
            "hps=FOLDER@sha256:HEX, imagereward=FOLDER@sha256:HEX (docs/preference.md)",
            preferences.argument,
            nargs="+",
            metavar="KIND=FOLDER",
        ),
    ] = ()
    dtype: Annotated[str | None, flag("of weights and latents (default: float16 for hub models)", choices=DTYPES)] = (
        None
    )
    channels_last: Annotated[bool, flag("keep a pixel's channels side by side in memory; changes the last bits")] = (
        False
    )
    compile: Annotated[bool, flag("run the denoiser compiled by torch; changes the last bits")] = False
    workers: Annotated[
        int | None, flag("actors (default: one a GPU that is up, else one a core)", whole(1, 10_000))
    ] = None
    gpus_per_worker: Annotated[float | None, flag("(default: 1 if a GPU is up, else 0)", gpus)] = None
    hang_after: Annotated[
        float,
        flag(
            "minutes after which a unit hangs, until the pace of its kind is known (default: 120)",
            number(0, 1e5, above=True),
        ),
    ] = 120.0
    out: Out = "out"
    given: frozenset[str] = frozenset()
    probes: ClassVar[bool] = False  # can it find a batch size?

    @property
    def evaluated(self) -> tuple[str, ...]:
        """What is evaluated, where options say it."""
        return ()

    @property
    def names(self) -> tuple[str | None, ...]:
        """What prompts, references and encoders are named by: some are paths."""
        folders = (str(preferences.parse(name).folder) for name in self.preference)
        return self.prompts, self.reference, self.clip, self.fid, *folders


@dataclass(frozen=True, kw_only=True)
class OfOneModel(Options):
    """Options of a job that evaluates one backbone, and can tell before what that would take."""

    backbone: Backbone = "mini-sd"
    tflops: Annotated[
        float | None,
        flag(
            "sustained TFLOP/s of a worker, for --dry-run's time (default: 0.03, or 30 on hub models)",
            number(0, 1e6, above=True),
        ),
    ] = None
    dry_run: Annotated[bool, flag("print what would run, and stop")] = False

    @property
    def evaluated(self) -> tuple[str, ...]:
        return (self.backbone,)

    @property
    def speed(self) -> float:
        """TFLOP/s of a worker."""
        return self.tflops or (30.0 if is_of_hub(self.backbone) else 0.03)


Own = TypeVar("Own", bound=Options)


def settled(options: Own) -> Own:
    """`options` with what its protocol fixes, and defaults that depend on other options filled in.

    Raises: ValueError for a protocol that does not fit the other options, or more prompts than a drawn data set has.
    """
    if options.protocol:
        options = protocols.apply(options)
    if options.batch_size == AUTO and not options.probes:
        raise ValueError("--batch-size auto is for jobs/coco_sweep.py alone: expected a number, as that finds it")
    mini = options.prompts in DRAWN
    scorer = DRAWN[options.prompts][0].clip if mini else ""
    limit = 256 if options.limit is None and mini else options.limit
    if mini:
        try:
            check(limit or 0, 1, *MOST_OF_SHAPES)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--limit {error}") from None
    return replace(
        options,
        limit=limit,
        shard=options.shard or (32 if mini else 256),
        clip=options.clip or scorer or "ViT-g-14/laion2b_s34b_b88k",
        fid=options.fid or scorer or "inception-2015-12-05.pt",
    )


def parse(doc: str | None, kind: type[Own], argv: Sequence[str] | None, fid: str = "") -> Own:
    """The options `kind` of a job, settled; without --prompts those of the data set that its mini models draw. fid: why
    it has no FID.

    Raises: ValueError for those that have no effect, and for networks of preference whose files lack.
    """
    given = read(Parser(doc), kind, argv)
    drawn = {data.name for model in given.evaluated if (data := drawn_by(model))}
    if "prompts" not in given.given and len(drawn) == 1:
        given = replace(given, prompts=drawn.pop())
    given = settled(given)
    refuse_unused(given, fid)
    preferences.check_files(given.preference)
    return given


def read_prompts(options: Options) -> list[Prompt]:
    """The prompts that are named. Raises ValueError as `load_prompts` does, and if more were asked for by --limit than
    there are: a default is the most, what was given is meant."""
    listed = load_prompts(options.prompts, options.limit, options.shuffled, options.draw)
    if "limit" in options.given and options.limit and options.limit > len(listed):
        where, got = options.prompts, options.limit
        raise ValueError(f"--limit must be at most the {len(listed)} prompts of {where!r}, got {got}")
    return listed


def check_batch(options: Options, unit: int) -> None:
    """Raise ValueError if a batch was asked for that the `unit` prompts of a unit cannot fill: it would be padded."""
    if "batch_size" in options.given and options.batch_size > unit:
        raise ValueError(f"--batch-size must be at most the {unit} prompts of a unit, got {options.batch_size}")


def check_drawn(source: str, models: Iterable[str]) -> None:
    """Raise ValueError for the prompts of a data set that one of the mini `models` does not draw."""
    for name in models if source in DRAWN else ():
        if (data := drawn_by(name)) and data is not DRAWN[source][0]:
            raise ValueError(f"{name} draws {data.name}: expected --prompts {data.name}, got {source}")


def refuse_unused(options: Options, fid: str = "", other: str | None = None) -> None:
    """Raise ValueError for an option that was given, and that others leave without effect; for prompts of a data set
    that a mini model does not draw. fid: why a job has none. other: another folder of references that a job has."""
    drawn = options.prompts in DRAWN
    check_drawn(options.prompts, options.evaluated)
    if fid:
        refuse(options, fid, "reference", "n_reference", "fid", "matched")
    if options.reference or not drawn:
        refuse(options, "where the references are not drawn", "n_reference")
    if not options.reference and not other and not drawn:
        refuse(options, "without --reference, a folder of images", "fid")
    if drawn and options.shuffled:
        raise ValueError("--shuffled has no effect on Shapes and Scenes: it draws the prompts of a file")
    if isinstance(options, OfOneModel) and not options.dry_run:
        refuse(options, "without --dry-run", "tflops")
