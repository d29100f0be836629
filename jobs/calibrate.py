"""The best plan for a backbone and a budget, from a small calibration set (sec. 2.4, App. D).

    python jobs/calibrate.py --share 0.4                              mini-SD, 40 % of its FLOPs, Shapes
    python jobs/calibrate.py --share 0.5 --of seconds --by fid        half of its measured latency, by FID
    python jobs/calibrate.py --backbone sd15 --budget 6 --of macs --prompts captions.tsv --limit 500
    python jobs/calibrate.py --share 0.2 --grid small --limit 32      the least that shows it: 12 plans, 288 images

Every combination of beta, s, k and m, at the most steps that the budget pays for, is scored on the first prompts; the
better half goes on, prompts double, until the last few are scored on all. Ends in OUT/plan.json, which `postdiff
generate --plan` and `postdiff.load_plan` take, and OUT/report.html, which says how sure the choice is. Run it again and
it goes on where it stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import calibration, options
from pipelines.candidates import Options
from pipelines.command_line import Parser, job, number, read, refuse
from pipelines.metrics.metric import METRICS
from pipelines.metrics.preference import parse as parse_network


def parse(argv: list[str] | None = None) -> Options:
    parser = Parser(__doc__)
    budget = parser.add_mutually_exclusive_group(required=True)
    share = number(0, 1, above=True)
    budget.add_argument(
        "--share", type=share, default=0.0, help="the budget as a share of what the backbone costs as it is"
    )
    budget.add_argument("--budget", type=number(0, 1e9, above=True), default=0.0,
                        help="the budget for one image, in TFLOP, T MACs or seconds")  # fmt: skip
    given = options.settled(read(parser, Options, argv))
    options.refuse_unused(given, fid="" if METRICS[given.by].needs == "reference" else f"with --by {given.by}")
    if any(parse_network(name).kind != METRICS[given.by].encoder for name in given.preference):
        refuse(given, f"with --by {given.by}, but for the network that it is of", "preference")
    if given.of != "seconds":
        refuse(given, f"on a budget of {given.of}: nothing is timed", "rounds")
    return given


def main(argv: list[str] | None = None) -> None:
    job(calibration.run, parse, argv)


if __name__ == "__main__":
    main()
