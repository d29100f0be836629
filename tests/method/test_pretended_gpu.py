"""Every family, method and solver on a pretended GPU: no tensors of two devices meet, the bits are the CPU's, and the
step loop neither waits for the device nor copies anything to or from it."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES, PROMPTS, SEEDS, fitting
from pretend_cuda import DeviceMix, Event, OnGPU, PretendCuda, to_gpu

import postdiff
from postdiff import decoding, drawing, methods, sampling, transfer
from postdiff.mechanisms import DeepCache, EncoderPropagation, ScheduledModules, TokenCache
from postdiff.models import families as rules
from postdiff.models.spec import settle

STEPS, N = 4, 2
MINIS = {"sd": "mini-sd", **{kind: name for kind, name in FAMILIES.items() if kind not in ("tiny", "sigma")}}
GRID = {"sdxl": 2, "pixart": 2}  # of the finest attention, in latents


def settings(name, family):
    """Those with which a method does something in so few steps."""
    shrunk = GRID.get(family, 1)
    return {
        "postdiff": {"k": 1, "m": 3} if family in ("lcm", "pixart") else {"m": 3},
        "cfg_drop": {"m": 2},
        "tgate": {"gate_step": 3, "sp_interval": 2, "warm_up": 1},
        "tome": {"max_downsample": shrunk},
        "ca_tome": {"max_downsample": shrunk, "match_steps": (0, 2)},
        "todo": {"factor_2": shrunk},
        "faster_diffusion": {"key_steps": (0, 2)},
        "duca": {"score": "random"},
    }.get(name, {})


def plans(family, solver=""):
    made = {}
    for name, method in methods.METHODS.items():
        longer = solver and name in ("postdiff", "dense")  # where the solver runs the model more often than it steps
        make = partial(method, **settings(name, family))
        made[name] = fitting(solver, make, STEPS) if longer else make(STEPS)
    made["faster_diffusion ahead"] = methods.faster_diffusion(STEPS, key_steps=(0, 2), ahead=True)
    made["tome at two resolutions"] = postdiff.low_first(made["tome"], 0.5, 0.5)
    made["duca entropy"] = methods.duca(STEPS)
    if family == "pixart":
        windows = ScheduledModules(tuple((f"transformer_blocks.{i}.attn1", "Sw.x") for i in (0, 1)))
        made["windows"] = methods.dense(STEPS).plus(windows)
    return made


@pytest.fixture(scope="module")
def pairs():
    """A function: kind -> (the backbone on the host, the same on the pretended GPU, its text)."""
    made = {}

    def get(kind):
        if kind not in made:
            host, there = (postdiff.load(MINIS[kind], "cpu") for _ in "ab")
            # As on the pretended GPU: torch folds a batched product or not by whether its weights are trained, also
            # under `no_grad`, and on processors with AVX-512 the two differ in their last bits.
            host.denoiser.requires_grad_(False)
            to_gpu(there.denoiser)
            to_gpu(there.pipe.vae)
            made[kind] = host, there, postdiff.encode(host, PROMPTS[:N], N)
        return made[kind]

    return get


def run(backbone, embeddings, plan, solver, monkeypatch, gpu=None):
    """Latents, with the events of the step loop alone left in `gpu`."""
    real = sampling.prepare

    def prepare(*args):
        real(*args)
        if gpu is not None:
            gpu.events.clear()

    monkeypatch.setattr(sampling, "prepare", prepare)
    text = embeddings.batch(0, N, plan.needs_both_texts)
    with torch.no_grad():
        state = sampling.begin.__wrapped__(backbone, text, SEEDS[:N], plan, settle(backbone.spec, solver=solver))
        return sampling.denoise.__wrapped__(backbone, state)


def can(kind, plan):
    """Is there anything in the family's denoiser that the plan changes? (tests/test_families.py has the reasons.)"""
    if plan.get(TokenCache):
        return kind == "pixart"
    if plan.get(DeepCache):
        return kind not in ("pixart", "lcm")
    return kind != "pixart" or not plan.get(EncoderPropagation)


CASES = [
    (kind, name, solver)
    for kind in MINIS
    for name, plan in plans(kind).items()
    if can(kind, plan)
    for solver in (rules.FAMILIES[kind].solvers if name in ("postdiff", "dense") else ("",))
]


