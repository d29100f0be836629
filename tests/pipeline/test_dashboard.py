"""A dashboard as JSON: which panels, of which runs, beside what. And what a store must hold to have one."""

import base64
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import logbooks
import pytest
import wandb_stub

from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.report import dashboard, tracking, uploads, workspaces

ROOT = Path(__file__).parents[2]
LOG = """
import sys
import logbooks
from pipelines.engine.store import Store
from pipelines.report import tracking
store = Store(sys.argv[1])
print(tracking.log(store, logbooks.book(store, dict(list(logbooks.PLANS.items())[:2]))))
"""
KINDS = {
    "Scatter Plot", "Parallel Coordinates Plot", "Bar Chart", "Parameter Importance", "Scalar Chart", "Media Browser",
    "Run Comparer", "Markdown Panel", "Weave",
}  # fmt: skip


def put_record(store, book, logged="2026-01-01T00:00:00+00:00"):
    name = f"dashboard/{book.group}.json"
    store.put(name, records.to_json({**book.record(), "logged": logged}, name))


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    exhibits = [("table2: all models", "| setting | FID | paper |\n| --- | ---: | ---: |\n| dense | 20.1 | 19.9 |")]
    store = Store(tmp_path_factory.mktemp("images"))
    return logbooks.book(store, exhibits=exhibits, pictures={"fid_front": b""})


def grids(spec):
    return [block["metadata"] for block in spec["spec"]["blocks"] if block["type"] == "panel-grid"]


def panels(spec):
    return [panel for grid in grids(spec) for panel in grid["panelBankSectionConfig"]["panels"]]


def asked(runset):
    """{key: value} of a run set's filters, all of which hold."""
    filters = runset["filters"]["filters"]
    assert all(one.get("connector", "AND") == "AND" and not one["disabled"] for one in filters)
    return {f"{one['key']['section']}.{one['key']['name']}": one["value"] for one in filters}


def test_the_report_holds_nine_kinds_of_panel_without_an_account(book):
    spec = workspaces.report_json([book.record()], "team", "postdiff")
    assert {panel["viewType"] for panel in panels(spec)} == KINDS
    text = json.dumps(spec)
    for part in (
        "Neither wins clearly.",
        "custom-01234567",
        "captions.tsv",
        "table2: all models",
        "| dense | 20.1 | 19.9 |",
    ):
        assert part in text
    assert "us3r" not in text


def test_every_run_set_is_of_one_group_and_one_protocol(book):
    spec = workspaces.report_json([book.record()], "team", "postdiff")
    sets = [asked(runset) for grid in grids(spec) for runset in grid["runSets"]]
    assert len(sets) == 3 + 1 + 1 + 1 + 1  # methods; settings; images; table; pictures
    for one in sets:
        assert one["run.group"] == book.group
        assert one["config.protocol"] == "custom-01234567"
    assert [one.get("config.method") for one in sets[:3]] == ["dense", "mixed_resolution", "postdiff"]
    assert {one["run.jobType"] for one in sets[:5]} == {"configuration"}
    assert sets[4]["run.tags"] == ["dense", "front", "best"]
    assert [one["run.jobType"] for one in sets[5:]] == ["table", "summary"]
    assert {one["config.grid"] for one in sets[5:]} == {book.grid}
    where = [runset["project"] for grid in grids(spec) for runset in grid["runSets"]]
    assert where == [{"entityName": "team", "name": "postdiff"}] * len(sets)


def test_quality_against_cost_has_the_envelope_of_what_is_better(book):
    spec = workspaces.report_json([book.record()], "team", "postdiff")
    fid, clip = (panel["config"] for panel in panels(spec) if panel["viewType"] == "Scatter Plot")
    assert (fid["xAxis"], fid["yAxis"]) == ("summary:flops", "summary:fid")
    assert (clip["xAxis"], clip["yAxis"]) == ("summary:flops", "summary:clip_score")
    assert (fid.get("showMinYAxisLine"), fid.get("showMaxYAxisLine")) == (True, None)
    assert (clip.get("showMinYAxisLine"), clip.get("showMaxYAxisLine")) == (None, True)
    colours = grids(spec)[0]["customRunColors"]
    dense = [book.run_id(row) for row in book.rows if row.method == "dense"]
    assert len({colours[id] for id in dense}) == 1
    assert len(set(map(colours.get, map(book.run_id, book.rows)))) == 3  # a colour a method


def test_what_the_other_panels_are_of(book):
    spec = workspaces.report_json([book.record()], "team", "postdiff")
    of = {}
    for panel in panels(spec):
        of.setdefault(panel["viewType"], panel["config"])
    lines = [column["accessor"] for column in of["Parallel Coordinates Plot"]["columns"]]
    settings = [f"config:{key}.value" for key in ("steps", "beta", "s", "k", "m", "mode")]
    assert lines == [*settings, "summary:flops", "summary:fid", "summary:clip_score"]
    assert (of["Bar Chart"]["groupBy"], of["Bar Chart"]["groupAgg"]) == ("method.value", "min")
    assert of["Parameter Importance"]["targetKey"] == "fid"
    assert of["Run Comparer"]["diffOnly"] is True
    assert of["Media Browser"]["mediaKeys"] == ["samples"]
    assert of["Media Browser"]["gridSettings"] == {"xAxis": "run", "yAxis": "index"}


