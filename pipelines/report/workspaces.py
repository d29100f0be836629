"""A dashboard as W&B has it: a Report and saved views, from records (`runs.Logbook.record`). The only file that imports
wandb_workspaces, which the extra `dashboard` brings.

Every run set asks for a group and a protocol's fingerprint, so that no plot holds numbers of two protocols, and for
runs of a configuration: summaries and tables have none. A colour is a method's (or a variant's), in its record's order.
"""

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.expr as ex
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from pipelines.report.plan_settings import ORDER
from pipelines.report.runs import BEST, DENSE, FRONT
from postdiff.terminal import one_line

Record = dict[str, Any]
# Okabe and Ito's, but the first: told apart by those who see no red or no green.
COLOURS = ("#444444", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442")
WIDTH = 24  # of W&B's grid
MOST_PINNED = 20  # runs of a view
TITLE = 128  # characters of a report's
READ = (
    "A point is a run: a configuration, one image a prompt, costs of the denoiser for one image. The line is the lower "
    "(of a score the upper) envelope of a colour's points: what no cheaper one betters. Intervals are `NAME_low` and "
    "`NAME_high`. **dense** is every step in full; **front** is on the front of a metric; **best** is the best of its "
    "colour. A setting that a plan has not is blank."
)


def equal(**values: str) -> str:
    """A filter: config keys that equal these."""
    return " and ".join(f"Config('{name}') = '{value}'" for name, value in values.items())


def those_of(record: Record, part: Record, *more: str) -> str:
    """A filter: the configurations of a part, and `more`."""
    base = f"Metric('Group') = '{record['group']}' and JobType = 'configuration'"
    return " and ".join([base, equal(**part["where"]), *more])


def colours(part: Record) -> dict[str, str]:
    """{run id: colour}."""
    return {id: COLOURS[part["series"].index(name) % len(COLOURS)] for id, name in part["runs"]}


class Project:
    """Makes run sets of one project. Offline they have none, since W&B is asked for its id: see `report_json`."""

    def __init__(self, entity: str, project: str, online: bool):
        self.where = {"entity": entity, "project": project} if online else {}

    def runset(self, name: str, filters: str, part: Record) -> wr.Runset:
        order = [wr.OrderBy(wr.SummaryMetric("flops"), ascending=True)]
        shades = {id: wr.RunSettings(color=colour) for id, colour in colours(part).items()}
        return wr.Runset(**self.where, name=name, filters=filters, order=order, run_settings=shades)

    def logged(self, record: Record, job: str) -> wr.Runset:
        """The run of the kind `job` that holds what is of all configurations: their table, or the pictures."""
        filters = f"Metric('Group') = '{record['group']}' and JobType = '{job}' and {equal(grid=record['grid'])}"
        fingerprint = equal(protocol=record["protocol"]["protocol"])
        return wr.Runset(**self.where, name=job, filters=f"{filters} and {fingerprint}")


def scatters(part: Record) -> list[wr.ScatterPlot]:
    """A plot a metric, against FLOPs: FID and the CLIP score first, beside each other."""
    return [
        wr.ScatterPlot(
            title=f"{title} against FLOPs ({'lower' if lower else 'higher'} is better)",
            x=wr.SummaryMetric("flops"),
            y=wr.SummaryMetric(column),
            running_ymin=lower or None,
            running_ymax=not lower or None,
            legend_template="${run:displayName}",
            layout=wr.Layout(x=(number % 2) * WIDTH // 2, y=number // 2 * 10, w=WIDTH // 2, h=10),
        )
        for number, (column, title, lower) in enumerate(part["metrics"])
    ]


def coordinates(part: Record) -> wr.ParallelCoordinatesPlot:
    """From settings to cost and scores."""
    column = wr.ParallelCoordinatesPlotColumn
    return wr.ParallelCoordinatesPlot(
        title="from settings to scores",
        columns=[
            *(column(wr.Config(key), display_name=key) for key in part["settings"]),
            column(wr.SummaryMetric("flops"), display_name="FLOPs"),
            *(column(wr.SummaryMetric(name), display_name=title) for name, title, _ in part["metrics"]),
        ],
        layout=wr.Layout(x=0, y=0, w=WIDTH, h=9),
    )


def summaries(record: Record, part: Record) -> list[Any]:
    """By colour, what is best and how it spreads; which setting moves a metric; the best number of all."""
    panels: list[Any] = []
    for number, (name, title, lower) in enumerate(part["metrics"][:2]):
        best, y = "min" if lower else "max", 9 + 8 * number
        panels += [
            wr.BarPlot(
                title=f"{title}, the best by {record['series']}, and the range",
                metrics=[name],
                groupby=wr.Config(record["series"]),
                groupby_aggfunc=best,
                groupby_rangefunc="minmax",
                layout=wr.Layout(x=0, y=y, w=9, h=8),
            ),
            wr.ParameterImportancePlot(with_respect_to=name, layout=wr.Layout(x=9, y=y, w=10, h=8)),
            wr.ScalarChart(
                title=f"best {title}", metric=name, groupby_aggfunc=best, layout=wr.Layout(x=19, y=y, w=5, h=8)
            ),
        ]
    return panels


def images() -> list[Any]:
    """One prompt a row across configurations, and what differs between them."""
    return [
        wr.MediaBrowser(
            title="the same prompts and noise", media_keys=["samples"], mode="grid", grid_x_axis="run",
            grid_y_axis="index", layout=wr.Layout(x=0, y=0, w=WIDTH, h=16),
        ),
        wr.RunComparer(diff_only=True, layout=wr.Layout(x=0, y=16, w=WIDTH, h=12)),
    ]  # fmt: skip


def blocks_of_part(project: Project, record: Record, part: Record) -> list[Any]:
    key, few = record["series"], f"Tags() in ['{DENSE}', '{FRONT}', '{BEST}']"
    by_colour = [project.runset(name, those_of(record, part, equal(**{key: name})), part) for name in part["series"]]
    whole = project.runset("all", those_of(record, part), part)
    chosen = project.runset("dense, front and best", those_of(record, part, few), part)
    scattered = scatters(part)
    below = 10 * -(-len(scattered) // 2)
    legend = wr.MarkdownPanel(markdown=READ, layout=wr.Layout(x=0, y=below, w=WIDTH, h=4))
    return [
        wr.H2(part["title"]),
        wr.PanelGrid(runsets=by_colour, panels=[*scattered, legend]),
        wr.H3("Settings"),
        wr.PanelGrid(runsets=[whole], panels=[coordinates(part), *summaries(record, part)]),
        wr.H3("Images, and what differs"),
        wr.PanelGrid(runsets=[chosen], panels=images()),
        wr.H3("Every configuration"),
        wr.MarkdownBlock(part["markdown"]),
    ]


def blocks(project: Project, record: Record) -> list[Any]:
    """A record as the blocks of a report."""
    facts = "\n".join(f"- **{name}**: {value}" for name, value in record["protocol"].items())
    table = wr.WeavePanelSummaryTable(table_name="configurations", layout=wr.Layout(x=0, y=0, w=WIDTH, h=10))
    shown: list[Any] = [
        wr.H1(record["sweep"]),
        wr.MarkdownBlock(record["answer"] or "No answer was logged."),
        wr.H2("Protocol"),
        wr.MarkdownBlock(facts),
    ]
    for part in record["parts"]:
        shown += blocks_of_part(project, record, part)
    shown += [wr.H2("All numbers"), wr.PanelGrid(runsets=[project.logged(record, "table")], panels=[table])]
    if record["pictures"]:
        pictures = wr.MediaBrowser(media_keys=record["pictures"], layout=wr.Layout(x=0, y=0, w=WIDTH, h=12))
        shown += [wr.H2("Pictures"), wr.PanelGrid(runsets=[project.logged(record, "summary")], panels=[pictures])]
    if record["exhibits"]:
        shown.append(wr.H1("The paper beside ours, exhibit by exhibit"))
        for title, text in record["exhibits"]:
            shown += [wr.H2(title), wr.MarkdownBlock(text)]
    return shown


def title_of(records: Sequence[Record]) -> str:
    """A report's title, of characters that its URL can hold."""
    names = ", ".join(dict.fromkeys(record["sweep"] for record in records))
    title = "".join(letter if letter.isalnum() or letter in " _.,+-" else "-" for letter in one_line(names))
    return f"postdiff: {title}"[:TITLE]


def report(records: Sequence[Record], entity: str, project: str, online: bool = True) -> wr.Report:
    where = Project(entity, project, online)
    shown = [block for record in records for block in blocks(where, record)]
    return wr.Report(
        entity=entity, project=project, title=title_of(records), blocks=[wr.TableOfContents(), *shown], width="fluid"
    )


def report_json(records: Sequence[Record], entity: str, project: str) -> dict[str, Any]:
    """The report as W&B is given it, without asking W&B: run sets name their project, and lack its internal id."""
    model = report(records, entity, project, online=False)._to_model()
    spec = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    for block in spec["spec"]["blocks"]:
        for runset in block.get("metadata", {}).get("runSets", []):
            runset["project"] = {"entityName": entity, "name": project}
    return spec


def views(record: Record, entity: str, project: str) -> dict[str, ws.Workspace]:
    """{name: a saved view} of each part of a record."""
    return {f"{record['group']} {part['title']}": view(record, part, entity, project) for part in record["parts"]}


def view(record: Record, part: Record, entity: str, project: str) -> ws.Workspace:
    """A part of a record as a workspace: the dense run is what others are held against, the best are pinned."""
    key = record["series"]
    numbers = ["flops", *(name for name, _, _ in part["metrics"])]
    shades = {id: ws.RunSettings(color=colour) for id, colour in colours(part).items()}
    runsets = ws.RunsetSettings(
        filters=those_of(record, part),
        order=[ex.Ordering(ex.Summary("flops"), ascending=True)],
        run_settings=shades,
        pinned_columns=[
            "run:displayName", f"config:{key}.value", *(f"config:{name}.value" for name in ORDER),
            *(f"summary:{name}" for name in numbers),
        ],
        baseline_run=part["baseline"] or None,
        pinned_runs=[id for id in part["best"] if id != part["baseline"]][: MOST_PINNED - 1],
    )  # fmt: skip
    sections = {
        "Quality against cost": scatters(part),
        "Images, and what differs": images(),
        "Settings": [coordinates(part), *summaries(record, part)],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=one_line(f"postdiff {record['sweep']}: {part['title']} ({part['where']['protocol']})", TITLE),
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=runsets,
    )


def save_report(records: Sequence[Record], entity: str, project: str, url: str) -> str:
    """Save the report, in place of what is at `url` where that is still there; returns where it is."""
    new = report(records, entity, project)
    if old := _existing(url):
        old.title, old.blocks, old.width = new.title, new.blocks, new.width
        new = old
    return new.save().url


def _existing(url: str) -> wr.Report | None:
    if not url:
        return None
    try:
        return wr.Report.from_url(url)
    except TypeError:  # W&B answers that there is none: the package does not look
        return None


def remove_report(url: str) -> None:
    if report := _existing(url):
        report.delete()


def save_view(new: ws.Workspace, url: str) -> str:
    """Save a view, in place of what is at `url` where that is still there; returns where it is."""
    if url:
        try:
            old = ws.Workspace.from_url(url)
        except ValueError:  # there is none any more
            return new.save().url
        old.name, old.sections, old.settings = new.name, new.sections, new.settings
        old.runset_settings = new.runset_settings
        new = old
    return new.save().url
