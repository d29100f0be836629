"""Speed, as ratios measured side by side: alternating runs in one call, medians; one JSON line last.

python jobs/bench.py overhead    the Ray pipeline's wall time over the bare sampler loop's, same work, same cores
python jobs/bench.py speedup     PostDiff over dense on SD1.5's real topology, beside what their FLOPs allow
python jobs/bench.py planning    time and memory to plan 150,000 units
python jobs/bench.py reuse       seconds saved by encoding prompts once for 10 configurations of mini-PixArt
python jobs/bench.py authors     DeepCache, T-GATE and ToMe: ours beside their authors' packages (extra: test)
python jobs/bench.py all         but for the last
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

import postdiff
from pipelines import embeddings, generate, prompts, records, report, workers
from pipelines.grids import grid
from pipelines.records import Prompt
from pipelines.store import Store
from pipelines.workers import Resources
from postdiff import methods, sampling, solvers
from postdiff.backbones import HUB
from postdiff.plan import Plan

ROOT = Path(__file__).resolve().parents[1]


def overhead(pairs: int, images: int = 192, processes: int = 2) -> dict:
    """Both sides start `processes` single-threaded processes, load mini-SD and draw the same images."""
    configuration = generate.configure("mini-sd", methods.dense(20))
    shards = prompts.shard(prompts.load_prompts("shapes", images), 16)
    workers.connect()
    ray_seconds, bare_seconds = [], []
    for pair in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            units = generate.units([configuration], shards, [1.0])
            began = time.perf_counter()
            failed = workers.run(units, partial(generate.Generator, store), store.has, Resources(processes))
            ray_seconds.append(time.perf_counter() - began)
            assert not failed, failed
            assert len(store.names("images")) == len(shards)
        bare_seconds.append(_bare(images, processes))
        print(f"pair {pair + 1}/{pairs}: Ray {ray_seconds[-1]:.1f} s, bare {bare_seconds[-1]:.1f} s", flush=True)
    ratios = [a / b for a, b in zip(ray_seconds, bare_seconds, strict=True)]
    return {
        "ray_over_bare": round(median(ratios), 4),
        "ratios": [round(r, 4) for r in ratios],
        "ray_s": [round(s, 2) for s in ray_seconds],
        "bare_s": [round(s, 2) for s in bare_seconds],
        "images": images,
    }


def _bare(images: int, processes: int) -> float:
    """Seconds of plain processes that share the prompts and only sample: no store, no encoding, no Ray."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import postdiff\n"
        "from pipelines import prompts\n"
        "share = prompts.load_prompts('shapes', int(sys.argv[2]))[int(sys.argv[3]) :: int(sys.argv[4])]\n"
        "texts, seeds = [p.text for p in share], [prompts.seed(p) for p in share]\n"
        "postdiff.sample(postdiff.load('mini-sd'), texts, seeds, postdiff.methods.dense(20), batch_size=8)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(ROOT), str(images), str(i), str(processes)], env=environment
        )
        for i in range(processes)
    ]
    assert all(process.wait() == 0 for process in running)
    return time.perf_counter() - began


def speedup(pairs: int, size: int = 256, steps: int = 8, batch: int = 4) -> dict:
    """Denoising only, fp32, guided, SD1.5's U-Net with random weights, all cores.

    Batches of 4, as `postdiff generate` runs: each pass reads 3.4 GB of weights, whatever the size of its latents, and
    with one image alone that is what a step at low resolution mostly does (NOTES.md).
    """
    spec = replace(HUB["sd15"], size=size)
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


def _denoise(backbone: postdiff.Backbone, plan: Plan, batch: int) -> float:
    """Seconds to denoise `batch` images."""
    spec = backbone.spec
    text = torch.randn(1, spec.text_tokens, spec.denoiser["cross_attention_dim"]).expand(2 * batch, -1, -1)
    state = sampling.begin(backbone, {"text": text}, list(range(batch)), plan, None, spec.size)
    began = time.perf_counter()
    sampling.denoise(backbone, state, plan, spec.guidance, spec.size)
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
    real = replace(HUB["sd15"], size=256)
    made = {"sd15_256px_random": (postdiff.Backbone(real, random_pipe(real)), 4, 2, pairs),
            # Under a second a run, where the machine's own noise is a few percent: more pairs.
            "mini-sd": (postdiff.load("mini-sd", device="cpu"), 20, 10, 3 * pairs)}  # fmt: skip
    return {name: _beside_authors(name, *setting) for name, setting in made.items()}


