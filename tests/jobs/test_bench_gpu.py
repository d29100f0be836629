"""jobs/bench_gpu.py without a GPU: what it refuses, how it shares time, what has failed, how a rehearsal is told."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal

from jobs import bench_gpu
from pipelines.gpu import checks, speed, tables
from pipelines.gpu.runs import Budget, Outcome, Settings
from postdiff import methods

ROOT = Path(__file__).parents[2]
THIN = Settings("cpu", True, ("mini-sd",), 1)
CASE = checks.Case("dense dpm", methods.dense(3), "dpm")
MERGING = checks.Case("tome dpm", methods.tome(3), "dpm")


def run(tmp_path, *arguments):
    with pytest.raises(SystemExit) as ended:
        bench_gpu.main([*arguments, "--device", "cpu", "--thin", "--out", str(tmp_path)])
    return ended.value.code


def test_it_runs_without_the_evaluations_packages_and_ends_inside_a_part(tmp_path):
    script = (
        "import sys\n"
        "for name in ('ray', 'open_clip', 'pyarrow'): sys.modules[name] = None\n"
        "from jobs import bench_gpu\n"
        "bench_gpu.main(sys.argv[1:])\n"
    )
    options = ["--device", "cpu", "--thin", "--minis", "mini-sd", "--minutes", "0.2", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", script, "agree", "latency", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "agree.json").read_text())
    assert result["rehearsal"] is True
    assert result["settings"]["device"] == "cpu"
    assert result["versions"]["torch"] == torch.__version__
    assert result["numbers"], "something was measured"
    assert all(row["off"] == 0 and row["repeats"] for row in result["numbers"].values() if isinstance(row, dict))
    assert not result["failed"]
    assert json.loads((tmp_path / "latency.json").read_text())["left_out"], "no machine draws all of it in ten seconds"
    assert "REHEARSAL" in (tmp_path / "latency.md").read_text()
    assert done.stdout.splitlines()[-1] == f"nothing failed: {tmp_path}"
    assert done.stdout.splitlines()[-2].startswith("no time was left for ")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_part_that_raises_is_told_last_and_the_others_are_written(tmp_path, monkeypatch, capsys):
    def broken(settings, budget):
        raise RuntimeError("no kernel\nfor this card")

    parts = {"agree": broken, "full": lambda settings, budget: Outcome({"sd15": "finite"})}
    monkeypatch.setattr(bench_gpu, "PARTS", {**bench_gpu.PARTS, **parts})
    assert run(tmp_path, "agree", "full") == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "1 failed: agree: all of it: RuntimeError: no kernel for this card"
    )
    assert json.loads((tmp_path / "full.json").read_text())["numbers"] == {"sd15": "finite"}
    assert "in broken" in json.loads((tmp_path / "agree.json").read_text())["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["speed"], "unknown part 'speed': expected one of agree, latency, batch, full, half, compile"),
        (["agree", "--minis", "sd15"], "unknown mini model 'sd15': expected one of mini-bk-sdm"),
        (["full", "--minutes", "0"], "--minutes must be above 0, got 0"),
        (["full", "--minutes", "nan"], "--minutes must be above 0, got nan"),
        (["full", "--minutes", "inf"], "--minutes must be at most 1440, got inf"),
        (["full", "--minutes=-inf"], "--minutes must be above 0, got -inf"),
        (["full", "--minutes", "1", "--minutes", "2"], "--minutes is given twice"),
        (["full", "--minute", "1"], "unrecognized arguments: --minute"),
        (["latency", "--rounds", "0"], "--rounds must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(tmp_path, capsys, arguments, why):
    out = tmp_path / "out"
    result = refusal(bench_gpu.main, [*arguments, "--device", "cpu", "--thin", "--out", out], capsys)
    assert result.startswith(why)
    assert not out.exists()


def test_minis_that_were_not_sent_are_not_asked_for(tmp_path, monkeypatch):
    def sent(name):
        if name != "mini-sd":
            raise FileNotFoundError(f"{name} is not sent with a job")
        return ROOT / "postdiff" / "mini" / name

    monkeypatch.setattr(bench_gpu.minis, "folder", sent)
    assert bench_gpu.parse([]).minis == ["mini-sd"]
    result = run(tmp_path, "agree", "--minis", "mini-lcm")
    assert result == "error: unknown mini model 'mini-lcm': expected one of mini-sd"


def test_no_gpu_and_no_folder_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^error: --device cuda: torch finds no GPU here.*rehearses without one$"):
        bench_gpu.main(["agree", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file", "full").startswith(f"error: --out {tmp_path / 'file'} must be a folder that can be")


def test_what_one_item_leaves_over_those_after_it_have():
    budget = Budget(100)
    (_, first), (_, second), (_, third) = budget.shares("abc", [2, 1, 1])
    assert (round(first.left), round(second.left), round(third.left)) == (50, 50, 100)  # none took any time


def test_cases_end_with_the_time_and_one_that_raises_does_not_end_the_others():
    outcome, budget = Outcome(), Budget(100)

    def broken():
        raise ValueError("no such module")

    def last():
        budget.until = 0.0
        return 3

    outcome.run(
        "m", {"a": lambda: 1, "b": broken, "c": last, "d": lambda: 4}, budget, lambda n: "odd" if n == 1 else ""
    )
    assert outcome.numbers == {"m a": 1, "m c": 3}
    assert outcome.failed == {"m a": "odd", "m b": "ValueError: no such module"}
    assert outcome.left_out == ["m d"]


@pytest.mark.parametrize(
    ("case", "on_device", "why"),
    [
        (CASE, (0.0, 0.0, 0.0), ""),
        (CASE, (2e-3, 2e-3, 2e-3), "2.0e-03 off the CPU, more than 0.001"),
        (CASE, (0.0, 0.0, 5e-3), "5.0e-03 between an image alone and in a batch, more than 0.001"),
        (CASE, (0.0, 1e-6, 0.0), "another result the second time"),
        (MERGING, (2e-3, 3e-3, 2e-3), ""),  # adds in no fixed order, and chooses among near-ties
        (MERGING, (0.2, 0.2, 0.2), "2.0e-01 off the CPU, more than 0.1"),
    ],
)
def test_a_device_must_agree_with_the_cpu_and_with_itself(monkeypatch, case, on_device, why):
    """What is drawn: the CPU's, the device's, the device's again, the first image alone."""
    one, off = torch.ones(2, 4, 8, 8), iter([0.0, *on_device])
    monkeypatch.setattr(checks, "latents", lambda *args, **kwargs: one[: len(args[4])] + next(off))
    assert checks._disagreement(checks._agreement(None, None, [None, None], case, "cpu")) == why


