"""What is loaded beside a model: the bits of the diffusers pipeline with it, an identity of its own, or one line."""

import json
import shutil
import warnings
from pathlib import Path

import original_layout
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import postdiff
from postdiff import cli, methods
from postdiff.models import additions, checkpoints, minis
from postdiff.models.checkpoints import fingerprint, resolve

PIPELINES = {"mini-sd": StableDiffusionPipeline, "mini-sdxl": StableDiffusionXLPipeline}
STEPS, PROMPT = 3, "a big red star on snow"


def theirs(name, source=None, **parts):
    """The diffusers pipeline, without anything of ours."""
    kind = PIPELINES[name]
    options = {"safety_checker": None} if kind is StableDiffusionPipeline else {}
    return kind.from_pretrained(source or minis.folder(name), torch_dtype=torch.float32, **options, **parts)


def state_of(pipe):
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": tensor for name, part in models.items() for key, tensor in part.state_dict().items()}


def assert_same(ours, pipe, images=True):
    """The weights and what comes of them: latents of the whole pipeline, and of `accelerate` under a dense plan."""
    mine, other = state_of(ours), state_of(pipe)
    assert mine.keys() == other.keys()
    assert [key for key in mine if not torch.equal(mine[key], other[key])] == []

    def drawn(call):
        return call(
            PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), output_type="np"
        ).images

    pipe.set_progress_bar_config(disable=True)
    if images:
        assert (drawn(postdiff.accelerate(ours, methods.dense(STEPS))) == drawn(pipe)).all()


TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")


