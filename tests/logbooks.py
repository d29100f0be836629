"""A store with a few small images, and what a job would tell W&B of them."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from pipelines.data import prompts as prompting
from pipelines.engine import records
from pipelines.metrics.intervals import mean_interval
from pipelines.report.runs import Logbook
from pipelines.report.tables import Row
from pipelines.stages import generation
from postdiff import methods

PROMPTS = [records.Prompt(f"p{i}", f"a {colour} star, number {i}") for i, colour in enumerate(["red", "blue"] * 7)]
PLANS = {
    ("dense", ""): methods.dense(20),
    ("dense", "few"): methods.dense(8),
    ("mixed_resolution", "s=0.3"): methods.mixed_resolution(20, 0.5, 0.3),
    ("postdiff", "s=0.3 k=2 m=15"): methods.postdiff(20, 0.5, 0.3, 2, 0.75),
}
QUALITY = {"dense": 70, "mixed_resolution": 72, "postdiff": 60}


def webp(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def put_images(store, of, shards=2):
    """Images and timings of PROMPTS in two shards, of noise that depends on the configuration."""
    rng = np.random.default_rng(int(of.id[:8], 16))
    for i, part in enumerate(prompting.shard(PROMPTS, len(PROMPTS) // shards)):
        name = f"images/{of.id}/{i:05d}-of-{shards:05d}.parquet"
        columns = {
            "prompt_id": [prompt.id for prompt in part],
            "prompt": [prompt.text for prompt in part],
            "seed": [prompting.seed(prompt) for prompt in part],
            "configuration": [of.id] * len(part),
            "plan": [of.plan.id] * len(part),
            "image": [{"bytes": webp(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)), "path": ""} for _ in part],
        }
        store.put(name, records.to_parquet(records.IMAGES, columns, name, "m"))
        timings = generation.timings_name(name)
        store.put(timings, records.to_json({"seconds": [0.1 * (i + 1)] * len(part)}, timings))


def row(of, method, settings, flops):
    scores = np.random.default_rng(flops).normal(QUALITY[method] + flops / 10, 5, 64)
    named = {"clip": mean_interval(scores), "fid": mean_interval(200 - scores)}
    return Row(
        of.id, method, settings, len(of.plan), flops * 10**9, 2 * flops * 10**9, 0.15, named, bool(of.plan.switches)
    )


def book(store, plans=PLANS, **more):
    """A logbook of a sweep on mini-sd, with images in `store`."""
    rows, configurations = [], {}
    for number, ((method, settings), plan) in enumerate(plans.items()):
        of = generation.configure("mini-sd", plan)
        put_images(store, of)
        configurations[of.id] = of
        rows.append(row(of, method, settings, 20 - 3 * number))
    whole = Logbook(
        sweep="sweep-mini-sd",
        protocol={"protocol": "custom-01234567", "prompts": "14 of /home/us3r/captions.tsv (abc), one image each"},
        rows=rows,
        configurations=configurations,
        about={"device": "2 cores", "commit": "abcdef0"},
        answer="Neither wins clearly.",
        private=("mini-sd", "/home/us3r/captions.tsv", None),
    )
    return replace(whole, **more)
