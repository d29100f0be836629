"""The job that makes the paper's exhibits: its options, what it keeps, what it would take."""

import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import refusal

from pipelines import options
from pipelines.engine import workers
from pipelines.engine.store import Store
from pipelines.paper import datasets, dry_run, exhibits, published, reproduction, searched_plans, tuning
from pipelines.stages import generation, latency
from pipelines.training.finetune_settings import Settings
from postdiff import methods

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import reproduce  # a job is a script, not a package


def test_real_models_are_scored_as_real_ones_whatever_the_first_option_is(tmp_path):
    file = tmp_path / "recaption.txt"
    file.write_text("\n".join(f"caption {i}" for i in range(300)))
    own = datasets.of_dataset(
        reproduce.parse(["table6", "--models", "real", "--recaption", str(file)]), "imagenet21k_recaption"
    )
    assert (own.clip, own.fid, own.limit) == ("ViT-g-14/laion2b_s34b_b88k", "inception-2015-12-05.pt", 300)
    gallery = datasets.of_dataset(reproduce.parse(["fig6", "--models", "real"]), published.GALLERY)
    assert (gallery.clip, gallery.limit) == ("ViT-g-14/laion2b_s34b_b88k", None)
    mini = datasets.of_dataset(reproduce.parse(["table6", "--scale", "0.5"]), "imagenet21k_recaption")
    assert (mini.clip, mini.fid, mini.limit, mini.prompts) == ("mini-clip", "mini-clip", 128, "shapes-recaption")


def test_a_protocol_of_coco_is_not_that_of_the_other_sets(tmp_path, monkeypatch):
    file = tmp_path / "recaption.txt"
    file.write_text("\n".join(f"caption {i}" for i in range(12)))
    eight = replace(datasets.DATASETS["imagenet21k_recaption"], size=8)
    monkeypatch.setitem(datasets.DATASETS, "imagenet21k_recaption", eight)
    args = reproduce.parse(["table6", "--models", "real", "--recaption", str(file)])
    args = replace(args, protocol="coco-30k-matched", limit=30_000, matched=True)
    own = datasets.of_dataset(args, "imagenet21k_recaption")
    assert (own.protocol, own.limit, own.matched, own.shuffled) == (None, 8, False, True)
    given = reproduce.parse(["table6", "--models", "real", "--recaption", str(file), "--limit", "20"])
    assert datasets.of_dataset(given, "imagenet21k_recaption").limit == 8
    monkeypatch.setitem(datasets.DATASETS, "imagenet21k_recaption", replace(eight, size=16))
    own = datasets.of_dataset(given, "imagenet21k_recaption")
    assert len(options.read_prompts(own)) == 12  # the paper has 16, this file all of its 12
    with pytest.raises(ValueError, match=r"--limit must be at most the 12 prompts of '.*recaption\.txt', got 16"):
        options.read_prompts(datasets.of_dataset(replace(given, limit=16), "imagenet21k_recaption"))
    gallery = datasets.of_dataset(args, published.GALLERY)
    assert (gallery.protocol, gallery.limit, gallery.matched) == (None, None, False)


def test_the_dry_run_of_the_real_paper_needs_no_data(capsys, monkeypatch):
    monkeypatch.chdir("/")
    reproduce.main(["table2", "fig9", "table7", "--models", "real", "--dry-run", "--price", "2"])
    first, text = capsys.readouterr().out.split("\n", 1)
    assert first == "coco2014: no file of captions is given: counted for 30000 of the paper's 30000"
    assert text.startswith("27 cells, 25 different runs, 750000 images")
    assert re.search(r"bk-sdm-tiny fine-tuned +1 runs", text)
    assert "about one day of an H200 for SD1.5" in text
    # By hand: LCM's four plans are (3.042 + 6.084 + 3.807 + 3.686) T MACs; 6.084 T took 0.825 s.
    assert re.search(r"lcm +4 runs +498\.5\d\d P MACs", text)
    assert f"{30000 * 16.619 / (6.084 / 0.825) / 3600:.1f} hours A5000" in text
    assert re.search(r"an A5000 or \d+ of an H100, or \d+ at 2 an H100 hour", text)