def test_latents_that_are_not_finite_have_failed(monkeypatch):
    drawn = torch.ones(1, 4, 8, 8, dtype=torch.float16)
    drawn[0, 0, 0, :3] = float("nan")
    monkeypatch.setattr(checks, "latents", lambda *args: drawn)
    outcome = Outcome()
    outcome.run("sd15", {"dense": partial(checks._runs, None, None, CASE, torch.float16)}, Budget(9))
    assert outcome.failed == {"sd15 dense": "ArithmeticError: 3 of 256 latents are not finite in float16"}


def test_half_precision_of_a_mini_is_near_float32(monkeypatch):
    every = checks.cases
    monkeypatch.setattr(checks, "cases", lambda *args: [c for c in every(*args) if c.label == "postdiff dpm"])
    monkeypatch.setattr(checks, "HALF", (torch.bfloat16,))
    outcome = checks.half(THIN, Budget(600))
    assert not outcome.failed
    assert not outcome.left_out
    assert outcome.numbers["mini-sd decoded bfloat16"] == "finite"
    assert 0 < outcome.numbers["mini-sd postdiff dpm bfloat16"]["off"] < 0.05


def test_every_method_is_a_case_and_what_cannot_be_is_told_with_the_reason():
    refused = {}
    labels = {case.label.split()[0] for case in checks.cases(THIN.backbone("sd15"), THIN, refused)}
    assert labels | {key.split()[1] for key in refused} >= {*methods.METHODS, "block_caching", "ditfastattn"}
    assert refused == {"sd15 duca": "token caching needs a transformer, got UNet2DConditionModel"}


def test_tf32_is_off_for_a_comparison_alone():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with checks.exact_float32():
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_batches_grow_until_memory_ends(monkeypatch):
    def draw(backbone, text, plan, n, device):
        if plan.name == "dense" and n > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (0.3 * n, 0.1 * n), 2.0 * n

    monkeypatch.setattr(speed, "_draw", draw)
    backbone, outcome = THIN.backbone("sd15"), Outcome()
    plans = {"dense": methods.dense(), "PostDiff": methods.postdiff()}
    speed._grow(backbone, plans, Settings("cpu", False, (), 1), Budget(600), outcome)
    assert outcome.notes == ["memory ends: sd15 dense x8"]
    assert not outcome.failed
    assert [row["batch"] for row in outcome.numbers.values() if row["plan"] == "dense"] == [1, 2, 4]
    assert outcome.numbers["sd15 PostDiff x32"] == {
        "model": "sd15", "plan": "PostDiff", "batch": 32, "images_per_s": 2.5, "decode_share": 0.25, "peak_gib": 64.0,
    }  # fmt: skip


