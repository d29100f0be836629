"""What W&B keeps of a run: the results, and nothing of the machine, of its user or of the command line."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import logbooks
import numpy as np
import pytest
import wandb_files
from PIL import Image

from pipelines.data import prompts as prompting
from pipelines.engine.store import Store
from pipelines.report import tables, tracking
from postdiff import methods

ROOT = Path(__file__).parents[2]
SECRETS = ("K3YID", "S3CR3T/OF-THE-URL", "S3CR3T-OF-THE-ENVIRONMENT", "0" * 24 + "5ecre7ofwandb000")
HOST = ("THE-H0ST", "THE-US3R", "us3r@example.org", "/home/us3r")
# As a job does it: its command line holds what it was given. First all is new; then nothing; then a plan is there that
# moves a front; then a marker is of an older version.
PROGRAM = """
import json, sys
import logbooks
from pipelines.engine.store import Store
from pipelines.report import tables, tracking
from postdiff import methods
store = Store(sys.argv[1])
made = [tracking.log(store, logbooks.book(store)), tracking.log(store, logbooks.book(store))]
larger = {**logbooks.PLANS, ("mixed_resolution", "s=0.5"): methods.mixed_resolution(20, 0.5, 0.5)}
made.append(tracking.log(store, logbooks.book(store, larger)))
(marker, *_) = sorted(name for name in store.names("wandb") if "summary" not in name)
store.put(marker, json.dumps({"run": json.loads(store.get(marker))["run"]}).encode())
made += [tracking.log(store, logbooks.book(store, larger)), tracking.log(store, logbooks.book(store, larger))]
print(*made)
"""
LARGER = {**logbooks.PLANS, ("mixed_resolution", "s=0.5"): methods.mixed_resolution(20, 0.5, 0.5)}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """(the folder of all that was written, the store, moved after it was written)."""
    top = tmp_path_factory.mktemp("wandb")
    cwd = top / "home"
    cwd.mkdir()
    secret_url = f"s3://{SECRETS[0]}:{SECRETS[1]}@bucket/sweep"
    told = {
        "AWS_ACCESS_KEY_ID": SECRETS[0],
        "AWS_SECRET_ACCESS_KEY": SECRETS[2],
        "WANDB_API_KEY": SECRETS[3],
        "WANDB_HOST": HOST[0],
        "WANDB_USERNAME": HOST[1],
        "WANDB_USER_EMAIL": HOST[2],
        "WANDB_MODE": "offline",
        "WANDB_CACHE_DIR": str(cwd / "cache"),
        "XDG_CACHE_HOME": str(cwd / "cache"),
        "HOME": str(cwd),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    command = [sys.executable, "-c", PROGRAM, str(top / "store"), "--out", secret_url, f"--key={SECRETS[2]}"]
    done = subprocess.run(command, cwd=cwd, env=os.environ | told, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # 4 runs and their summary; none; the new one, one that left the front or was the best, and a summary; the old one.
    made = done.stdout.split()
    assert made[0] == "5"
    assert made[1] == made[4] == "0", done.stderr
    assert 2 < int(made[2]) < 6
    assert made[3] == "1"
    shutil.move(top / "store", top / "moved")
    return top, top / "moved"


def test_no_secret_and_no_name_of_the_host_is_in_what_is_written(logged):
    top, _ = logged
    written = [file for file in top.rglob("*") if file.is_file()]  # logs, caches and settings too
    runs = [file for file in written if file.suffix == ".wandb"]
    assert len(runs) == 5 + 2  # and two summaries, of both grids
    texts = [str(record) for file in runs for record in wandb_files.records(file)]
    assert any("macs_paper" in text for text in texts)  # the results are there
    raw = {str(file): file.read_bytes() for file in written}
    for hidden in (*SECRETS, *HOST, os.uname().nodename + "."):
        assert [name for name, data in raw.items() if hidden.encode() in data] == []
        assert [text for text in texts if hidden in text] == []
    for told in ("--key", str(top)):  # neither the command line nor where it ran
        assert [text for text in texts if told in text] == []


def test_a_run_has_flat_keys_numbers_with_intervals_and_tags(logged):
    _, store = logged
    book = logbooks.book(Store(store), LARGER)
    runs = {run["run_id"]: run for run in wandb_files.runs(store / "wandb-offline")}
    for row, expected in zip(book.rows, book.runs(), strict=True):
        run, of = runs[book.run_id(row)], book.configurations[row.configuration]
        assert (run["run_group"], run["job_type"], run["display_name"]) == (book.group, "configuration", row.label)
        assert not [key for key, value in run["config"].items() if isinstance(value, dict | list) and key != "_wandb"]
        told = {"method": row.method, "steps": row.steps, "plan_id": of.plan.id, "commit": "abcdef0", "size": 64}
        told |= {"protocol": "custom-01234567", "family": "sd", "backbone": "mini-sd", "solver": "dpm"}
        told |= {"prompts": "14 of captions.tsv (abc), one image each", "dtype": "float32", "device": "2 cores"}
        assert told.items() <= run["config"].items()
        assert run["config"].get("beta") == (0.5 if of.plan.switches else None)
        score = row.scores["fid"]
        numbers = {"fid": score.value, "fid_low": score.low, "fid_high": score.high, "flops": row.flops, "n": row.n}
        assert {**numbers, "seconds_p50": 0.15, "seconds_p90": pytest.approx(0.2)}.items() <= run["summary"].items()
        on = {metric.column: row in tables.front(book.rows, metric) for metric in tables.comparable(book.rows)}
        assert {name: run["summary"][f"on_front_{name}"] for name in on} == on
        assert run["summary"]["on_front"] == any(on.values()) == ("front" in run["tags"])
        assert run["tags"] == list(expected.tags)
    assert {run["summary"]["on_front"] for run in runs.values() if run["job_type"] == "configuration"} == {True, False}


def test_every_offline_run_is_whole_after_its_store_was_moved(logged):
    """The same prompts and seeds in the same order in every run; images as they were made, but for JPEG."""
    _, store = logged
    book, captions = logbooks.book(Store(store), LARGER), set()
    runs = {run["run_id"]: run for run in wandb_files.runs(store / "wandb-offline")}
    for row in book.rows:
        run = runs[book.run_id(row)]
        assert run["summary"]["samples"]["count"] == 12
        table = Store(store).table(f"images/{row.configuration}/00000-of-00002.parquet")
        first = np.asarray(Image.open(io.BytesIO(table["image"][0].as_py()["bytes"])))
        files = run["history"]["samples"]["filenames"]
        images = [Image.open(run["folder"] / name) for name in files]
        assert {image.format for image in images} == {"JPEG"}
        assert np.abs(np.asarray(images[0]).astype(int) - first).mean() < 6
        assert np.abs(np.asarray(images[1]).astype(int) - first).mean() > 30
        ends = f"; {row.label}"
        assert all(caption.endswith(ends) for caption in run["history"]["samples"]["captions"])
        captions.add(tuple(caption.removesuffix(ends) for caption in run["history"]["samples"]["captions"]))
    (one,) = captions
    assert list(one) == [f"{prompt.text}; seed {prompting.seed(prompt)}" for prompt in logbooks.PROMPTS[:12]]
    summaries = [run for run in runs.values() if run["job_type"] == "summary"]
    assert len(summaries) == 2
    for run in summaries:  # no table of W&B's own: offline it would lie in another folder
        page = (run["folder"] / run["summary"]["results"]["path"]).read_text()
        assert "Neither wins clearly." in page
        assert "postdiff T=20 s=0.3 k=2 m=15" in page
    assert not list(store.glob("wandb-offline/artifacts/staging/*/*"))


def test_wandb_lists_what_will_go_up(logged):
    top, store = logged
    environment = os.environ | {"HOME": str(top / "home"), "WANDB_ERROR_REPORTING": "false"}
    folders = sorted((store / "wandb-offline" / "wandb").glob("offline-run-*"))
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", "-v", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=top, timeout=120)
    assert "Would sync 7 run(s)" in done.stdout + done.stderr
    assert all(folder.name in done.stdout + done.stderr for folder in folders)


def test_what_a_crash_left_of_a_run_is_removed_and_finished_runs_stay(tmp_path):
    store = Store(tmp_path)
    store.put("wandb/offline/sweep-1/abc.json", b"{}")
    finished, crashed = ("wandb-offline/wandb/offline-run-20261125_202052-sweep-1-" + id for id in ("abc", "abd"))
    for folder in (finished, crashed):
        store.put(f"{folder}/run.wandb", b"data")
        store.put(f"{folder}/files/requirements.txt", b"data")
    kept = tracking.remove_unfinished(store, store.names("wandb"))
    assert {path.name for path in (tmp_path / "wandb-offline" / "wandb").iterdir()} == {finished.rsplit("/", 1)[1]}
    assert store.names(finished) == {f"{finished}/run.wandb", f"{finished}/files/requirements.txt"}
    assert kept == {"sweep-1-abc": store.names(finished)}


def test_a_failure_is_told_without_credentials(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def fail(store, done):
        raise OSError(f"cannot reach https://{SECRETS[0]}:{SECRETS[2]}@host/x\nat all")

    monkeypatch.setattr(tracking, "remove_unfinished", fail)
    assert tracking.log(Store(tmp_path), logbooks.book(Store(tmp_path))) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: not all is logged to W&B: OSError('cannot reach https://host/x")
    assert not any(secret in line for secret in SECRETS)


def test_disabled_is_nothing_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "other").mkdir()
    assert tracking.log(Store(tmp_path / "store"), logbooks.book(Store(tmp_path / "other"))) == 0
    assert not (tmp_path / "store").exists()


def test_models_share_no_front_and_variants_are_one_comparison(tmp_path):
    """The dense run of another model would be on no front, were there one for all."""
    book = logbooks.book(Store(tmp_path))
    few, many = book.rows[1], book.rows[0]
    other = replace(book.configurations[few.configuration], weights="another", backbone="mini-sdxl")
    two = replace(book, configurations={**book.configurations, few.configuration: other})
    assert [len(part) for part in two.parts] == [3, 1]
    assert two.standings[few.configuration] == {"fid": True, "clip_score": True}
    assert [part["title"] for part in two.record()["parts"]] == ["mini-sd"]  # one run is no plot
    variants = {row.configuration: "it's 'b'" if row is few else "a" for row in book.rows}
    compared = replace(two, variants=variants).record()
    (part,) = compared["parts"]
    assert (compared["series"], part["series"], part["where"]) == (
        "variant", ["a", "it_s _b_"], {"protocol": "custom-01234567"},
    )  # fmt: skip
    assert part["baseline"] == book.run_id(many)


def test_plans_that_were_scored_on_fewer_prompts_are_in_no_plot_with_others(tmp_path):
    book = logbooks.book(Store(tmp_path))
    early = {row.configuration: {**book.protocol, "protocol": "custom-of-few"} for row in book.rows[2:]}
    record = replace(book, protocols=early).record()
    assert [(part["where"]["protocol"], len(part["runs"])) for part in record["parts"]] == [
        ("custom-01234567", 2), ("custom-of-few", 2),
    ]  # fmt: skip


def test_the_record_of_a_dashboard_holds_every_number(tmp_path):
    book = logbooks.book(Store(tmp_path), measured={})
    lost = replace(book.rows[0], seconds=float("nan"))
    record = json.loads(json.dumps(replace(book, rows=[lost, *book.rows[1:]]).record(), allow_nan=False))
    (part,) = record["parts"]
    assert part["metrics"] == [["fid", "FID", True], ["clip_score", "CLIP score", False]]
    assert part["settings"] == ["steps", "beta", "s", "k", "m", "mode"]
    assert part["baseline"] == book.run_id(book.rows[0])
    table = record["table"]
    lines = [dict(zip(table["columns"], line, strict=True)) for line in table["lines"]]
    assert [line["fid_low"] for line in lines] == [row.scores["fid"].low for row in book.rows]
    assert [line["seconds_p50"] for line in lines] == [None, 0.15, 0.15, 0.15]
    assert [line["beta"] for line in lines] == [None, None, 0.5, 0.5]
