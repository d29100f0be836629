"""Costs: the paper's SD1.5 rows, and what a real run really executes."""

import pytest
from conftest import PROMPTS, SEEDS, flops_of_run

import postdiff
from postdiff import Plan, Step, methods
from postdiff.mechanisms import AttentionCache, KeyDownsampling, ScheduledModules, TokenMerging
from postdiff.models.checkpoints import HUB
from postdiff.plan import kind
from postdiff.pricing import cost, count_macs

SD15 = HUB["sd15"]
BLOCKS = ("mid_block.attentions.0.transformer_blocks.0", "down_blocks.0.attentions.1.transformer_blocks.0")


@pytest.mark.parametrize(
    ("plan", "teras"),
    [
        (methods.dense(20), 30.420),
        (methods.no_cfg(20), 15.210),
        (methods.dense(8), 12.168),
        (methods.dense(16), 24.336),
        (methods.deepcache(20, k=2), 17.787),
        (methods.mixed_resolution(20), 19.035),
        (methods.postdiff(20, m=20), 11.129),  # the paper's row leaves out cached cross-attention and dropped guidance
    ],
)
def test_the_papers_sd15_rows(plan, teras):
    assert cost(plan, SD15).macs_paper / 1e12 == pytest.approx(teras, rel=5e-4)


@pytest.mark.parametrize(("m", "printed", "honest"), [(5, 11.610, 11.782), (10, 13.037, 13.160), (15, 16.360, 16.408)])
def test_the_papers_cached_attention_rows_in_both_accountings(m, printed, honest):
    price = cost(methods.postdiff(20, s=0.0, m=m), SD15)
    assert price.macs_printed / 1e12 == pytest.approx(printed, rel=5e-4)
    assert price.macs_paper / 1e12 == pytest.approx(honest, rel=5e-4)


def test_flops_of_one_pass_are_the_flop_counters():
    assert cost(methods.no_cfg(1), SD15).flops / 1e12 == pytest.approx(2.148, rel=5e-4)


@pytest.mark.parametrize(
    "plan",
    [
        methods.dense(3),
        methods.mixed_resolution(6, beta=0.75),
        methods.deepcache(5, k=2, branch=4),
        methods.cross_attention_cache(5, m=2),
        methods.postdiff(10),
        methods.postdiff(10, s=0.5, m=3, k=3, branch=0),
        methods.tgate(8, 4, sp_interval=2, fi_interval=3),
    ],
    ids=lambda plan: f"{plan.name}-{len(plan)}",
)
def test_a_real_run_executes_what_the_cost_model_says_step_by_step(backbone, plan):
    measured = []
    with count_macs(backbone.denoiser) as macs:
        postdiff.sample(backbone, PROMPTS[:1], SEEDS[:1], plan, on_step=lambda *_: measured.append(macs.total()))
    steps = [after - before for before, after in zip([0, *measured], measured, strict=False)]
    assert steps == [step.macs_paper for step in cost(plan, backbone.spec).steps]


@pytest.mark.parametrize(
    "plan",
    [
        methods.postdiff(6),
        methods.tome(2, mlp=True),
        methods.todo(2),
        methods.faster_diffusion(6, (0, 3), ahead=True),
        methods.faster_diffusion(6, (0, 1), beta=0.5, s=0.5),
        Plan("windows", (Step(),) * 4, (ScheduledModules(tuple((f"{name}.attn1", "Swcx") for name in BLOCKS)),)),
        Plan(
            "blocks",
            (Step(),) * 3,
            (ScheduledModules((("mid_block.attentions.0", "#.#"), ("up_blocks.3.attentions.1", "#.."))),),
        ),
        Plan(
            "blocks, attention reused",
            (Step(), *(Step(guided=False),) * 3),
            (
                AttentionCache("S..."),
                ScheduledModules(
                    (
                        ("mid_block.attentions.0", "##.."),
                        ("up_blocks.3.attentions.1.transformer_blocks.0.attn1", "#S.."),
                    )
                ),
            ),
        ),
        # Both attentions are reused: tokens are matched for the feed-forward layers alone, or not at all.
        methods.tgate(4, 2, fi_interval=4).plus(TokenMerging(0.5, mlp=True)),
        methods.tgate(4, 2, fi_interval=4).plus(TokenMerging(0.5, cross_attention=True)),
        methods.postdiff(6, m=4).plus(TokenMerging(0.5, max_downsample=2)),
        methods.tgate(4, 2, fi_interval=4).plus(KeyDownsampling((2, 2))),
    ],
    ids=lambda plan: "-".join([plan.name, *map(kind, plan.mechanisms)]),
)
def test_flops_of_a_real_run_equal_the_cost_model(backbone, plan):
    assert flops_of_run(backbone, plan) == cost(plan, backbone.spec).flops


def test_cheaper_is_cheaper():
    dense, mixed, whole = (
        cost(plan, SD15) for plan in (methods.dense(), methods.mixed_resolution(), methods.postdiff())
    )
    assert whole.flops < mixed.flops < dense.flops
    assert sum(dense.steps[0].layers.values()) == dense.steps[0].macs_paper
