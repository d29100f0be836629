"""What goes together with a plan, as docs/deployment.md tells: each of its rows is tried here, through `attach` and
through `sample`, or refused in one line."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import accelerate
import pytest
import torch
from conftest import PROMPTS, SEEDS
from pretend_cuda import PretendCuda, to_gpu
from test_own_loop import SIZE, STEPS, authors_deepcache, call, our_latents, small_pipeline, without_zeros

import postdiff
from pipelines.training import mini
from postdiff import attach, methods, sampling
from postdiff.mechanisms import DeepCache, EncoderPropagation, KeyDownsampling, ScheduledModules, TokenCache
from postdiff.models.anatomy import anatomy

CPU = torch.device("cpu")
QUANTISED = 'pip install "postdiff[quantised]"'
DOCS = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()


class Dimmed:
    """An attention processor of the user's."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        from diffusers.models.attention_processor import AttnProcessor2_0

        return 0.9 * AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def low_rank(pipe):
    from peft import LoraConfig

    torch.manual_seed(7)
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=layers, init_lora_weights=False))


def new_word(pipe):
    torch.manual_seed(8)
    pipe.load_textual_inversion({"<star>": torch.randn(mini.TEXT_WIDTH)}, token="<star>")


def eight_bits(pipe):
    pipe.unet = torch.ao.quantization.quantize_dynamic(pipe.unet, {torch.nn.Linear})


def replaced(pipe, make):
    """The pipeline with other linear layers in its denoiser."""
    for module in list(pipe.unet.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear:
                setattr(module, name, make(layer))
    pipe.unet.register_to_config(quantization_config={"quant_method": "as diffusers notes it"})


def torchao(pipe):
    ao = pytest.importorskip("torchao.quantization", reason=QUANTISED)
    ao.quantize_(pipe.unet, ao.Int8WeightOnlyConfig())


def bitsandbytes(pipe):
    bnb = pytest.importorskip("bitsandbytes", reason=QUANTISED)

    def four_bits(layer):
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        made = bnb.nn.Linear4bit(*sizes, compute_dtype=layer.weight.dtype, quant_type="nf4")
        made.load_state_dict(layer.state_dict())
        return made.to("cpu")

    replaced(pipe, four_bits)


def gguf(pipe):
    quants = pytest.importorskip("gguf", reason=QUANTISED)
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    def eight_bits_a_block(layer):
        kind = quants.GGMLQuantizationType.Q8_0
        blocks = torch.from_numpy(quants.quants.quantize(layer.weight.detach().numpy(), kind))
        made = GGUFLinear(layer.in_features, layer.out_features, False, compute_dtype=layer.weight.dtype)
        made.weight, made.bias = GGUFParameter(blocks, quant_type=kind), layer.bias
        return made

    replaced(pipe, eight_bits_a_block)


def assigned(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def grouped(**settings):
    return lambda pipe: pipe.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, **settings)


@dataclass(frozen=True)
class Row:
    """apply: makes a pipeline so. changes: whether it changes the latents. compiled: the authors' package is not what
    it is held against, but the pipeline as it is without."""

    apply: Callable[..., object]
    changes: bool = False
    compiled: bool = False


ROWS = {
    "bf16": Row(lambda pipe: pipe.to(torch.bfloat16), changes=True),
    "model offload": Row(lambda pipe: accelerate.cpu_offload_with_hook(pipe.unet, CPU)),
    "sequential offload": Row(lambda pipe: accelerate.cpu_offload(pipe.unet, CPU, offload_buffers=True)),
    "layerwise casting": Row(
        lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32), changes=True
    ),
    "group offload, by leaves": Row(grouped(offload_type="leaf_level")),
    "group offload, a block a group": Row(grouped(offload_type="block_level", num_blocks_per_group=1)),
    "int8 (torch's dynamic)": Row(eight_bits, changes=True),
    "torchao (int8 weights)": Row(torchao, changes=True),
    "bitsandbytes (nf4 weights)": Row(bitsandbytes, changes=True),
    "GGUF (Q8_0 weights)": Row(gguf, changes=True),
    "torch.compile in place": Row(lambda pipe: pipe.unet.compile(backend="eager"), compiled=True),
    "compile_repeated_blocks": Row(lambda pipe: pipe.unet.compile_repeated_blocks(backend="eager"), compiled=True),
    "a compiled module assigned": Row(assigned, compiled=True),
    "fused QKV": Row(lambda pipe: pipe.unet.fuse_qkv_projections()),
    "attention processors of your own": Row(lambda pipe: pipe.unet.set_attn_processor(Dimmed()), changes=True),
    "channels_last": Row(lambda pipe: pipe.unet.to(memory_format=torch.channels_last), changes=True),
    "VAE slicing and tiling": Row(lambda pipe: (pipe.vae.enable_slicing(), pipe.vae.enable_tiling())),
    "LoRA": Row(low_rank, changes=True),
    "FreeU": Row(lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4), changes=True),
    "textual inversion": Row(new_word, changes=True),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model with random weights, through a folder as any other."""
    torch.manual_seed(0)
    pipe, folder = small_pipeline(), tmp_path_factory.mktemp("small")
    without_zeros(pipe.unet), without_zeros(pipe.vae)
    mini.save(pipe, folder)
    backbone = postdiff.load(folder, device="cpu")
    return postdiff.Backbone(replace(backbone.spec, size=64), backbone.pipe)


def changed(backbone, apply):
    """A copy of a backbone, whose pipeline `apply` has changed."""
    torch._dynamo.reset()
    pipe = copy.deepcopy(backbone.pipe)
    apply(pipe)
    return postdiff.Backbone(backbone.spec, pipe)


def prompts(row):
    return ["a <star> on snow", PROMPTS[1]] if row == "textual inversion" else PROMPTS[:2]


def noise(backbone):
    drawn = sampling.draw(SEEDS[:2], "initial", 8, (SIZE[0] // 4, SIZE[1] // 4))
    return {"latents": drawn.to(backbone.dtype), "generator": None}


@pytest.fixture
def model(row, small, random_backbones):
    """FreeU acts in the two innermost of a decoder's blocks; the small one has no others."""
    if row == "LoRA":
        pytest.importorskip("peft")
    return random_backbones("sd") if row == "FreeU" else small