def test_a_gpu_that_timed_a_model_is_as_fast_as_it_was():
    assert dry_run.throughput("sd15", "A5000") == pytest.approx(30.420 / 2.930)
    assert dry_run.throughput("bk-sdm-tiny", "A5000") == dry_run.throughput("sd15", "A5000")
    assert dry_run.throughput("pixart", "H100") == pytest.approx(85.640 / 1.752)


def test_the_job_makes_tables_and_figures_and_goes_on_where_it_stopped(ray_session, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(searched_plans, "CALIBRATION", 2)
    few = ["--limit", "8", "--scale", "0.5", "--n-reference", "16", "--rounds", "3"]
    args = ["table4", "fig9", *few, "--shard", "2", "--batch-size", "2", "--out", str(tmp_path)]
    reproduce.main(args)
    out = capsys.readouterr().out
    made = {file.name for file in (tmp_path / "exhibits").iterdir()}
    figure = {"fig9.png", "fig9.svg", "fig9.points.csv"}
    assert made == {f"{key}.{kind}" for key in ("table4", "fig9") for kind in ("md", "csv", "tex")} | figure
    rows = list(csv.DictReader(io.StringIO((tmp_path / "exhibits/table4.csv").read_text())))
    *rows, real = rows
    assert (real["label"], real["fid_change"], real["p50"], float(real["attributes"])) == ("real images", "", "", 100)
    assert [row["label"] for row in rows] == ["Original", "TGATE", "DiTFastAttn", "DuCa", "Ours"]
    assert all(float(row["p90"]) >= float(row["p50"]) > 0 and int(row["n"]) == 4 for row in rows)
    assert float(rows[0]["speedup"]) == 1
    assert int(rows[1]["flops"]) < int(rows[0]["flops"])
    assert re.search(r"\| DiTFastAttn \[[\d, ]+\] \| – \|", out)  # its plan is of mini-PixArt's six blocks
    assert "its FID cell is lost in the scan" in out
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "only directions can be compared" in page
    store = Store(str(tmp_path))
    before = {name: store.get(name) for name in store.names() if name.startswith(("images/", "latency/", "exhibits/"))}
    assert sum(name.startswith("images/") for name in before) == 2 * (9 + 2)  # and the baselines of PSNR
    reproduce.main(args)
    after = {name: store.get(name) for name in before}
    changed = [name for name in before if after[name] != before[name] and not name.endswith(".png")]
    assert changed == []


@pytest.mark.slow
def test_table_7_is_before_and_after_fine_tuning(ray_session, tmp_path, monkeypatch, capsys):
    def settings(model):
        return Settings(steps=1, batch=2, micro_batch=2, lr=1e-3, warm_up=1, ema=0.0)

    monkeypatch.setattr(tuning, "settings", settings)
    args = ["table7", "--limit", "4", "--n-reference", "16", "--rounds", "0", "--shard", "2", "--out", str(tmp_path)]
    reproduce.main(args)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "exhibits/table7.csv").read_text())))
    assert rows.pop()["label"] == "real images"
    kinds = ["sd15-original", "sd15-original fine-tuned", "bk-sdm-tiny", "bk-sdm-tiny fine-tuned"]
    assert [row["label"] for row in rows] == [row["model"] for row in rows] == kinds
    assert [bool(row["fid_change"]) for row in rows] == [False, True, False, True]
    assert len({row["configuration"] for row in rows}) == 4
    out = capsys.readouterr().out
    assert "| 63.64 | – |" in out
    assert "here 1 steps of 2 pairs of Shapes, learning rate 0.001, on mini models" in out
    folders = {file: file.stat().st_mtime_ns for file in tmp_path.glob("finetuned/*/postdiff.json")}
    assert len(folders) == 2
    reproduce.main(args)
    assert folders == {file: file.stat().st_mtime_ns for file in tmp_path.glob("finetuned/*/postdiff.json")}
    with pytest.raises(SystemExit, match="must be a local folder, got s3://bucket/paper"):
        reproduce.main([*args[:-1], "s3://bucket/paper"])


