"""One denoiser, one run at a time: what two threads draw is what each draws alone."""

import threading

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS

import postdiff
from pipelines.stages import analysis
from postdiff import methods, search
from postdiff.ownership import owned


def in_threads(*calls):
    """The results of all calls, made at once, each in a thread of its own."""
    results, errors = [None] * len(calls), []
    together = threading.Barrier(len(calls))

    def run(i):
        try:
            together.wait()
            results[i] = calls[i]()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return results


def test_threads_draw_what_they_draw_alone_and_leave_the_model_untouched(backbone):
    attributes = {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}
    plans = [methods.deepcache(6, k=2), methods.dense(6), methods.deepcache(6, k=3), methods.postdiff(6)]
    calls = [lambda plan=plan: postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan) for plan in plans]
    alone = [call() for call in calls]
    for found, expected in zip(in_threads(*calls), alone, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert attributes == {name: set(module.__dict__) for name, module in backbone.denoiser.named_modules()}


def test_what_watches_a_run_sees_its_own_threads_alone(backbone):
    one = PROMPTS[:1], SEEDS[:1]
    calls = [
        lambda: analysis.profile(backbone, *one, methods.dense(4)).blocks,
        lambda: search.contribution_changes(backbone, *one, methods.dense(4)),
        lambda: postdiff.sample(backbone, *one, methods.dense(12)),
    ]
    alone = [call() for call in calls[:2]]
    for found, expected in zip(in_threads(*calls), alone, strict=False):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_a_run_inside_a_callback_of_a_run_raises(backbone):
    def again(step, latents):
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], methods.dense(1))

    with pytest.raises(RuntimeError, match="in the middle of a run of this thread"):
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], methods.postdiff(4), on_step=again)
    postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], methods.dense(1))  # it is free again


def test_a_model_is_forgotten_with_its_last_user():
    from postdiff import ownership

    before = len(ownership._models)
    model = torch.nn.Linear(1, 1)
    with owned(model):
        assert len(ownership._models) == before + 1
    del model
    assert len(ownership._models) == before
