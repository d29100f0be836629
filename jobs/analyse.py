"""Why cheaper steps can work, seen on one model: python jobs/analyse.py --backbone mini-sd

profile.png, profile.csv          Fig. 7: how far feature maps move from step to step, by block and by type of layer
trajectory.png, trajectory.csv    Fig. 3, 12: what each step would draw of the first prompt, with its CLIP score, at
                                  full and at mixed resolution; the mean score of every step over all prompts

Of the paper's own models `jobs/reproduce.py fig3 fig7 fig12` shows the same.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a Ray working directory is not installed

from pipelines import command_line, evaluation, options
from pipelines.command_line import flag
from pipelines.options import A_NUMBER, Backbone, Out
from pipelines.paper import exhibits, figures
from pipelines.stages import trajectories, worker
from pipelines.stages.trajectories import Recording
from postdiff import methods
from postdiff.models.checkpoints import resolve


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    backbone: Backbone = "mini-sd"
    limit: Annotated[int | None, flag(f"use the first N prompts (default: {figures.WATCHED})", A_NUMBER)] = (
        figures.WATCHED
    )
    out: Out = "out/analysis"

    @property
    def evaluated(self) -> tuple[str, ...]:
        return (self.backbone,)


def run(given: Options) -> None:
    protocol, spec = evaluation.protocol(given), resolve(given.backbone)
    evaluation.check_store(given.out, protocol)
    steps, beta = spec.settings["steps"], spec.settings["beta"]
    plans = {
        f"s={s:g}": methods.mixed_resolution(steps, beta, s) if s else methods.dense(steps) for s in exhibits.WATCHED
    }
    rows = {label: evaluation.configure(given, given.backbone, plan) for label, plan in plans.items()}
    profile = Recording("profile", rows["s=0"], protocol.prompts, protocol.clip)
    paths = {label: Recording("trajectory", row, protocol.prompts, protocol.clip) for label, row in rows.items()}
    resources = evaluation.connect(given, [given.backbone])
    store = evaluation.claim_store(given.out, protocol)  # all that can be refused is refused before
    units = [task.unit for task in (profile, *paths.values())]

    def watch_and_draw():
        worker.run_all(units, store, resources, "steps")
        profile_of_steps = trajectories.read_profile(store, profile)
        return profile_of_steps, figures.draw_trajectories(store, paths, (0,), given.backbone)

    profile_of_steps, drawn = worker.mending(store, watch_and_draw)
    from pipelines.report import plots  # with matplotlib, which a job that refuses does not need

    store.put("profile.png", plots.as_png(plots.profile_plot(profile_of_steps, f"{given.backbone}, {steps} steps")))
    store.put("profile.csv", figures.profile_csv(profile_of_steps).encode())
    store.put("trajectory.png", plots.as_png(drawn.figure))
    store.put("trajectory.csv", drawn.numbers.encode())
    print(f"{store.shown}: profile.png, profile.csv, trajectory.png, trajectory.csv")


def parse(argv: list[str] | None = None) -> Options:
    given = options.parse(__doc__, Options, argv, fid="here: there is no FID")
    command_line.refuse(given, "here: steps are scored by the CLIP score alone", "preference")
    return given


def main(argv: list[str] | None = None) -> None:
    command_line.job(run, parse, argv)


if __name__ == "__main__":
    main()
