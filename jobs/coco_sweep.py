"""Fewer denoising steps, or cheaper steps? The sweep that answers it for one model, from prompts to report.

    python jobs/coco_sweep.py                                         the mini model on Shapes: minutes on two cores
    python jobs/coco_sweep.py --backbone sd15 --prompts captions.tsv --out s3://bucket/sweep
    python jobs/coco_sweep.py ... --dry-run                           what would run: units, MACs, time and bytes
    ray job submit --working-dir . -- python jobs/coco_sweep.py ... --workers 8 --gpus-per-worker 1

The last asks a cluster for GPU nodes that are not up yet. FID on real images needs --reference, a folder of them, and
--fid, clean-fid's inception-2015-12-05.pt, both readable by every worker; without --reference there is no FID.

Run it again and it goes on where it stopped: what is in the store is done.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import command_line, evaluation, low_resolution, options, sweeps
from pipelines.engine.urls import local_path
from pipelines.stages import probe, worker
from pipelines.sweeps import Options
from postdiff.terminal import doing


def run(given: Options) -> None:
    began = time.time()
    options.read_prompts(given)  # what costs least to find wrong comes first, references last
    entries = sweeps.entries(given)
    protocol = evaluation.protocol(given)
    if local_path(given.out) or not given.dry_run:
        evaluation.check_store(given.out, protocol)
    if given.dry_run:
        return print(sweeps.dry_run(given, entries, protocol))
    resources = evaluation.connect(given, [given.backbone])
    batch_size = None
    if given.batch_size == command_line.AUTO:
        with doing("finding the batch size"):
            store = evaluation.check_store(given.out, protocol)
            most = min(given.shard, len(protocol.prompts))
            batch_size = probe.find(store, [e.configuration for e in entries], protocol.encoders, most, resources)
        given = replace(given, batch_size=batch_size)
        entries = sweeps.entries(given)
    store = evaluation.claim_store(given.out, protocol, batch_size)  # all that can be refused is refused before
    plans = [entry.configuration.plan for entry in entries]
    warnings = low_resolution.warnings(given, plans, protocol, resources)

    def evaluate_and_report() -> evaluation.Evaluated:
        evaluated = evaluation.evaluate(store, entries, protocol, resources, real=True)
        with doing("writing the report"):
            print(sweeps.write_report(given, store, entries, evaluated, protocol, warnings, time.time() - began))
        return evaluated

    worker.mending(store, evaluate_and_report).check()


def parse(argv: list[str] | None = None) -> Options:
    return options.parse(__doc__, Options, argv)


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
