"""Fine-tuning sees what the plan will show the model, and a kill changes nothing."""

import json
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import refusal
from PIL import Image

import postdiff
from pipelines.data import pairs
from pipelines.training import finetuning
from pipelines.training.finetune_settings import Settings
from pipelines.training.finetuning import draw_low, timesteps
from postdiff.models.checkpoints import resolve

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import finetune

QUICK = Settings(steps=4, batch=4, micro_batch=2, lr=1e-3, warm_up=1)


def test_low_resolution_sees_the_noisiest_timesteps_and_full_resolution_the_rest():
    settings = Settings(s=0.2)
    generator = torch.Generator().manual_seed(0)
    low = timesteps(settings, True, 5000, 1000, generator)
    full = timesteps(settings, False, 5000, 1000, generator)
    assert (low.min(), low.max()) == (800, 999)
    assert (full.min(), full.max()) == (0, 799)
    assert sum(draw_low(settings, order) for order in range(1000)) == 200
    assert not any(draw_low(Settings(s=0.0), order) for order in range(100))


def test_it_trains_and_a_killed_run_ends_with_the_same_weights(tmp_path):
    def run(work, stop=None):
        class Killed(Exception):
            pass

        def on_step(step, loss):
            if step == stop:
                raise Killed

        backbone = postdiff.load("mini-sd", device="cpu")
        try:
            return finetuning.finetune(backbone, pairs.open_pairs("shapes", 40), QUICK, work, 1, on_step)
        except Killed:
            return None

    before = postdiff.load("mini-sd", device="cpu").denoiser.state_dict()
    whole = run(tmp_path / "whole").state_dict()
    assert any(not torch.equal(before[name], value) for name, value in whole.items())
    assert run(tmp_path / "cut", stop=3) is None
    resumed = run(tmp_path / "cut").state_dict()
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_what_a_micro_batch_sees_is_of_the_right_size(monkeypatch):
    backbone, seen = postdiff.load("mini-sd", device="cpu"), []
    monkeypatch.setattr(
        finetuning, "timesteps", lambda *args: seen.append(("low", args[1])) or torch.zeros(args[2], dtype=torch.long)
    )
    handle = backbone.pipe.vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    schedule = finetuning.DDPMScheduler.from_config(backbone.pipe.scheduler.config)
    found = pairs.open_pairs("shapes", 8)
    for order in range(2):
        finetuning._loss(backbone, backbone.denoiser, found, schedule, QUICK, order)
    handle.remove()
    assert seen == [64, ("low", False), 32, ("low", True)]


@pytest.mark.parametrize("beta", [0.5, 0.3, 0.75])
def test_low_resolution_images_lie_on_the_samplers_grid(beta, monkeypatch):
    backbone, seen = postdiff.load("mini-sd", device="cpu"), []
    plan = postdiff.methods.mixed_resolution(2, beta=beta)
    handle = backbone.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    postdiff.sample(backbone, ["a star"], [0], plan)
    schedule = finetuning.DDPMScheduler.from_config(backbone.pipe.scheduler.config)
    settings = Settings(beta=beta, batch=2, micro_batch=2)
    finetuning._loss(backbone, backbone.denoiser, pairs.open_pairs("shapes", 8), schedule, settings, 1)
    handle.remove()
    assert seen[-1] == seen[0]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    backbone = postdiff.load("mini-sd", device="cpu")
    data = pairs.open_pairs("shapes", 8)
    finetuning.finetune(backbone, data, Settings(steps=1, batch=2, micro_batch=2), tmp_path)
    with pytest.raises(ValueError, match=r"another run.*'lr': \(1e-05, 0.1\)"):
        finetuning.finetune(backbone, data, Settings(steps=1, batch=2, micro_batch=2, lr=0.1), tmp_path)


