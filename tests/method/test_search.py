"""Schedules that a search finds: limits that are known, what is found is replayed, and a plan survives its file."""

import json

import pytest
import torch
from conftest import PROMPTS, SEEDS, latents

import postdiff
from postdiff import methods, search
from postdiff.mechanisms import KeyDownsampling, ScheduledModules, TokenMerging

STEPS = 5


def test_a_block_runs_when_its_changes_add_up_to_more_than_delta():
    assert search.marks([0.2, 0.2, 0.2, 0.2], 0.5) == "#..#."
    assert search.marks([0.6, 0.1, 0.1, 0.1], 0.5) == "##..."
    assert search.marks([0.0, 0.1], 0.0) == "#.#"
    assert search.marks([0.1, float("nan"), 0.1], 0.5) == "#.#."  # the resolution changed


@pytest.mark.parametrize("kind", ["sd", "pixart"])
def test_block_caching_finds_what_changes_little(backbone, backbones, kind):
    under_test = backbone if kind == "sd" else backbones(kind)
    base = methods.mixed_resolution(STEPS, s=0.4)
    changes = search.contribution_changes(under_test, PROMPTS[:2], SEEDS[:2], base)
    assert len(changes) == (16 if kind == "sd" else len(under_test.denoiser.transformer_blocks))
    assert all(len(row) == STEPS - 1 and (row[[0, 2, 3]] > 0).all() for row in changes.values())
    assert all(row[1] != row[1] for row in changes.values())  # the switch, after step 1
    none, some, every = (
        search.block_caching(under_test, PROMPTS[:2], SEEDS[:2], base, delta) for delta in (0.0, 0.3, 1e9)
    )
    assert none.id == base.id
    assert {row for _, row in every.get(ScheduledModules).modules} == {"#.#.."}
    prices = postdiff.costs([none, some, every], under_test.spec)
    assert prices[0].flops >= prices[1].flops > prices[2].flops
    assert len(latents(under_test, PROMPTS[:1], SEEDS[:1], every)) == 1


def test_what_a_block_adds_is_what_the_change_is_measured_on(backbone):
    """Relative L1 of output less input, by hooks of our own."""
    name, seen = "mid_block.attentions.0", []
    handle = backbone.denoiser.get_submodule(name).register_forward_hook(
        lambda m, args, out: seen.append(out[0] - args[0])
    )
    changes = search.contribution_changes(backbone, PROMPTS[:1], SEEDS[:1], methods.dense(2))
    handle.remove()
    before, now = (part.flatten(1) for part in seen)
    expected = ((now - before).abs().sum(1) / now.abs().sum(1)).mean()
    assert changes[name] == pytest.approx([float(expected)])


def test_ditfastattn_takes_nothing_at_0_and_the_cheapest_at_infinity(backbones):
    under_test = backbones("pixart")
    base = methods.mixed_resolution(4, s=0.5)
    nothing = search.ditfastattn(under_test, PROMPTS[:1], SEEDS[:1], base, threshold=0.0)
    assert nothing.id == base.id
    cheapest = search.ditfastattn(under_test, PROMPTS[:1], SEEDS[:1], base, threshold=1e9)
    assert {row for _, row in cheapest.get(ScheduledModules).modules} == {"#.#."}
    assert len(cheapest.get(ScheduledModules).modules) == len(under_test.denoiser.transformer_blocks)


def test_what_ditfastattn_finds_changes_each_output_less_than_the_threshold(backbones):
    under_test = backbones("pixart")
    found = search.ditfastattn(under_test, PROMPTS[:2], SEEDS[:2], methods.dense(4), threshold=0.5, window=0.25)
    marks = {mark for _, row in found.get(ScheduledModules).modules for mark in row}
    assert marks & set(".wcx")
    assert postdiff.cost(found, under_test.spec).flops < postdiff.cost(methods.dense(4), under_test.spec).flops
    dense = latents(under_test, PROMPTS[:2], SEEDS[:2], methods.dense(4))
    loose = search.ditfastattn(under_test, PROMPTS[:2], SEEDS[:2], methods.dense(4), threshold=1e9)
    near, far = (latents(under_test, PROMPTS[:2], SEEDS[:2], plan) - dense for plan in (found, loose))
    assert 0 < near.abs().mean() < far.abs().mean()


def test_a_search_leaves_the_model_as_it_was(backbones):
    under_test = backbones("pixart")
    before = latents(under_test, PROMPTS[:1], SEEDS[:1], methods.dense(2))
    search.ditfastattn(under_test, PROMPTS[:1], SEEDS[:1], methods.dense(2), threshold=0.3)
    search.block_caching(under_test, PROMPTS[:1], SEEDS[:1], methods.dense(2))
    assert torch.equal(before, latents(under_test, PROMPTS[:1], SEEDS[:1], methods.dense(2)))
    assert not any("forward" in vars(m) or m._forward_hooks for m in under_test.denoiser.modules())


@pytest.mark.parametrize(
    "plan",
    [
        methods.postdiff(),
        methods.tgate(12, 7, sp_interval=3),
        methods.tome(8, beta=0.5, s=0.5),
        methods.todo(8),
        methods.faster_diffusion(10, ahead=True),
        methods.dense(3).plus(ScheduledModules((("a.attn1", "Swx"), ("b", "#.#")), window=0.2)),
        methods.duca(5),
        methods.ca_tome(4, match_steps=(0, 2)),
    ],
    ids=lambda plan: plan.name,
)
def test_a_plan_survives_its_file(plan, tmp_path):
    postdiff.save_plan(plan, tmp_path / "plan.json", backbone="mini-sd")
    assert postdiff.load_plan(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["notes"] == {"backbone": "mini-sd"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["plan"]["steps"].pop(), "expected 19 marks"),
        (lambda v: v["plan"]["mechanisms"][0].update(branch=3), "was written as plan"),
        (lambda v: v["plan"]["mechanisms"].pop(), "was written as plan"),
        (lambda v: v["plan"]["mechanisms"][0].update(kind="Deep"), "a mechanism's kind must be one of"),
        (lambda v: v["plan"].update(colour=3), "the plan has no such thing as 'colour'"),
        (lambda v: v.pop("plan"), "the file lacks plan"),
        (lambda v: v["plan"]["steps"][0].update(scale="big"), r"step 0: scale must be in \(0, 1\], got 'big'"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(change, message, tmp_path):
    file = tmp_path / "plan.json"
    postdiff.save_plan(methods.postdiff(), file)
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        postdiff.load_plan(file)


def test_text_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text("not json")
    with pytest.raises(ValueError, match="must hold a plan that save_plan wrote"):
        postdiff.load_plan(tmp_path / "plan.json")


def test_mechanisms_are_read_back_as_what_they_are(tmp_path):
    for fewer in (TokenMerging(0.3), KeyDownsampling((1, 2))):
        postdiff.save_plan(methods.dense(1).plus(fewer), tmp_path / "plan.json")
        assert postdiff.load_plan(tmp_path / "plan.json").mechanisms == (fewer,)