def test_a_batch_that_would_not_end_in_time_is_not_begun(monkeypatch):
    clock = iter(range(0, 1000, 50))  # every batch takes 50 s
    monkeypatch.setattr(speed, "now", lambda device: next(clock))
    monkeypatch.setattr(speed, "_draw", lambda *args: ((1.0, 1.0), None))
    outcome = Outcome()
    speed._grow(THIN.backbone("sd15"), {"dense": methods.dense()}, THIN, Budget(60), outcome)
    assert list(outcome.numbers) == ["sd15 dense x1"]
    assert outcome.left_out == ["sd15 dense x2"]


def latency_told(rehearsal=False):
    """Made-up runs of SD1.5: the dense plan takes 0.9 + 0.1 s, PostDiff 0.4 + 0.1 s, at a quarter of the FLOPs."""
    plans = speed.plans_of(speed.tables(False))["sd15"]
    ends = speed.ends(plans)
    ids = {label: next(key for key, plan in plans.items() if plan is end) for label, end in ends.items()}
    stages = {ids["dense"]: np.tile([0.9, 0.1], (3, 1)), ids["PostDiff"]: np.tile([0.4, 0.1], (3, 1))}
    rows = speed.summarise(
        plans, stages, dict.fromkeys(stages, 4.5), {ids["dense"]: 8 * 10**13, ids["PostDiff"]: 2 * 10**13}
    )
    return {
        "rehearsal": rehearsal, "machine": "NVIDIA H100 80GB HBM3", "dtype": "float16", "commit": "abc1234",
        "settings": {"thin": False, "device": "cpu" if rehearsal else "cuda"},
        "numbers": {f"sd15 {key}": row for key, row in rows.items()}, "notes": [],
    }  # fmt: skip


def test_seconds_do_not_contradict_speedups_though_the_pace_changes():
    """The machine is twice as slow in every second round, and slowest in one: seconds are those of one pace."""
    plans = speed.plans_of(speed.tables(False))["sd15"]
    ids = {label: next(key for key, plan in plans.items() if plan is end) for label, end in speed.ends(plans).items()}
    pace = np.array([1.0, 2.0, 1.0, 2.0, 9.0])
    stages = {ids["PostDiff"]: np.outer(pace, [0.4, 0.1]), ids["dense"]: np.outer(pace, [0.9, 0.1])}
    stages[ids["PostDiff"]][[0, 2]] *= 4  # rounds in which it alone was disturbed
    rows = speed.summarise(plans, stages, dict.fromkeys(stages), {})
    fast, dense = rows[ids["PostDiff"]], rows[ids["dense"]]
    assert (dense["p50_s"], dense["speedup"]) == (2.0, 1.0)
    assert (fast["p50_s"], fast["speedup"], fast["denoise_s"], fast["decode_s"]) == (1.0, 2.0, 0.8, 0.2)
    assert fast["denoise_speedup"] == pytest.approx(dense["denoise_s"] / fast["denoise_s"])
    alone = speed.summarise(plans, {ids["PostDiff"]: stages[ids["PostDiff"]]}, dict.fromkeys(stages), {})
    assert "speedup" not in alone[ids["PostDiff"]]


def test_the_papers_tables_have_its_latencies_beside_ours():
    text = tables.latency(latency_told())
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Table 2: PostDiff on four models",
        "## Table 3: Other methods, SD1.5",
        "## Table 4: Other methods, PixArt-alpha",
        "## Table 5: Ablation of k and m",
        "## Table 6: Another data set",
    ]
    ours = "0.500 (0.500) | 0.400 | 0.100 | 4.50 | 2.00 | 2.25 | 4.00 | 1.139 (A5000) | 2.57"
    assert f"| sd15 20 steps +Mix +Cache | {ours} |" in text
    assert f"| Ours | {ours} |" in text  # Table 3's is the same run
    dash = " | ".join(["–"] * 7)
    assert f"| ToMe | {dash} | 2.730 (A5000) | 1.07 |" in text
    assert f"| DiTFastAttn | {dash} | 1.103 (H100) | 1.59 |" in text
    assert "NVIDIA H100 80GB HBM3, float16, commit abc1234" in text
    assert "REHEARSAL" not in text


def test_a_rehearsal_poses_as_no_measurement():
    text = tables.latency(latency_told(rehearsal=True))
    assert "REHEARSAL (random models on cpu): no number is a GPU's or the paper's." in text
    assert all(line.endswith("(REHEARSAL)") for line in text.splitlines() if line.startswith("## "))


def test_all_plans_of_the_tables_are_run_once():
    plans = speed.plans_of(speed.tables(False))
    assert {model: len(of) for model, of in plans.items()} == {
        "sd15": 17, "lcm": 4, "sdxl": 5, "pixart": 8, "sdxl-fp16-vae": 2,
    }  # fmt: skip
    assert {"ca_tome", "tome", "todo", "tgate", "faster_diffusion"} <= {plan.name for plan in plans["sd15"].values()}
    assert {"duca", "ditfastattn", "tgate"} <= {plan.name for plan in plans["pixart"].values()}
