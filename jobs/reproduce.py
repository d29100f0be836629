"""The paper's tables and figures from one command, each beside what the paper printed.

    python jobs/reproduce.py table2 fig4                              on the mini models and Shapes
    python jobs/reproduce.py all --scale 0.5                          every exhibit, half of the prompts
    python jobs/reproduce.py all --models real --dry-run              what it would take: runs, GPU hours, bytes
    python jobs/reproduce.py claims --draw 1 --out out/again --against out/paper/exhibits/claims.csv
                                                                      do its verdicts come again on other prompts?
    python jobs/reproduce.py claims --limit 512 --up-to 2048          what is not resolved gets more prompts
    python jobs/reproduce.py all --models real --prompts captions.tsv --calibration others.tsv \
        --reference FOLDER --fid inception-2015-12-05.pt --out s3://bucket/paper

Runs that several exhibits share are made once. Ends in OUT/exhibits/KEY.{csv,md,tex} (a figure also .svg and .png;
Table 6 and the galleries, of other prompts, below folders of their own) and OUT/report.html. Run it again and it goes
on where it stopped. Latency is measured first, one image at a time, in a process of its own: on a GPU of the cluster
that nothing else has then, or on the machine that runs this.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import options, protocols
from pipelines.command_line import Parser, job, read, refuse
from pipelines.data.prompts import DRAWN
from pipelines.paper import exhibits, run
from pipelines.paper.datasets import DATASETS, Options
from pipelines.paper.exhibit import Exhibit


def parse(argv: list[str] | None = None) -> Options:
    parser = Parser(__doc__)
    parser.add_argument("exhibits", nargs="*", default=["all"], help=f"all, or any of {', '.join(exhibits.EXHIBITS)}")
    given = read(parser, Options, argv)
    given = replace(given, exhibits=given.exhibits or ("all",))
    if given.protocol:
        given = protocols.apply(given)
    refuse_unused(given)
    return given


def refuse_unused(given: Options) -> None:
    """Raise ValueError for an option that was given, and that has no effect beside the others."""
    chosen = exhibits.gather(list(given.exhibits), {}, given.all_steps)
    plays = [DATASETS[exhibit.dataset].play(given) for exhibit in chosen]
    shapes = any(own.prompts in DRAWN and not own.reference for own in plays)
    if given.mini or given.prompts != "shapes":
        used = {"n_reference"} if shapes else set()  # by another data set than the one that --prompts names
        other = given.recaption_reference or ("shapes" if shapes else None)
        options.refuse_unused(replace(given, given=given.given - used), other=other)
    if given.mini:
        playing = exhibits.players(given.drawn, {model for exhibit in chosen for model in exhibit.models})
        for own in plays:
            options.check_drawn(own.prompts, playing.values())
        refuse(given, "with --models mini", "recaption", "finetuned", "price")
    else:
        refuse(given, "with --models real, which draw all", "whole")
    if not given.dry_run:
        refuse(given, "without --dry-run", "price")
    recaption = DATASETS["imagenet21k_recaption"]
    only: dict[tuple[str, ...], Callable[[Exhibit], object]] = {
        ("calibration",): lambda exhibit: exhibit.searches,
        (recaption.captions, recaption.references): lambda exhibit: DATASETS[exhibit.dataset] is recaption,
        ("finetuned",): lambda exhibit: exhibit.tuned,
        ("whole",): lambda exhibit: exhibit.fewer,
        ("against", "up_to"): lambda exhibit: exhibit.claims,
    }
    every = exhibits.gather(["all"], {})
    for names, uses in only.items():
        keys = [exhibit.key for exhibit in every if uses(exhibit)]
        if {exhibit.key for exhibit in chosen}.isdisjoint(keys):
            refuse(given, f"on {', '.join(given.exhibits)}: it is of {' and '.join(keys)}", *names)


def main(argv: list[str] | None = None) -> None:
    job(run.run, parse, argv)


if __name__ == "__main__":
    main()
