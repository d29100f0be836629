"""Made-up sweeps for the tests of pages: rows whose answer is known, and a store with their images."""

import numpy as np

from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.metrics.intervals import Interval, student_t
from pipelines.report.tables import Row

PROMPTS = [f"a big red star on snow, number {i}" for i in range(8)]


def interval(value, half=0.1, n=200):
    """With jackknife values whose own 95 % interval is value +- half."""
    groups = 20 if n >= 40 else n // 2
    step = half / (student_t(groups - 1) * (groups - 1) ** 0.5)
    return Interval(value, value - half, value + half, n, tuple(value + step * (-1) ** i for i in range(groups)))


def row(method, settings, steps, flops, fid, clip, n=200):
    scores = {"fid": interval(fid, n=n), "clip": interval(clip, n=n)}
    return Row(f"{method}-{steps}-{settings}".replace(" ", ""), method, settings, steps, flops // 2, flops, 0.1, scores)


def sweep(n=200, plans=3):
    """Four of fewer steps, and `plans` of each other kind, which are better by the CLIP score and worse by FID."""
    unit = 10**9
    rows = [row("dense", "", t, t * unit, 40.0 - t, 20.0 + t / 2, n) for t in (8, 12, 16, 20)]
    for i in range(plans):
        flops = int((8.5 + 11 * (i + 0.5) / plans) * unit)
        share = 40.0 - flops / unit
        rows.append(row("mixed_resolution", f"s=0.{i + 1}", 20, flops, share + 1, 30.0, n))
        rows.append(row("deepcache", f"k={i + 2}", 20, flops + unit // 4, share + 2, 31.0, n))
        rows.append(row("postdiff", f"s=0.{i + 1} k=2 m=15", 20, flops + unit // 2, share + 1.5, 32.0, n))
    return rows


def store_of(folder, rows, images, prompts=PROMPTS):
    """A store with the images of each row. images: of the place of a row and of a prompt, WebP."""
    store = Store(str(folder))
    for at, one in enumerate(rows):
        name = f"images/{one.configuration}/00000-of-00001.parquet"
        count = len(prompts)
        columns = {
            "prompt_id": [str(i) for i in range(count)],
            "prompt": prompts,
            "seed": range(count),
            "configuration": [one.configuration] * count,
            "plan": [""] * count,
            "image": [{"bytes": images(at, i), "path": ""} for i in range(count)],
        }
        store.put(name, records.to_parquet(records.IMAGES, columns, name, "m"))
    return store


def small(at, prompt):
    """A square whose place and colour are the row's and the prompt's."""
    image = np.full((64, 64, 3), (40 + 25 * prompt, 90, 200 - 10 * at), np.uint8)
    image[8 + prompt * 4 : 28 + prompt * 4, 4 + at * 3 : 24 + at * 3] = 230
    return records.encode_image(image)


def noise(side, distinct=8):
    """Images of `side` pixels that hardly compress: blurred noise, as photographs are. The same few again and again."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(distinct):
        coarse = rng.integers(0, 255, (side // 8, side // 8, 3)).repeat(8, 0).repeat(8, 1)
        made.append(records.encode_image((coarse * 0.8 + rng.integers(0, 50, coarse.shape)).astype(np.uint8)))
    return lambda at, prompt: made[(at + prompt) % distinct]