# What is compiled as a whole is cut where a plan acts; that takes Dynamo half a minute.
WHOLE = ("torch.compile in place", "a compiled module assigned")


def each(rows):
    return pytest.mark.parametrize(
        "row", [pytest.param(row, marks=pytest.mark.slow) if row in WHOLE else row for row in rows]
    )


@each(ROWS)
def test_attach_goes_with_it(model, row):
    """A dense plan changes no bit, DeepCache is the authors' package on the same pipeline, after it all is as before"""
    backbone, plan = changed(model, ROWS[row].apply), methods.deepcache(STEPS)
    told = {**noise(backbone), "prompt": prompts(row)}
    before = call(backbone.pipe, **told)
    assert before.isfinite().all()
    with attach(backbone.pipe, methods.dense(STEPS)):
        assert torch.equal(call(backbone.pipe, **told), before)
    with attach(backbone.pipe, plan):
        saved = call(backbone.pipe, **told)
        assert torch.equal(call(backbone.pipe, **told), saved)
    assert torch.equal(call(backbone.pipe, **told), before)
    assert not torch.equal(saved, before)
    if ROWS[row].compiled:
        with attach(changed(model, lambda pipe: None).pipe, plan) as plain:
            assert torch.equal(saved, call(plain.pipe, **told))
    else:
        again = changed(model, ROWS[row].apply).pipe
        assert torch.equal(saved, authors_deepcache(again, 2, 1, kept=False, **told))
    same = torch.equal(before, call(changed(model, lambda pipe: None).pipe, **{**told, **noise(model)}))
    assert same != ROWS[row].changes  # what has no effect shows nothing


@each(ROWS)
def test_sample_goes_with_it(model, row):
    """The dense plan is the pipeline, and DeepCache is what it is in the pipeline's own loop."""
    backbone = changed(model, ROWS[row].apply)
    told = {**noise(backbone), "prompt": prompts(row), "guidance_scale": backbone.spec.guidance}
    with attach(backbone.pipe, methods.deepcache(STEPS)):
        saved = call(backbone.pipe, **told)
    assert torch.equal(our_latents(backbone, methods.dense(STEPS), prompts(row)), call(backbone.pipe, **told))
    assert torch.equal(our_latents(backbone, methods.deepcache(STEPS), prompts(row)), saved)
    if row not in WHOLE:
        assert postdiff.wrap(backbone.pipe).dtype == backbone.dtype


