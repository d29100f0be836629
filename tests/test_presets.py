"""Tables 3 and 4 as settings, and the job that fills them."""

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROMPTS, SEEDS

import postdiff
from pipelines import latency
from pipelines.store import Store
from postdiff import methods, presets

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import baselines  # a job is a script, not a package


def test_every_row_of_the_tables_runs_on_its_model(backbone, backbones):
    for name in presets.PRESETS:
        under_test = backbone if name.startswith("table3") else backbones("pixart")
        plan = presets.find(name, under_test, PROMPTS[:1], SEEDS[:1], steps=2)
        assert len(plan) == 2
        assert postdiff.sample(under_test, PROMPTS[:1], SEEDS[:1], plan).shape == (1, 64, 64, 3)


def test_presets_are_the_papers_settings():
    assert presets.plan("table3.postdiff").id == methods.postdiff().id
    assert presets.plan("table3.deepcache").id == methods.deepcache(20, k=2, branch=1).id
    assert presets.plan("table4.postdiff").id == methods.postdiff(20, 0.75, 0.5, 1, 15).id
    assert sum(step.guided for step in presets.plan("table3.tgate").steps) == 5
    assert sum(step.guided for step in presets.plan("table4.tgate", 10).steps) == 4
    assert presets.plan("table3.tome").tokens.ratio == 0.3


def test_a_preset_that_is_not_there_or_needs_the_model_is_told():
    with pytest.raises(ValueError, match=r"unknown preset 'table9.x': expected one of table3\.dense"):
        presets.plan("table9.x")
    with pytest.raises(ValueError, match="is found by a search"):
        presets.plan("table4.ditfastattn")


def test_speedups_are_medians_of_rounds():
    dense, fast = latency.summarise(np.array([[1.0, 0.5], [3.0, 1.0], [2.0, 0.5]]))
    assert (dense.p50, dense.speedup, dense.n) == (2.0, 1.0, 3)
    assert (fast.p50, fast.speedup) == (0.5, 3.0)
    assert fast.p90 == pytest.approx(0.9)


def test_the_job_fills_a_table_and_goes_on_where_it_stopped(ray_session, tmp_path, capsys):
    args = [
        "--tables", "table4", "--limit", "8", "--n-reference", "16", "--steps", "4", "--rounds", "3", "--shard", "4",
        "--batch-size", "4", "--out", str(tmp_path),
    ]  # fmt: skip
    baselines.main(args)
    text = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table4" / "table.csv").read_text())))
    assert [row["method"] for row in rows] == ["dense", "tgate", "ditfastattn", "duca", "postdiff"]
    assert rows[0]["speedup"] == "1.0000"
    assert all(float(row["p90"]) >= float(row["p50"]) > 0 and int(row["n"]) == 8 for row in rows)
    assert int(rows[1]["flops"]) < int(rows[0]["flops"])
    assert "| ditfastattn |" in text
    assert "25.44" in text
    assert "lost" in text
    page = (tmp_path / "table4" / "table.html").read_text()
    assert "the FID cell is lost" in page
    store = Store(str(tmp_path / "table4"))
    before = {name: store.get(name) for name in store.names("images")}
    assert len(before) == 2 * 5
    baselines.main(args)
    assert {name: store.get(name) for name in store.names("images")} == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--backbone", "mini-sd"], "--backbone goes with one of --tables"),
        (["--steps", "0"], "--steps must be 1 or more, got 0"),
        (["--tables", "table3", "--rounds", "2", "--limit", "8"], "a median of fewer than 3 rounds"),
    ],
)
def test_bad_input_is_told_before_any_work(args, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        baselines.main([*args, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_other_prompts_need_prompts_to_calibrate_on(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"caption {i}" for i in range(8)))
    with pytest.raises(SystemExit, match=r"needs --calibration, a file of other prompts"):
        baselines.main(["--prompts", str(file), "--clip", "mini-clip", "--out", str(tmp_path / "out")])
