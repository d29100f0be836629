"""The real architectures, with random weights, through the same code on this machine's CPU. Opt-in: 15 GB of memory."""

import resource
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import DPMSolverMultistepScheduler

import postdiff
import postdiff.models.families
from postdiff import methods, sampling
from postdiff.models.checkpoints import HUB
from postdiff.models.families import FAMILIES
from postdiff.models.family import class_of
from postdiff.models.spec import settle


def random_backbone(name: str, size: int) -> postdiff.Backbone:
    """The denoiser of `name` from its config, float32, small random weights: no text encoder, no autoencoder."""
    spec = replace(HUB[name], size=size)
    rules = FAMILIES[spec.family]
    with init_empty_weights(include_buffers=False):  # positions are computed, not learned
        model = class_of(rules.model).from_config(spec.denoiser)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for key, empty in module._parameters.items():
            if empty is not None:
                value = torch.empty(empty.shape).normal_(std=0.02, generator=generator)
                module._parameters[key] = torch.nn.Parameter(value, requires_grad=False)
    model.eval()
    scheduler = DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = SimpleNamespace(device=torch.device("cpu"), scheduler=scheduler, **{rules.denoiser: model})
    return postdiff.Backbone(spec, pipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "billions"), [("sd15", 0.860), ("lcm", 0.860), ("bk-sdm-tiny", 0.323), ("pixart", 0.611), ("sdxl", 2.567)]
)
def test_a_full_size_model_takes_two_steps(name, billions, capsys):
    backbone = random_backbone(name, size=256)
    spec = backbone.spec
    assert sum(p.numel() for p in backbone.denoiser.parameters()) / 1e9 == pytest.approx(billions, rel=2e-3)
    shapes = FAMILIES[spec.family].text_shapes(backbone.denoiser.config, spec.text_tokens)
    plan = postdiff.models.families.adapt(methods.mixed_resolution(2, beta=spec.settings["beta"], s=0.5), spec.family)
    rows = 2 if plan.steps[0].guided else 1
    torch.manual_seed(0)
    text = {
        key: torch.ones(rows, *shape) if key == "mask" else torch.randn(rows, *shape) for key, shape in shapes.items()
    }
    seen = []
    handle = backbone.denoiser.register_forward_hook(lambda _, args, out: seen.append(tuple(args[0].shape)))
    solver = "lcm" if spec.family == "lcm" else "dpm"
    state = sampling.begin(backbone, text, [0], plan, settle(spec, solver=solver, size=256))
    latents = sampling.denoise(backbone, state)
    handle.remove()
    low = round(32 * spec.settings["beta"])
    assert seen == [(rows, 4, low, low), (rows, 4, 32, 32)]
    assert latents.shape == (1, 4, 32, 32)
    assert latents.isfinite().all()
    with capsys.disabled():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"\n{name}: {billions} B weights in float32, peak memory of the process so far {peak:.1f} GiB")