class Moved(accelerate.hooks.ModelHook):
    """Moves a model to the pretended GPU when it runs."""

    execution_device = torch.device("cuda:0")

    def pre_forward(self, module, *args, **kwargs):
        if next(module.parameters()).device != self.execution_device:
            to_gpu(module)
        return args, kwargs


def test_what_is_offloaded_is_fed_where_it_computes(small):
    """Noise, timesteps and embeddings are made on the GPU whose weights are elsewhere: a mix of devices raises."""
    expected = postdiff.sample(small, PROMPTS[:2], SEEDS[:2], methods.postdiff(STEPS))
    backbone = changed(small, lambda pipe: None)
    parts = (backbone.pipe.text_encoder, backbone.pipe.unet, backbone.pipe.vae)
    for part in parts:
        accelerate.hooks.add_hook_to_module(part, Moved())
    assert backbone.device == Moved.execution_device
    with PretendCuda() as gpu, torch.no_grad():
        got = postdiff.sample(backbone, PROMPTS[:2], SEEDS[:2], methods.postdiff(STEPS))
    assert any(event.kind == "to device" for event in gpu.events)
    assert (got == expected).all()


def test_models_are_sent_back_where_they_rest_as_the_pipelines_call_does(small, monkeypatch):
    backbone = changed(small, ROWS["model offload"].apply)
    pipe, sent, drawn = backbone.pipe, [], (PROMPTS[:1], SEEDS[:1], methods.dense(STEPS))
    pipe._all_hooks = [object()]  # as enable_model_cpu_offload leaves them, which asks for a GPU
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: sent.append(self))
    for run in (
        lambda: pipe(PROMPTS[0], num_inference_steps=STEPS, height=64, width=64),
        lambda: postdiff.sample(backbone, *drawn),
        lambda: postdiff.sample(backbone, *drawn, output="latent"),
        lambda: postdiff.accelerate(pipe, methods.dense(STEPS))(PROMPTS[0], height=64, width=64),
    ):
        run()
        assert sent == [pipe]
        sent.clear()


@pytest.mark.parametrize("row", [row for row in ROWS if "offload" in row])
def test_accelerate_goes_with_offloading(small, row):
    pipe, told = changed(small, ROWS[row].apply).pipe, {"height": 64, "width": 64, "output_type": "np"}
    drawn = {"prompt": PROMPTS[:2], "num_inference_steps": STEPS, **told}
    before = pipe(generator=torch.Generator().manual_seed(1), **drawn).images
    fast = postdiff.accelerate(pipe, methods.dense(STEPS))
    assert (fast(generator=torch.Generator().manual_seed(1), **drawn).images == before).all()
    assert postdiff.wrap(pipe).device == CPU


def test_groups_that_load_each_other_are_refused(small):
    backbone = changed(small, grouped(offload_type="block_level", num_blocks_per_group=2))
    with pytest.raises(ValueError, match=r"group offloading has modules load each other's weights.* and 2 blocks"):
        attach(backbone.pipe, methods.deepcache(STEPS))
    for run in (postdiff.wrap, lambda pipe: postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], methods.dense(STEPS))):
        with pytest.raises(ValueError, match="group offloading has modules load each other's weights"):
            run(backbone.pipe)
    plain = changed(small, lambda pipe: None)
    with attach(plain.pipe, methods.deepcache(STEPS)):
        grouped(offload_type="block_level", num_blocks_per_group=2)(plain.pipe)
        with pytest.raises(ValueError, match="group offloading has modules load each other's weights"):
            call(plain.pipe)


def test_fused_projections_do_not_go_with_fewer_keys(small):
    backbone, plan = changed(small, ROWS["fused QKV"].apply), methods.dense(STEPS).plus(KeyDownsampling((2,)))
    for run in (lambda: attach(backbone.pipe, plan), lambda: our_latents(backbone, plan)):
        with pytest.raises(ValueError, match=r"projects queries, keys and values at once.*unfuse_qkv_projections\(\)"):
            run()
    backbone.pipe.unet.unfuse_qkv_projections()
    assert our_latents(backbone, plan).isfinite().all()


def test_processors_of_your_own_do_not_go_with_windows(small):
    backbone = changed(small, ROWS["attention processors of your own"].apply)
    names = anatomy(backbone.denoiser).layers("self-attention")
    refused = methods.dense(STEPS).plus(ScheduledModules([(name, "Sw#.") for name in names]))
    taken = methods.dense(STEPS).plus(ScheduledModules([(name, "#c#.") for name in names]))
    with pytest.raises(ValueError, match=r"would be computed without its processor: .* got Dimmed"):
        attach(backbone.pipe, refused)
    with attach(backbone.pipe, taken):
        assert call(backbone.pipe).isfinite().all()


