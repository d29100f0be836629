"""The console script: what others script against."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, PNDMScheduler, UNet2DConditionModel
from PIL import Image

import postdiff
from postdiff.cli import main
from postdiff.models import checkpoints, loading
from postdiff.models.families import FAMILIES
from postdiff.models.hub import UNNAMED
from postdiff.picture import draw_plan
from postdiff.settings import SEARCHES


def run(capsys, *args):
    main(list(args))
    return capsys.readouterr().out


def test_cost_in_json_has_integers_for_one_image(capsys):
    price = json.loads(run(capsys, "cost", "sd15", "postdiff", "--m", "20", "--json"))
    assert type(price["macs_paper"]) is int
    assert type(price["flops"]) is int
    assert price["macs_paper"] / 1e12 == pytest.approx(11.129, rel=5e-4)
    steps = json.loads(run(capsys, "cost", "sd15", "postdiff", "--m", "20", "--json", "--per-step"))["steps"]
    assert len(steps) == 20
    assert sum(step["macs_paper"] for step in steps) == price["macs_paper"]
    assert sum(step["flops"] for step in steps) == price["flops"]


def test_cost_as_text_names_its_units(capsys):
    text = run(capsys, "cost", "mini-sd", "mixed_resolution", "--s", "0.3", "--beta", "0.5", "--per-step")
    assert "macs_paper" in text
    assert "2 x MAC, attention included" in text
    assert text.count(" 0.50 ") == 6


def test_settings_reach_the_plan(capsys):
    ours = postdiff.cost(
        postdiff.methods.postdiff(10, beta=0.75, s=0.3, k=3, m=7, mode="ave", branch=4), checkpoints.resolve("mini-sd")
    )
    args = [
        "--steps",
        "10",
        "--beta",
        "0.75",
        "--s",
        "0.3",
        "--k",
        "3",
        "--m",
        "7",
        "--mode",
        "ave",
        "--branch",
        "4",
        "--json",
    ]
    assert json.loads(run(capsys, "cost", "mini-sd", "postdiff", *args))["flops"] == ours.flops


def test_generate_writes_the_images_that_sample_makes(capsys, tmp_path, backbone):
    prompt, out = "a big red star on snow", tmp_path / "images"
    picture = tmp_path / "plan.png"
    args = ["--method", "postdiff", "--steps", "4", "--m", "2", "--seed", "3", "--n", "2", "--out", str(out)]
    files = run(capsys, "generate", prompt, *args, "--plan-picture", str(picture)).split()
    assert len(files) == 2
    expected = postdiff.sample(backbone, [prompt] * 2, [3, 4], postdiff.methods.postdiff(4, m=2))
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), expected)
    assert Image.open(picture).size[0] > 100


def test_generate_takes_what_a_call_takes(capsys, tmp_path, backbone):
    prompt, plan, out = "a big red star on snow", postdiff.methods.dense(3), tmp_path / "images"
    words = ["--negative", "a blue ring", "--guidance-rescale", "0.5", "--timesteps", "900,500,60"]
    asked = {"negative": "a blue ring", "guidance_rescale": 0.5, "timesteps": (900, 500, 60)}
    names = set()
    for flags, options in ((words, asked), (["--guidance", "0"], {"guidance": 0}), ([], {})):
        args = ["generate", prompt, "--method", "dense", "--steps", "3", "--size", "64x48", *flags, "--out", str(out)]
        (file,) = run(capsys, *args).split()
        names.add(file)
        expected = postdiff.sample(backbone, [prompt], [0], plan, size=(64, 48), **options)
        np.testing.assert_array_equal(np.asarray(Image.open(file)), expected[0])
    assert len(names) == 3


def test_a_prompt_that_is_cut_is_told_and_not_echoed(capfd, tmp_path):
    """And of a model that loads at once there is no bar."""
    prompt = "a cat on a " + "very " * 200 + "blue mat"
    main(["generate", prompt, "--method", "dense", "--steps", "1", "--out", str(tmp_path)])
    told = capfd.readouterr().err
    assert "the prompt has 812 tokens, mini-sd reads 20: the rest is not drawn\n" in told
    assert "very very" not in told
    assert "oading" not in told


def test_models_and_methods_are_listed(capsys):
    models = run(capsys, "models")
    listed, others = models.split("not run by name:\n")
    rows = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert sorted(rows) == sorted(checkpoints.NAMES)
    assert [line.split(":")[0].strip() for line in others.splitlines()] == list(UNNAMED)
    methods = [line.split()[0] for line in run(capsys, "methods").splitlines() if line[:1].islower()]
    assert methods == [*postdiff.methods.METHODS, *SEARCHES]


def test_sd15s_own_config_is_what_its_row_says():
    """As JSON gives it, with lists where diffusers' defaults are tuples; typed from its unet/config.json."""
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    pipe = SimpleNamespace(
        unet=unet, vae=None, tokenizer=SimpleNamespace(model_max_length=77), scheduler=PNDMScheduler()
    )
    for name in ("sd15", "sd15-original"):
        loading.check(checkpoints.resolve(name), pipe)


