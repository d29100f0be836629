"""The sweep, on the mini model: a report at the end, and what is refused or fails on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb_files
from conftest import refusal

from pipelines import evaluation, sweeps
from pipelines.engine import workers
from pipelines.engine.cluster import Limits, Resources
from pipelines.evaluation import Entry
from pipelines.stages import features, worker
from postdiff import low_first, methods, save_plan
from postdiff.models.checkpoints import MINI

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import coco_sweep  # noqa: E402  (a job is a script, not a package)

CAPTIONS = ROOT.parent / "shared" / "data" / "coco2014" / "captions_30k.txt"


def sweep(*args, check=True, **kwargs):
    command = [sys.executable, str(ROOT / "jobs" / "coco_sweep.py"), *args]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=600, **kwargs)


SMALL = ("--grid", "small", "--limit", "8", "--shard", "4", "--batch-size", "4", "--n-reference", "30")


def test_from_prompts_to_report_and_again_from_the_store(tmp_path):
    out = tmp_path / "sweep"
    first = sweep(*SMALL, "--out", str(out))
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4  # FID, CLIP score, PSNR, attributes
    assert page.count("data:image/webp") == 7 * 4  # configurations x images of the first shard
    assert "For mini-sd, at equal FLOPs, no verdict is called by FID, CLIP score" in page  # of 8 images
    assert "At equal FLOPs, for mini-sd, too few images to call one" in first.stdout
    for name in re.findall(r'<a href="([^"#]+)"', page):
        assert (out / name).is_file()
    assert "From 8 to 20 steps" in page
    assert not re.search(r"(src|href)=.(https?:|//)", page)  # offline: nothing is fetched
    results = (out / "results.csv").read_text().splitlines()
    assert len(results) == 1 + 7 + 1
    assert results[-1].startswith(",real images,,,,,,")
    assert page.count("real images") >= 2  # a line of the table, and what it means
    assert results[0].startswith("configuration,method,settings,steps,macs_paper,flops,seconds,fid,fid_low,fid_high")
    logged = wandb_files.runs(out / "wandb-offline")
    assert len(logged) == 7 + 1  # one a configuration, and the summary
    table = {line.split(",")[0]: line.split(",") for line in results[1:]}
    for run in (run for run in logged if run["job_type"] == "configuration"):
        line = table[run["run_id"].rsplit("-", 1)[1]]
        assert float(run["summary"]["fid"]) == pytest.approx(float(line[7]), abs=1e-4)
        assert float(run["summary"]["clip_score"]) == pytest.approx(float(line[10]), abs=1e-4)
        assert run["config"]["steps"] in (8, 12, 16, 20)
        assert run["summary"]["samples"]["count"] == 8
        assert run["config"]["CLIP score"].startswith("100 x cosine of mini-clip-")
    assert len({run["run_group"] for run in logged}) == 1
    assert {"results", "fid_front", "clip_front"} <= logged[-1]["history"].keys()
    shutil.rmtree(out / "text")  # no image is left that needs it: it is not made again
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.parquet")}
    again = sweep(*SMALL, "--out", str(out))
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*.parquet")} == before
    assert again.stdout == first.stdout
    assert len(wandb_files.runs(out / "wandb-offline")) == 8
    other = sweep(*SMALL[:2], "--limit", "9", "--shard", "4", "--out", str(out), check=False)
    assert other.returncode == 1
    assert "is of another spec" in other.stderr


@pytest.fixture
def small_evaluation(tmp_path):
    """Three configurations of two shards each: an open store, their entries, and the protocol."""
    given = coco_sweep.parse(
        ["--limit", "8", "--shard", "4", "--batch-size", "4", "--n-reference", "30", "--out", str(tmp_path / "out")]
    )
    of = evaluation.protocol(given)
    plans = [methods.dense(2), methods.dense(3), methods.dense(4)]
    entries = [Entry("dense", "", evaluation.configure(given, "mini-sd", plan), 1, 1) for plan in plans]
    return evaluation.claim_store(given.out, of), entries, of, given


def faulty(monkeypatch, folder, faults):
    """Workers whose first tasks fail: {part of a task's name: (how, times)}; each leaves a mark. Returns the counts."""
    folder.mkdir()

    class Faulty(worker.Handler):
        def __call__(self, task, riders=()):
            for part, (how, times) in faults.items():
                fired = [name for name in os.listdir(folder) if name.startswith(f"{how} ")]
                if part in task.name and len(fired) < times:
                    (folder / f"{how} {len(fired)}").touch()
                    if how == "dies":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if how == "hangs":
                        time.sleep(600)
                    raise ValueError(f"poison in {part}")
            return super().__call__(task, riders)

    monkeypatch.setattr(worker, "Handler", Faulty)
    return lambda: {how: len(list(folder.glob(f"{how} *"))) for how, _ in faults.values()}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_what_is_complete_is_reported_when_other_units_fail(tmp_path, monkeypatch, small_evaluation, capsys):
    """One configuration's images fail; the score of one dies once, that of another hangs once."""
    store, entries, of, given = small_evaluation
    a, b, c = (entry.configuration.id for entry in entries)
    faults = {f"images/{a}/00001": ("raises", 3), f"scores/{b}": ("dies", 1), f"scores/{c}": ("hangs", 1)}
    fired = faulty(monkeypatch, tmp_path / "faults", faults)
    resources = Resources(2, limits=Limits(longest=40.0, shortest=10.0))
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "entries", lambda given: entries)
        patch.setattr(evaluation, "connect", lambda *_: resources)
        with pytest.raises(SystemExit) as stopped:
            coco_sweep.main(given_args(given))
    assert fired() == {"raises": 3, "dies": 1, "hangs": 1}
    name = f"images/{a}/00001-of-00002.parquet"
    why = f"needs {name}, which failed: ValueError: poison in images/{a}/00001"
    assert str(stopped.value) == (
        f"error: 1 configurations are missing: 1 units failed, and 5 that need them; they are set aside in "
        f"{store.shown}/failed; the first, {name}: ValueError: poison in images/{a}/00001; all others are committed: "
        "run again to retry"
    )
    printed = capsys.readouterr().out
    assert f"missing: 1 configurations: mini-sd dense T=2 ({why})" in printed
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 1 + 2 + 1  # and real images
    assert why in (tmp_path / "out" / "report.html").read_text()
    assert len(store.names("failed")) == 6
    assert len(store.names("images")) == 5 + 2  # and PSNR's 60 steps
    again = evaluation.evaluate(store, entries, of, resources)  # as a resume: what was set aside is tried again
    assert [row.configuration for row in again.rows] == [a, b, c]
    assert again.missing == {}
    assert store.names("failed") == set()