def lora_file(folder, name, seed, text=False, kohya=False, change=None):
    """A LoRA of the mini model `name`, as diffusers or kohya's trainer writes it."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = theirs(name)
    torch.manual_seed(seed)
    config = {"r": 2, "lora_alpha": 3, "init_lora_weights": False}
    targets = ["to_q", "to_v"] if kohya else ["to_q", "to_v", "conv1", "conv_shortcut"]
    pipe.unet.add_adapter(LoraConfig(target_modules=targets, **config))
    metadata = {} if kohya else {"unet_lora_adapter_metadata": pipe.unet.peft_config["default"].to_dict()}
    file = folder / f"{seed}.safetensors"
    layers = get_peft_model_state_dict(pipe.unet)
    PIPELINES[name].save_lora_weights(folder, unet_lora_layers=layers, weight_name=file.name, **metadata)
    state = load_file(file)
    if text:
        for layer in TEXT:
            rows, columns = pipe.text_encoder.get_submodule(layer).weight.shape
            for kind, shape in (("down", (2, columns)), ("up", (rows, 2))):
                key = f"text_encoder.text_model.{layer}.lora_linear_layer.{kind}.weight"
                state[key] = torch.randn(shape) / 10
    if kohya:
        state = {kohya_name(key): tensor for key, tensor in state.items()}
        downs = [key for key in state if "lora_down" in key]
        state |= {key.replace("lora_down.weight", "alpha"): torch.tensor(1.5) for key in downs}
    state |= change or {}
    with safe_open(file, "pt") as opened:
        kept = {
            key: value for key, value in (opened.metadata() or {}).items() if not text
        }  # those tell of both or none
    save_file(state, file, kept)
    return file


def kohya_name(key):
    layer, kind = key.rsplit(".lora_", 1)
    side = {"A": "down", "B": "up"}[kind[0]]
    return f"lora_{layer.replace('.', '_')}.lora_{side}.weight"


def add_theirs(pipe, added):
    """LoRAs in a diffusers pipeline: by its own functions, but text encoders' by peft, of which the transformers that
    is installed here asks for a version that is not published."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    for i, (file, _) in enumerate(added):
        state = load_file(file)
        text = {key.split("text_model.")[1]: state.pop(key) for key in list(state) if key.startswith("text_encoder.")}
        pipe.load_lora_weights(state if text else str(file), adapter_name=f"n{i}")
        if text:
            text = {k.replace("lora_linear_layer.down", "lora_A").replace("lora_linear_layer.up", "lora_B"): t
                    for k, t in text.items()}  # fmt: skip
            config = LoraConfig(r=2, lora_alpha=2, target_modules=list(TEXT), init_lora_weights=False)
            inject_adapter_in_model(config, pipe.text_encoder, f"n{i}")
            set_peft_model_state_dict(pipe.text_encoder, text, f"n{i}")
            for module in pipe.text_encoder.modules():
                if isinstance(module, BaseTunerLayer):
                    module.set_scale(f"n{i}", added[i][1])
    pipe.unet.set_adapters([f"n{i}" for i in range(len(added))], [scale for _, scale in added])
    pipe.fuse_lora(components=pipe._lora_loadable_modules)
    pipe.unload_lora_weights()
    return pipe


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """LoRAs of mini-SD: with text, of kohya's trainer, and one of mini-SDXL."""
    folder = tmp_path_factory.mktemp("lora")
    sd = lora_file(folder, "mini-sd", 1, text=True), lora_file(folder, "mini-sd", 2, kohya=True)
    return *sd, lora_file(folder, "mini-sdxl", 3)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1), (2,)], ids=["diffusers", "kohya", "both", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_loras_give_the_pipelines_bits(files, which, dtype):
    name, scales = ("mini-sdxl" if which == (2,) else "mini-sd"), [0.7, -0.3][: len(which)]
    beside = "".join(f"+lora={files[i]}:{scale}" for i, scale in zip(which, scales, strict=True))
    backbone = postdiff.load(f"{name}{beside}", device="cpu", dtype=dtype)
    pipe, plain = theirs(name).to(dtype), state_of(theirs(name).to(dtype))
    add_theirs(pipe, [(files[i], scale) for i, scale in zip(which, scales, strict=True)])
    assert_same(backbone.pipe, pipe, images=dtype is torch.float32)
    changed = [key for key, tensor in state_of(backbone.pipe).items() if not torch.equal(tensor, plain[key])]
    assert any(key.startswith("unet.") for key in changed)
    assert sum(key.startswith("text_encoder.") for key in changed) == (2 if 0 in which else 0)


def test_a_lora_in_parts_is_the_one_that_is_whole(files):
    name = f"mini-sd+lora={files[0]}:0.8"
    whole, text = postdiff.load(name, device="cpu"), postdiff.load(name, device="cpu", parts="text")
    denoiser = postdiff.load(name, device="cpu", parts="denoiser")
    for part, pipe in (("text_encoder", text.pipe), ("unet", denoiser.pipe), ("vae", denoiser.pipe)):
        mine, other = getattr(pipe, part).state_dict(), getattr(whole.pipe, part).state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_lora_draws_from_no_generator_and_changes_no_cost(files):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    backbone = postdiff.load(f"mini-sd+lora={files[0]}", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    plan = methods.dense(STEPS)
    assert postdiff.cost(plan, backbone.spec).flops == postdiff.cost(plan, resolve("mini-sd")).flops
    assert not any("lora" in key for key, _ in backbone.denoiser.named_modules())


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """mini-SD's autoencoder with other weights."""
    folder = tmp_path_factory.mktemp("vae")
    vae = AutoencoderKL.from_pretrained(minis.folder("mini-sd") / "vae")
    torch.manual_seed(5)
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=0.1)
    vae.save_pretrained(folder)
    return folder


def test_another_autoencoder_and_a_variant_give_the_pipelines_bits(autoencoder, tmp_path):
    backbone = postdiff.load(f"mini-sd+vae={autoencoder}", device="cpu")
    assert_same(backbone.pipe, theirs("mini-sd", vae=AutoencoderKL.from_pretrained(autoencoder)))

    other = theirs("mini-sd")
    torch.manual_seed(6)
    torch.nn.init.normal_(other.unet.conv_out.weight, std=0.1)
    theirs("mini-sd").save_pretrained(tmp_path)
    other.save_pretrained(tmp_path, variant="fp16")
    both = postdiff.load(f"{tmp_path}+variant=fp16+vae={autoencoder}", device="cpu")
    assert_same(both.pipe, theirs("mini-sd", tmp_path, variant="fp16", vae=AutoencoderKL.from_pretrained(autoencoder)))
    assert not torch.equal(
        both.denoiser.conv_out.weight, postdiff.load(tmp_path, device="cpu").denoiser.conv_out.weight
    )


@pytest.mark.parametrize("name", PIPELINES)
def test_a_single_file_gives_the_bits_of_diffusers_from_single_file(name, tmp_path):
    pipe, folder = theirs(name), minis.folder(name)
    torch.manual_seed(7)
    torch.nn.init.normal_(pipe.unet.conv_out.weight, std=0.1)  # not the weights that lie beside the configs
    file = original_layout.write(pipe, tmp_path / "one.safetensors", betas=torch.zeros(3))
    backbone = postdiff.load(f"{file}+config={name}", device="cpu")
    options = {"config": str(folder), "local_files_only": True, "torch_dtype": torch.float32}
    assert_same(backbone.pipe, PIPELINES[name].from_single_file(str(file), **options))
    assert (backbone.spec.guidance, backbone.spec.settings) == (resolve(name).guidance, resolve(name).settings)
    mine, ours = state_of(backbone.pipe), state_of(pipe)
    assert [key for key in ours if not torch.equal(mine[key], ours[key])] == []


def test_a_single_file_takes_what_a_folder_takes(files, autoencoder, tmp_path):
    file = original_layout.write(theirs("mini-sd"), tmp_path / "one.safetensors")
    beside = f"+vae={autoencoder}+lora={files[0]}:0.5"
    one = postdiff.load(f"{file}+config={minis.folder('mini-sd')}{beside}", device="cpu")
    folder = postdiff.load(f"mini-sd{beside}", device="cpu")
    mine, other = state_of(one.pipe), state_of(folder.pipe)
    assert mine.keys() == other.keys()
    assert [key for key in mine if not torch.equal(mine[key], other[key])] == []


def test_averaged_weights_beside_the_others_are_told(tmp_path):
    averaged = {"model_ema.diffusion_modelout2weight": torch.ones(2)}
    file = original_layout.write(theirs("mini-sd"), tmp_path / "one.safetensors", **averaged)
    with pytest.warns(UserWarning, match="averaged weights .* not used"):
        resolve(f"{file}+config=mini-sd")


def test_identity_is_the_content_of_what_is_loaded_in_order(files, autoencoder, tmp_path):
    def of(text):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fingerprint(resolve(text))

    elsewhere = tmp_path / "elsewhere.safetensors"
    shutil.copy(files[0], elsewhere)
    one = original_layout.write(theirs("mini-sd"), tmp_path / "one.safetensors")
    two = original_layout.write(theirs("mini-sd"), tmp_path / "two.safetensors", betas=torch.ones(3))
    copy = shutil.copytree(minis.folder("mini-sd"), tmp_path / "copy")
    for file in [*copy.glob("*/*.safetensors")]:
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
    again = shutil.copytree(autoencoder, tmp_path / "vae")
    texts = (
        "mini-sd", f"{copy}", f"{copy}+variant=fp16", f"mini-sd+vae={autoencoder}",
        f"mini-sd+lora={files[0]}", f"mini-sd+lora={files[0]}:0.8", f"mini-sd+lora={files[1]}:0.8",
        f"mini-sd+lora={files[0]}+lora={files[1]}", f"mini-sd+lora={files[1]}+lora={files[0]}",
        f"mini-sd+lora={files[0]}+vae={autoencoder}", f"{one}+config=mini-sd", f"{two}+config=mini-sd",
        f"{one}+config=mini-sd+lora={files[0]}",
    )  # fmt: skip
    digests = [of(text) for text in texts]
    assert len(set(digests)) == len(texts)
    assert of(f"mini-sd+lora={elsewhere}:1.0") == of(f"mini-sd+lora={files[0]}")
    assert of(f"mini-sd+vae={again}") == of(f"mini-sd+vae={autoencoder}")
    assert of(f"{one}+config={minis.folder('mini-sd')}") == of(f"{one}+config=mini-sd")
    # Weights that lie beside the configs of a single file are not loaded, and count for nothing.
    torch.save({}, copy / "unet" / "note.pt")
    state = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")
    state["conv_out.bias"] += 1
    save_file(state, copy / "unet" / "diffusion_pytorch_model.safetensors")
    assert of(f"{one}+config={copy}") == of(f"{one}+config=mini-sd")
    save_file({key: tensor + 1 for key, tensor in load_file(files[0]).items()}, elsewhere)
    assert of(f"mini-sd+lora={elsewhere}") != of(f"mini-sd+lora={files[0]}")


def test_what_hub_rows_are_is_as_before():
    sdxl, vae = checkpoints.HUB["sdxl"], checkpoints.HUB["sdxl-fp16-vae"]
    assert fingerprint(sdxl) == sdxl.revision
    assert fingerprint(vae) == f"{sdxl.revision}+{vae.vae[1]}" == fingerprint(resolve(f"sdxl+vae={'@'.join(vae.vae)}"))


def bad(folder):
    """{text: what its refusal says}, of files in `folder`."""
    (folder / "text.safetensors").write_text("not a tensor")
    (folder / "lora.bin").write_text("")
    words = json.dumps({"model.diffusion_model.x.lora_A": {"shape": ["wide"]}}).encode()
    (folder / "words.safetensors").write_bytes(len(words).to_bytes(8, "little") + words)
    save_file({"unet.conv_in.weight": torch.ones(1)}, folder / "weights.safetensors")
    save_file({"lora_unet_x.hada_w1_a": torch.ones(1)}, folder / "loha.safetensors")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    (folder / "wide").mkdir()
    config = json.loads((minis.folder("mini-sd") / "vae" / "config.json").read_text())
    (folder / "wide" / "config.json").write_text(json.dumps({**config, "latent_channels": 4}))
    torch.save({}, folder / "one.ckpt")
    return {
        "mini-sd+lroa=x": r"followed by \+lora=, \+vae=, \+variant=, \+config=, got \+lroa=; did you mean lora",
        "mini-sd+lora=": r"\+lora= of .* must be followed by a value",
        f"mini-sd+lora={folder}/lora.bin:1": r"a LoRA must be FILE.safetensors or FILE.safetensors:SCALE",
        f"mini-sd+lora={folder}/none.safetensors": "must be a regular file, got none",
        "mini-sd+lora=two\nlines.safetensors": r"^two\\nlines.safetensors must be a regular file, got none",
        "mini-sd+lora=~nobody.here/x.safetensors": "~nobody.here/x.safetensors must be a regular file, got none",
        "mini-sd+vae=~nobody.here/x": "an autoencoder must be a folder or .* got '~nobody.here/x'",
        f"mini-sd+lora={folder}/words.safetensors": "a safetensors file: a shape must be made of whole numbers",
        f"{folder}/words.safetensors+config=mini-sd": "a safetensors file: a shape must be made of whole numbers",
        f"mini-sd+lora={folder}/text.safetensors": "must be a safetensors file",
        f"mini-sd+lora={folder}/weights.safetensors": "must hold a LoRA, got unet.conv_in.weight",
        f"mini-sd+lora={folder}/loha.safetensors": "another kind of adapter: lora_unet_x.hada_w1_a",
        **{
            f"mini-sd+lora=x.safetensors:{scale}": "from -10 to 10 other than 0"
            for scale in ("0", "nan", "1_0", "11", "")
        },
        "mini-pixart+lora=x.safetensors": "mini-pixart.* cannot take a LoRA: .*PixArt",
        "+lora=x.safetensors": "a model must be named before",
        "pipeline:a:b+lora=x.safetensors": "pipeline:a:b makes its pipeline whole",
        f"mini-sd+vae={folder}": r"config.json of an autoencoder, got none; expected '.*/vae'",
        f"mini-sd+vae={folder}/vae": "must be 'AutoencoderKL', got 'AutoencoderTiny'",
        f"mini-sd+vae={folder}/wide": "latent_channels of vae of mini-sd.* must be .* in_channels, 8, got 4",
        "mini-sd+vae=nowhere": "a folder or ORG/REPOSITORY@COMMIT",
        f"mini-sd+vae={folder}+vae={folder}": r"must say \+vae= once",
        "mini-sd+variant=fp16": "must hold weights of the variant 'fp16', got none",
        "mini-sd+variant=../x": "must be a word",
        f"{folder}/one.ckpt": r"whose configs it is read by",
        f"{folder}/one.ckpt+config=mini-sd": "must be .safetensors",
        f"{folder}/none.safetensors+config=mini-sd": "got no file",
        f"{folder}/weights.safetensors+config=mini-sd": "must hold the unet of mini-sd in the original layout",
        f"{folder}/weights.safetensors+config=mini-pixart": "expected a model of SD or SDXL",
        f"{folder}/weights.safetensors+config=mini-lcm": "expected a model of SD or SDXL",
        f"{folder}/weights.safetensors+config={folder}/weights.safetensors": r"\+config= must be a name",
        f"{folder}/weights.safetensors+config=mini-sd+variant=fp16": r"\+variant= is of a folder",
        "mini-sd+config=mini-sd": r"\+config= is of a single file",
    }


def test_what_cannot_be_loaded_is_told_in_one_line_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    for text, line in bad(tmp_path).items():
        with pytest.raises(ValueError, match=line) as refused:
            resolve(text)
        assert "\n" not in str(refused.value)


def test_names_longer_than_a_file_systems_are_refused_as_those_of_no_file():
    """And a text of many LoRAs may be longer than a name."""
    long = "a" * 300
    for text, line in {
        long: "unknown model 'a*'",
        f"mini-sd+lora={long}.safetensors": "must be a regular file, got none",
        f"mini-sd+vae={long}": "an autoencoder must be a folder or",
        f"{long}.safetensors+config=mini-sd": r"\+config= is of a single file",
        f"f.safetensors+config={long}": r"\+config= is of a single file|unknown model",
    }.items():
        with pytest.raises(ValueError, match=line):
            resolve(text)
    many = [f"{'b' * 12}{i}.safetensors" for i in range(20)]
    model, beside = additions.split("mini-sd" + "".join(f"+lora={file}:0.5" for file in many))
    assert (model, beside.loras) == ("mini-sd", tuple((file, 0.5) for file in many))


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("my+style=1.safetensors", "mini-sd+lora={}:0.5", "+style="),
        ("a.safetensors+vae=b.safetensors", "mini-sd+lora={}+variant=fp16", "+vae="),
        ("x+lora=y", "mini-sd+vae={}", "+lora="),
        ("x+lora=y", "{}+variant=fp16", "+lora="),
        ("x+v=y+lora=z.safetensors", "mini-sd+lora=w.safetensors+lora={}", "+lora="),
    ],
)
def test_a_name_with_a_word_in_it_is_refused_with_what_to_do(tmp_path, monkeypatch, name, text, word):
    """It would be read as another name and an addition: some of these as files that are there, too."""
    monkeypatch.chdir(tmp_path)
    for other in (name, "a.safetensors", "b.safetensors"):
        Path(other).touch()
    Path("x").mkdir()
    with pytest.raises(ValueError, match="cannot be said") as refused:
        additions.split(text.format(name))
    assert str(refused.value) == (
        f"{name} cannot be said in a model's text, where {word} begins what is loaded beside the model: rename it, or "
        "link to it by another name"
    )


