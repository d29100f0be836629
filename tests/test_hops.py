"""How far it is from a command to the paper's Eq. 4: functions of the product that call each other."""

import traceback
from pathlib import Path

import pytest

from pipelines.engine.records import Prompt
from pipelines.engine.store import Store
from pipelines.stages import generation, worker
from postdiff import cli, methods, resolution

ROOT = Path(__file__).parents[1]
PRODUCT = tuple(ROOT / folder for folder in ("postdiff", "pipelines", "jobs"))


@pytest.fixture
def chains(monkeypatch):
    """The functions of the product that were on the stack at each call of `upsample`, outermost first."""
    found, upsample = [], resolution.upsample

    def recorded(*args):
        stack = traceback.extract_stack()
        found.append([f.name for f in stack if any(Path(f.filename).is_relative_to(own) for own in PRODUCT)])
        return upsample(*args)

    monkeypatch.setattr(resolution, "upsample", recorded)
    return found


def test_from_generate_to_eq_4(chains, tmp_path):
    """Five hops from the command's function, which `main` calls once the command line is read."""
    cli.main(["generate", "star", "--steps", "3", "--s", "0.5", "--m", "3", "--out", str(tmp_path)])
    assert chains == [["main", "generate", "sample", "batches", "denoise", "advance"]]


def test_from_a_sweeps_worker_to_eq_4(chains, tmp_path):
    """Seven hops from the actor's method `Worker.run`, which calls this handler; here it is called without Ray."""
    store = Store(str(tmp_path))
    store.claim({})
    configuration = generation.configure("mini-sd", methods.postdiff(3, s=0.5, m=3), batch_size=1)
    shard = (Prompt("0", "star"),)
    handle = worker.Handler(store)
    for unit in generation.units([configuration], [shard], [1.0]):
        handle(unit.task)
    assert chains == [["__call__", "__call__", "generate", "batches", "denoise", "advance"]]