def given_args(given):
    options = {"limit": given.limit, "shard": given.shard, "batch-size": given.batch_size, "out": given.out}
    return [text for name, value in options.items() for text in (f"--{name}", str(value))] + ["--n-reference", "30"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--backbone", "sd16"), "unknown model 'sd16': expected one of mini-bk-sdm, mini-bk-sdm-scenes"),
        (("--prompts", "nowhere.txt"), "no prompt file at 'nowhere.txt'"),
        (("--limit", "0"), "--limit must be 1 or more, got 0"),
        (("--limit", "1000000"), "--limit must be at most 100000 (more of Shapes would take hours"),
        (
            ("--limit", "1000000000000000"),
            "--limit must be at most 10000000 (a list that is planned as a whole), got 1000",
        ),
        (("--limit", "3.5"), "--limit must be a whole number from 1 to 10000000, got '3.5'"),
        (("--shard", "0"), "--shard must be 1 or more, got 0"),
        (("--prompts", "PROMPTS", "--limit", "9"), "--limit must be at most the 4 prompts of '"),
        (("--grid", "medium"), "argument --grid: invalid choice: 'medium' (choose from"),
        (
            ("--solver", "rk45"),
            "mini-sd's solver must be one of ddim, dpm, euler, "
            "unipc, dpm_3m, dpm_sde, euler_a, deis, heun, pndm, plms, got 'rk45'",
        ),
        (("--solver", "heun"), "heun runs the model 2 * T - 1 times for T steps of its own, T from 1: expected a plan"),
        (("--guidance", "0.5"), "--guidance must be 1 or more, got 0.5"),
        (("--guidance", "nan"), "--guidance must be 1 or more, got nan"),
        (("--guidance", "inf"), "--guidance must be at most 1000, got inf"),
        (("--guidance", "2", "--guidance", "3"), "--guidance is given twice"),
        (("--dry-run", "--tflops", "0"), "--tflops must be above 0, got 0"),
        (("--tflops", "3"), "--tflops has no effect without --dry-run"),
        (("--batch-size", "0"), "--batch-size must be 1 or more, got 0"),
        (("--batch-size", "64"), "--batch-size must be at most the 32 prompts of a unit, got 64"),
        (("--batch-size", "8", "--limit", "6"), "--batch-size must be at most the 6 prompts of a unit, got 8"),
        (("--batch-size", "1000000000"), "--batch-size must be at most 4096 (one forward pass), got 1000000000"),
        (("--n-reference", "1000000000000"), "--n-reference must be at most 1000000 (features of 2048 numbers"),
        (("--reference", "x", "--reference", "y"), "--reference is given twice"),
        (("--reference", "PROMPTS", "--n-reference", "9"), "--n-reference has no effect where the references are not"),
        (("--prompts", "PROMPTS", "--fid", "mini-clip"), "--fid has no effect without --reference"),
        (("--shuffled",), "--shuffled has no effect on Shapes"),
        (("--plans", "DEEP"), "it is nested too deep"),
        (("--out", ""), "a store must be a folder or a URL, got ''"),
        (("--out", "PROMPTS"), "is not writable: expected a folder, got a file"),
        (("--out", "s3:/bucket/x"), "a URL must be s3://..., got 's3:/bucket/x'"),
        (("--sol", "ddim"), "unrecognized arguments: --sol ddim"),
        (("--solver", "\udcff"), "arguments must be UTF-8, got \\udcff"),
        (
            ("--gpus-per-worker", "1.5"),
            "--gpus-per-worker must be a share of one GPU or a whole number of them, got 1.5",
        ),
        (("--out", "/proc/nowhere/sweep"), "is not writable"),
        (("--reference", "/proc/nowhere"), "--reference must be a folder of at least 2 images"),
        (
            ("--clip", "maxi-clip"),
            "unknown CLIP model 'maxi-clip': expected mini-clip, mini-clip-scenes, mini-clip-reads, a folder",
        ),
        (("--clip", "TMP"), "a CLIP folder must hold open_clip_config.json"),
        (("--fid", "nowhere.pt"), "no Inception weights at nowhere.pt"),
        (("--fid", "BROKEN"), "must be a TorchScript file with `layers`"),
        (("--limit", "3"), "intervals need at least 4 prompts, got 3"),
        (("--n-reference", "0"), "--n-reference must be 2 or more, got 0"),
        (("--workers", "-1"), "--workers must be 1 or more, got -1"),
        (("--backbone", "sd15", "--prompts", "PROMPTS", "--clip", "mini-clip"), "sd15 is made for GPUs and none is up"),
        (("--gpus-per-worker", "1"), "--gpus-per-worker needs GPUs: this machine has none, and RAY_ADDRESS names no"),
    ],
)
@pytest.mark.usefixtures("ray_session")
def test_bad_input_is_one_line_before_any_work(tmp_path, monkeypatch, capsys, args, message):
    """And no store is claimed, or left behind."""
    monkeypatch.setattr(workers, "_nodes", lambda: [{"CPU": 2.0}])  # whatever this machine has
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cow\na fox\n")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    names = {"PROMPTS": "prompts.txt", "DEEP": "deep.json", "BROKEN": "broken.pt", "TMP": "."}
    args = [str(tmp_path / names[arg]) if arg in names else arg for arg in args]
    others = [
        part for pair in (("--grid", "small"), ("--out", tmp_path / "out")) if pair[0] not in args for part in pair
    ]
    assert message in refusal(coco_sweep.main, [*others, *args], capsys)
    assert not (tmp_path / "out").exists()


