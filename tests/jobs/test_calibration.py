"""Calibration: what is offered, what is dropped, what is said of how sure it is."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal

from pipelines import calibration, candidates
from pipelines import calibration_report as report
from pipelines.candidates import Candidate
from pipelines.engine.records import Prompt
from pipelines.metrics.fid import frechet_interval, moments
from pipelines.metrics.intervals import Interval, mean_interval
from pipelines.metrics.metric import METRICS
from pipelines.stages.latency import Latency
from postdiff import costs, load_plan, methods
from postdiff.models.checkpoints import HUB, resolve
from postdiff.models.families import adapt

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import calibrate  # a job is a script, not a package

FID, CLIP_SCORE = METRICS["fid"], METRICS["clip"]
PROMPTS = [Prompt(str(i), f"caption {i}") for i in range(500)]


def flops(plans, spec):
    return {plan.id: price.flops for plan, price in zip(plans, costs(plans, spec), strict=True)}


@pytest.mark.parametrize("model", ["sd15", "lcm", "pixart"])
def test_every_combination_is_at_the_most_steps_that_the_budget_pays_for(model):
    spec = HUB[model]
    grid = candidates.grid(spec)
    assert len(grid) == {"sd15": 99}.get(model, 33)
    for group in grid.values():
        adapt(group[-1], spec.family)  # raises for what the family cannot run
    everything = [plan for group in grid.values() for plan in group]
    price = flops(everything, spec)
    budget = 0.5 * price[methods.dense(spec.settings["steps"]).id]
    found = candidates.affordable(grid, price, budget)
    assert len({c.plan.id for c in found}) == len(found) >= len(grid) // 2
    assert all(c.cost == price[c.plan.id] <= budget for c in found)
    longest = max(len(plan) for plan in everything)
    for group in grid.values():
        best = max((plan for plan in group if price[plan.id] <= budget), key=len, default=None)
        assert best is None or best.id in {c.plan.id for c in found}
        assert best is None or len(best) == longest or price[group[len(best) - 1].id] > budget
    with pytest.raises(ValueError, match="the budget, 1, pays for no plan: the cheapest costs"):
        candidates.affordable(grid, price, 1)


def test_rounds_halve_the_plans_and_double_the_prompts():
    rounds = calibration.rounds(PROMPTS, 45, CLIP_SCORE)
    assert [len(r.prompts) for r in rounds] == [62, 63, 125, 250]
    assert [r.keep for r in rounds] == [23, 12, 6, 1]
    assert [p for r in rounds for p in r.prompts] == PROMPTS
    assert [len(r.prompts) for r in calibration.rounds(PROMPTS[:40], 45, CLIP_SCORE)] == [20, 20]
    assert [len(r.prompts) for r in calibration.rounds(PROMPTS, 3, CLIP_SCORE)] == [500]
    assert [len(r.prompts) for r in calibration.rounds(PROMPTS, 45, FID)] == [250, 250]
    with pytest.raises(ValueError, match=r"by CLIP score needs at least 16 prompts \(--limit\), got 15"):
        calibration.rounds(PROMPTS[:15], 45, CLIP_SCORE)


def test_the_best_of_noisy_plans_is_found_and_its_doubt_is_told():
    """Two plans of one quality share the first place; one that is far below has none of it."""
    rng = np.random.default_rng(0)
    prompt = rng.normal(80, 5, 400)  # what a prompt does to all plans
    values = [mean_interval(prompt + mean + rng.normal(0, 1, 400)) for mean in (0.0, 0.0, -1.0)]
    shares = report.first_places(values, CLIP_SCORE)
    assert sum(shares) == pytest.approx(1)
    assert shares[2] == 0
    assert min(shares[:2]) > 0.01
    assert calibration.ranked(values, CLIP_SCORE)[2] == 2
    assert calibration.ranked(values, FID)[0] == 2
    assert report.first_places(values, FID)[2] == 1


def test_differences_are_paired_on_the_prompts_that_both_were_scored_on():
    rng = np.random.default_rng(1)
    prompt = rng.normal(80, 5, 64)
    plans = [methods.dense(t) for t in (20, 18, 16)]
    listed = [Candidate(f"T={len(plan)}", plan, 1.0) for plan in plans]
    curves = {plans[0].id: [mean_interval(prompt[:32]), mean_interval(prompt)],
              plans[1].id: [mean_interval(prompt[:32] - 0.1), mean_interval(prompt - 0.1)],
              plans[2].id: [mean_interval(prompt[:32] - 3)]}  # fmt: skip
    scored = report.compare(listed, listed[0], curves, CLIP_SCORE)
    assert [of.candidate for of in scored] == listed
    assert [round(of.change.value, 6) for of in scored[1:]] == [-0.1, -3]
    assert (scored[2].change.n, scored[2].first, scored[0].first) == (32, None, 1)
    assert report.sure(scored, listed[0], CLIP_SCORE).startswith("T=20. Clearly worse are 2 of the 2 other plans")


def test_plans_of_the_same_images_share_a_place_and_one_alone_is_told_as_that():
    alike = [mean_interval(np.arange(40.0))] * 4
    assert report.first_places(alike, CLIP_SCORE) == [0.25] * 4
    only = Candidate("T=20", methods.dense(20), 1.0)
    scored = report.compare([only], only, {only.plan.id: [alike[0]]}, CLIP_SCORE)
    assert report.sure(scored, only, CLIP_SCORE) == "T=20: the only plan that the budget pays for."


def test_the_chosen_stands_first_and_the_rest_in_the_order_that_it_was_chosen_by():
    """FID is ranked without its bias: the least diverse plan has the lowest FID as it is, and is not the best."""
    plans = [methods.dense(t) for t in (20, 18, 16)]
    listed = [Candidate(f"T={len(plan)}", plan, 1.0) for plan in plans]
    values = [  # FID as it is, and how much of it is bias
        Interval(5.0, 4.0, 6.0, 160, tuple(5.0 + 0.2 + 0.01 * (-1) ** i for i in range(20))),
        Interval(4.0, 3.0, 5.0, 160, tuple(4.0 + 0.01 * (-1) ** i for i in range(20))),
        Interval(6.0, 5.0, 7.0, 160, tuple(6.0 + 0.2 + 0.01 * (-1) ** i for i in range(20))),
    ]
    order = calibration.ranked(values, FID)
    assert order == [0, 2, 1]
    curves = {plan.id: [value] for plan, value in zip(plans, values, strict=True)}
    assert [of.candidate for of in report.compare(listed, listed[0], curves, FID)] == [listed[i] for i in order]
    assert report.compare(listed, listed[1], curves, FID)[0].candidate == listed[1]


@pytest.mark.usefixtures("ray_session")
def test_a_plan_within_the_budget_is_found_kept_and_found_again(tmp_path, capsys):
    command = ["--share", "0.2", "--grid", "small", "--limit", "32", "--shard", "16", "--workers", "2"]
    command += ["--out", str(tmp_path)]
    calibrate.main([*command, "--dry-run", "--tflops", "0.01"])
    told = capsys.readouterr().out
    assert "12 plans within" in told
    assert "2 rounds, 288 images" in told  # 12 plans on 16 prompts, 6 on 16 more
    assert "read 32 prompts, the first: 'a " in told
    assert not (tmp_path / "spec.json").exists()
    # By hand: every plan is at the most steps that a fifth of the dense FLOPs pays for, so costs a little less.
    dense = costs([methods.dense(20)], resolve("mini-sd"))[0].flops
    most = 288 * 0.2 * dense / (0.01 * 1e12) / 60
    of_two, of_one = (
        float(x) for x in re.search(r"about ([\d.]+) minutes on 2 workers.*, ([\d.]+) worker-m", told).groups()
    )
    assert 0.85 * most < of_one < most
    assert of_two == pytest.approx(of_one / 2, abs=0.06)
    calibrate.main(command)
    first = capsys.readouterr().out
    plan, spec = load_plan(tmp_path / "plan.json"), resolve("mini-sd")
    price = flops([plan, methods.dense(20)], spec)
    assert price[plan.id] <= 0.2 * price[methods.dense(20).id]
    notes = json.loads((tmp_path / "plan.json").read_text())["notes"]
    assert notes["backbone"] == "mini-sd"
    assert notes["answer"] in first
    images = {f: f.stat().st_mtime_ns for f in tmp_path.glob("round-*/images/**/*.parquet")}
    assert len(images) == 12 + 6
    calibrate.main(command)
    assert capsys.readouterr().out == first
    assert images == {f: f.stat().st_mtime_ns for f in tmp_path.glob("round-*/images/**/*.parquet")}
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--share", "0.4", "--limit", "8"], "calibration by CLIP score needs at least 16 prompts (--limit), got 8"),
        (["--share", "0"], "--share must be above 0, got 0"),
        (["--share", "nan"], "--share must be above 0, got nan"),
        (["--share", "1.5"], "--share must be at most 1, got 1.5"),
        (["--budget", "inf"], "--budget must be at most 1e+09, got inf"),
        (["--budget", "1e-9"], "the budget, 1e-09, pays for no plan: the cheapest costs"),
        (["--budget", "1", "--share", "0.5"], "argument --share: not allowed with argument --budget"),
        (["--share", "0.4", "--of", "seconds", "--rounds", "1"], "--rounds must be 3 or more (a median of fewer says"),
        (["--share", "0.4", "--rounds", "5"], "--rounds has no effect on a budget of flops: nothing is timed"),
        (["--share", "0.4", "--reference", "x"], "--reference has no effect with --by clip"),
        (["--share", "0.4", "--by", "psnr_dense"], "--by must be a metric that ranks plans (fid, clip, kid, cmmd"),
        (["--share", "0.4", "--batch-size", "32", "--limit", "64"], "--batch-size must be at most the 16 prompts of a"),
    ],
)
def test_bad_input_is_told_before_any_work(tmp_path, capsys, args, message):
    assert message in refusal(calibrate.main, [*args, "--out", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()


def test_by_fid_the_nearer_plan_wins_though_few_images_flatter_the_other():
    """B is A with less spread: further from the reference, with a lower FID at this many images."""
    rng = np.random.default_rng(0)
    reference = moments(rng.normal(size=(20_000, 64)))
    a = rng.normal(size=(128, 64))
    values = [frechet_interval(x, reference) for x in (a, 0.9 * a)]
    assert values[1].value < values[0].value
    assert calibration.ranked(values, FID) == [0, 1]
    assert report.first_places(values, FID)[0] > 0.99


def test_seconds_are_scaled_from_the_most_steps_of_the_same_settings():
    spec = resolve("mini-sd")
    plans = {(1.0, 0.0, 1, 1.0): [methods.dense(steps) for steps in (5, 10, 20)]}
    timed = {methods.dense(20).id: Latency(2.2, 2.2, 1.0, 3, 2.0, 0.2, 0.1, None, "here")}
    everything = [plan for group in plans.values() for plan in group]
    found = candidates.seconds(plans, flops(everything, spec), timed)
    assert [round(found[plan.id], 6) for plan in everything] == [0.7, 1.2, 2.2]
