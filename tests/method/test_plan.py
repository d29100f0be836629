"""Plans: the whole schedule of each method as a literal, and every illegal plan refused with its reason."""

import pytest

from postdiff import Plan, StepPlan, methods
from postdiff.plan import strip


def rows(plan):
    return [line.split()[-1] for line in strip(plan).splitlines()[:-1]]


def test_postdiff_with_the_papers_settings_is_this_schedule():
    assert rows(methods.postdiff()) == [
        "----------##########",  # s = 0.5
        "22222222222222211111",  # m = 15
        "S.S.S.S.S.S.S.#S.S.#",  # k = 2, in full again at the switch (10) and at m (15)
        "##############S.....",
    ]


def test_cross_attention_is_stored_where_each_module_last_ran_before_m():
    # m-1 = 9 skips the deep part, so the deep cross-attentions come from the full step 8.
    assert rows(methods.postdiff(s=0.0, m=10))[2:] == ["S.S.S.S.S.S.S.S.S.S.", "########SS.........."]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_a_method_that_is_off_is_the_dense_plan(steps):
    off = methods.postdiff(steps=steps, s=0.0, k=1, m=steps)
    assert off.steps == methods.dense(steps).steps
    assert off.id == methods.dense(steps).id
    assert methods.mixed_resolution(steps, s=0.0).id == methods.dense(steps).id


@pytest.mark.parametrize("steps", range(1, 31))
def test_every_setting_makes_a_legal_plan(steps):
    for k in (1, 2, 3, 5):
        for m in range(1, steps + 1):
            for s in (0.0, 0.1, 0.33, 0.5):
                if int(s * steps + 0.5) < steps:
                    plan = methods.postdiff(steps, s=s, k=k, m=m)  # Plan checks itself
                    assert sum(step.scale < 1 for step in plan.steps) == int(s * steps + 0.5)
                    assert sum(step.guided for step in plan.steps) == m


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"s": -0.1}, r"s must be in \[0, 1\).*-0.1"),
        ({"s": 1.0}, r"s must be in \[0, 1\)"),
        ({"s": 0.99}, "leaves no step at full resolution"),
        ({"beta": 1.5}, r"beta must be in \(0, 1\].*1.5"),
        ({"beta": 0.0}, "beta must be"),
        ({"k": 0}, "k must be a whole number of 1 or more.*0"),
        ({"m": 21}, "m must be a step from 1 to T=20.*21"),
        ({"m": 0}, "m must be"),
        ({"m": 1.5}, "share of the steps"),
        ({"m": float("nan")}, "share of the steps must be in .*nan"),
        ({"m": "0.75"}, "m must be a step from 1 to T=20 .* got '0.75'"),
        ({"mode": "mean"}, "mode must be one of ave, cond, uncond, cfg.*mean"),
        ({"steps": 0}, "steps must be a whole number from 1 to 10000, got 0"),
        ({"branch": -1}, "branch must be a whole number of 0 or more, got -1"),
    ],
)
def test_bad_settings_say_what_was_expected_and_what_came(settings, message):
    with pytest.raises(ValueError, match=message):
        methods.postdiff(**settings)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "must have from 1 to 10000 steps, got 0"),
        ((StepPlan(scale=0.5),), "last step must be at full resolution"),
        ((StepPlan(), StepPlan(scale=0.5), StepPlan()), "may only rise"),
        ((StepPlan(deep="reuse"),), "nothing deep is stored"),
        ((StepPlan(0.5, deep="store"), StepPlan(deep="reuse")), "nothing deep is stored at scale 1.0"),
        ((StepPlan(deep="store"), StepPlan(guided=False, deep="reuse")), "nothing deep is stored"),
        ((StepPlan(guided=False, cross_attention="reuse"),), "no cross-attention is stored"),
        ((StepPlan(guided=False, cross_attention="store"), StepPlan(cross_attention="reuse")), "must be unguided"),
        (
            (  # merged into one half when a step without guidance reuses it
                StepPlan(self_attention="store"),
                StepPlan(guided=False, self_attention="reuse"),
                StepPlan(self_attention="reuse"),
            ),
            "stored self-attention is of one half",
        ),
        ((StepPlan(0.5, self_attention="store"), StepPlan(self_attention="reuse")), "no self-attention is stored"),
        (
            (  # only a part of the attentions ran
                StepPlan(deep="store"),
                StepPlan(deep="reuse", self_attention="store"),
                StepPlan(self_attention="reuse"),
            ),
            "no self-attention is stored",
        ),
    ],
)
def test_illegal_plans_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        Plan("illegal", steps)


def test_tgate_is_this_schedule():
    version_2 = methods.tgate(12, 7, sp_interval=3, fi_interval=2, warm_up=2)
    assert rows(version_2)[1:] == ["2222222uuuuu", "############", "######S.....", "###S..S.S.S."]
    # The first version reuses cross-attention alone, and differs from ours in what is kept and which half goes on.
    assert methods.tgate(12, 7).steps == methods.cross_attention_cache(12, m=7).steps


@pytest.mark.parametrize("name", ["sp_interval", "fi_interval", "warm_up"])
def test_bad_settings_of_tgate(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of . or more, got -1"):
        methods.tgate(**{name: -1})


def test_the_gate_is_half_the_steps_unless_it_is_given():
    assert methods.tgate(20) == methods.tgate(20, 10)
    assert methods.tgate(4) == methods.tgate(4, 2)


def test_a_gate_beyond_the_steps_is_refused():
    with pytest.raises(ValueError, match="gate_step must be a step from 1 to T=20"):
        methods.tgate(20, 21)


def test_the_id_is_of_the_computation_not_of_the_name():
    assert methods.deepcache(k=2).id == methods.postdiff(s=0.0, k=2, m=20).id
    assert methods.deepcache(k=2).id != methods.deepcache(k=2, branch=0).id
    assert methods.dense(8).id != methods.dense(20).id
