"""From a store to a dashboard in W&B, whose server is a stub on 127.0.0.1: once, however often it is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import logbooks
import pytest
import wandb_stub
from conftest import refusal

from pipelines.engine.store import Store

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import dashboard  # noqa: E402  (a job is a script, not a package)

LOG = """
import sys
import logbooks
from pipelines.engine.store import Store
from pipelines.report import tracking
store = Store(sys.argv[1])
print(tracking.log(store, logbooks.book(store, dict(list(logbooks.PLANS.items())[:3]))))
"""


def call(environment, *args):
    command = [sys.executable, str(ROOT / "jobs" / "dashboard.py"), *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """(the server, its store, what each of two calls printed, operations before the second)."""
    top = tmp_path_factory.mktemp("dashboard")
    environment = os.environ | {
        "HOME": str(top), "WANDB_API_KEY": wandb_stub.KEY, "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }  # fmt: skip
    script = [sys.executable, "-c", LOG, str(top / "made")]
    made = subprocess.run(script, env=environment, capture_output=True, text=True, cwd=top, timeout=300)
    assert made.stdout == "4\n", made.stderr
    (top / "made").rename(top / "store")  # another machine would have it elsewhere
    with wandb_stub.serving() as server:
        environment |= {"WANDB_BASE_URL": server.url, "WANDB_MODE": "online"}
        first = call(environment, top / "store", "--entity", "team", "--sync")
        before = len(server.calls)
        second = call(environment, top / "store", "--entity", "team", "--sync")
    return server, Store(top / "store"), (first, second), before


def test_two_calls_make_one_report_and_one_view(called):
    server, store, (first, second), before = called
    assert server.unknown == []
    assert server.projects == ["postdiff"]
    reports = server.named("upsertView")
    assert [bool(told["id"]) for told in reports] == [False, True]  # created once, updated once
    views = server.named("UpsertView2")
    assert [bool(told.get("id")) for told in views] == [False, True]
    assert sorted(view["type"] for view in server.views.values()) == ["project-view", "runs"]
    assert first.splitlines()[1:] == second.splitlines()[1:]
    assert first.splitlines()[0].endswith(": 4 runs uploaded")
    assert second.splitlines()[0].endswith(": 0 runs uploaded")
    (links,) = [store.record(name) for name in store.names("dashboard") if "/links-" in name]
    assert f"report: {links['report']}" in first
    assert [f"view: {url}" for url in links["views"].values()] == first.splitlines()[2:]
    assert not [name for name, told in server.calls[before:] if name in ("CreateProject", "CreateArtifact")]


def test_what_was_saved_holds_all_kinds_of_panel_of_this_project(called):
    server, *_ = called
    (report,) = [view for view in server.views.values() if view["type"] == "runs"]
    blocks = json.loads(report["spec"])["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    kinds = {panel["viewType"] for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]}
    assert len(kinds) == 9
    projects = [runset["project"] for grid in grids for runset in grid["runSets"]]
    assert projects
    assert all((one["entityName"], one["name"]) == ("team", "postdiff") for one in projects)


def test_runs_go_up_whole_from_a_store_that_was_moved(called):
    server, store, *_ = called
    book = logbooks.book(Store(store.root + "-again"), dict(list(logbooks.PLANS.items())[:3]))
    for run in book.runs():
        told = server.runs[run.id]
        config = {key: value["value"] for key, value in json.loads(told["config"]).items()}
        assert run.config.items() <= config.items()
        assert (sorted(told["tags"]), told["groupName"]) == (sorted(run.tags), book.group)
        summary = json.loads(server.files[f"{run.id}/wandb-summary.json"])
        assert summary["fid_low"] == pytest.approx(run.summary["fid_low"])
        assert [name in server.files for name in (f"{run.id}/{file}" for file in summary["samples"]["filenames"])] == [
            True
        ] * 12
    table = f"{book.group}-table-{book.grid}"
    assert server.runs[table]["jobType"] == "table"
    (file,) = [data for name, data in server.files.items() if name.startswith(f"{table}/media/table/")]
    assert len(json.loads(file)["data"]) == 3


def test_no_secret_is_told(called):
    server, store, *_ = called
    texts = [json.dumps(server.calls), *(str(data) for data in server.files.values())]
    texts += [store.get(name).decode() for name in store.names("dashboard")]
    for hidden in (wandb_stub.KEY, "us3r", os.uname().nodename + ".", str(ROOT), store.root.rsplit("/", 1)[0]):
        assert [text[max(0, text.index(hidden) - 99) :][:200] for text in texts if hidden in text] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "expected --entity, the team or user of W&B, or --out FILE"),
        (("--out", "x.json", "--sync"), "--sync has no effect with --out: nothing is uploaded"),
        (("--entity", "team"), "nothing was logged for W&B in"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, args, message):
    (tmp_path / "store").mkdir()
    assert message in refusal(dashboard.main, [tmp_path / "store", *args], capsys)


def test_a_report_without_an_account(called, tmp_path, capsys):
    _, store, *_ = called
    dashboard.main([store.root, "--out", str(tmp_path / "report.json")])
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.json'}\n"
    assert json.loads((tmp_path / "report.json").read_text())["displayName"] == "postdiff: sweep-mini-sd"