@pytest.mark.parametrize(("kind", "name", "solver"), CASES)
def test_the_cpus_bits_without_waits_or_copies_in_the_loop(pairs, monkeypatch, kind, name, solver):
    host, there, embeddings = pairs(kind)
    plan = rules.adapt(plans(kind, solver)[name], kind)
    solver = solver or host.spec.solver
    expected = run(host, embeddings, plan, solver, monkeypatch)
    with PretendCuda() as gpu:
        found = run(there, embeddings, plan, solver, monkeypatch, gpu)
        events = Counter((event.kind, event.where) for event in gpu.events if event.kind != "cast")
    assert isinstance(found, OnGPU)
    assert torch.equal(found.host, expected)
    if name == "ca_tome":  # how many tokens an image merges is read back, once an image, block and matching step
        reads = "wait", "mechanisms/matching.py"
        events = {key: n for key, n in events.items() if (key[0], key[1].partition(":")[0]) != reads}
    assert not events


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_pixels_are_the_cpus_and_become_uint8_on_the_device(pairs, kind):
    host, there, _ = pairs(kind)
    latents = torch.randn(N, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    with PretendCuda() as gpu:
        found = decoding.decode(there, OnGPU(latents.clone()))
        kinds = Counter(event.kind for event in gpu.events)
    np.testing.assert_array_equal(found, decoding.decode(host, latents))
    assert (kinds["to device"], kinds["to host"]) == (0, 2)  # the pixels, and whether they are finite
    assert (kinds["wait"], kinds["event"]) == (0, 1)


@pytest.mark.parametrize("kind", MINIS)
def test_a_batch_is_launched_before_the_one_before_it_is_waited_for(pairs, monkeypatch, kind):
    """From the first noise to the last pixel the host waits for nothing but the pixels of the batch before."""
    host, there, _ = pairs(kind)
    plan = rules.adapt(plans(kind)["postdiff"], kind)
    prompts, seeds = [*PROMPTS[:2], PROMPTS[0], PROMPTS[1], PROMPTS[0]], [1, 2, 3, 4, 5]  # the last batch is padded
    text = postdiff.encode(host, prompts, N)
    expected = np.concatenate([pixels for pixels, _ in drawing.batches(host, prompts, seeds, plan, N, text)])
    assert len(expected) == len(prompts)
    for name in ("begin", "denoise"):
        monkeypatch.setattr(sampling, name, getattr(sampling, name).__wrapped__)
    with torch.no_grad(), PretendCuda() as gpu:
        launch = sampling.denoise

        def denoise(*args):
            gpu.events.append(Event("launch", "", ""))
            return launch(*args)

        monkeypatch.setattr(sampling, "denoise", denoise)
        found, seconds = zip(*drawing.batches(there, prompts, seeds, plan, N, text), strict=True)
        kinds = [event.kind for event in gpu.events if event.kind in ("launch", "event", "wait")]
        copies = Counter((event.what, event.kind) for event in gpu.events if event.kind in ("to host", "to device"))
    assert kinds == ["launch", "launch", "event", "launch", "event", "event"]
    assert {what for what, _ in copies} == {"pinned copy"}
    assert copies["pinned copy", "to host"] == 2 * 3
    assert seconds == (1.0, 1.0, 1.0)  # of the device's clock: from a batch's begin to its end
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_pixels_that_are_not_waited_for_are_not_there_yet():
    with PretendCuda():
        sent = transfer.send(torch.arange(3.0), torch.device("cuda:0"))
        fetched = transfer.Fetched(sent)
        assert not torch.equal(fetched.tensors[0], torch.arange(3.0))
        np.testing.assert_array_equal(fetched.arrays()[0], [0, 1, 2])


def test_what_a_gpu_refuses_is_refused_and_what_makes_it_wait_is_seen():
    with PretendCuda() as gpu:
        x = torch.zeros(3, device="cuda")
        with pytest.raises(DeviceMix):
            x + torch.zeros(3)
        with pytest.raises(TypeError):
            x.numpy()
        assert not gpu.events
        float(x[0])
        x[torch.tensor([0, 1])]
        torch.zeros(3).to("cuda")
        assert [event.kind for event in gpu.events] == ["wait", "to device", "to device"]
