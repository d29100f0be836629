"""Speed of the evaluation, measured side by side: alternating runs in one process, and their medians."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import postdiff
from pipelines.data import prompts, shapes
from pipelines.engine import records, workers
from pipelines.engine.cluster import Resources, Unit
from pipelines.engine.loop import UNFINISHED
from pipelines.engine.queue import Queue
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.report import tables
from pipelines.stages import embeddings, generation, latency
from pipelines.stages.generation import Generation, Generator
from pipelines.sweeps import grid
from postdiff import drawing, methods, planfile
from postdiff.models.checkpoints import resolve

ROOT = Path(__file__).resolve().parents[1]


def overhead(pairs: int, images: int = 192, processes: int = 2) -> dict:
    """Both sides start `processes` single-threaded processes, load mini-SD and draw the same images."""
    configuration = generation.configure("mini-sd", methods.dense(20))
    shards = prompts.shard(prompts.load_prompts("shapes", images), 16)
    workers.connect()
    ray_seconds, bare_seconds = [], []
    for pair in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            units = generation.units([configuration], shards, [1.0])
            began = time.perf_counter()
            failed = workers.run(units, partial(generation.Generator, store), store.has, Resources(processes))
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
        "from pipelines.data import prompts\n"
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


def compression(pairs: int, units: int = 4, images: int = 48, batch: int = 8, pause: float = 0.05) -> dict:
    """Units of images of 512 pixels from a stand-in denoiser that sleeps `pause` seconds an image, committed to a
    folder, over that sleep: with the threads that a worker of six CPU threads has, and in line, as a worker of one."""
    rng = np.random.default_rng(0)
    scenes: list[np.ndarray] = [shapes.render(shapes.scene("val", i), 512).astype(np.int16) for i in range(batch)]
    drawn = np.stack([scene + rng.integers(-3, 4, scene.shape) for scene in scenes]).clip(0, 255).astype(np.uint8)
    shards = prompts.shard(prompts.load_prompts("shapes", units * images), images)
    configuration = generation.configure("mini-sd", methods.dense(20), batch_size=batch)
    made = generation.units([configuration], shards, [1.0])
    planned = [unit.task for unit in made if isinstance(unit.task, Generation)]

    def batches(backbone, texts, *_, **__):
        for start in range(0, len(texts), batch):
            time.sleep(pause * batch)
            yield drawn[: len(texts[start : start + batch])], pause * batch

    seconds: dict[str, list[float]] = {"threads": [], "in line": []}
    for _ in range(pairs):
        for side, threads in (("threads", "6"), ("in line", "1")):
            with (
                tempfile.TemporaryDirectory() as folder,
                patch.object(drawing, "batches", batches),
                patch.object(Generator, "_load"),
                patch.object(embeddings, "read"),
                patch.dict(os.environ, OMP_NUM_THREADS=threads),
            ):
                store, worker = Store(folder), workers.Worker(1)
                worker.start(partial(Generator, store))
                began = time.perf_counter()
                unfinished = sum(worker.run(task, ()) == UNFINISHED for task in planned)
                for _ in range(unfinished):
                    worker.finish()
                seconds[side].append(time.perf_counter() - began)
                assert len(store.names("images")) == units
    slept = units * images * pause
    began = time.perf_counter()
    records.encode_image(drawn[0])
    return {
        **{f"{side}, over the sleep": round(median(took) / slept, 4) for side, took in seconds.items()},
        "seconds": {side: [round(s, 3) for s in took] for side, took in seconds.items()},
        "slept_s": slept,
        "one_image_s": round(time.perf_counter() - began, 4),
        "images": units * images,
    }


def planning(configurations: int = 5000, prompts_each: int = 30_000, per_shard: int = 1000) -> dict:
    """Plan a grid of 5,000 configurations over 30 shards against the listing of a store that holds half of it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    shards = prompts.shard([Prompt(str(i), f"caption {i}") for i in range(prompts_each)], per_shard)
    base = generation.configure("mini-sd", methods.postdiff())
    grid = [replace(base, guidance=1 + i / 1000) for i in range(configurations)]
    units = generation.units(grid, shards, [1.0] * configurations)
    listed = {unit.name for unit in units[: len(units) // 2]}
    todo = [unit for unit in units if unit.name not in listed]
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(todo) == len(units) - len(listed)
    return {"units": len(units), "seconds": round(seconds, 2), "megabytes": round((after - before) / 1024, 1)}


def driver(configurations: int = 2500, shards: int = 30, workers: int = 64, held: bool = False) -> dict:
    """What the driver itself takes: the graph of a sweep is planned, and given to `workers` that answer at once,
    without Ray. held: one unit of text is outstanding until all is done that does not need it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    units = [Unit(f"text/{i:05d}", "text", 0.1, None, on_demand=True) for i in range(shards)]
    for c in range(configurations):
        images = [
            Unit(f"images/{c}/{i:05d}", f"model {c % 3}", 1 + c % 7, None, (units[i].name,)) for i in range(shards)
        ]
        features = [
            Unit(f"features/{c}/{i:05d}", "encoder", 1, None, (images[i].name,), rides=True) for i in range(shards)
        ]
        score = Unit(f"scores/{c}", "", 1, None, tuple(unit.name for unit in features))
        units += [*images, *features, score]
    queue = Queue(units)
    planned = time.perf_counter()
    groups, busy, waiting = [""] * workers, deque[tuple[int, str]](), ""
    idle = list(range(workers))
    while queue.open:
        while idle and (unit := queue.take(idle[-1], f"node {idle[-1] % 8}", groups[idle[-1]], elsewhere=True)):
            if held and not waiting:
                waiting = unit.name
                continue
            groups[idle[-1]] = unit.group or groups[idle[-1]]
            busy.append((idle.pop(), unit.name))
        if not busy:
            queue.finished([waiting])
            continue
        worker, name = busy.popleft()
        rode = [rider.name for rider in queue.riders(name) if worker % 2]
        queue.finished([name, *rode], f"node {worker % 8}", 1.0)
        idle.append(worker)
    ended = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "units": len(units),
        "plan_s": round(planned - began, 2),
        "loop_us_a_unit": round((ended - planned) / len(units) * 1e6, 1),
        "megabytes": round((after - before) / 1024, 1),
    }


def listing(configurations: int = 2500, shards: int = 100) -> dict:
    """What it takes to list a folder of 1,000,000 empty files, as a run that is resumed does."""
    with tempfile.TemporaryDirectory() as folder:
        for c in range(configurations):
            for kind in ("images", "timings", "features/clip", "features/inception"):
                (own := Path(folder, kind, f"{c:012x}")).mkdir(parents=True)
                for i in range(shards):
                    (own / f"{i:05d}-of-{shards:05d}.parquet").touch()
        store = Store(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        names = store.names()
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"names": len(names), "seconds": round(seconds, 2), "megabytes": round((after - before) / 1024, 1)}


def reuse(pairs: int, images: int = 32) -> dict:
    """Ten configurations of mini-PixArt (8 steps), same prompts: encoded for each, or once and read from the store.

    One process, all cores; what it takes to write, read and check the embeddings is on the side that reuses them.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    name = "mini-pixart"
    backbone = postdiff.load(name, device="cpu")
    plans = [plan for _, _, plan in grid("laptop", {**backbone.spec.settings, "steps": 8})][:10]
    configurations = [generation.configure(name, plan) for plan in plans]
    shards = prompts.shard(prompts.load_prompts("shapes", images), images)
    units = generation.units(configurations, shards, [1.0] * len(plans))
    text: Any = units[0].task
    tasks: list[Any] = [unit.task for unit in units[1:]]

    def each() -> list[bytes]:
        return [generation.generate(backbone, task.configuration, task.prompts).file() for task in tasks]

    def once() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            store.put(text.name, embeddings.make(backbone, text))
            return [
                generation.generate(
                    backbone, task.configuration, task.prompts, embeddings.read(store, task.text, task.prompts)
                ).file()
                for task in tasks
            ]

    seconds: dict[str, list[float]] = {"each": [], "once": []}
    made = {}
    for pair in range(pairs + 1):  # the first warms up
        for side, run in (("each", each), ("once", once)):
            began = time.perf_counter()
            made[side] = [records.from_parquet(data, "").column("image") for data in run()]
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


def measure_latency(name: str, listed: list[str], rounds: int) -> dict:
    """Of one image, `listed` (methods with the backbone's own settings, or files of plans) alternating; speed-ups are
    over the first. In a process of its own, after one round to warm up, on a GPU that the cluster gives to nothing
    else, or on this machine where RAY_ADDRESS names no cluster with GPUs."""
    spec = resolve(name)
    plans = []
    for one in listed:
        if one.endswith(".json"):
            plans.append(planfile.load_plan(one))
            continue
        settings = methods.settings_for(one, spec.settings)  # raises for an unknown method
        plans.append(methods.METHODS[one](**settings))
    configurations = [generation.configure(name, plan, batch_size=1) for plan in plans]
    times = latency.measure(configurations, rounds, workers.cluster_has_gpus())
    header = ("plan", "p50 (s)", "p90", "denoise", "decode", "encode", "peak GiB", "speed-up")
    lines = [
        [one, *(f"{x:.3f}" for x in (t.p50, t.p90, t.denoise, t.decode, t.encode)),
         "–" if t.memory is None else f"{t.memory:.2f}", f"{t.speedup:.2f}"]
        for one, t in zip(listed, times, strict=True)
    ]  # fmt: skip
    first = configurations[0]
    print(f"{name}, {first.size} px, {first.dtype}, one image, {rounds} rounds on {times[0].machine}\n")
    print(tables.markdown(header, lines))
    return {one: asdict(t) for one, t in zip(listed, times, strict=True)}
