"""Fixtures: the mini backbone, loaded once; Ray, started once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import postdiff

torch.set_num_threads(1)
PROMPTS = [
    "a big red star on snow",
    "a small striped blue ring left of a big green heart on sand",
    "a big white circle on night",
]
SEEDS = [11, 12, 13]


@pytest.fixture(scope="session")
def backbone():
    return postdiff.load("mini-sd", device="cpu")


@pytest.fixture(scope="session")
def ray_session():
    import ray

    from pipelines import workers

    workers.connect()
    yield
    ray.shutdown()
