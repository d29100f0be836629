"""Backbones that a function of the user's makes: what they are is what their pipeline holds."""

import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import refusal

import postdiff
from pipelines.data import prompts
from pipelines.engine.store import Store
from pipelines.stages import generation
from postdiff import methods
from postdiff.models import checkpoints, minis, pipeline_functions
from postdiff.models.pipeline_identity import identity

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import coco_sweep

MODULE = """
import sys
from pathlib import Path
import torch, postdiff
from diffusers import StableDiffusionPipeline, EulerDiscreteScheduler
from peft import LoraConfig

HERE = Path(__file__).parent

def plain():
    with open(HERE / "calls", "a") as calls:
        calls.write("x")
    return postdiff.load("mini-sd", device="cpu").pipe

def elsewhere():
    return StableDiffusionPipeline.from_pretrained(HERE / "copy", safety_checker=None, torch_dtype=torch.float32)

def lora(seed=1, scale=1.0, name="style"):
    pipe = plain()
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(config, name)
    pipe.set_adapters([name], [scale])
    return pipe

def same_lora(): return lora()
def other_lora(): return lora(2)
def weaker_lora(): return lora(scale=0.5)
def off():
    pipe = lora()
    pipe.disable_lora()
    return pipe

def freeu():
    pipe = plain()
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    return pipe

def euler():
    pipe = plain()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe

def karras():
    pipe = plain()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_karras_sigmas=True)
    return pipe

def token():
    pipe = plain()
    pipe.tokenizer.add_tokens(["<mine>"])
    return pipe

def training():
    pipe = plain()
    pipe.unet.train()
    return pipe

def small(): return postdiff.wrap(plain(), size=(32, 64), guidance=3.0)
def half(): return plain().to(torch.bfloat16)
def random():
    pipe = plain()
    torch.nn.init.normal_(pipe.unet.conv_out.weight)
    return pipe

def needs(path, more=1): return plain()
def number(): return 7
def loaded(): return postdiff.load("mini-sd", device="cpu")
def fails(): raise KeyError("weights.safetensors")
def checked():
    pipe = plain()
    pipe.safety_checker = torch.nn.Linear(1, 1)
    return pipe
constant = 3
"""
NAME = "pipeline:pipelines_of_a_user:{}".format


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a module of pipelines."""
    (tmp_path / "pipelines_of_a_user.py").write_text(MODULE)
    (tmp_path / "broken_of_a_user.py").write_text("import no_such_package")
    (tmp_path / "calls").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    pipeline_functions._described.cache_clear()
    sys.modules.pop("pipelines_of_a_user", None)


def id_of(function):
    return generation.configure(NAME(function), methods.dense(2)).id


def test_a_pipeline_is_what_it_holds_wherever_that_is_from(folder):
    shutil.copytree(minis.folder("mini-sd"), folder / "copy")
    assert id_of("plain") == id_of("elsewhere")
    assert id_of("lora") == id_of("same_lora") != id_of("plain")


@pytest.mark.slow
def test_whatever_changes_pixels_is_another_configuration(folder):
    functions = ["plain", "lora", "other_lora", "weaker_lora", "off", "freeu", "euler", "karras", "token", "training"]
    assert len({id_of(function) for function in functions}) == len(functions)


def test_identity_is_of_every_tensor_and_setting(backbone):
    pipe = backbone.pipe
    before = identity(pipe)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        value = [*part.parameters()][-1].data.reshape(-1)[-1:]
        kept = value.clone()
        value += 1
        assert identity(pipe) != before
        value.copy_(kept)
    postdiff.sample(backbone, ["a star"], [0], methods.postdiff(4, m=2))  # leaves nothing behind
    assert identity(pipe) == before
    pipe.vae.use_slicing = True
    try:
        assert identity(pipe) != before
    finally:
        pipe.vae.use_slicing = False
    hook = pipe.unet.register_forward_hook(lambda *_: None)
    assert identity(pipe) != before
    hook.remove()
    assert identity(pipe) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_numbers_without_a_shape_have_bytes_too(dtype):
    from postdiff.models.pipeline_identity import _tensor

    assert _tensor(torch.tensor(1, dtype=dtype)) != _tensor(torch.tensor(2, dtype=dtype))
    assert _tensor(torch.tensor(1, dtype=dtype)) != _tensor(torch.tensor([1], dtype=dtype))


def make_all(folder, functions):
    """Text and images of two plans a function, through one generator; returns {name: bytes}, and tasks that ran."""
    store = Store(folder)
    shards = prompts.shard(prompts.load_prompts("shapes", 4), 2)
    plans = methods.dense(2), methods.postdiff(4, m=2)
    among = [generation.configure(NAME(function), plan, batch_size=2) for function in functions for plan in plans]
    there = set(store.names())
    todo = [unit for unit in generation.units(among, shards, [1.0] * len(among)) if unit.name not in there]
    generator = generation.Generator(store)
    for unit in todo:
        done = generator(unit.task)
        if callable(done):
            done()
    images = {(row["configuration"], row["prompt_id"]): row["image"]["bytes"]
              for name in store.names("images") for row in store.table(name).to_pylist()}  # fmt: skip
    return images, {name: (folder / name).read_bytes() for name in store.names("text")}, len(todo)


@pytest.mark.slow
def test_a_run_with_a_lora_resumes_byte_equal(folder):
    images, text, count = make_all(folder / "out", ["plain", "lora"])
    assert (len(images), count) == (16, 12)
    by_id = {id: {data for (own, _), data in images.items() if own == id} for id, _ in images}
    assert len(set.union(*by_id.values())) == 16  # the LoRA is seen
    store = Store(folder / "out")
    for name in [*store.names("images"), *store.names("text")][::2]:
        (folder / "out" / name).unlink()
    again, same_text, left = make_all(folder / "out", ["plain", "same_lora"])
    assert (again, same_text, left) == (images, text, 6)
    assert make_all(folder / "out", ["plain", "same_lora"])[2] == 0
    assert make_all(folder / "out", ["plain", "other_lora"])[2] == 6


def test_a_run_gives_what_the_pipeline_gives(folder):
    listed = prompts.load_prompts("shapes", 2)
    of = generation.configure(NAME("lora"), methods.dense(2), batch_size=2)
    pipe = __import__("pipelines_of_a_user").lora()
    texts, seeds = [p.text for p in listed], [prompts.seed(p) for p in listed]
    expected = postdiff.sample(postdiff.wrap(pipe), texts, seeds, methods.dense(2))
    made = generation.generate(of.load(), of, listed).pixels
    assert all((a == b).all() for a, b in zip(made, expected, strict=True))


def test_the_function_is_called_once_to_describe_and_once_a_worker(folder):
    of = [generation.configure(NAME("plain"), plan) for plan in (methods.dense(1), methods.no_cfg(1))]
    checkpoints.resolve(NAME("plain"))
    assert (folder / "calls").read_text() == "x"
    generator = generation.Generator(Store(folder / "out"))
    shards = prompts.shard(prompts.load_prompts("shapes", 2), 1)
    for unit in generation.units(of, shards, [1.0, 1.0]):
        generator(unit.task)
    assert (folder / "calls").read_text() == "xx"


def test_wrap_says_how_it_is_run(folder):
    of = generation.configure(NAME("small"), methods.dense(2))
    assert (of.guidance, of.sampling.size) == (3.0, (32, 64))
    assert of.weights == generation.configure(NAME("plain"), methods.dense(2)).weights
    assert of.id != id_of("plain")
    assert postdiff.load(NAME("small"), device="cpu").spec.size == (32, 64)


def test_its_dtype_is_its_own(folder):
    of = generation.configure(NAME("half"), methods.dense(2))
    assert of.dtype == "bfloat16"
    assert of.load().dtype == torch.bfloat16
    for ask in (partial(generation.configure, NAME("half"), methods.dense(2), dtype="float32"),
                partial(postdiff.load, NAME("half"), "cpu", "float32")):  # fmt: skip
        with pytest.raises(ValueError, match=r"makes its pipeline in .*bfloat16: expected that dtype, got .*float32$"):
            ask()


def test_a_worker_refuses_another_pipeline_than_was_planned(folder):
    of = generation.configure(NAME("random"), methods.dense(2))
    with pytest.raises(ValueError, match=rf"must make the same pipeline each time: expected {of.weights}, got "):
        of.load()
    with pytest.raises(ValueError, match=r"expected 0123456789ab, got "):
        checkpoints.resolve(f"{NAME('plain')}@0123456789ab")


def test_prompts_are_counted_by_its_tokenizer(folder):
    listed = prompts.load_prompts("shapes", 3)
    own, mini = (prompts.token_lengths(listed, checkpoints.resolve(name)) for name in (NAME("plain"), "mini-sd"))
    assert own == mini


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pipeline:none_such:make", r"no module 'none_such', neither in .* nor installed$"),
        ("pipeline:broken_of_a_user:make", r"cannot be imported: ModuleNotFoundError: .*no_such_package"),
        (NAME("none"), r"expected a function 'none' in .*pipelines_of_a_user.py, got none$"),
        (NAME("constant"), r"expected a function 'constant' in .*, got 3$"),
        (NAME("needs"), r"must take no arguments, got a function that needs path$"),
        (NAME("number"), r"must return a pipeline that postdiff.wrap takes: pipe must be one of diffusers' .*'int'>$"),
        (NAME("checked"), r"that postdiff.wrap takes: safety_checker .* must be None"),
        (NAME("loaded"), r"must return a pipeline, or postdiff.wrap of one; got the loaded mini-sd$"),
        (NAME("fails"), r"fails: KeyError: 'weights.safetensors'$"),
        ("pipeline:os", r"must be named pipeline:MODULE:FUNCTION, got 'pipeline:os'$"),
        ("pipeline:a.py:f()", r"must be named pipeline:MODULE:FUNCTION"),
    ],
)  # fmt: skip
def test_what_is_no_pipeline_is_told_in_a_line(folder, name, told, capsys):
    with pytest.raises(ValueError, match=told) as raised:
        checkpoints.resolve(name)
    assert "\n" not in str(raised.value)
    line = refusal(coco_sweep.main, ["--backbone", name, "--out", str(folder / "out"), "--dry-run"], capsys)
    assert line.strip().endswith(str(raised.value))


def test_a_dry_run_tells_its_costs(folder, capsys):
    told = {}
    for name in (NAME("lora"), "mini-sd"):
        grid = ["--grid", "small", "--limit", "4", "--out", str(folder / "out"), "--dry-run"]
        coco_sweep.main(["--backbone", name, *grid])
        told[name] = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("denoiser:", "time:"))]
    assert len(set(map(tuple, told.values()))) == 1