class Layers(torch.nn.Module):
    """What clean-fid's Inception is from outside."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Identity()

    def forward(self, x):
        return self.layers(x)


def test_an_encoder_is_opened_before_it_is_needed(tmp_path):
    torch.jit.script(Layers()).save(tmp_path / "inception.pt")
    torch.jit.script(torch.nn.Identity()).save(tmp_path / "other.pt")
    torch.save({"layers": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "inception.pt").read_bytes()[:-30])
    features.check_encoder(str(tmp_path / "inception.pt"))
    for name in ("other.pt", "weights.pt", "torn.pt"):
        with pytest.raises(ValueError, match=rf"{name}' must be a TorchScript file with `layers`, as https://"):
            features.check_encoder(str(tmp_path / name))
    features.check_encoder("mini-clip")
    shutil.copytree(MINI / "mini-clip", tmp_path / "clip")
    features.check_encoder(str(tmp_path / "clip"))
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"a CLIP folder must hold its weights as \.safetensors, '.*clip' does not"):
        features.check_encoder(str(tmp_path / "clip"))


def test_a_plan_of_your_own_is_swept_beside_the_grid(tmp_path, capsys):
    own = methods.tome(12, ratio=0.3)
    save_plan(own, tmp_path / "own.json")
    coco_sweep.main(["--dry-run", "--grid", "steps", "--plans", str(tmp_path / "own.json")])
    small = low_first(methods.dense(20), 0.5, 0.25)  # keeps the name that it was made of
    assert sweeps.named(small, "small.json") == ("changed dense", "small")  # and is not what others are held against
    assert sweeps.named(methods.dense(7), "x/seven.json") == ("dense", "seven")
    listed = capsys.readouterr().out
    assert listed.startswith("read 256 prompts, the first: 'a ")
    assert "3 configurations x 256 prompts" in listed
    assert "tome T=12" in listed
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SystemExit, match="must hold a plan that save_plan wrote"):
        coco_sweep.main(["--dry-run", "--plans", str(tmp_path / "bad.json")])


@pytest.mark.skipif(not CAPTIONS.exists(), reason="the real COCO captions are not beside this checkout")
def test_the_real_captions_plan_shard_and_tokenise_in_under_a_minute(tmp_path):
    began = time.time()
    done = sweep("--backbone", "sd15", "--prompts", str(CAPTIONS), "--out", str(tmp_path), "--dry-run")
    assert time.time() - began < 60
    assert "30003 prompts" in done.stdout
    assert "truncated at 77" in done.stdout
    assert "MACs" in done.stdout
    assert "GB of images" in done.stdout


@pytest.mark.slow
def test_ray_job_submit_runs_the_sweep_on_a_local_cluster(tmp_path):
    ray = str(Path(sys.executable).with_name("ray"))
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(16).hex()}
    environment["RAY_worker_niceness"] = "0"
    start = [ray, "start", "--head", "--block", "--num-cpus=2", "--port=6399", "--dashboard-port=8299"]
    start += ["--dashboard-agent-listen-port=52399"]  # these tests' own Ray has the usual one: no agent, no jobs
    head = subprocess.Popen(
        start, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        submit = [ray, "job", "submit", "--address", "http://127.0.0.1:8299", "--working-dir", str(ROOT)]
        excluded = json.dumps({"excludes": [".git", ".venv", "out", ".train"]})
        job = [sys.executable, "jobs/coco_sweep.py", *SMALL, "--out", str(tmp_path / "out")]
        for _ in range(20):  # the head answers before its agent, which starts jobs, is up
            time.sleep(6)
            done = subprocess.run(
                [*submit, "--runtime-env-json", excluded, "--", *job], env=environment, capture_output=True, text=True,
                timeout=600, check=False,
            )  # fmt: skip
            if not re.search("No available agent|Failed to connect|Connection", done.stderr):
                break
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert (tmp_path / "out" / "report.html").exists()
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(30)
