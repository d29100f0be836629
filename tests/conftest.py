"""Fixtures: the mini backbones, loaded once; Ray and an S3, started once. And `--quick`, without the first two."""

import inspect
import os
import struct
import sys
import threading
import zlib
from dataclasses import replace
from itertools import count

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import numpy as np
import pytest
import torch
from diffusers import PixArtSigmaPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import postdiff
from pipelines.training import mini
from postdiff import sampling, solvers, state
from postdiff.models import loading
from postdiff.models.checkpoints import MINI
from postdiff.models.evaluations import goes_with, inference_steps
from postdiff.models.families import adapt
from postdiff.models.schedulers import SCHEDULERS, SDE
from postdiff.models.spec import settle

torch.set_num_threads(1)
ENVIRONMENT = dict(os.environ)
PROMPTS = [
    "a big red star on snow",
    "a small striped blue ring left of a big green heart on sand",
    "a big white circle on night",
]
SEEDS = [11, 12, 13]


NOT_QUICK = {"backbone", "backbones", "ray_session"}  # fixtures


def pytest_addoption(parser):
    told = "only tests without trained weights, Ray or another process: what needs one must say so, or it fails"
    parser.addoption("--quick", action="store_true", help=told)


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # of pytest-xdist
        sys.addaudithook(_no_ray)
    if config.getoption("--quick"):
        sys.modules["ray"] = None
        sys.addaudithook(_no_process)
        load = loading._component

        def untrained(folder, *args):
            if folder.is_relative_to(MINI):
                raise AssertionError(f"--quick loads no trained weights, got {folder}: mark the test `trained`")
            return load(folder, *args)

        loading._component = untrained


def pytest_collection_finish():
    """What a test module sets while it is imported, it sets for all others: a switch of W&B was one."""
    changed = {name for name, _ in os.environ.items() ^ ENVIRONMENT.items() if not name.startswith("PYTEST_")}
    changed -= {"RAY_CLIENT_MODE"}  # Ray's own
    if changed:
        raise pytest.UsageError(f"test modules changed the environment when they were imported: {sorted(changed)}")


def _no_process(event, args):
    if event == "subprocess.Popen":
        raise AssertionError(f"--quick starts no process, got {args[1]}: mark the test `trained`")


