"""Settings are read off a plan only where it does what they mean."""

from dataclasses import replace
from itertools import product

import pytest

from pipelines.report.plan_settings import settings
from postdiff import low_first, methods
from postdiff.mechanisms import DeepCache
from postdiff.models.families import adapt
from postdiff.plan import Plan, Step


@pytest.mark.parametrize("steps", [12, 20, 24])
def test_what_made_a_plan_is_read_off_it(steps):
    """Every combination: a key for what is on, with its value; none for what is off."""
    for beta, s, k, m in product((1.0, 0.5, 0.75), (0.0, 0.25, 0.5), (1, 2, 3, 4), (0.5, 0.75, 1.0)):
        low, gate = round(s * steps) if beta < 1 else 0, round(m * steps)
        expected = {"steps": steps}
        expected |= {"beta": beta, "s": s, "low_steps": low} if low else {}
        expected |= {"k": k} if k > 1 else {}
        expected |= {"m": gate, "mode": "ave"} if gate < steps else {}
        found = settings(methods.postdiff(steps, beta, s, k, m, mode="ave"))
        assert {name: found.get(name) for name in ("steps", "beta", "s", "low_steps", "k", "m", "mode")} == {
            **dict.fromkeys(("beta", "s", "low_steps", "k", "m", "mode")), **expected,
        }  # fmt: skip


def test_a_plan_has_no_setting_that_it_does_not_have():
    assert settings(methods.dense(8)) == {"steps": 8}
    assert settings(methods.no_cfg(8)) == {"steps": 8, "half": "cond"}  # guidance never begins: it does not end at 0
    assert settings(methods.cfg_drop(8, 0.5)) == {"steps": 8, "m": 4, "half": "cond"}
    assert settings(methods.tgate(20, 10))["m"] == 10
    assert settings(methods.tome(20))["TokenMerging_ratio"] == 0.5
    assert settings(methods.todo(20, 2, 4))["KeyDownsampling_factors"] == "2,4"


def test_a_distilled_model_has_no_guidance_to_end_and_still_an_m():
    """What is reused from m on is cross-attention."""
    found = settings(adapt(methods.postdiff(8, 0.5, 0.5, 1, 4), "lcm"))
    assert (found["m"], found["s"], found.get("k")) == (4, 0.5, None)


def test_an_interval_goes_on_through_a_switch_or_begins_anew():
    assert settings(low_first(methods.deepcache(20, 3), 0.5, 0.35))["k"] == 3
    assert settings(methods.postdiff(20, 0.5, 0.35, 3, 1.0))["k"] == 3


def test_what_is_no_one_value_is_absent():
    rising = Plan("own", tuple(map(Step, (0.5, 0.5, 0.75, 1.0))))
    assert settings(rising) == {"steps": 4, "size_condition": "target"}
    uneven = Plan("own", (Step(),) * 7, (DeepCache("S..S.S."),))
    assert settings(uneven) == {"steps": 7, "branch": 1}
    interrupted = replace(methods.dense(5), steps=tuple(Step(guided=g) for g in (True, False, True, True, True)))
    assert settings(interrupted) == {"steps": 5, "half": "cond"}
    # Guidance ends at one step and cross-attention is reused from another on: neither is m.
    cached = methods.cross_attention_cache(8, 4)
    assert "m" not in settings(
        replace(cached, steps=tuple(replace(step, guided=i < 3) for i, step in enumerate(cached.steps)))
    )
