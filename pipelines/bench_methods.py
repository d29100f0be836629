"""Speed of the denoising loop, as ratios of runs that alternate in one process: over dense, and beside the authors'."""

import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

import postdiff
from postdiff import methods, sampling, solvers
from postdiff.models.checkpoints import HUB
from postdiff.models.spec import settle
from postdiff.plan import Plan


def speedup(pairs: int, size: int = 256, steps: int = 8, batch: int = 4) -> dict:
    """Denoising only, fp32, guided, SD1.5's U-Net with random weights, all cores.

    Batches of 4, as `postdiff generate` runs: each pass reads 3.4 GB of weights, whatever the size of its latents, and
    with one image alone that is what a step at low resolution mostly does (NOTES.md).
    """
    spec = replace(HUB["sd15"], size=(size, size))
    torch.set_num_threads(os.cpu_count() or 1)
    backbone = postdiff.Backbone(spec, random_pipe(spec))
    _denoise(backbone, methods.dense(1), batch)  # warm-up
    plans = {"dense": methods.dense(steps), "postdiff": methods.postdiff(steps)}
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for pair in range(pairs):
        for name, plan in plans.items():
            seconds[name].append(_denoise(backbone, plan, batch))
        times = ", ".join(f"{name} {s[-1]:.1f} s" for name, s in seconds.items())
        print(f"pair {pair + 1}/{pairs}: {times}", flush=True)
    ratios = [d / p for d, p in zip(seconds["dense"], seconds["postdiff"], strict=True)]
    dense, cheap = postdiff.costs(list(plans.values()), spec)
    allowed = dense.flops / cheap.flops
    return {
        "speedup": round(median(ratios), 4),
        "flops_ratio": round(allowed, 4),
        "share_of_flops_ratio": round(median(ratios) / allowed, 4),
        "ratios": [round(r, 4) for r in ratios],
        "steps": steps,
        "size": size,
        "batch": batch,
    }


def execution(pairs: int, steps: int = 20, batch: int = 4) -> dict:
    """mini-SD's denoising as it is, over channels last, compiled, and both: seconds of the former over the latter.

    warm_up_s: of a compiled model's first run of a plan.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    last, compiled = ("channels_last", "both"), ("compiled", "both")
    backbones = {
        way: postdiff.load("mini-sd", "cpu", channels_last=way in last, compiled=way in compiled)
        for way in ("plain", "channels_last", "compiled", "both")
    }
    measured: dict[str, dict] = {}
    for plan in (methods.dense(steps), methods.postdiff(steps)):
        warm_up = {way: _denoise(backbone, plan, batch) for way, backbone in backbones.items()}
        seconds: dict[str, list[float]] = {way: [] for way in backbones}
        for pair in range(pairs):
            for way, backbone in backbones.items():
                seconds[way].append(_denoise(backbone, plan, batch))
            print(f"{plan.name}, pair {pair + 1}/{pairs}: {sum(s[-1] for s in seconds.values()):.1f} s", flush=True)
        gains = {way: [a / b for a, b in zip(seconds["plain"], s, strict=True)] for way, s in seconds.items()}
        del gains["plain"]
        measured[plan.name] = {
            **{f"{way}_gain": round(median(ratios), 3) for way, ratios in gains.items()},
            "ratios": {way: [round(ratio, 3) for ratio in ratios] for way, ratios in gains.items()},
            "warm_up_s": {way: round(took, 1) for way, took in warm_up.items() if backbones[way].compiled},
            "plain_s": round(median(seconds["plain"]), 3),
        }
    return {**measured, "steps": steps, "batch": batch}


def _denoise(backbone: postdiff.Backbone, plan: Plan, batch: int) -> float:
    """Seconds to denoise `batch` images."""
    spec = backbone.spec
    text = torch.randn(1, spec.text_tokens, spec.denoiser["cross_attention_dim"]).expand(2 * batch, -1, -1)
    state = sampling.begin(backbone, {"text": text}, list(range(batch)), plan, settle(spec))
    began = time.perf_counter()
    sampling.denoise(backbone, state)
    return time.perf_counter() - began


def random_pipe(spec) -> StableDiffusionPipeline:
    """A pipeline that can denoise, with random weights: no text encoder, and an autoencoder of no use."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                          up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4),
        text_encoder=None,
        tokenizer=None,
        unet=UNet2DConditionModel.from_config(spec.denoiser).eval(),
        scheduler=PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def authors(pairs: int) -> dict:
    """Dense, ours and theirs, alternating in one process: denoising of one image, guided, on all cores.

    An even number of pairs: what runs second took 2 to 4 % longer on SD1.5's real size, so both must as often.
    """
    pairs += pairs % 2
    torch.set_num_threads(os.cpu_count() or 1)
    real = replace(HUB["sd15"], size=(256, 256))
    made = {"sd15_256px_random": (postdiff.Backbone(real, random_pipe(real)), 4, 2, pairs),
            # Under a second a run, where the machine's own noise is a few percent: more pairs.
            "mini-sd": (postdiff.load("mini-sd", device="cpu"), 20, 10, 3 * pairs)}  # fmt: skip
    return {name: _beside_authors(name, *setting) for name, setting in made.items()}