def turned(key, all):
    """A tensor of as many numbers, and another shape."""
    return {key: all[key].transpose(0, 1)}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (lambda all: {"model.diffusion_model.out.2.bias": None}, "unet in .* of 8687464 numbers, got 8687456"),
        (lambda all: {"first_stage_model.decoder.conv_out.bias": None}, "vae in .* as its config tells"),
        (lambda all: {"model.diffusion_model.middle_block.3.x.weight": torch.ones(5)}, "unet in .* must be as"),
        (lambda all: {"cond_stage_model.transformer.text_model.encoder.layers.9.mlp.fc1.bias": torch.ones(5)},
         "text_encoder in .* as its config tells"),
        (lambda all: turned("model.diffusion_model.out.2.weight", all),
         "unet of .* cannot be read by the config"),
        (lambda all: {"v_pred": torch.ones(1)}, "nothing beside .* got the tensor 'v_pred'"),
        (lambda all: {key: None for key in all if key.startswith("first_stage")}, "must hold the vae"),
        (lambda all: {key: None for key in all if key.startswith("cond_stage")}, "must hold the text_encoder"),
    ],
    ids=["unet lacks", "vae lacks", "unet more", "text more", "shape", "other", "no vae", "no text"],
)  # fmt: skip
def test_a_single_file_that_is_not_as_its_config_is_refused(changes, line, tmp_path):
    pipe = theirs("mini-sd")
    file = original_layout.write(pipe, tmp_path / "one.safetensors", **changes(original_layout.tensors(pipe)))
    with pytest.raises(ValueError, match=line) as refused:
        postdiff.load(f"{file}+config=mini-sd", device="cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (
            "unet.no_such_block.lora_A.weight",
            "must fit unet of mini-sd.*, which has no place for its tensor no_such_block",
        ),
        ("text_encoder_2.x.lora_A.weight", "must be of unet, text_encoder, got the tensor text_encoder_2"),
        ("lora_bundle_emb", "must be of unet, text_encoder, got the tensor lora_bundle_emb"),
    ],
)
def test_a_lora_with_tensors_that_no_layer_takes_is_refused(key, line, tmp_path):
    file = lora_file(tmp_path, "mini-sd", 4, change={key: torch.ones(2, 2)})
    with pytest.raises(ValueError, match=line) as refused:
        postdiff.load(f"mini-sd+lora={file}", device="cpu")
    assert "\n" not in str(refused.value)