def test_training_that_diverges_stops_with_its_step_and_writes_no_folder(tmp_path, monkeypatch):
    real, calls = finetuning._loss, []

    def diverging(*args):
        calls.append(args)
        return real(*args) * (1e39 if len(calls) > 2 else 1)  # two micro-batches a step

    monkeypatch.setattr(finetuning, "_loss", diverging)
    out = tmp_path / "out"
    with pytest.raises(FloatingPointError, match=r"^the training diverged: the loss of step 2 is inf; nothing is "):
        finetuning.make("mini-sd", pairs.open_pairs("shapes", 8), QUICK, out)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    backbone = postdiff.load("mini-sd", device="cpu")
    unused = backbone.denoiser.register_parameter("unused", torch.nn.Parameter(torch.full((1,), torch.nan)))
    assert unused is None
    with pytest.raises(FloatingPointError, match=r"the loss of step 1 is [\d.]+, and not all weights are finite"):
        finetuning.finetune(backbone, pairs.open_pairs("shapes", 8), replace(QUICK, steps=1), tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "FILE"], "--out must be a folder that can be written, got 'FILE': expected a folder, got a file"),
        (["--out", "FILE/x"], "--out must be a folder that can be written, got 'FILE/x': [Errno 20] Not a directory"),
        (["--out", "/proc/x"], "--out must be a folder that can be written, got '/proc/x': [Errno 2]"),
        (["--out", "."], "in which this job runs"),
        (["--out", "/"], "in which this job runs"),
        (["--out", ""], "a store must be a folder or a URL, got ''"),
        (["--out", "s3://bucket/x"], "--out must be a local folder, got 's3://bucket/x'"),
        (["--out", "MODEL/unet"], "--out must be no part of a model, got 'MODEL/unet' inside 'MODEL'"),
        (["--out", "MODEL"], "--out must be a new folder, got 'MODEL', which is not empty"),
        (["--out", "HELD"], "HELD-work/checkpoint.pt is of another run (there, here): {'lr': (0.5, 1e-05)}"),
        (["--out", "TORN"], "TORN-work/checkpoint.pt must be a checkpoint of jobs/finetune.py: "),
        (["--out", "NEW", "--lr", "nan"], "--lr must be above 0, got nan"),
        (["--out", "NEW", "--lr", "inf"], "--lr must be at most 1, got inf"),
        (["--out", "NEW", "--steps", "0"], "--steps must be 1 or more, got 0"),
        (["--out", "NEW", "--limit", "-1"], "--limit must be 1 or more, got -1"),
        (["--out", "NEW", "--checkpoint-every", "0"], "--checkpoint-every must be 1 or more, got 0"),
        (["--out", "NEW", "--backbone", "mini-lcm"], "fine-tuning is written for U-Nets of the family sd, got lcm"),
    ],
)
def test_bad_options_are_told_before_weights_are_read(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.setattr(postdiff, "load", lambda *_, **__: pytest.fail("weights were read"))
    (tmp_path / "FILE").touch()
    (tmp_path / "MODEL").mkdir()
    (tmp_path / "MODEL" / "model_index.json").write_text("{}")
    spec, data = resolve("mini-sd"), pairs.open_pairs("shapes")
    run = {**finetuning.run_of(spec, data, Settings()), "lr": 0.5}
    (tmp_path / "HELD-work").mkdir()
    torch.save({"model": {}, "ema": {}, "optimizer": {}, "step": 1, "run": run}, tmp_path / "HELD-work/checkpoint.pt")
    (tmp_path / "TORN-work").mkdir()
    (tmp_path / "TORN-work" / "checkpoint.pt").write_bytes(b"PK")
    before = sorted(tmp_path.rglob("*"))
    names = ("FILE", "MODEL", "HELD", "TORN", "NEW")
    args = [f"{tmp_path}/{arg}" if arg.startswith(names) else arg for arg in args]
    told = refusal(finetune.main, ["--data", "shapes", *args], capsys)
    assert message in told.replace(f"{tmp_path}/", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_was_cut_goes_on_into_its_folder(tmp_path):
    run = finetuning.run_of(resolve("mini-sd"), pairs.open_pairs("shapes", 8), QUICK)
    out = tmp_path / "out"
    work = finetuning.checkpoints_of(out, run)
    assert (work, list(tmp_path.iterdir())) == (tmp_path / "out-work", [])
    work.mkdir()
    torch.save({"model": {}, "ema": {}, "optimizer": {}, "step": 1, "run": run}, work / "checkpoint.pt")
    out.mkdir()
    (out / "half.safetensors").touch()
    assert finetuning.checkpoints_of(out, run) == work


def test_a_folder_of_pairs_skips_and_counts_what_is_corrupt(tmp_path):
    for i in range(4):
        Image.new("RGB", (40 + i, 30), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"red {i}\n")
    (tmp_path / "1.png").write_bytes(b"not an image")
    Image.new("RGB", (40, 30)).save(tmp_path / "no caption.png")
    found = pairs.open_pairs(str(tmp_path))
    assert len(found) == 4
    images, captions = found.batch(0, 4, 16)
    assert images.shape == (4, 16, 16, 3)
    assert len(found.skipped) == 1
    assert "red 1" not in captions
    again = pairs.open_pairs(str(tmp_path)).batch(0, 4, 16)
    np.testing.assert_array_equal(images, again[0])
    assert captions == again[1]


def test_metadata_jsonl_and_epochs(tmp_path):
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "a.jpg")
    Image.new("RGB", (20, 20), (0, 0, 255)).save(tmp_path / "b.jpg")
    rows = [{"file_name": "a.jpg", "text": "red"}, {"file_name": "b.jpg", "text": "blue"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = pairs.open_pairs(str(tmp_path))
    epochs = [found.batch(step, 2, 8, seed=3)[1] for step in range(8)]
    assert all(sorted(epoch) == ["blue", "red"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 2  # shuffled anew


def test_a_parquet_of_urls_is_read_and_dead_ones_are_skipped(tmp_path, monkeypatch):
    table = pa.table({"URL": [f"https://x/{i}.jpg" for i in range(6)], "TEXT": [f"caption {i}" for i in range(6)]})
    pq.write_table(table, tmp_path / "art.parquet")

    def fetch(url):
        if url.endswith(("1.jpg", "4.jpg")):
            raise OSError("404")
        return Image.new("RGB", (32, 32), (9, 9, 9))

    monkeypatch.setattr(pairs, "fetch", fetch)
    found = pairs.open_pairs(str(tmp_path / "art.parquet"))
    _, captions = found.batch(0, 6, 8)
    assert found.skipped == {1, 4}
    assert not {"caption 1", "caption 4"} & set(captions)


def test_more_pairs_than_there_are_are_refused(tmp_path):
    pq.write_table(pa.table({"URL": ["http://x/0", "http://x/1"], "TEXT": ["a", "b"]}), tmp_path / "links.parquet")
    (tmp_path / "photos").mkdir()
    for name in "ab":
        (tmp_path / "photos" / f"{name}.png").touch()
        (tmp_path / "photos" / f"{name}.txt").write_text("caption")
    for name in ("photos", "links.parquet"):
        assert [len(pairs.open_pairs(str(tmp_path / name), n)) for n in (None, 1, 2)] == [2, 1, 2]
        with pytest.raises(ValueError, match=rf"limit of pairs must be at most the 2 of '.*{name}', got 3"):
            pairs.open_pairs(str(tmp_path / name), 3)


def test_bad_data_is_told(tmp_path):
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "bad.parquet")
    for where, message in (
        (tmp_path / "nowhere", "must be 'shapes', 'scenes', a folder of images, or a parquet"),
        (tmp_path, "holds no image with a caption"),
        (tmp_path / "bad.parquet", "needs columns URL and TEXT; it has picture"),
    ):
        with pytest.raises(ValueError, match=message):
            pairs.open_pairs(str(where))
    with pytest.raises(ValueError, match=r"expected an http\(s\) address, got 'file:///etc/passwd'"):
        pairs.fetch("file:///etc/passwd")
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(OSError, match="50 pairs in a row could not be read"):
        pairs.open_pairs(str(tmp_path)).batch(0, 1, 8)
    with pytest.raises(ValueError, match="batch must be a multiple of micro_batch"):
        Settings(batch=10, micro_batch=4)
    with pytest.raises(ValueError, match="warm_up >= 1"):
        Settings(warm_up=0)
    with pytest.raises(ValueError, match="limit of pairs must be 1 or more, got 0"):
        pairs.open_pairs("shapes", 0)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.png"}')
    with pytest.raises(ValueError, match="needs file_name and text"):
        pairs.open_pairs(str(tmp_path))


class Dripping(BaseHTTPRequestHandler):
    """Announces more than it sends, or sends a little at a time, for ever."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with suppress(OSError):
            for _ in range(1 if self.path == "/short" else 100):
                self.wfile.write(b"x" * 10)
                self.wfile.flush()
                time.sleep(0.05)

    def log_message(self, *args):
        pass


def test_broken_slow_and_malformed_addresses_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "TIMEOUT", 0.5)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(ValueError, match=r"is over .* or 0.5 s"):
        pairs.fetch(f"{host}/slow")
    good = tmp_path / "good.png"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(good)
    urls = [f"{host}/slow", f"{host}/short", "http://a b/c.jpg", "http://127.0.0.1:99999/x.jpg", str(good)]
    whole = pairs.fetch
    monkeypatch.setattr(pairs, "fetch", lambda url: Image.open(url) if url == str(good) else whole(url))
    pq.write_table(pa.table({"url": urls, "caption": ["c"] * 5}), tmp_path / "bad urls.parquet")
    found = pairs.open_pairs(str(tmp_path / "bad urls.parquet"))
    images, _ = found.batch(0, 5, 8)
    server.shutdown()
    assert found.skipped == {0, 1, 2, 3}
    assert (images == (1, 2, 3)).all()
