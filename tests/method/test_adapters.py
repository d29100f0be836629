"""A LoRA's scale in a call: the pipeline's bytes, and adapters are afterwards what they were."""

import numpy as np
import pytest
import torch
from conftest import PROMPTS, with_parts

import postdiff
from postdiff import adapters, methods
from postdiff.models.families import FAMILIES

peft = pytest.importorskip("peft")
SIZE = {"height": 64, "width": 64, "output_type": "np"}


def lora(module, targets):
    """A copy of `module` with an adapter of random weights."""
    torch.manual_seed(1)
    kind = type(module)
    other = kind.from_config(module.config) if hasattr(kind, "from_config") else kind(module.config)
    other.load_state_dict(module.state_dict())
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False)
    return peft.inject_adapter_in_model(config, other.eval()).eval()


@pytest.fixture
def adapted(request, random_backbones):
    """A function: kind -> its pipeline with a LoRA in the U-Net and the text encoders."""

    def get(kind):
        backbone = random_backbones(kind)
        words = FAMILIES[backbone.spec.family].text_encoders
        parts = {name: lora(getattr(backbone.pipe, name), ["q_proj", "v_proj"]) for name in words}
        return with_parts(backbone.pipe, unet=lora(backbone.pipe.unet, ["to_q", "to_v"]), **parts)

    return get


def drawn(run, **options):
    return run(PROMPTS[:2], generator=torch.Generator().manual_seed(5), **SIZE, **options).images


def scales(pipe):
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    return [dict(layer.scaling) for module in modules for layer in adapters.adapted_layers(module)]


@pytest.mark.parametrize("kind", ["sd", "sdxl", "lcm"])
@pytest.mark.parametrize("scale", [0.3, 0, -1.5])
def test_a_scale_is_the_pipelines_and_is_gone_afterwards(kind, scale, adapted):
    pipe = adapted(kind)
    before, fast = scales(pipe), postdiff.accelerate(pipe, methods.dense(2))
    ours = drawn(fast, cross_attention_kwargs={"scale": scale})
    assert scales(pipe) == before
    assert len(before) > 8
    assert (ours != drawn(fast)).any()
    np.testing.assert_array_equal(ours, drawn(pipe, num_inference_steps=2, cross_attention_kwargs={"scale": scale}))


def test_a_scale_holds_under_a_plan(adapted):
    """Of 0 it is the model without its adapter."""
    pipe = adapted("sd")
    plan = methods.postdiff(4, m=2)
    fast = postdiff.accelerate(pipe, plan)
    off = drawn(fast, cross_attention_kwargs={"scale": 0})
    for module in (pipe.unet, pipe.text_encoder):
        for layer in adapters.adapted_layers(module):
            layer.enable_adapters(False)
    np.testing.assert_allclose(off, drawn(postdiff.accelerate(pipe, plan)), atol=1e-4)


def test_a_scale_is_back_after_an_error(adapted):
    unet = adapted("sd").unet
    before = [dict(layer.scaling) for layer in adapters.adapted_layers(unet)]
    with pytest.raises(KeyboardInterrupt), adapters.scaled(unet, 0.3):
        raise KeyboardInterrupt
    assert [dict(layer.scaling) for layer in adapters.adapted_layers(unet)] == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": 0.5}, "cross_attention_kwargs must be None, got a scale of 0.5: .* has no adapter"),
        ({"gligen": 1, "scale": 1}, "cross_attention_kwargs must hold scale alone, got gligen"),
        ({"scale": None}, r"cross_attention_kwargs\['scale'\] must be .*, got None"),
        ({"scale": float("nan")}, r"cross_attention_kwargs\['scale'\] must be .*, got nan"),
        (5, "cross_attention_kwargs must be a dict, got 5"),
    ],
)
def test_what_is_no_scale_of_an_adapter_is_refused(random_backbones, given, message):
    fast = postdiff.accelerate(random_backbones("sd").pipe, methods.dense(2))
    with pytest.raises(ValueError, match=message):
        fast(PROMPTS[0], cross_attention_kwargs=given)