def test_a_lora_of_another_model_is_refused(files):
    with pytest.raises(
        ValueError, match=r"must fit unet of mini-sd.*, (which has no place|where .* another shape)"
    ) as refused:
        postdiff.load(f"mini-sd+lora={files[2]}", device="cpu")
    assert "\n" not in str(refused.value)


def test_each_layer_has_its_own_alpha(tmp_path):
    """Of which diffusers takes the most frequent for all where names are another trainer's."""
    layer, part = "lora_te_text_model_encoder_layers_{}_mlp_fc1", "text_encoder"
    torch.manual_seed(9)
    plain = postdiff.load("mini-sd", device="cpu").pipe.text_encoder.state_dict()
    rows, columns = plain["encoder.layers.0.mlp.fc1.weight"].shape
    down, up = torch.randn(2, columns), torch.randn(rows, 2)
    state = {}
    for i, alpha in enumerate((1.0, 3.0)):
        name = layer.format(i)
        both = {f"{name}.lora_down.weight": down.clone(), f"{name}.lora_up.weight": up.clone()}
        state |= {**both, f"{name}.alpha": torch.tensor(alpha)}
    save_file(state, tmp_path / "te.safetensors")
    ours = getattr(postdiff.load(f"mini-sd+lora={tmp_path}/te.safetensors:0.5", device="cpu").pipe, part).state_dict()
    for i, alpha in enumerate((1.0, 3.0)):
        key = f"encoder.layers.{i}.mlp.fc1.weight"
        assert torch.equal(ours[key], plain[key] + up @ down * (0.5 * alpha / 2))
    del state[f"{layer.format(1)}.alpha"]
    save_file(state, tmp_path / "te.safetensors")
    with pytest.raises(ValueError, match="an alpha for each layer or none, got none for encoder"):
        postdiff.load(f"mini-sd+lora={tmp_path}/te.safetensors", device="cpu")


def test_the_console_script_takes_it(files, tmp_path, capsys):
    for scale in (0.5, 1):
        cli.main(["generate", PROMPT, "--backbone", f"mini-sd+lora={files[0]}:{scale}", "--method", "dense",
                  "--steps", "2", "--out", str(tmp_path)])  # fmt: skip
    one, other = sorted(tmp_path.glob("*.png"))
    assert one.read_bytes() != other.read_bytes()
    assert Path(capsys.readouterr().out.split()[0]).parent == tmp_path
