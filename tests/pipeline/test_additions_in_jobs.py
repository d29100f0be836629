"""What is loaded beside a model, in jobs: another configuration by its content, a resume of the same bytes."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import postdiff
from pipelines.data import prompts
from pipelines.engine.store import Store
from pipelines.report.runs import Logbook
from pipelines.stages import generation
from postdiff import methods
from postdiff.models.checkpoints import is_of_hub, resolve

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import coco_sweep

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
COMMIT = "0" * 40


@pytest.fixture
def lora(tmp_path):
    return write(tmp_path / "style.safetensors", 1)


def write(file, seed):
    torch.manual_seed(seed)
    weight = postdiff.load("mini-sd", device="cpu").denoiser.get_submodule(LAYER.removeprefix("unet.")).weight
    up, down = torch.randn(weight.shape[0], 4), torch.randn(4, weight.shape[1])
    save_file({f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}, file)
    return file


def run(folder, text):
    """The files of a store after two steps on four prompts."""
    shards = prompts.shard(prompts.load_prompts("shapes", 4), 2)
    units = generation.units([generation.configure(text, methods.dense(2), batch_size=2)], shards, [1.0])
    store = Store(folder)
    generator, done = generation.Generator(store), set(store.names())
    for unit in units:
        if unit.name not in done:
            commit = generator(unit.task)
            if callable(commit):
                commit()
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_a_run_resumes_byte_equal_wherever_the_file_is_and_another_scale_is_another(lora, tmp_path):
    first = run(tmp_path / "out", f"mini-sd+lora={lora}:0.8")
    elsewhere = shutil.copy(lora, tmp_path / "elsewhere.safetensors")
    for path in sorted(first)[::2]:
        (tmp_path / "out" / path).unlink()
    assert run(tmp_path / "out", f"mini-sd+lora={elsewhere}:0.80") == first
    assert len(run(tmp_path / "out", f"mini-sd+lora={lora}:0.5")) == 2 * len(first)
    assert len(run(tmp_path / "out", "mini-sd")) == 3 * len(first)
    write(lora, 2)
    assert len(run(tmp_path / "out", f"mini-sd+lora={lora}:0.8")) == 4 * len(first)


def test_a_worker_refuses_another_file_than_was_planned(lora):
    of = generation.configure(f"mini-sd+lora={lora}:0.8", methods.dense(2))
    (text,) = (unit.task for unit in generation.units([of], [tuple(prompts.load_prompts("shapes", 1))], [1.0])[:1])
    of.load()
    write(lora, 2)
    for load in (of.load, text.load):
        with pytest.raises(ValueError, match=rf"must be the same on each machine: expected {of.weights}, got "):
            load()


def test_a_job_takes_it_as_a_backbones_text(lora, tmp_path, capsys):
    told = {}
    for text in (f"mini-sd+lora={lora}:0.8", "mini-sd"):
        grid = ["--grid", "steps", "--limit", "4", "--out", str(tmp_path / "out"), "--dry-run"]
        coco_sweep.main(["--backbone", text, *grid])
        told[text] = capsys.readouterr().out.splitlines()
    rows = [[line.split()[0] for line in lines if "T MACs" in line] for lines in told.values()]
    assert len({id for ids in rows for id in ids}) == 2 * len(rows[0]) == 4
    costs = [[line.split()[-4:] for line in lines if "T MACs" in line] for lines in told.values()]
    assert costs[0] == costs[1]


def test_no_folder_of_a_file_is_told_to_wandb(lora):
    text = f"mini-sd+lora={lora}:0.8+vae={lora.parent}"
    book = Logbook(sweep=f"sweep-{text}", protocol={}, rows=[], configurations={}, about={}, answer="", private=(text,))
    assert book.public(f"of {text}") == f"of mini-sd+lora=style.safetensors:0.8+vae={lora.parent.name}"


def test_whose_weights_are_the_hubs(lora):
    assert all(map(is_of_hub, ("sd15", f"sd15+lora={lora}", f"A/b@{COMMIT}", f"A/b@{COMMIT}+variant=fp16")))
    assert not any(map(is_of_hub, ("mini-sd", f"mini-sd+lora={lora}", f"mini-sd+vae=A/b@{COMMIT}", "pipeline:a:b")))
    assert resolve(f"sd15+lora={lora}").revision
    assert generation.configure(f"sd15+lora={lora}", methods.dense(2)).dtype == "float16"