def test_a_checkpoint_that_is_not_what_its_row_says_is_refused(backbone):
    with pytest.raises(ValueError, match=r"sd15 is not the kind of model.*cross_attention_dim 768, got 96"):
        loading.check(checkpoints.HUB["sd15"], backbone.pipe)
    loading.check(backbone.spec, backbone.pipe)


def test_a_folder_says_how_it_is_run(tmp_path):
    spec = checkpoints.resolve("mini-bk-sdm")
    assert (spec.guidance, spec.settings["s"]) == (2.0, 0.2)
    assert replace(checkpoints.resolve(checkpoints.MINI / "mini-bk-sdm"), name=spec.name) == spec
    copied = tmp_path / "copy"
    shutil.copytree(spec.source, copied)
    before = checkpoints.fingerprint(checkpoints.resolve(copied))
    checkpoints.write_run(spec, copied, guidance=3.0, size=32)
    assert (checkpoints.resolve(copied).guidance, checkpoints.resolve(copied).size) == (3.0, (32, 32))
    assert checkpoints.fingerprint(checkpoints.resolve(copied)) == before  # the weights are what they were
    (copied / checkpoints.RUN).write_text('{"settings": {"s": 0.3}}')
    assert checkpoints.resolve(copied).settings == {**FAMILIES["sd"].settings, "s": 0.3}
    (copied / checkpoints.RUN).unlink()
    assert checkpoints.resolve(copied).guidance == 7.5  # the family's
    shipped = copied / "scheduler" / "scheduler_config.json"
    shipped.write_text(shipped.read_text().replace("DPMSolverMultistepScheduler", "PNDMScheduler"))
    assert checkpoints.resolve(copied).solver == "pndm"
    (copied / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match="must hold the configs of unet and vae"):
        checkpoints.resolve(copied)


def test_models_that_would_run_and_draw_wrong_images_are_refused(backbone):
    class Config(dict):
        scaling_factor = 1.0

    odd = SimpleNamespace(**{key: getattr(backbone.pipe, key) for key in ("unet", "vae", "tokenizer", "scheduler")})
    odd.vae_scale_factor = 4
    loading.check(backbone.spec, odd)
    odd.vae = SimpleNamespace(config=Config(latents_mean=[0.1]))
    with pytest.raises(ValueError, match="latents_mean"):
        loading.check(backbone.spec, odd)
    odd.vae, odd.scheduler = backbone.pipe.vae, EDMEulerScheduler()
    with pytest.raises(ValueError, match="noise schedule of betas; EDMEulerScheduler has none"):
        loading.check(backbone.spec, odd)


def test_a_searched_plan_is_written_priced_and_replayed(capsys, tmp_path):
    file, out, picture = tmp_path / "found.json", tmp_path / "images", tmp_path / "plan.png"
    prompts = ["a big red star on snow", "a big white circle on night"]
    args = ["--backbone", "mini-pixart", "--steps", "4", "--threshold", "0.5", "--out", str(file)]
    text = run(capsys, "search", "ditfastattn", *prompts, *args)
    assert "transformer_blocks.0.attn1" in text
    assert "% of the FLOPs of 4 dense steps" in text
    price = json.loads(run(capsys, "cost", "mini-pixart", str(file), "--json"))
    assert price["flops"] == postdiff.cost(postdiff.load_plan(file), checkpoints.resolve("mini-pixart")).flops
    args = ["--backbone", "mini-pixart", "--plan", str(file), "--out", str(out), "--plan-picture", str(picture)]
    assert len(run(capsys, "generate", prompts[0], *args).split()) == 1
    assert Image.open(picture).size[0] > 100


def test_images_of_other_settings_have_other_names(capsys, tmp_path):
    args = ["generate", "a cat", "--method", "dense", "--steps", "1", "--out", str(tmp_path)]
    files = {run(capsys, *args, *more) for more in ((), ("--guidance", "3"), ("--solver", "ddim"), ("--size", "32"))}
    files.add(run(capsys, "generate", "a dog", *args[2:]))
    files.add(wide := run(capsys, *args, "--size", "32x48"))
    assert len(files) == 6
    assert Image.open(wide.strip()).size == (48, 32)  # PIL says the width first
    assert run(capsys, *args) in files


def test_a_plan_is_not_named_out_of_the_folder(tmp_path):
    with pytest.raises(ValueError, match=r"name is made of .* letters, .* got '../../evil'"):
        replace(postdiff.methods.dense(1), name="../../evil")


def test_a_folder_that_says_what_it_may_not_is_told(tmp_path):
    shutil.copytree(checkpoints.MINI / "mini-bk-sdm", tmp_path / "copy")
    (tmp_path / "copy" / checkpoints.RUN).write_text('{"sise": 64}')
    with pytest.raises(ValueError, match=r"postdiff.json may say size, guidance, solver, settings, prompts, got sise"):
        checkpoints.resolve(tmp_path / "copy")


def test_plans_that_compute_otherwise_look_otherwise():
    """Below the title, which holds the name, and the legend."""
    plans = [replace(method(20), name="plan") for name, method in postdiff.methods.METHODS.items()]
    pictures = {}
    for plan in plans:
        pictures.setdefault(draw_plan(plan).tobytes(), []).append(plan)
    assert all(len({plan.id for plan in alike}) == 1 for alike in pictures.values())
