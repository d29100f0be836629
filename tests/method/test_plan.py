"""Plans: the whole schedule of each method as a literal, and every illegal plan refused with its reason."""

import pytest

from postdiff import Plan, Step, methods
from postdiff.mechanisms import (
    AttentionCache,
    DeepCache,
    EncoderPropagation,
    KeyDownsampling,
    ScheduledModules,
    TokenCache,
    TokenMerging,
)
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
    assert (off.steps, off.mechanisms) == (methods.dense(steps).steps, ())
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


ONE, HALF, LOW = Step(), Step(guided=False), Step(0.5)


@pytest.mark.parametrize(
    ("steps", "mechanisms", "message"),
    [
        ((), (), "must have from 1 to 10000 steps, got 0"),
        ((LOW,), (), "last step must be at full resolution"),
        ((ONE, LOW, ONE), (), "may only rise"),
        ((ONE,), [DeepCache(".")], "nothing deep is stored"),
        ((LOW, ONE), [DeepCache("S.")], "nothing deep is stored at scale 1.0"),
        ((ONE, HALF), [DeepCache("S.")], "nothing deep is stored"),
        ((ONE, ONE), [DeepCache("#.")], "step 1: nothing deep is stored"),
        ((ONE, HALF), [EncoderPropagation("S.")], "nothing encoder is stored at scale 1.0, guided=False"),
        ((LOW, ONE), [TokenCache("St")], "nothing blocks is stored at scale 1.0"),
        ((LOW, ONE), [TokenMerging(matching="S.")], "nothing matching is stored at scale 1.0"),
        ((HALF,), [AttentionCache(".")], "no cross-attention is stored"),
        ((HALF, ONE), [AttentionCache("S.")], "must be unguided"),
        # Merged into one half when a step without guidance reuses it.
        ((ONE, HALF, ONE), [AttentionCache(own="S..")], "stored self-attention is of one half"),
        ((LOW, ONE), [AttentionCache(own="S.")], "no self-attention is stored"),
        # Only a part of the attentions ran.
        ((ONE,) * 3, [DeepCache("S.#"), AttentionCache(own="#S.")], "no self-attention is stored"),
        ((ONE,) * 2, [DeepCache("S."), EncoderPropagation("S.")], "deep part is in the encoder; expected one of them"),
        (
            (ONE,) * 3,
            [EncoderPropagation("S..", parallel=True), AttentionCache(own="#S.")],
            "steps that are computed ahead compute all that they run, got self-attention #S.",
        ),
        (
            (ONE,) * 3,
            [EncoderPropagation("S..", parallel=True), TokenMerging(threshold=0.5)],
            "computed ahead are one batch: it does not go with a merging threshold",
        ),
        ((ONE,) * 2, [DeepCache("S."), TokenMerging(matching="S.")], "stored and reused where every block runs"),
        ((ONE,) * 2, [TokenMerging(), KeyDownsampling()], "both make fewer tokens of self-attention; expected one"),
        ((ONE,) * 2, [TokenCache("S."), TokenMerging()], "what the blocks store is of all that they compute"),
        ((ONE,) * 2, [TokenCache("S."), DeepCache("S.")], "what the blocks store is of all that they compute"),
        ((ONE,) * 2, [DeepCache("S."), ScheduledModules([("a.attn1", "#.")])], "may not be skipped by what else"),
        ((ONE,) * 2, [ScheduledModules([("a.attn1", "Sw")]), TokenMerging()], "attention in windows needs all tokens"),
        ((ONE, ONE), [ScheduledModules([("a.attn1", "#w")])], "nothing of a.attn1 is stored that 'w' could use"),
        ((HALF, HALF), [ScheduledModules([("a.attn1", "#c")])], "one half without guidance, so 'c' cannot share it"),
        ((ONE, ONE), [TokenMerging(threshold=0.5, merged=[("a", [0.5])])], r"expected 2 shares in \[0, 1\), got 1"),
        ((ONE, ONE), [DeepCache("S."), DeepCache("S.", 0)], "each mechanism once, got DeepCache twice"),
    ],
)
def test_illegal_plans_are_refused(steps, mechanisms, message):
    with pytest.raises(ValueError, match=message):
        Plan("illegal", steps, mechanisms)


MARKED = {  # of marks, the mechanism that has them
    "deep part": DeepCache,
    "encoder": EncoderPropagation,
    "blocks": TokenCache,
    "cross-attention": AttentionCache,
    "self-attention": lambda marks: AttentionCache(own=marks),
    "matching": lambda marks: TokenMerging(matching=marks),
    "a.attn1": lambda marks: ScheduledModules([("a.attn1", marks)]),
}


@pytest.mark.parametrize("title", MARKED)
@pytest.mark.parametrize("other", MARKED)
def test_marks_are_one_a_step_whatever_else_is_there(title, other):
    beside = () if other == title or {title, other} == {"cross-attention", "self-attention"} else (MARKED[other]("S."),)
    for marks in ("S.", "S.." + "#" * 3):
        with pytest.raises(ValueError, match=r": expected 4 marks, one a step, got "):
            Plan("a", (ONE,) * 4, (MARKED[title](marks), *beside))


@pytest.mark.parametrize("title", MARKED)
@pytest.mark.parametrize("marks", ["Q", "#x!", "##s", "S,", None, 1, ["S", "."], b"S."])
def test_marks_are_of_those_that_are_known(title, marks):
    with pytest.raises(ValueError, match=r"expected marks, each one of # S .*, got "):
        MARKED[title](marks)


def test_tgate_is_this_schedule():
    version_2 = methods.tgate(12, 7, sp_interval=3, fi_interval=2, warm_up=2)
    assert rows(version_2)[1:] == ["2222222uuuuu", "######S.....", "###S..S.S.S."]
    # The first version reuses cross-attention alone, and differs from ours in what is kept and which half goes on.
    first, ours = methods.tgate(12, 7), methods.cross_attention_cache(12, m=7)
    assert first.steps == ours.steps
    assert first.mechanisms == (AttentionCache("######S.....", mode="ave"),)
    assert ours.mechanisms == (AttentionCache("######S.....", mode="cond"),)
    assert (first.half, ours.half) == ("uncond", "cond")


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