def _beside_authors(name: str, backbone: postdiff.Backbone, steps: int, gate: int, pairs: int) -> dict:
    import tgate
    import tomesd
    from DeepCache import DeepCacheSDHelper

    spec, pipe = backbone.spec, copy.copy(backbone.pipe)
    pipe.scheduler = solvers.make_solver("dpm", pipe.scheduler.config)  # that of ours, and for all of theirs
    pipe.set_progress_bar_config(disable=True)
    unpatched = copy.deepcopy(pipe)  # T-GATE never takes back what it patches
    gated = tgate.TgateSDLoader(unpatched)
    plans = {"dense": methods.dense(steps), "deepcache": methods.deepcache(steps, 2, 0),
             "tgate": methods.tgate(steps, gate), "tome": methods.tome(steps)}  # fmt: skip
    text = torch.randn(2, spec.text_tokens, spec.denoiser["cross_attention_dim"])
    channels, grid = backbone.denoiser.config.in_channels, spec.latents(spec.size)
    call = {"num_inference_steps": steps, "guidance_scale": spec.guidance, "output_type": "latent",
            "negative_prompt_embeds": text[:1], "prompt_embeds": text[1:], "height": spec.size, "width": spec.size,
            "latents": sampling.draw([0], "initial", channels, grid)}  # fmt: skip

    def ours(plan: Plan) -> None:
        state = sampling.begin(backbone, {"text": text}, [0], plan, "dpm", spec.size)
        sampling.denoise(backbone, state, plan, spec.guidance, spec.size)

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
    found = {}
    for key, price in prices.items():
        mine, theirs, dense = (seconds[side][1:] for side in (f"ours {key}", f"theirs {key}", "ours dense"))
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        speedups = [a / b for a, b in zip(dense, mine, strict=True)]
        found[key] = {
            "ours_over_theirs": round(median(ratios), 4),
            "ratios": [round(r, 3) for r in ratios],
            "speedup": round(median(speedups), 3),
            "flops_allow": round(prices["dense"].flops / price.flops, 3),
            "ours_s": round(median(mine), 3),
        }
    return found


def planning(configurations: int = 5000, prompts_each: int = 30_000, per_shard: int = 1000) -> dict:
    """Plan a grid of 5,000 configurations over 30 shards against the listing of a store that holds half of it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    shards = prompts.shard([Prompt(str(i), f"caption {i}") for i in range(prompts_each)], per_shard)
    base = generate.configure("mini-sd", methods.postdiff())
    grid = [replace(base, guidance=1 + i / 1000) for i in range(configurations)]
    units = generate.units(grid, shards, [1.0] * configurations)
    listed = {unit.name for unit in units[: len(units) // 2]}
    todo = [unit for unit in units if unit.name not in listed]
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(todo) == len(units) - len(listed)
    return {"units": len(units), "seconds": round(seconds, 2), "megabytes": round((after - before) / 1024, 1)}


def reuse(pairs: int, images: int = 32) -> dict:
    """Ten configurations of mini-PixArt (8 steps), same prompts: encoded for each, or once and read from the store.

    One process, all cores; what it takes to write, read and check the embeddings is on the side that reuses them.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    name = "mini-pixart"
    backbone = postdiff.load(name, device="cpu")
    plans = [plan for _, _, plan in grid("laptop", {**backbone.spec.settings, "steps": 8})][:10]
    configurations = [generate.configure(name, plan) for plan in plans]
    shards = prompts.shard(prompts.load_prompts("shapes", images), images)
    units = generate.units(configurations, shards, [1.0] * len(plans))
    text, tasks = units[0].task, [unit.task for unit in units[1:]]
    ids = [prompt.id for prompt in shards[0]]

    def each() -> list[bytes]:
        return [generate.generate(backbone, task.configuration, task.prompts) for task in tasks]

    def once() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            store.put(text.name, embeddings.make(backbone, text))
            return [
                generate.generate(
                    backbone, task.configuration, task.prompts, embeddings.from_bytes(store.get(task.text), ids)
                )
                for task in tasks
            ]

    seconds: dict[str, list[float]] = {"each": [], "once": []}
    made = {}
    for pair in range(pairs + 1):  # the first warms up
        for side, run in (("each", each), ("once", once)):
            began = time.perf_counter()
            made[side] = [records.from_parquet(data).column("image") for data in run()]
            seconds[side].append(time.perf_counter() - began)
        assert made["each"] == made["once"], "reused embeddings must give the same bytes"
        print(f"pair {pair}/{pairs}: each {seconds['each'][-1]:.2f} s, once {seconds['once'][-1]:.2f} s", flush=True)
    saved = [a - b for a, b in zip(seconds["each"][1:], seconds["once"][1:], strict=True)]
    return {
        "saved_s": round(median(saved), 3),
        "saved_s_of_each_pair": [round(s, 3) for s in saved],
        "each_s": round(median(seconds["each"][1:]), 2),
        "configurations": len(plans),
        "images_each": images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "speedup", "planning", "reuse", "authors", "all"])
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs of each side")
    args = parser.parse_args()
    results: dict[str, object] = {"commit": report.commit(), "torch": torch.__version__, "cores": os.cpu_count()}
    if args.what in ("planning", "all"):
        results["planning"] = planning()
    if args.what in ("speedup", "all"):
        results["speedup"] = speedup(args.pairs)
    if args.what in ("reuse", "all"):
        results["reuse"] = reuse(args.pairs)
    if args.what == "authors":
        results["authors"] = authors(args.pairs)
    if args.what in ("overhead", "all"):
        results["overhead"] = overhead(args.pairs)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
