"""What every mechanism must do, on every family that it goes with; a new one needs a row of EXAMPLES."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from conftest import KINDS, PROMPTS, SEEDS, flops_of_run, latents
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

import postdiff
from postdiff import mechanisms, methods, planfile
from postdiff.mechanisms import (
    MECHANISMS,
    AttentionCache,
    DeepCache,
    EncoderPropagation,
    KeyDownsampling,
    ScheduledModules,
    TokenCache,
    TokenMerging,
)
from postdiff.mechanisms.attach import Retrace, Runner, attach, runners
from postdiff.models.anatomy import anatomy
from postdiff.models.families import adapt
from postdiff.plan import Mechanism, Plan, Step, check_marks, restarted

STEPS = 4


def every_other(denoiser):
    return tuple((name, "#.#.") for name in anatomy(denoiser).transformers)


# Of each mechanism one that saves work in four steps, for a denoiser.
EXAMPLES = {
    "AttentionCache": lambda denoiser: AttentionCache("S...", "#S.#"),
    "DeepCache": lambda denoiser: DeepCache("S.S."),
    "EncoderPropagation": lambda denoiser: EncoderPropagation("S.S."),
    "KeyDownsampling": lambda denoiser: KeyDownsampling((2, 2)),
    "ScheduledModules": lambda denoiser: ScheduledModules(every_other(denoiser)),
    "TokenCache": lambda denoiser: TokenCache("St.S"),
    "TokenMerging": lambda denoiser: TokenMerging(max_downsample=2, random=False),
}
U_NETS_ALONE, TRANSFORMERS_ALONE = {"DeepCache", "EncoderPropagation"}, {"TokenCache"}


@pytest.fixture(params=KINDS)
def model(request, random_backbones):
    return random_backbones(request.param)


@pytest.fixture(scope="module")
def dense_latents():
    """A function: a backbone -> what its dense plan gives, computed once."""
    computed = {}

    def get(backbone):
        name = backbone.spec.name
        if name not in computed:
            plan = adapt(methods.dense(STEPS), backbone.spec.family)
            computed[name] = latents(backbone, PROMPTS[:1], SEEDS[:1], plan)
        return computed[name]

    return get


@pytest.fixture(scope="module")
def flops():
    """A function: a backbone -> the cost model's FLOPs of the dense plan, and of each mechanism's; traced together."""
    computed = {}

    def get(backbone):
        name = backbone.spec.name
        if name not in computed:
            plans = {mechanism: plan_of(backbone, mechanism) for mechanism in MECHANISMS}
            plans = {"dense": methods.dense(STEPS)} | {key: plan for key, plan in plans.items() if plan}
            prices = postdiff.costs(list(plans.values()), backbone.spec)
            computed[name] = {key: price.flops for key, price in zip(plans, prices, strict=True)}
        return computed[name]

    return get


@pytest.fixture
def unet(random_backbones):
    """Stable Diffusion's architecture."""
    return random_backbones("sd")


def plan_of(backbone, name):
    """The dense plan with an example of a mechanism, as the family runs it, or None where it cannot."""
    plan = methods.dense(STEPS).plus(EXAMPLES[name](backbone.denoiser))
    try:
        plan = adapt(plan, backbone.spec.family)
        runners(backbone.denoiser, plan)
    except ValueError:
        return None
    return plan


def test_every_mechanism_has_an_example():
    assert EXAMPLES.keys() == MECHANISMS.keys()


@pytest.mark.parametrize("name", MECHANISMS)
def test_it_changes_the_latents_and_leaves_the_model_as_it_was(model, dense_latents, name):
    transformer = not anatomy(model.denoiser).encoder
    plan = plan_of(model, name)
    if plan is None:  # only where the reason is the architecture's, or the family's
        refused = name in (U_NETS_ALONE if transformer else TRANSFORMERS_ALONE)
        assert refused or (name == "DeepCache" and model.spec.family == "lcm")
        return
    dense = adapt(methods.dense(STEPS), model.spec.family)
    before = dense_latents(model)
    saved = latents(model, PROMPTS[:1], SEEDS[:1], plan)
    assert saved.isfinite().all()
    assert not torch.equal(saved, before)
    assert torch.equal(latents(model, PROMPTS[:1], SEEDS[:1], dense), before)
    assert not any("forward" in vars(module) for module in model.denoiser.modules())


@pytest.mark.parametrize("model", ["sd", "sdxl", "pixart"], indirect=True)  # the others' denoisers are of these kinds
@pytest.mark.parametrize("name", MECHANISMS)
def test_its_cost_is_that_of_a_run(model, flops, name):
    plan = plan_of(model, name)
    if plan is not None:
        assert flops(model)[name] == flops_of_run(model, plan)
        assert flops(model)[name] < flops(model)["dense"]


def test_the_cost_of_two_mechanisms_in_one_module_is_that_of_a_run(unet):
    """Of one half where it has fewer keys, not of one half of all keys."""
    attentions = anatomy(unet.denoiser).layers("self-attention")
    shared = ScheduledModules(tuple((name, "#c.#") for name in attentions))
    plan = methods.dense(STEPS).plus(shared, KeyDownsampling((2, 2)))
    assert postdiff.cost(plan, unet.spec).flops == flops_of_run(unet, plan)
    with pytest.raises(ValueError, match="tokens are merged in both halves of guidance"):
        methods.dense(STEPS).plus(shared, TokenMerging(max_downsample=2))


