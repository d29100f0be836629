"""What a team looks at: a W&B Report and saved views of finished runs, from their stores alone.

    python jobs/dashboard.py out/sweep --entity TEAM --sync          upload what is offline, then make the dashboard
    python jobs/dashboard.py s3://BUCKET/sweep s3://BUCKET/paper --entity TEAM --project postdiff --sync
    python jobs/dashboard.py out/sweep --out report.json             the report as W&B would get it: no account needed

Of stores of coco_sweep, reproduce, calibrate and compare. The report is the first store's, which keeps its URL: called
again it is brought up to date, not doubled. Needs W&B's key (WANDB_API_KEY, or `wandb login`) and the extra
`dashboard`: pip install ".[pipelines,dashboard]".
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.command_line import Parser, job, refuse
from postdiff.terminal import doing


def run(given: argparse.Namespace) -> None:
    from pipelines.report import dashboard, uploads

    dashboard.check_installed()
    stores = dashboard.with_those_below(given.stores)
    logged = dashboard.gather(stores)
    if given.out:
        from pipelines.report import workspaces

        spec = workspaces.report_json(logged, given.entity or "ENTITY", given.project)
        Path(given.out).write_text(json.dumps(spec, indent=1))
        return print(f"report: {given.out}")
    if given.sync:
        for store in stores:
            with doing("uploading offline runs"):
                print(f"{store.shown}: {uploads.sync(store, given.entity, given.project)} runs uploaded")
    elif notice := uploads.warning(stores):
        print(notice, file=sys.stderr)
    with doing("saving the dashboard"):
        report, *views = dashboard.publish(stores[0], logged, given.entity, given.project)
    print(f"report: {report}", *(f"view: {url}" for url in views), sep="\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("stores", metavar="STORE", nargs="+", help="a folder or any pyarrow.fs or fsspec URL")
    parser.add_argument("--entity", help="the team or user of W&B that owns the project")
    parser.add_argument("--project", default="postdiff", help="(default: postdiff)")
    parser.add_argument("--sync", action="store_true", help="first upload the runs that were logged offline")
    parser.add_argument("--out", metavar="FILE", help="write the report's JSON here, and ask W&B for nothing")
    given = parser.parse_args(argv)
    if given.out:
        refuse(given, "with --out: nothing is uploaded", "sync")
    elif not given.entity:
        raise ValueError("expected --entity, the team or user of W&B, or --out FILE for the report alone, got neither")
    return given


def main(argv: list[str] | None = None) -> None:
    job(run, parse, argv)


if __name__ == "__main__":
    main()