def test_another_data_set_has_prompts_and_a_store_of_its_own(tmp_path, monkeypatch, capsys):
    made = []

    def make(args, group, names, store, protocol, times, looks):
        made.append(([exhibit.key for exhibit in group], args.prompts, store.url, protocol.prompts[0]))
        return [(exhibit, f"<p>{exhibit.key}</p>", "") for exhibit in group], {"prompts": args.prompts}, []

    monkeypatch.setattr(reproduction, "make", make)
    monkeypatch.setattr(workers, "machine", lambda: "none")
    reproduce.main(["table6", "fig9", "--rounds", "0", "--limit", "8", "--out", str(tmp_path)])
    (coco, shapes, here, first), (other, recaption, there, own) = made
    assert (coco, shapes, here) == (["fig9"], "shapes", str(tmp_path))
    assert (other, recaption, there) == (["table6"], "shapes-recaption", f"{tmp_path}/imagenet21k_recaption")
    assert first.id == "shapes-0"
    assert own.id == "shapes-recaption-0"
    assert first.text != own.text
    page = (tmp_path / "report.html").read_text()
    assert page.index("<p>fig9</p>") < page.index("<p>table6</p>")
    assert "imagenet21k_recaption: prompts" in page
    assert "--rounds 0" in page


def test_what_is_of_all_data_sets_is_in_the_store_that_was_named(tmp_path, monkeypatch):
    """Also where every exhibit is of another data set, which has a folder below."""
    monkeypatch.setattr(reproduction, "make", lambda *_: ([], {}, []))
    monkeypatch.setattr(workers, "machine", lambda: "none")
    reproduce.main(["fig6", "table6", "--rounds", "0", "--limit", "8", "--out", str(tmp_path)])
    assert (tmp_path / "report.html").exists()