def test_a_view_holds_others_against_the_dense_run(book):
    ((name, view),) = workspaces.views(book.record(), "team", "postdiff").items()
    assert name == f"{book.group} mini-sd"
    spec = view._to_model().spec.model_dump(by_alias=True)["section"]
    (runset,) = spec["runSets"]
    assert base64.b64decode(runset["baselineRunId"]).decode() == f"Run:v1:{book.run_id(book.rows[0])}:postdiff:team"
    assert len(runset["pinnedRunIds"]) == 3  # the best of each method; of dense it is that
    assert asked(runset)["config.protocol"] == "custom-01234567"
    kinds = {panel["viewType"] for part in spec["panelBankConfig"]["sections"] for panel in part["panels"]}
    assert {"Scatter Plot", "Media Browser", "Run Comparer"} <= kinds


def test_names_are_data(book):
    rows = [replace(row, method="it's \"x\" or Config('a') = 'b'") for row in book.rows]
    spec = workspaces.report_json([replace(book, rows=rows, sweep="a/b?c#d'" + "x" * 200).record()], "team", "p")
    sets = [asked(runset) for grid in grids(spec) for runset in grid["runSets"]]
    assert sets[0]["config.method"] == "it_s _x_ or Config__a__ _ _b_"
    assert len(spec["displayName"]) <= 128
    assert not set(spec["displayName"]) & set("/?#'")


def test_a_store_without_runs_or_of_an_older_version_has_no_dashboard(tmp_path, book):
    store = Store(tmp_path)
    store.put("spec.json", b"{}")
    with pytest.raises(
        ValueError, match=r"nothing was logged for W&B in .*: expected the store of a finished coco_sweep"
    ):
        dashboard.gather([store])
    store.put("dashboard/old.json", records.to_json({"version": 1, "sweep": "sweep-x"}, "dashboard/old.json"))
    with pytest.raises(ValueError, match="sweep-x was logged by another version of this code; run its job again"):
        dashboard.gather([store])


def test_the_newest_is_first_and_stores_below_are_found(tmp_path, book):
    top = Store(tmp_path)
    put_record(top, book)
    newer = replace(book, sweep="sweep-other")
    put_record(top, newer, "2026-01-02T00:00:00+00:00")
    below = replace(book, sweep="paper-mini")
    put_record(Store(tmp_path / "appendix_j"), below)
    (tmp_path / "data").mkdir()
    stores = dashboard.with_those_below([str(tmp_path)])
    assert [store.url for store in stores] == [str(tmp_path), str(tmp_path / "appendix_j")]
    assert [one["sweep"] for one in dashboard.gather(stores)] == ["sweep-other", "sweep-mini-sd", "paper-mini"]


def test_without_a_key_it_is_told_and_nobody_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"W&B does not let us in: .*expected WANDB_API_KEY"):
        tracking.find_project("team", "postdiff")


def test_runs_in_a_bucket_are_uploaded_once(s3, logged_offline, monkeypatch):
    """Copied here, uploaded by W&B's own command, and marked there."""
    store = Store(s3("dashboards"))
    assert not store.is_local
    for name in sorted(logged_offline.names("wandb-offline")):
        store.put(name, logged_offline.get(name))
    waiting = uploads.waiting(store)
    assert len(waiting) == 3
    assert uploads.warning([store]).startswith("warning: 3 runs are offline: --sync uploads them first")
    with wandb_stub.serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", wandb_stub.KEY)
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        assert uploads.sync(store, "team", "postdiff") == 3
        assert uploads.sync(store, "team", "postdiff") == 0
        assert server.projects == ["postdiff"]
    assert uploads.warning([store]) == ""
    images = {name.partition("/files/")[2]: store.get(name) for name in store.names("wandb-offline") if ".jpg" in name}
    sent = {name.partition("/")[2]: data for name, data in server.files.items()}
    assert len(images) == 24
    assert images.items() <= sent.items()


def test_what_is_not_uploaded_is_told(logged_offline, monkeypatch, tmp_path):
    shutil.copytree(logged_offline.root, tmp_path / "store")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(OSError, match=r"3 of 3 offline runs of .* are not uploaded"):
        uploads.sync(Store(tmp_path / "store"), "team", "postdiff")


@pytest.fixture(scope="module")
def logged_offline(tmp_path_factory):
    """A store with two offline runs and their summary."""
    folder = tmp_path_factory.mktemp("logged")
    told = {"HOME": str(folder / "home"), "WANDB_MODE": "offline", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", LOG, str(folder / "store")]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.stdout == "3\n", done.stderr
    return Store(folder / "store")
