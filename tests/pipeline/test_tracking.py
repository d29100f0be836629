"""What W&B keeps of a run: the results, and nothing of the machine, of its user or of the command line."""

import os
import subprocess
import sys
from pathlib import Path

from pipelines.engine.store import Store
from pipelines.report import tracking

ROOT = Path(__file__).parents[2]
SECRETS = ("K3YID", "S3CR3T/OF-THE-URL", "S3CR3T-OF-THE-ENVIRONMENT", "0" * 24 + "5ecre7ofwandb000")
HOST = ("THE-H0ST", "THE-US3R", "us3r@example.org")
# As a job does it: its command line holds what it was given, and it logs one configuration.
PROGRAM = """
import sys
from pipelines.engine.store import Store
from pipelines.report import tracking
from pipelines.metrics.intervals import Interval
from pipelines.report.tables import Row
row = Row("abc", "dense", "", 20, 1, 2, 0.5, {"clip": Interval(70.0, 69.0, 71.0, 8)})
made = tracking.log(Store(sys.argv[1]), "sweep", {"prompts": "8 of x"}, [row], {"abc": {"plan": 1}}, {})
print("made", made)
"""


def log(store, cwd):
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
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, str(store), "--out", secret_url, f"--key={SECRETS[2]}"]
    done = subprocess.run(command, cwd=cwd, env=os.environ | told, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "made 2\n", done.stderr


def records_of(file):
    """The messages of a .wandb file, as the text of everything in them."""
    from test_sweep import wandb_records
    from wandb.proto import wandb_internal_pb2

    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield str(record)


def test_no_secret_and_no_name_of_the_host_is_in_what_is_written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "jobs")
    cwd = tmp_path / "home"
    cwd.mkdir()
    log(tmp_path / "store", cwd)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]  # logs, caches and settings too
    runs = [file for file in written if file.suffix == ".wandb"]
    assert len(runs) == 2
    records = [text for file in runs for text in records_of(file)]
    assert any("macs_paper" in text for text in records)  # the results are there
    assert any('"abc"' not in text and "sweep-" in text for text in records)
    raw = {str(file): file.read_bytes() for file in written}
    for hidden in (*SECRETS, *HOST, os.uname().nodename + "."):
        assert [name for name, data in raw.items() if hidden.encode() in data] == []
        assert [text for text in records if hidden in text] == []
    for told in ("--key", str(cwd)):  # neither the command line nor where it ran
        assert [text for text in records if told in text] == []


def test_what_a_crash_left_of_a_run_is_removed_and_finished_runs_stay(tmp_path):
    store = Store(tmp_path)
    store.put("wandb/offline/sweep-1/abc.json", b"{}")
    finished, crashed = ("wandb-offline/wandb/offline-run-20261125_202052-sweep-1-" + id for id in ("abc", "abd"))
    for folder in (finished, crashed):
        store.put(f"{folder}/run.wandb", b"data")
        store.put(f"{folder}/files/requirements.txt", b"data")
    tracking._remove_unfinished(store, store.names("wandb"))
    assert {path.name for path in (tmp_path / "wandb-offline" / "wandb").iterdir()} == {finished.rsplit("/", 1)[1]}
    assert store.names(finished) == {f"{finished}/run.wandb", f"{finished}/files/requirements.txt"}


def test_a_failure_is_told_without_credentials(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def fail(store, done):
        raise OSError(f"cannot reach https://{SECRETS[0]}:{SECRETS[2]}@host/x\nat all")

    monkeypatch.setattr(tracking, "_remove_unfinished", fail)
    assert tracking.log(Store(tmp_path), "sweep", {}, [], {}, {}) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: not all is logged to W&B: OSError('cannot reach https://host/x")
    assert not any(secret in line for secret in SECRETS)


def test_disabled_is_nothing_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.log(Store(tmp_path), "sweep", {}, [], {}, {}) == 0
    assert list(tmp_path.iterdir()) == []
