"""How good are images that another program made? Scores of a folder of them, with intervals; of two, what differs.

    python jobs/score.py theirs --prompts captions.tsv --reference /data/val2014 --fid inception-2015-12-05.pt
    python jobs/score.py theirs --prompts captions.tsv --against ours         which is better, paired prompt by prompt

Images of any program (PNG is what keeps pixels), each named by the id of its prompt: of a column id, prompt_id,
caption_id or file_name, else the row's number from 0 (00012.png is row 12). --against is a folder of the same prompts:
differences of all scores are paired, and PSNR and SSIM are from one to the other. --reference is a folder of real
images, paired with nothing: FID, KID, CMMD, precision, recall, density and coverage of each are to it. What does not
pair is refused. Ends in scores.csv, .md, .json and .html in --out, a store that keeps what was computed: run it again,
and it goes on where it stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line, evaluation, scoring
from pipelines.scoring import Options
from pipelines.stages import worker


def run(given: Options) -> None:
    folders = scoring.folders(given)  # what is most likely wrong comes first, references last
    for folder in folders:
        print(f"images: {folder}", file=sys.stderr)
    protocol = evaluation.protocol(given)
    store = evaluation.claim_store(given.out, protocol)
    rows = worker.mending(store, lambda: scoring.evaluate(store, folders, protocol))
    print(scoring.write(store, folders, rows, protocol))


def parse(argv: list[str] | None = None) -> Options:
    return scoring.parse(__doc__, argv)


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