def _no_ray(event, args):
    if event == "subprocess.Popen" and "ray/core/src" in str(args[1]):
        raise AssertionError("Ray was started beside other tests: see STARTS in the Makefile")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        left = [item for item in items if NOT_QUICK & {*item.fixturenames} or item.get_closest_marker("trained")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def backbone():
    return postdiff.load("mini-sd", device="cpu")


# The other mini models, by what they stand for.
FAMILIES = {
    "lcm": "mini-lcm",
    "sdxl": "mini-sdxl",
    "pixart": "mini-pixart",
    "sigma": "mini-pixart-sigma",  # is not trained
    "tiny": "mini-bk-sdm",
}
KINDS = ["sd", *FAMILIES]


def random_pipeline(kind):
    """A mini model's architecture with fewer layers and random weights: an equality of bits needs no training."""
    words, pieces, vae = mini.tokenizer(), mini.t5_tokenizer(), mini.autoencoder()
    if kind == "sdxl":
        texts = mini.text_encoder(words, layers=1), mini.second_text_encoder(words)
        return mini.stable_diffusion_xl(vae, texts, shallow(mini.unet_xl(), layers_per_block=1), words)
    if kind == "pixart":
        return mini.pixart(vae, mini.t5_encoder(pieces), shallow(mini.transformer(), num_layers=2), pieces)
    if kind == "sigma":
        without_size = shallow(mini.transformer(), num_layers=2, use_additional_conditions=False)
        return PixArtSigmaPipeline(**mini.pixart(vae, mini.t5_encoder(pieces), without_size, pieces).components)
    make, unet = {
        "sd": (mini.stable_diffusion, mini.unet),
        "tiny": (mini.stable_diffusion, mini.unet_tiny),
        "lcm": (mini.consistency_model, mini.unet_lcm),
    }[kind]
    return make(vae, mini.text_encoder(words), shallow(unet(), layers_per_block=1), words)


def shallow(denoiser, **changes):
    """A new denoiser of the same kind, with other settings."""
    return type(denoiser).from_config(denoiser.config, **changes)


def with_parts(pipe, **parts):
    """A pipeline of the same class, of the same modules but for `parts`."""
    options = {"requires_safety_checker": False, "add_watermarker": False}
    takes = inspect.signature(type(pipe)).parameters
    taken = {name: value for name, value in options.items() if name in takes}
    other = type(pipe)(**{**pipe.components, **parts}, **taken)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.fixture(scope="session")
def random_backbones(tmp_path_factory):
    """A function: a kind of KINDS -> a model of its architecture with random weights, through a folder as any other."""
    loaded = {}

    def get(kind):
        if kind not in loaded:
            torch.manual_seed(0)
            pipe = random_pipeline(kind)
            for module in (getattr(pipe, "unet", None) or pipe.transformer, pipe.vae):
                for parameter in module.parameters():  # those that start at 0 would hide what goes in
                    if not parameter.any():
                        torch.nn.init.normal_(parameter, std=0.1)
            folder = tmp_path_factory.mktemp(kind)
            mini.save(pipe, folder)
            backbone = postdiff.load(folder, device="cpu")
            loaded[kind] = postdiff.Backbone(replace(backbone.spec, size=64), backbone.pipe)
        return loaded[kind]

    return get


@pytest.fixture(scope="session")
def backbones(random_backbones):
    """A function: kind of FAMILIES -> its mini model."""
    loaded = {}

    def get(kind):
        if not (MINI / FAMILIES[kind]).is_dir():
            return random_backbones(kind)
        if kind not in loaded:
            loaded[kind] = postdiff.load(FAMILIES[kind], device="cpu")
        return loaded[kind]

    return get


def diffusers_solver(name, config):
    """diffusers' own scheduler of that name, with the settings of ours."""
    return getattr(diffusers, SCHEDULERS[name]).from_config(solvers.make_scheduler(name, config).config)


def fitting(solver, make, steps=4):
    """The plan `make(n)` of the least n, `steps` or more, that goes with the runs of the model that a solver makes."""
    return next(plan for plan in map(make, count(steps)) if goes_with(solver, plan))


def pipeline_images(backbone, n, solver, steps=4, guidance=None, size=(64, 64)):
    """What the untouched diffusers pipeline makes of the same prompts and noise, in so many runs of the denoiser."""
    pipe, before = backbone.pipe, backbone.pipe.scheduler
    pipe.scheduler = diffusers_solver(solver, before.config)
    noise = sampling.draw(SEEDS[:n], "initial", 8, (size[0] // 4, size[1] // 4))
    options = {"height": size[0], "width": size[1]}
    if backbone.spec.family.startswith("pixart"):
        options |= {"use_resolution_binning": False, "clean_caption": False}
        options["max_sequence_length"] = backbone.spec.text_tokens
    if solver in ("lcm", *SDE):  # draws noise at every step: each image's own stream of that step
        options["generator"] = generators = [state.generator(seed, "solver-0") for seed in SEEDS[:n]]

        def next_streams(i):
            for generator, seed in zip(generators, SEEDS, strict=False):
                generator.set_state(state.generator(seed, f"solver-{i + 1}").get_state())

        if backbone.spec.family.startswith("pixart"):
            options["callback"] = lambda i, t, latents: next_streams(i)
        else:
            options["callback_on_step_end"] = lambda pipe, i, t, tensors: next_streams(i) or tensors
    guidance = backbone.spec.guidance if guidance is None else guidance
    images = pipe(
        PROMPTS[:n],
        num_inference_steps=inference_steps(solver, steps),
        guidance_scale=guidance,
        latents=noise,
        output_type="np",
        **options,
    ).images
    pipe.scheduler = before
    return (images * 255).round().astype(np.uint8)


def latents(backbone, prompts, seeds, plan):
    """What `sample` decodes: pixels are rounded, and hide small differences."""
    plan = adapt(plan, backbone.spec.family)
    text = postdiff.encode(backbone, prompts, len(prompts)).batch(0, len(prompts), plan.needs_both_texts)
    state = sampling.begin(backbone, text, seeds, plan, settle(backbone.spec, size=64))
    return sampling.denoise(backbone, state)


def flops_of_run(backbone, plan):
    """FLOPs that the denoiser really executes for one image."""
    counter, inside = FlopCounterMode(display=False), []
    handles = [
        backbone.denoiser.register_forward_pre_hook(lambda *_: inside.append(-counter.get_total_flops())),
        backbone.denoiser.register_forward_hook(lambda *_: inside.append(counter.get_total_flops())),
    ]
    # The counter does not know the CPU's fused attention; spelled out, attention is two matrix products.
    with sdpa_kernel(SDPBackend.MATH), counter:
        latents(backbone, PROMPTS[:1], SEEDS[:1], plan)
    for handle in handles:
        handle.remove()
    return sum(inside)


@pytest.fixture(scope="session")
def ray_session():
    import ray

    from pipelines.engine import workers

    workers.connect()
    yield
    ray.shutdown()


def refusal(main, args, capsys):
    """The line in which a command or job refuses `args`, whether its parser does (exit code 2) or itself (1)."""
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    code = stopped.value.code
    line = code if isinstance(code, str) else capsys.readouterr().err.removesuffix("\n")
    assert isinstance(code, str) or code in (1, 2)
    assert line.startswith("error: ")
    assert "\n" not in line
    return line.removeprefix("error: ")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n/x 1 def\nshowpage\n%%EOF\n"


def bomb():
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def s3_server():
    """Host and port of an S3 server with an empty bucket, `bucket`."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    responses, lock = pytest.importorskip("moto.s3.responses").S3Response, threading.Lock()
    put = responses.put_object

    def alone(of):  # S3 looks and writes in one step, moto in two
        with lock:
            return put(of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses, "put_object", alone)
        server.start()
        yield server.get_host_and_port()
        server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The URL of a path in that bucket."""
    host, port = s3_server
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    client = pytest.importorskip("boto3").client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    return lambda path: f"s3://bucket/{path}?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