def test_options_of_the_prompts_are_not_those_of_another_data_set(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\na dog\na bird\na fish\na fox\n")
    prompts = ["table6", "--prompts", str(tmp_path / "p.txt")]
    assert reproduce.parse([*prompts, "--n-reference", "500"]).n_reference == 500  # Table 6's references are Shapes'
    with pytest.raises(ValueError, match="--n-reference has no effect"):
        reproduce.parse(["table2", *prompts[1:], "--n-reference", "500"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["table0"], "unknown exhibit 'table0': expected all, or any of claims, prose, fig1"),
        (["--scale", "0"], "--scale must be above 0, got 0"),
        (["--scale", "nan"], "--scale must be above 0, got nan"),
        (["--scale", "2"], "--scale must be at most 1, got 2"),
        (
            ["table3", "--rounds", "2"],
            "--rounds must be 0 (no latencies) or 3 or more (a median of fewer says",
        ),
        (["table1", "--price", "3"], "--price has no effect with --models mini"),
        (["table1", "--models", "real", "--price", "nan", "--dry-run"], "--price must be 0 or more, got nan"),
        (["table1", "--models", "real", "--price", "3"], "--price has no effect without --dry-run"),
        (["table6", "--recaption", "x.txt"], "--recaption has no effect with --models mini"),
        (["fig4", "--calibration", "x.txt"], "--calibration has no effect on fig4: it is of table3 and table4"),
        (["fig4", "--against", "x.csv"], "--against has no effect on fig4: it is of claims"),
        (["fig4", "--up-to", "1024"], "--up-to has no effect on fig4: it is of claims"),
        (["claims", "--up-to", "500"], "--up-to must be at least twice the 256 prompts of the first look, got 500"),
        (["claims", "--up-to", "200000"], "--up-to must be at most 100000 (more of Shapes would take hours"),
        (["claims", "--against", "nowhere.csv"], "'nowhere.csv' must be a file, got no such file"),
        (["fig5", "--whole"], "--whole has no effect on fig5: it is of fig4 and fig8"),
        (["fig4", "--models", "real", "--whole"], "--whole has no effect with --models real, which draw all"),
        (["fig4", "--draw", "-1"], "--draw must be 0 or more, got -1"),
        (["fig4", "--recaption-reference", "x"], "--recaption-reference has no effect on fig4: it is of table6"),
        (
            ["fig4", "--n-reference", "9", "--reference", "x"],
            "--n-reference has no effect where the references are",
        ),
        (
            ["fig4", "--solver", "lcm"],
            "mini-sd's solver must be one of ddim, dpm, euler, "
            "unipc, dpm_3m, dpm_sde, euler_a, deis, heun, pndm, plms, got 'lcm'",
        ),
        (["fig4", "--guidance", "-1"], "--guidance must be 1 or more, got -1"),
        (["fig4", "--limit", "8", "--batch-size", "9"], "--batch-size must be at most the 8 prompts of a unit, got 9"),
        (["fig4", "--prompts", "nowhere.txt", "--dry-run"], "no prompt file at 'nowhere.txt'"),
        (
            ["table2", "--prompts", "scenes"],
            "no mini model of scenes plays pixart: expected exhibits of sd15, lcm, sdxl",
        ),
        (["table1", "--models", "real"], "--models real needs --prompts"),
        (["table6", "--models", "real"], "--models real needs --recaption"),
        (["table7", "--models", "real"], "Table 7 needs --finetuned sd15-original=FOLDER"),
    ],
)
def test_bad_input_is_told_before_any_work(args, message, tmp_path, capsys):
    assert message in refusal(reproduce.main, [*args, "--out", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()


def test_other_prompts_need_prompts_to_calibrate_on(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"caption {i}" for i in range(8)))
    with pytest.raises(SystemExit, match=r"needs --calibration, a file of other prompts"):
        reproduce.main(["table4", "--prompts", str(file), "--clip", "mini-clip", "--out", str(tmp_path / "out")])


def test_latencies_are_kept_by_machine_model_and_configurations(tmp_path, monkeypatch):
    calls = []

    def measure(of, rounds, gpu):
        calls.append((of[0].backbone, len(of), rounds))
        return [latency.Latency(1.0, 2.0, 1.0, rounds, 0.8, 0.2, 0.1, None, "here") for _ in of]

    monkeypatch.setattr(latency, "measure", measure)
    store = Store(str(tmp_path))
    of = [generation.configure("mini-sd", methods.dense(steps)) for steps in (2, 4)]
    first = latency.measured_once(store, of, 3)
    assert latency.measured_once(store, of, 3) == first
    assert len(calls) == 1
    latency.measured_once(store, of[:1], 3)
    latency.measured_once(store, [replace(one, guidance=5.0) for one in of], 3)
    monkeypatch.setattr(latency, "machine", lambda: "another")
    latency.measured_once(store, of, 3)
    assert len(calls) == 4
    where, seconds = latency.measured(store)["mini-sd"]
    assert seconds == {one.plan.id: 1.0 for one in of}
    assert where in ("another", json.loads(next((tmp_path / "latency").iterdir()).read_text())["machine"])


def test_the_dry_run_counts_hours_as_the_store_has_measured_them():
    prices = {"slow": 30, "fast": 10, "other": 15}
    assert dry_run.hours(prices, 3600, {"slow": 6.0, "fast": 3.0}) == 6.0 + 3.0 + 15 * 6.0 / 30
    assert dry_run.hours(prices, 3600, {"unknown": 1.0}) is None
    group = dry_run.Group("coco2014", 3600, tuple(exhibits.gather(["fig9"], {})))
    plans = [cell.plan.id for cell in group.exhibits[0].cells]
    text = dry_run.text([group], {"sd15": "mini-sd"}, False, None, {"mini-sd": ("a box", dict.fromkeys(plans, 0.5))})
    assert "2.0 hours measured (a box)" in text
    assert text.endswith("in all 2.0 hours of a box, as measured there (--out has its latencies), one image at a time")
