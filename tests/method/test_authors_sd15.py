"""On SD1.5's real size with random weights: ours equals the authors' packages. Opt-in: 12 GB of memory, ten minutes."""

import copy
from dataclasses import replace

import pytest
import torch

import postdiff
from pipelines.bench_methods import random_pipe
from postdiff import methods, sampling, solvers, state
from postdiff.mechanisms import TokenMerging
from postdiff.models.anatomy import anatomy
from postdiff.models.checkpoints import HUB
from postdiff.models.spec import Sampling

pytestmark = pytest.mark.slow
SIZE, SEED = 64, 7  # pixels: a pass reads all weights, whatever its size


@pytest.fixture(scope="module")
def sd15():
    torch.set_num_threads(2)
    spec = replace(HUB["sd15"], size=SIZE)
    pipe = random_pipe(spec)
    pipe.scheduler = solvers.make_scheduler("dpm", pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    yield postdiff.Backbone(spec, pipe)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def text():
    return torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(0))


def ours(backbone, text, plan):
    state = sampling.begin(backbone, {"text": text}, [SEED], plan, Sampling(7.5, "dpm", (SIZE, SIZE)))
    return sampling.denoise(backbone, state)


def call(text, steps):
    noise = sampling.draw([SEED], "initial", 4, (SIZE // 8,) * 2)
    return {
        "num_inference_steps": steps, "guidance_scale": 7.5, "output_type": "latent", "height": SIZE, "width": SIZE,
        "negative_prompt_embeds": text[:1], "prompt_embeds": text[1:], "latents": noise,
    }  # fmt: skip


@pytest.mark.parametrize("branch", range(11))
@pytest.mark.parametrize("k", [2, 3, 5])
def test_deepcache(sd15, text, branch, k):
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=sd15.pipe)
    helper.set_params(cache_interval=k, cache_branch_id=branch)
    helper.enable()
    theirs = sd15.pipe(**call(text, 6)).images
    helper.disable()
    assert theirs.isfinite().all()
    assert torch.equal(ours(sd15, text, methods.deepcache(6, k=k, branch=branch)), theirs)


@pytest.mark.parametrize("gate", [5, 10])
def test_tgate(sd15, text, gate):
    import tgate

    pipe = tgate.TgateSDLoader(copy.deepcopy(sd15.pipe))
    theirs = pipe.tgate(**call(text, 12), gate_step=gate, sp_interval=1, fi_interval=1, warm_up=0).images
    assert torch.equal(ours(sd15, text, methods.tgate(12, gate)), theirs)


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("random", [False, True], ids=["deterministic", "seeded"])
def test_tome(sd15, text, ratio, random, monkeypatch):
    import tomesd

    plan = methods.tome(3, ratio=ratio, random=random)
    most = plan.get(TokenMerging).max_downsample
    names = [block.name for block in anatomy(sd15.denoiser).blocks if block.shrunk <= most]
    theirs_match = tomesd.merge.bipartite_soft_matching_random2d
    order = sorted(names, key=lambda name: name.startswith("up"))  # as they run
    drawn = iter([state.generator(SEED, f"tokens-{name}-{i}") for i in range(3) for name in order])

    def with_ours(*args, generator, **kwargs):
        return theirs_match(*args, generator=next(drawn) if random else generator, **kwargs)

    monkeypatch.setattr(tomesd.merge, "bipartite_soft_matching_random2d", with_ours)
    tomesd.apply_patch(sd15.pipe, ratio=ratio, use_rand=random)
    theirs = sd15.pipe(**call(text, 3)).images
    tomesd.remove_patch(sd15.pipe)
    assert (ours(sd15, text, plan) - theirs).abs().max() <= 1e-5
