"""The code of docs/own_pipeline.md runs as it stands there, on a small pipeline of random weights."""

import re
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import with_parts
from safetensors.torch import save_file

import postdiff

DOCS = Path(__file__).parents[1] / "docs" / "own_pipeline.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
SMALL = {"768": "64", "512": "48"}  # pixels of the text, and of the test


def small(code):
    return re.sub("|".join(SMALL), lambda side: SMALL[side[0]], code)


def run(code, names):
    exec(compile(small(code), str(DOCS), "exec"), names)
    return names


@pytest.fixture
def pipe(random_backbones, monkeypatch):
    made = with_parts(random_backbones("sd").pipe)
    made.scheduler = diffusers.DEISMultistepScheduler.from_config(made.scheduler.config)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", lambda name: made)
    return made


def test_every_block_is_run_here():
    assert ["styled" in code for code in BLOCKS] == [False, False, True]


def test_accelerate_and_sample(pipe, capsys):
    names = run(BLOCKS[0], {})
    assert names["pipe"] is pipe
    assert [image.size for image in names["images"]] == [(64, 64)]
    assert "FLOPs" in capsys.readouterr().out
    run(BLOCKS[1], names)
    assert names["images"].shape == (2, 64, 48, 3)
    assert [picture.size for picture in names["pictures"]] == [(48, 64)] * 4
    assert names["shown"].shape == names["images"].shape
    assert (names["shown"][0] != names["images"][0]).any() or names["text"].each


def test_a_function_of_the_text_is_a_backbone(random_backbones, monkeypatch, tmp_path):
    pytest.importorskip("peft")
    made = with_parts(random_backbones("sdxl").pipe)
    made.unet = type(made.unet).from_config(made.unet.config)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = made.unet.get_submodule(layer.removeprefix("unet.")).weight.shape
    shapes = {"lora_A": (2, width[1]), "lora_B": (width[0], 2)}
    weights = {f"{layer}.{part}.weight": torch.randn(shape) for part, shape in shapes.items()}
    save_file(weights, tmp_path / "style.safetensors")
    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "from_pretrained", lambda folder, **options: made)
    code = BLOCKS[2].replace("/data/style.safetensors", str(tmp_path / "style.safetensors"))
    backbone = postdiff.wrap(run(code, {})["styled"](), size=64)
    images = postdiff.sample(backbone, ["a big red star"], [0], postdiff.methods.dense(2))
    assert images.shape == (1, 64, 64, 3)
    assert made.get_active_adapters() == ["style"]
