"""Does a change of the model or of its conditions help? The same plans, prompts and noise, differences paired.

    python jobs/compare.py --backbones mini-sd-full-scenes out/tuned            before and after fine-tuning (Table 7)
    python jobs/compare.py --backbones mini-sdxl --size-conditions              the size that a model is told at low
                                                                                resolution: target against current

Only that differs: all run at the first backbone's settings, guidance, solver and dtype. Ends in compare.md, compare.csv
and compare.html in the store. Run it again and it goes on where it stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import command_line, comparison, evaluation, options
from pipelines.comparison import Options
from pipelines.stages import worker


def run(given: Options) -> None:
    options.read_prompts(given)  # what costs least to find wrong comes first, references last
    among = comparison.variants(given.backbones, given.size_conditions)
    groups = comparison.plan_entries(given, among)
    protocol = evaluation.protocol(given)
    evaluation.check_store(given.out, protocol)
    resources = evaluation.connect(given, given.backbones)
    store = evaluation.claim_store(given.out, protocol)  # all that can be refused is refused before
    entries = [entry for group in groups for entry in group]

    def evaluate_and_report() -> evaluation.Evaluated:
        evaluated = evaluation.evaluate(store, entries, protocol, resources, real=True)
        print(comparison.write(store, among, groups, evaluated, protocol, given))
        return evaluated

    worker.mending(store, evaluate_and_report).check()


def parse(argv: list[str] | None = None) -> Options:
    return options.parse(__doc__, Options, argv)


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
