"""Images are the same bytes however a run is cut into units, interrupted or resumed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from pipelines.data import prompts
from pipelines.engine import records, workers
from pipelines.engine.cluster import Resources
from pipelines.engine.store import Store
from pipelines.stages import generation
from postdiff import methods

ROOT = Path(__file__).parents[2]


def image_bytes(store):
    """{(configuration, prompt): image bytes} of everything in the store, with a check of the other columns."""
    images = {}
    for name in sorted(store.names("images")):
        for row in store.table(name).to_pylist():
            key = (row["configuration"], row["prompt_id"])
            assert key not in images, "committed twice"
            assert row["seed"] == prompts.seed(records.Prompt(row["prompt_id"], row["prompt"]))
            images[key] = row["image"]["bytes"]
    return images


def generate_all(root, shard_size, n_workers):
    store = Store(root)
    shards = prompts.shard(prompts.load_prompts("shapes", 24), shard_size)
    plans = [methods.dense(3), methods.postdiff(4, m=2)]
    units = generation.units(
        [generation.configure("mini-sd", p, batch_size=6) for p in plans], shards, [1.0] * len(plans)
    )
    todo = [unit for unit in units if unit.name not in store.names()]
    make = partial(generation.Generator, store)
    assert workers.run(todo, make, store.has, Resources(n_workers)) == {}
    return len(todo)


@pytest.mark.usefixtures("ray_session")
def test_bytes_do_not_depend_on_workers_shards_or_resumption(tmp_path):
    generate_all(tmp_path / "one", 8, 1)
    expected = image_bytes(Store(tmp_path / "one"))
    assert len(expected) == 48
    generate_all(tmp_path / "two", 20, 2)
    assert image_bytes(Store(tmp_path / "two")) == expected
    for name in sorted(Store(tmp_path / "one").names("images"))[::2]:  # as if the run had been cut in the middle
        (tmp_path / "one" / name).unlink()
    assert generate_all(tmp_path / "one", 8, 2) == 3
    assert image_bytes(Store(tmp_path / "one")) == expected
    assert generate_all(tmp_path / "one", 8, 2) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_ten_kills_of_workers_leave_the_same_images(tmp_path):
    generate_all(tmp_path / "whole", 2, 2)
    store = Store(tmp_path / "cut")
    shards = prompts.shard(prompts.load_prompts("shapes", 24), 2)
    plans = [methods.dense(3), methods.postdiff(4, m=2)]
    units = generation.units(
        [generation.configure("mini-sd", p, batch_size=6) for p in plans], shards, [1.0] * len(plans)
    )
    alive, killed, stop, rng = [], [], threading.Event(), random.Random(1)

    def killer():
        while len(killed) < 10 and not stop.wait(rng.uniform(0.5, 3)):
            if alive:
                pid = alive.pop(rng.randrange(len(alive)))
                with suppress(ProcessLookupError):  # it was replaced
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=killer)
    thread.start()
    make, committed = partial(generation.Generator, store), store.has
    try:
        while len(killed) < 10:  # each run is disturbed; begun again from nothing until ten kills have hit
            for name in store.names("images"):
                store.delete(name)
            assert workers.run(units, make, committed, Resources(2), on_worker=alive.append) == {}
            assert image_bytes(store) == image_bytes(Store(tmp_path / "whole"))
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_ten_kills_of_the_driver_leave_the_same_images(tmp_path):
    small = ["--grid", "small", "--limit", "16", "--shard", "4", "--batch-size", "4", "--n-reference", "30"]
    command = [sys.executable, str(ROOT / "jobs" / "coco_sweep.py"), *small, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=600)
    rng, kills = random.Random(0), 0
    while kills < 10:
        if (tmp_path / "cut" / "report.html").exists():  # done before ten kills: begin again
            assert image_bytes(Store(tmp_path / "cut")) == image_bytes(Store(tmp_path / "whole"))
            shutil.rmtree(tmp_path / "cut")
        driver = subprocess.Popen(
            [*command, str(tmp_path / "cut")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            driver.wait(rng.uniform(8, 30))
        except subprocess.TimeoutExpired:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            kills += 1
    subprocess.run([*command, str(tmp_path / "cut")], check=True, capture_output=True, timeout=600)
    assert image_bytes(Store(tmp_path / "cut")) == image_bytes(Store(tmp_path / "whole"))
