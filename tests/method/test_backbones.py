"""What a checkpoint's configs say: told to the model, or refused in one line before any weights are read."""

import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from dataclasses import replace

import diffusers
import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import logging

import postdiff
from postdiff import methods
from postdiff.cli import main
from postdiff.models import additions, checkpoints, families, loading, schedulers
from postdiff.models.checkpoints import HUB, MINI, MINIS, resolve
from postdiff.models.configs import ASKS_FOR, BUILT_FROM, CHECKED, check_denoiser
from postdiff.models.family import class_of
from postdiff.models.hub import UNNAMED

UNET, VAE, PLAN = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
TRANSFORMER = "transformer/config.json"


def model(folder, name, changes=None):
    """The configs of a mini model in `folder`, without weights and postdiff.json; `changes`: settings by file."""
    folder = folder / name
    shutil.copytree(MINI / name, folder, ignore=shutil.ignore_patterns("*.safetensors", checkpoints.RUN))
    for file, settings in (changes or {}).items():
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**config, **settings}))
    return folder


def scheduler(kind, **settings):
    """The change that makes a folder ship this scheduler."""
    return {
        PLAN: {"_class_name": kind, **settings},
        "model_index.json": {"scheduler": ["diffusers", kind]},
    }


@pytest.mark.trained
def test_names_and_configs_are_read_without_torch():
    script = (
        "import sys\n"
        "from postdiff.models import checkpoints, families\n"
        "[checkpoints.resolve(name) for name in checkpoints.NAMES]\n"
        "print({'torch', 'diffusers', 'transformers', 'huggingface_hub'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("kind", BUILT_FROM)
def test_the_rule_knows_every_setting_of_diffusers_class_and_its_default(kind):
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(getattr(diffusers, kind).__init__).parameters.items()
        if name != "self"
    }
    assert {*BUILT_FROM[kind], *ASKS_FOR[kind], *CHECKED[kind]} == set(defaults)
    assert {key: value for key, (value, _) in ASKS_FOR[kind].items()} == {key: defaults[key] for key in ASKS_FOR[kind]}


def test_the_schedulers_that_are_known_have_a_noise_schedule_of_betas():
    for kind in {*schedulers.SCHEDULERS.values(), *schedulers.KIN} - {"DPMSolverSDEScheduler"}:  # which needs torchsde
        takes = inspect.signature(getattr(diffusers, kind).__init__).parameters
        assert {"beta_schedule", "num_train_timesteps", "prediction_type"} <= set(takes), kind