def test_two_mechanisms_that_change_the_whole_denoiser_have_no_cost(unet, monkeypatch):
    monkeypatch.setattr(HalvingRunner, "retraced", lambda self, i: {"": Retrace()})
    plan = methods.dense(STEPS).plus(Halving("S.S."), KeyDownsampling((2,)))
    with pytest.raises(ValueError, match="dense: two mechanisms change how the denoiser runs"):
        postdiff.cost(plan, unet.spec)


@pytest.mark.parametrize("off", [DeepCache("###"), EncoderPropagation("#####"), TokenCache("#")], ids=str)
def test_marks_of_what_is_off_are_one_a_step_too(off):
    with pytest.raises(ValueError, match="expected 4 marks, one a step"):
        methods.dense(STEPS).plus(off)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_plan_with_it_goes_through_json_and_back(unet, name):
    plan = methods.dense(STEPS).plus(EXAMPLES[name](unet.denoiser))
    again = planfile.from_json(planfile.to_json(plan))
    assert (again, again.id) == (plan, plan.id)
    assert plan.id != methods.dense(STEPS).id
    assert again.plus(replace(plan.mechanisms[0])).id == plan.id  # in place of its own kind


@pytest.mark.parametrize(
    "off",
    [AttentionCache("####", "S###"), DeepCache("S##S"), EncoderPropagation("####", parallel=True),
     KeyDownsampling((1,)), ScheduledModules((("mid_block", "####"),)), TokenCache("S###")],
    ids=lambda off: type(off).__name__,
)  # fmt: skip
def test_what_is_off_is_not_in_the_plan(off):
    assert methods.dense(STEPS).plus(off) == methods.dense(STEPS)


@pytest.mark.parametrize("name", MECHANISMS)
def test_nothing_is_reused_across_a_switch_but_what_is_resized(unet, name):
    for at in range(1, STEPS):
        low = postdiff.low_first(methods.dense(STEPS).plus(EXAMPLES[name](unet.denoiser)), 0.5, at / STEPS)
        assert low.switches == (at,)
        assert low.reuses(at) <= {"cross-attention"}


SMALL = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 8}
OTHERS = {
    "FLUX": lambda: FluxTransformer2DModel(
        **SMALL, num_single_layers=1, pooled_projection_dim=8, in_channels=4, axes_dims_rope=(4, 4, 8)
    ),
    "SD3": lambda: SD3Transformer2DModel(
        **SMALL, sample_size=8, caption_projection_dim=32, pooled_projection_dim=8, dual_attention_layers=(0,)
    ),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("plan", [methods.cross_attention_cache(4, m=2), methods.tgate(4), methods.duca(4)], ids=str)
def test_a_denoiser_whose_parts_are_not_known_is_refused(other, plan):
    """Before: FLUX wrapped nothing and equalled dense; SD3.5's second self-attention was cached as cross-attention."""
    denoiser = OTHERS[other]()
    with (
        pytest.raises(ValueError, match=f"the denoiser must be one of UNet2D.*, got {type(denoiser).__name__}"),
        attach(denoiser, plan),
    ):
        pass


@dataclass(frozen=True)
class Halving(Mechanism):
    """A toy, all in one place: the feed-forward layers give half of what they gave, where a mark is "."."""

    marks: str
    layer: ClassVar[int] = 9

    def check(self, plan):
        check_marks("halves", self.marks, plan)

    def restarted(self, at):
        return replace(self, marks=restarted(self.marks, at))

    def reuses(self, i):
        return frozenset({"halves"} if self.marks[i] == "." else ())

    def rows(self):
        return {"halves": self.marks}

    def runner(self, denoiser, plan):
        return HalvingRunner(self, anatomy(denoiser).layers("feed-forward"))


class HalvingRunner(Runner):
    def __init__(self, of, names):
        self.of, self.names = of, names

    def wrappers(self):
        return [(name, self.wrap) for name in self.names]

    def skipped(self, i):
        return self.names if self.of.marks[i] == "." else []

    def wrap(self, name, forward):
        def run(*args, **kwargs):
            if self.of.marks[self.now.index] == ".":
                return self.store[name] / 2
            self.store[name] = forward(*args, **kwargs)
            return self.store[name]

        return run


def test_a_new_mechanism_is_one_file_and_one_row(unet, monkeypatch):
    monkeypatch.setitem(mechanisms.MECHANISMS, "Halving", Halving)
    plan = Plan("mine", (Step(),) * 4, (Halving("S.S."),))
    assert "halves      S.S." in str(plan)
    assert planfile.from_json(planfile.to_json(plan)) == plan
    assert postdiff.cost(plan, unet.spec).flops == flops_of_run(unet, plan)
    dense = latents(unet, PROMPTS[:1], SEEDS[:1], methods.dense(4))
    assert not torch.equal(latents(unet, PROMPTS[:1], SEEDS[:1], plan), dense)
    low = postdiff.low_first(plan, 0.5, 0.25)
    assert low.mechanisms == (Halving("##S."),)  # nothing of step 0 is left at step 1, and nothing is stored in vain
    with pytest.raises(ValueError, match="step 0: nothing halves is stored"):
        Plan("mine", (Step(),) * 4, (Halving("...S"),))


def test_a_mechanism_that_wraps_nothing_is_refused(unet, monkeypatch):
    monkeypatch.setattr(HalvingRunner, "wrappers", lambda self: [])
    plan = Plan("mine", (Step(),) * 4, (Halving("S.S."),))
    with pytest.raises(ValueError, match="mine: Halving finds nothing to wrap in a UNet2DConditionModel"):
        runners(unet.denoiser, plan)
