"""Loading: the weights that a checkpoint's configs tell, all of them and no others, and no code."""

import json
import shutil
from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import postdiff
from postdiff.cli import main
from postdiff.models import checkpoints
from postdiff.models.checkpoints import MINI
from postdiff.models.configs import check_denoiser
from postdiff.models.families import FAMILIES
from postdiff.models.loading import load

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture
def folder(tmp_path):
    """A copy of the smallest mini."""
    return shutil.copytree(MINI / "mini-bk-sdm", tmp_path / "model")


def change(file, **settings):
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, key: {k: v for k, v in tensors.items() if k != key}, "lack 1 tensors: {key}"),
        (lambda tensors, key: {**tensors, "foo": torch.zeros(1)}, "have, beside what its config tells, 1 tensors: foo"),
        (lambda tensors, key: {**tensors, key: torch.zeros(7)}, "{key}"),
        (None, "cannot be loaded as "),
    ],
    ids=["lacks", "extra", "shape", "torn"],
)
def test_weights_that_are_not_the_configs_are_refused(folder, capfd, part, damage, message):
    file = folder / WEIGHTS[part]
    tensors = load_file(file)
    key = sorted(tensors)[3]
    if damage:
        save_file(damage(tensors, key), file, metadata={"format": "pt"})
    else:
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "a cat", "--backbone", str(folder), "--method", "dense", "--out", str(folder / "out")])
    assert stopped.value.code == 1
    told = capfd.readouterr().err  # one line: no library says that it makes up weights
    assert told.startswith(f"error: while loading {folder}: ")
    assert told.removesuffix("\n").isprintable()
    assert message.format(key=key) in told
    assert str(file.parent) in told
    assert not (folder / "out").exists()


@pytest.mark.trained
def test_weights_that_are_there_in_half_precision_alone_are_loaded(folder):
    for file in WEIGHTS.values():
        (folder / file).rename((folder / file).with_suffix(".fp16.safetensors"))
    half, whole = load(folder, "cpu").pipe, load("mini-bk-sdm", "cpu").pipe
    for part in WEIGHTS:
        ours, theirs = (getattr(pipe, part).state_dict() for pipe in (half, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_pickles_are_never_read(folder):
    for file in WEIGHTS.values():
        (folder / file).rename((folder / file).with_suffix(".bin"))
    told = (
        r"unet must hold its weights as safetensors, got diffusion_pytorch_model.bin: "
        r".*from_pretrained\(.*model'\).save_pretrained\(FOLDER, safe_serialization=True\)"
    )
    with pytest.raises(ValueError, match=told):
        load(folder, "cpu")
    for file in WEIGHTS.values():
        (folder / file).with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match=r"unet must hold weights \(.safetensors\), got none"):
        load(folder, "cpu")
    assert postdiff.cost(postdiff.methods.dense(1), checkpoints.resolve(folder)).flops > 0  # which needs none


def test_an_image_encoder_is_not_loaded(folder):
    (folder / "image_encoder").mkdir()
    (folder / "image_encoder" / "config.json").write_text("{}")
    (folder / "image_encoder" / "pytorch_model.bin").write_bytes(b"a pickle")
    change(folder / "model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    assert load(folder, "cpu").pipe.image_encoder is None


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_checkpoint_does_not_choose_the_attention_of_its_text_encoder(folder, key):
    """Of the form ORG/REPOSITORY it is a kernel on the hub: code."""
    change(folder / "text_encoder" / "config.json", **{key: "evil/kernel"})
    assert load(folder, "cpu", parts="text").pipe.text_encoder.config._attn_implementation == "sdpa"


def test_the_scheduler_is_of_the_class_that_the_solver_was_chosen_by(folder):
    change(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    (folder / checkpoints.RUN).unlink()
    backbone = load(folder, "cpu", parts="denoiser")
    assert backbone.spec.solver == "ddim"
    assert type(backbone.pipe.scheduler) is diffusers.DDIMScheduler
    assert backbone.spec.scheduler["_class_name"] == "DDIMScheduler"


def test_what_a_library_raises_is_one_line(folder):
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model cannot be loaded as StableDiffusionPipeline: ") as told:
        load(folder, "cpu", parts="text")
    assert str(told.value).isprintable()


def test_an_adapter_that_is_loaded_by_hand_is_told(backbone):
    config = {**backbone.denoiser.config, "encoder_hid_dim_type": "ip_image_proj"}  # as load_ip_adapter leaves it
    with pytest.raises(ValueError, match="encoder_hid_dim_type of unet of mini-sd must be None, got 'ip_image_proj'"):
        check_denoiser(FAMILIES["sd"], config, "mini-sd")
    check_denoiser(FAMILIES["sd"], backbone.denoiser.config, "mini-sd")


@pytest.mark.trained
@pytest.mark.parametrize("only_half", [False, True])
def test_of_the_hub_what_is_wanted_is_fetched_as_safetensors(monkeypatch, only_half):
    """The hub cannot be reached here: what diffusers is asked for, and what it would answer."""
    asked = []

    def download(cls, source, **options):
        asked.append((source, options))
        if only_half and options["variant"] is None:
            raise OSError("Could not find the necessary `safetensors` weights in {'unet/model.fp16.safetensors'}")
        return MINI / "mini-bk-sdm"

    spec = replace(checkpoints.resolve("mini-bk-sdm"), source="org/repository", revision="0" * 40, scheduler={})
    monkeypatch.setitem(checkpoints.HUB, "far", spec)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "download", classmethod(download))
    backbone = load("far", "cpu", parts="denoiser")
    assert [options["variant"] for _, options in asked] == [None, "fp16"][: 1 + only_half]
    source, options = asked[0]
    assert (source, options["revision"], options["use_safetensors"]) == ("org/repository", "0" * 40, True)
    assert {key for key, value in options.items() if value is None} >= {"text_encoder", "tokenizer", "safety_checker"}
    assert "unet" not in options
    assert backbone.spec.scheduler["_class_name"] == "DPMSolverMultistepScheduler"
    assert backbone.pipe.text_encoder is None


def test_a_repository_of_pickles_is_told_how_it_is_converted(monkeypatch):
    def download(cls, source, **options):
        raise OSError("Could not find the necessary `safetensors` weights in {'unet/model.bin'}")

    spec = replace(checkpoints.resolve("mini-bk-sdm"), source="org/repository", revision="0" * 40)
    monkeypatch.setitem(checkpoints.HUB, "far", spec)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "download", classmethod(download))
    with pytest.raises(ValueError, match=r"org/repository must hold its weights as safetensors: convert them with "):
        load("far", "cpu")