def test_every_backbone_passes_its_own_rule():
    for name in HUB:
        check_denoiser(families.FAMILIES[HUB[name].family], HUB[name].denoiser, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        specs = [resolve(name) for name in (*MINIS, *HUB)]
    assert {spec.train_steps for spec in specs} == {1000}
    assert resolve("mini-sd").scheduler["_class_name"] == "DPMSolverMultistepScheduler"


def test_rows_of_smaller_sdxl_are_as_large_as_their_files():
    """Single files in float16, of the published sizes, hold the U-Net beside the same text encoders and autoencoder."""
    rest = {}
    for name, size in (("sdxl", 6_938_040_682), ("ssd-1b", 4_465_671_506), ("vega", 3_293_395_670)):
        numbers = sum(parameter.numel() for parameter in loading.outline(HUB[name]).parameters())
        rest[name] = size - 2 * numbers
    assert max(rest.values()) - min(rest.values()) < 1e6, rest  # headers differ: 0.01 % of a U-Net


def test_sd21_is_as_large_as_it_is_told_to_be():
    for name in ("sd21", "sd21-base"):
        numbers = sum(parameter.numel() for parameter in loading.outline(HUB[name]).parameters())
        assert numbers == 865_910_724  # as its users count it


@pytest.mark.parametrize("name", UNNAMED)
def test_what_no_name_runs_says_why(name):
    one = UNNAMED[name]
    with pytest.raises(ValueError, match=r"is not run by name: ") as refused:
        resolve(name)
    assert one.why in str(refused.value)
    repository, _, commit = one.source.partition("@")
    assert repository.count("/") == 1
    assert not commit or additions.REPOSITORY.fullmatch(one.source)
    assert name not in checkpoints.NAMES


IP_ADAPTER = {UNET: {"encoder_hid_dim_type": "ip_image_proj"}}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mini-sd", {UNET: {"time_cond_proj_dim": 64}}, "time_cond_proj_dim of unet of .* must be None, got 64"),
        ("mini-sdxl", {UNET: {"time_cond_proj_dim": 32}}, "guidance was distilled into the model"),
        ("mini-lcm", {UNET: {"time_cond_proj_dim": None}}, "must be an even number from 4, got None"),
        ("mini-lcm", {UNET: {"time_cond_proj_dim": 63}}, "must be an even number from 4, got 63"),
        ("mini-sd", IP_ADAPTER, "encoder_hid_dim_type of unet of .* must be None, got 'ip_image_proj': image embed"),
        ("mini-sd", {UNET: {"class_embed_type": "timestep"}}, "class_embed_type of unet .* class labels are not"),
        ("mini-sd", {UNET: {"num_class_embeds": 10}}, "num_class_embeds of unet of .* must be None, got 10"),
        ("mini-sd", {UNET: {"addition_embed_type": "text"}}, "addition_embed_type of unet .* must be None, got 'text'"),
        ("mini-sdxl", {UNET: {"addition_embed_type": "image"}}, "must be text_time, got 'image'"),
        ("mini-sd", {UNET: {"in_channels": 17}}, "out_channels of unet of .* must be its in_channels, 17, or twice"),
        ("mini-sd", {UNET: {"in_channels": 4}}, "latent_channels of vae .* the denoiser's in_channels, 4, got 8"),
        ("mini-sd", {UNET: {"out_channels": 3}}, "must be its in_channels, 8, or twice as many, got 3"),
        ("mini-sd", {UNET: {"only_cross_attention": True}}, "only_cross_attention of unet .* be False, got True"),
        ("mini-sd", {UNET: {"attention_type": "gated"}}, "boxes"),
        ("mini-sd", {UNET: {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}}, "mid_block_type of unet .* among"),
        ("mini-sd", {UNET: {"cross_attention_dim": [96, 96]}}, r"cross_attention_dim of unet .* got \[96, 96\]"),
        ("mini-sd", {UNET: {"cross_attention_dim": 95}}, "must be hidden_size of text_encoder, 96, got 95"),
        ("mini-sd", {UNET: {"sample_size": [16, 16]}}, r"sample_size of unet .* got \[16, 16\]"),
        ("mini-sd", {UNET: {"quantum": 7}}, "quantum of unet .* a setting that UNet2DCondit"),
        ("mini-sd", {UNET: {"\x1b[2J": 7}}, r"^\\x1b\[2J of unet"),
        ("mini-sd", {UNET: {"quantization_config": {"bits": 4}}}, "quantization_config of unet .* not offered"),
        ("mini-sdxl", {UNET: {"projection_class_embeddings_input_dim": 144}}, "six times .*, 160, got 144"),
        ("mini-pixart", {TRANSFORMER: {"use_additional_conditions": False}}, "must be True at sample_size 128"),
        ("mini-pixart", {TRANSFORMER: {"caption_channels": None}}, "caption_channels of transformer .* got None"),
        ("mini-pixart", {TRANSFORMER: {"caption_channels": 64}}, "must be d_model of text_encoder, 96, got 64"),
        ("mini-pixart", {TRANSFORMER: {"out_channels": 9}}, "must be its in_channels, 8, or twice as many, got 9"),
        ("mini-sd", {VAE: {"latents_mean": [0.1]}}, "latents_mean of vae of .* must be None"),
        ("mini-sd", {VAE: {"shift_factor": 0.1}}, "shift_factor of vae of .* must be None, got 0.1: shifted latents"),
        ("mini-sd", {VAE: {"out_channels": 4}}, "out_channels of vae of .* must be 3, got 4"),
        ("mini-sd", {VAE: {"scaling_factor": "1"}}, "scaling_factor of vae of .* must be a number above 0, got '1'"),
        ("mini-sd", {"text_encoder/config.json": {"quantization_config": {"bits": 4}}}, "_config of text_encoder"),
        ("mini-sd", {"tokenizer/tokenizer_config.json": {"model_max_length": 77}}, "at most max_position_embeddings"),
        ("mini-sd", {"model_index.json": {"_class_name": ["mine", "Pipe"]}}, r"must hold one of .* got \['mine'"),
        ("mini-sd", {"model_index.json": {"unet": ["mine", "UNet2DConditionModel"]}}, "unet in .* of diffusers, got"),
        ("mini-sd", {"model_index.json": {"vae": ["diffusers", "AutoencoderTiny"]}}, "vae in .* must be AutoencoderKL"),
        ("mini-sd", scheduler("FlowMatchEulerDiscreteScheduler"), "noise schedule of betas; FlowMatchEuler"),
        ("mini-sd", {PLAN: {"use_flow_sigmas": True}}, "use_flow_sigmas of .* flow matching is not offered, got True"),
        ("mini-sd", {PLAN: {"prediction_type": "flow_prediction"}}, "prediction_type of .* got 'flow_prediction'"),
        ("mini-sd", {PLAN: {"beta_schedule": "sigmoid"}}, "beta_schedule of .* one of linear, .* got 'sigmoid'"),
        ("mini-sd", {PLAN: {"timestep_spacing": "log"}}, "timestep_spacing of .* got 'log'"),
        ("mini-sd", {PLAN: {"num_train_timesteps": "1000"}}, "num_train_timesteps of .* got '1000'"),
        ("mini-sd", {PLAN: {"trained_betas": [0.1, 0.2]}}, "trained_betas of .* must be 1000 numbers between 0 and 1"),
        ("mini-sd", {PLAN: {"use_karras_sigmas": True, "use_beta_sigmas": True}}, "at most one of use_karras_sigmas"),
        ("mini-sd", {PLAN: {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}}, "sees noise alone"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("mini") else None,
)  # fmt: skip
def test_what_the_forward_pass_would_not_be_told_is_refused(tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message) as told:
        resolve(model(tmp_path, name, changes))
    assert str(told.value).isprintable()


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("mini-sd", {UNET: {"upcast_attention": True, "resnet_time_scale_shift": "scale_shift"}}, {}),
        ("mini-sd", {UNET: {"decay": 0.9999, "power": 0.66, "_name_or_path": "x", "skip": None}}, {}),  # EMA's
        ("mini-sd", {VAE: {"use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": False}}, {}),
        ("mini-sd", {PLAN: {"use_karras_sigmas": True, "prediction_type": "v_prediction"}}, {"solver": "dpm"}),
        ("mini-sd", {PLAN: {"num_train_timesteps": 500}}, {"train_steps": 500}),
        ("mini-sd", {PLAN: {"num_train_timesteps": 20, "trained_betas": [0.1] * 20}}, {"train_steps": 20}),
        ("mini-sd", scheduler("UniPCMultistepScheduler", solver_type="bh2"), {"solver": "unipc"}),
        (
            "mini-sd",  # zero terminal SNR: guided, though its timesteps are trailing
            scheduler(
                "EulerDiscreteScheduler",
                rescale_betas_zero_snr=True,
                prediction_type="v_prediction",
                timestep_spacing="trailing",
            ),
            {"solver": "euler"},
        ),
        ("mini-pixart", {TRANSFORMER: {"sample_size": 16, "use_additional_conditions": False}}, {"size": (64, 64)}),
        ("mini-pixart", {TRANSFORMER: {"out_channels": None}}, {}),
    ],
)
def test_what_changes_nothing_that_is_told_is_taken(tmp_path, name, changes, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = resolve(model(tmp_path, name, changes))
    assert {key: getattr(spec, key) for key in expected} == expected


def test_costs_refuse_what_sampling_would_in_the_same_words(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["cost", str(model(tmp_path, "mini-sd", IP_ADAPTER)), "dense"])
    told = capsys.readouterr().err.removesuffix("\n")
    assert "\n" not in told
    sd15 = HUB["sd15"]
    with pytest.raises(ValueError, match="encoder_hid_dim_type") as same:
        postdiff.cost(methods.dense(1), replace(sd15, denoiser={**sd15.denoiser, **IP_ADAPTER[UNET]}))
    assert told.split("mini-sd")[-1] == str(same.value).removeprefix("encoder_hid_dim_type of unet of sd15")
    with pytest.raises(ValueError, match="unet of sd15 cannot be built from its config: "):
        postdiff.cost(methods.dense(1), replace(sd15, denoiser={**sd15.denoiser, "layers_per_block": "two"}))


@pytest.mark.parametrize(
    ("kind", "settings", "solver"),
    [
        ("KDPM2DiscreteScheduler", {}, "dpm"),
        ("LMSDiscreteScheduler", {}, "dpm"),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "dpm"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "euler_at_final": True}, "dpm_3m"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_lu_lambdas": True}, "dpm_sde"),
        ("PNDMScheduler", {"timestep_spacing": "linspace", "skip_prk_steps": True}, "plms"),
        ("DEISMultistepScheduler", {"solver_order": 3}, "deis"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "unipc"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_a_shipped_scheduler_is_never_replaced_without_a_word(tmp_path, capsys, kind, settings, solver):
    folder = model(tmp_path, "mini-sd", scheduler(kind, **settings))
    with pytest.warns(UserWarning, match=f"ships {kind}.* which is not offered: {solver}") as told:
        assert resolve(folder).solver == solver
    assert len(told) == 1
    main(["cost", str(folder), "dense", "--steps", "1"])  # which resolves it more than once
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {told[0].message}"
    (folder / checkpoints.RUN).write_text(json.dumps({"solver": solver}))  # who says which solver is meant is believed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(folder)


STOCK_PNDM = {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}  # SD1.5's


@pytest.mark.parametrize(
    ("kind", "settings", "solver"),
    [
        ("PNDMScheduler", STOCK_PNDM, "plms"),
        ("PNDMScheduler", {}, "pndm"),
        ("HeunDiscreteScheduler", {}, "heun"),
        ("EulerAncestralDiscreteScheduler", {}, "euler_a"),
        ("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"}, "deis"),
        ("DPMSolverMultistepScheduler", {}, "dpm"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpm_3m"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpm_sde"),
    ],
)
def test_a_shipped_scheduler_is_the_solver_of_its_settings(tmp_path, kind, settings, solver):
    folder = model(tmp_path, "mini-sd", scheduler(kind, **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(folder).solver == solver


@pytest.mark.parametrize(
    ("name", "kind", "settings", "certain"),
    [
        ("mini-sd", "LCMScheduler", {}, True),
        ("mini-sdxl", "TCDScheduler", {}, True),
        ("mini-sdxl", "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, False),  # SDXL-Turbo
        ("mini-sd", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, False),  # SD-Turbo
    ],
)
def test_a_distilled_model_is_not_run_as_a_guided_one(tmp_path, name, kind, settings, certain):
    folder = model(tmp_path, name, scheduler(kind, **settings))
    with pytest.raises(ValueError, match=f"must run guided, .*{kind}"):
        resolve(folder)
    (folder / checkpoints.RUN).write_text('{"solver": "euler"}')
    if not certain:
        assert resolve(folder).solver == "euler"
        return
    with pytest.raises(ValueError, match=f"must run guided, .*{kind}"):
        resolve(folder)


def test_a_scheduler_set_by_hand_is_told(backbone):
    config, spec = backbone.pipe.scheduler.config, backbone.spec
    check = schedulers.check_scheduler
    make = {kind: getattr(diffusers, kind).from_config(config) for kind in (
        "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler")}  # fmt: skip
    check(spec, backbone.pipe.scheduler)
    check(spec, make["DPMSolverMultistepScheduler"])
    with pytest.raises(ValueError, match=r"from DPMSolverMultistepScheduler to EulerDisc.*: pass solver='euler'"):
        check(spec, make["EulerDiscreteScheduler"])
    check(spec, make["EulerDiscreteScheduler"], "euler")
    check(spec, make["EulerDiscreteScheduler"], "dpm")  # asked for by name: its noise schedule alone is taken
    with pytest.raises(ValueError, match="to KDPM2DiscreteScheduler: pass solver= one of ddim, dpm, euler, unipc"):
        check(spec, make["KDPM2DiscreteScheduler"])
    with pytest.raises(ValueError, match="changed to LCMScheduler, but mini-sd runs guided"):
        check(spec, make["LCMScheduler"], "dpm")
    sde = diffusers.DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")
    with pytest.raises(ValueError, match=r"to be dpm, algorithm_type 'dpmsolver\+\+', got 'sde-dpmsolver\+\+'"):
        check(spec, sde)
    flow = diffusers.DPMSolverMultistepScheduler.from_config(config, use_flow_sigmas=True)
    with pytest.raises(ValueError, match="use_flow_sigmas of mini-sd's DPM"):
        check(spec, flow, "dpm")
    with pytest.raises(ValueError, match="noise schedule of betas; EDMEulerScheduler has none"):
        check(spec, diffusers.EDMEulerScheduler())


@pytest.mark.parametrize("kind", ["lcm", "sdxl"])
def test_the_scheduler_that_was_loaded_is_its_own(backbones, kind):
    schedulers.check_scheduler(backbones(kind).spec, backbones(kind).pipe.scheduler)


@pytest.mark.parametrize("file", ["model_index.json", UNET, VAE, PLAN, "text_encoder/config.json", checkpoints.RUN,
                                  "tokenizer/tokenizer_config.json"])  # fmt: skip
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must hold a JSON object, got list"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a": "\xff"}', "must hold a JSON object: 'utf-8' codec"),
        (b"{", "must hold a JSON object: Expecting"),
        (None, "got a FIFO"),
    ],
)  # fmt: skip
def test_a_config_that_is_no_object_is_told_with_the_files_name(tmp_path, file, content, message):
    folder = model(tmp_path, "mini-sd")
    (folder / file).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(folder / file)
        message = "must be a regular file, got another kind" if file == "model_index.json" else message
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message) as told:
        resolve(folder)
    assert str(folder / file) in str(told.value)


def test_fifos_sockets_and_broken_links_are_refused_where_they_are(tmp_path, monkeypatch):
    folder = model(tmp_path, "mini-sd")
    odd = folder / "unet" / "diffusion_pytorch_model.safetensors"
    os.mkfifo(odd)
    with pytest.raises(ValueError, match=f"regular files alone, got a FIFO: {odd}"):
        resolve(folder)
    odd.unlink()
    monkeypatch.chdir(odd.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(odd.name)
        with pytest.raises(ValueError, match="regular files alone, got a socket"):
            resolve(folder)
    odd.unlink()
    spec = resolve(folder)
    odd.symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match="regular files alone, got a broken link"):
        checkpoints.fingerprint(spec)
    odd.unlink()
    odd.symlink_to(MINI / "mini-sd" / "unet" / odd.name)  # as the hub's cache has them
    assert len(checkpoints.fingerprint(resolve(folder))) == 12


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"size": "64"}, "size in .*postdiff.json must be a whole number of pixels, got '64'"),
        ({"size": 65}, "postdiff.json must say settings that postdiff takes: size must be a positive multiple of 4"),
        ({"size": True}, "size in .* got True"),
        ({"guidance": float("nan")}, "guidance in .*postdiff.json must be a number from 1 to 1000, got nan"),
        ({"guidance": float("inf")}, "got inf"),
        ({"guidance": 1e30}, r"got 1e\+30"),
        ({"guidance": "7"}, "got '7'"),
        ({"guidance": 10**400}, "guidance in"),
        ({"solver": "rk45"}, "solver in .*postdiff.json must be one of ddim, dpm, .*, plms, got 'rk45'"),
        ({"solver": ["dpm"]}, r"solver in .* got \['dpm'\]"),
        ({"settings": []}, r"settings in .*postdiff.json must be an object, got \[\]"),
        ({"settings": {"s": "half"}}, "postdiff.json must say settings that postdiff takes"),
        ({"settings": {"sigma": 1}}, "postdiff.json must say settings that postdiff takes.*sigma"),
        ({"settings": {"steps": 10**9}}, "steps in .*postdiff.json must be from 1 to 1000, as in training"),
        ({"settings": {"beta": 2.0}}, "beta must be"),
    ],
)
def test_what_a_folder_says_of_its_run_is_checked(tmp_path, says, message):
    folder = model(tmp_path, "mini-sd")
    (folder / checkpoints.RUN).write_text(json.dumps(says))
    with pytest.raises(ValueError, match=message):
        resolve(folder)


def test_one_file_of_weights_is_told_how_it_is_read(tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    with pytest.raises(SystemExit):
        main(["cost", str(file), "dense"])
    told = capsys.readouterr().err
    assert re.search(r"FILE.safetensors\+config=MODEL .*got the file .*model.safetensors", told)
    with pytest.raises(ValueError, match="a model must be a name or a path, got NoneType"):
        resolve(None)


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch, capfd):
    """Its library logs each of five tries."""

    def unreachable(source, **options):
        assert not logging.get_logger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
        raise huggingface_hub.errors.LocalEntryNotFoundError("Connection refused")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    before = logging.get_verbosity()
    with pytest.raises(SystemExit) as stopped:
        main(["cost", f"org/repository@{'0' * 40}", "dense"])
    assert stopped.value.code == 1
    assert capfd.readouterr().err == "error: org/repository cannot be fetched: Connection refused\n"
    assert logging.get_verbosity() == before


def test_classes_are_named_and_found():
    for rules in families.FAMILIES.values():
        assert issubclass(class_of(rules.model), torch.nn.Module)
        assert class_of(rules.pipeline).__name__ == rules.pipeline
        for kind in rules.text_encoders.values():
            assert issubclass(class_of(kind, "transformers"), torch.nn.Module)