def test_nor_with_tokens_that_attention_chooses(random_backbones):
    backbone = copy.deepcopy(random_backbones("pixart"))
    backbone.pipe.transformer.set_attn_processor(Dimmed())
    with pytest.raises(ValueError, match=r"would be computed without its processor: .* got Dimmed"):
        attach(backbone.pipe, methods.dense(STEPS).plus(TokenCache("St.S")))
    attach(backbone.pipe, methods.dense(STEPS).plus(TokenCache("S..S"))).detach()
    attach(backbone.pipe, methods.dense(STEPS).plus(TokenCache("St.S", score="random")), seeds=[1]).detach()


def test_freeu_does_not_go_with_what_it_would_scale_twice(small):
    backbone = changed(small, ROWS["FreeU"].apply)
    for mechanism, reason in {
        EncoderPropagation("S.S."): r"the encoder's output is stored: expected disable_freeu\(\) first",
        DeepCache("S.S.", branch=0): "branch 0 stores it: expected a smaller branch",
    }.items():
        with pytest.raises(ValueError, match=f"FreeU scales what up_blocks.. is given where it lies, and {reason}"):
            attach(backbone.pipe, methods.dense(STEPS).plus(mechanism))


def test_names_of_a_compiled_module_are_its_own(small):
    """They begin with `_orig_mod.`. Here it runs uncompiled: what is asked is what is wrapped, and unwrapped."""
    backbone, plain = changed(small, assigned), changed(small, lambda pipe: None)
    plan = methods.deepcache(STEPS)
    with torch.compiler.set_stance("force_eager"):
        before = call(backbone.pipe)
        assert torch.equal(before, call(plain.pipe))
        with attach(backbone.pipe, plan), attach(plain.pipe, plan):
            saved = call(backbone.pipe)
            assert torch.equal(saved, call(plain.pipe))
        assert torch.equal(our_latents(backbone, plan), our_latents(plain, plan))
        assert torch.equal(call(backbone.pipe), before)
    assert not torch.equal(saved, before)


@pytest.mark.slow
def test_compiled_code_is_left_where_a_plan_begins_and_not_made_anew_at_each_step(small):
    """Of a model that is compiled as a whole, what a plan does not skip still runs compiled."""
    operations = []

    def counted(graph, inputs):
        count = sum(node.op.startswith("call") for node in graph.graph.nodes)

        def run(*args):
            operations.append(count)
            return graph.forward(*args)

        return run

    backbone = changed(small, lambda pipe: setattr(pipe, "unet", torch.compile(pipe.unet, backend=counted)))
    call(backbone.pipe)
    operations.clear()
    call(backbone.pipe)
    whole = sum(operations)
    with attach(backbone.pipe, methods.deepcache(STEPS)):
        call(backbone.pipe)
        made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        operations.clear()
        call(backbone.pipe)
    assert whole / 2 < sum(operations) < whole
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made


REFUSED = {  # rows that both refuse, with the tests that show it
    "group offload, several blocks a group or streams": "test_groups_that_load_each_other_are_refused",
    "fused QKV, with ToDo": "test_fused_projections_do_not_go_with_fewer_keys",
    "attention processors of your own, with DiTFastAttn's windows": (
        "test_processors_of_your_own_do_not_go_with_windows"
    ),
    "attention processors of your own, with DuCa's choice by entropy": ("test_nor_with_tokens_that_attention_chooses"),
    "FreeU, with Faster Diffusion, or DeepCache of a deep branch": (
        "test_freeu_does_not_go_with_what_it_would_scale_twice"
    ),
}


def rows():
    """The table, as the tests have it."""
    for name in ROWS:
        yield [name, "works", "works", "`test_attach_goes_with_it`, `test_sample_goes_with_it`"]
    for name, test in REFUSED.items():
        yield [name, "refused", "refused", f"`{test}`"]


def test_the_table_of_the_docs_is_what_is_tried_here():
    lines = [line for line in DOCS.splitlines() if line.startswith("|")][2:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == list(rows())
    named = set(re.findall(r"test_\w+", DOCS)) - {"test_deployment"}
    assert named <= globals().keys()