def _beside_authors(name: str, backbone: postdiff.Backbone, steps: int, gate: int, pairs: int) -> dict:
    import tgate
    import tomesd
    from DeepCache import DeepCacheSDHelper

    spec, pipe = backbone.spec, copy.copy(backbone.pipe)
    pipe.scheduler = solvers.make_scheduler("dpm", pipe.scheduler.config)  # that of ours, and for all of theirs
    pipe.set_progress_bar_config(disable=True)
    unpatched = copy.deepcopy(pipe)  # T-GATE never takes back what it patches
    gated = tgate.TgateSDLoader(unpatched)
    plans = {"dense": methods.dense(steps), "deepcache": methods.deepcache(steps, 2, 0),
             "tgate": methods.tgate(steps, gate), "tome": methods.tome(steps)}  # fmt: skip
    text = torch.randn(2, spec.text_tokens, spec.denoiser["cross_attention_dim"])
    channels, grid = backbone.denoiser.config.in_channels, spec.latents(spec.size)
    call = {"num_inference_steps": steps, "guidance_scale": spec.guidance, "output_type": "latent",
            "negative_prompt_embeds": text[:1], "prompt_embeds": text[1:],
            "height": spec.size[0], "width": spec.size[1],
            "latents": sampling.draw([0], "initial", channels, grid)}  # fmt: skip

    def ours(plan: Plan) -> None:
        state = sampling.begin(backbone, {"text": text}, [0], plan, settle(spec, solver="dpm"))
        sampling.denoise(backbone, state)

    def their_deepcache() -> None:
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=2, cache_branch_id=0)
        helper.enable()
        pipe(**call)
        helper.disable()

    def their_tome() -> None:
        tomesd.apply_patch(pipe, ratio=0.5)
        pipe(**call)
        tomesd.remove_patch(pipe)

    runs: dict[str, Callable[[], object]] = {f"ours {key}": partial(ours, plan) for key, plan in plans.items()}
    runs |= {"theirs deepcache": their_deepcache, "theirs tome": their_tome,
             "theirs tgate": lambda: gated.tgate(**call, gate_step=gate, sp_interval=1, fi_interval=1, warm_up=0),
             "theirs dense": lambda: pipe(**call)}  # fmt: skip
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for pair in range(pairs + 1):  # the first warms up
        # Which side goes first alternates too.
        for key in sorted(runs, key=lambda key: (key.split()[1], (key < "p") == bool(pair % 2))):
            began = time.perf_counter()
            runs[key]()
            seconds[key].append(time.perf_counter() - began)
        print(f"{name}, pair {pair}/{pairs}: {sum(s[-1] for s in seconds.values()):.1f} s", flush=True)
    prices = dict(zip(plans, postdiff.costs(list(plans.values()), spec), strict=True))
    measured = {}
    for key, price in prices.items():
        mine, theirs, dense = (seconds[side][1:] for side in (f"ours {key}", f"theirs {key}", "ours dense"))
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        speedups = [a / b for a, b in zip(dense, mine, strict=True)]
        measured[key] = {
            "ours_over_theirs": round(median(ratios), 4),
            "ratios": [round(r, 3) for r in ratios],
            "speedup": round(median(speedups), 3),
            "flops_allow": round(prices["dense"].flops / price.flops, 3),
            "ours_s": round(median(mine), 3),
        }
    return measured
