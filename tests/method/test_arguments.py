"""What is plainly meant works, and gives what plain values give; all else is refused before any work, with what was
expected and what came."""

import functools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROMPTS, SEEDS, latents

import postdiff
from postdiff import Plan, Step, arguments, methods, sampling, search
from postdiff.mechanisms import (
    AttentionCache,
    DeepCache,
    EncoderPropagation,
    KeyDownsampling,
    ScheduledModules,
    TokenCache,
    TokenMerging,
)
from postdiff.picture import draw_plan
from postdiff.text import Embeddings

NAN, INF = float("nan"), float("inf")
NO_NUMBER = (NAN, INF, -INF, None, "0.5", True, [0.5], 1j, 10**400)
NO_WHOLE_NUMBER = (NAN, INF, None, "2", True, np.True_, 2.0, np.float64(2), [2], b"2")
NO_FLAG = (None, "no", "false", 0, 1, 1.0, [], NAN)

# Ids of every method's defaults, at commit 2991869: they name what a store holds.
IDS = {
    "dense": "78c611454b43",
    "no_cfg": "3f5a69c4d70f",
    "cfg_drop": "77b408a63cbf",
    "mixed_resolution": "25a9e6609748",
    "deepcache": "a9b61411ff21",
    "cross_attention_cache": "55377fa9ad8c",
    "postdiff": "2e08681eecc0",
    "tgate": "64072547c2e3",
    "tome": "912fc5a3b7da",
    "ca_tome": "eb30e3eb40ae",
    "todo": "e3b0a09e9e46",
    "faster_diffusion": "cb8f522bdd5f",
    "duca": "a8ddf03fe290",
}


class Series:
    """As pandas' own: positions and labels differ, and truth is ambiguous."""

    ndim = 1

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)

    def __contains__(self, label):
        return label in range(100, 100 + len(self.values))

    def __getitem__(self, label):
        return self.values[label - 100]

    def __bool__(self):
        raise ValueError("the truth value of a Series is ambiguous")


def test_the_ids_of_plans_are_what_they_were():
    assert {name: method().id for name, method in methods.METHODS.items()} == IDS


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (lambda: methods.postdiff(beta=np.float64(0.5), s=np.float32(0.5), m=np.int64(15)), methods.postdiff),
        (lambda: methods.postdiff(np.int64(20), k=torch.tensor(2), branch=np.uint8(1)), methods.postdiff),
        (lambda: methods.postdiff(mode=np.str_("cond"), m=np.float64(0.75)), methods.postdiff),
        (lambda: methods.mixed_resolution(beta=1, s=0.5), methods.dense),
        (lambda: replace(methods.dense(), steps=[Step(scale=1, guided=np.True_)] * 20), methods.dense),
        (
            lambda: Plan("a", [Step()] * 20, [DeepCache("#" * 20, 3), AttentionCache("#" * 20, mode="ave")]),
            methods.dense,
        ),
        (lambda: Plan("a", [Step()] * 20, [EncoderPropagation("#" * 20, prior_noise=-0.0)]), methods.dense),
        (lambda: Plan("a", [Step()] * 20, [ScheduledModules([["a.b", "#" * 20]], 0.25)]), methods.dense),
        (lambda: Plan("a", [Step()] * 20, np.array([TokenMerging()])), methods.tome),
        (lambda: methods.tome(ratio=np.float64(0.5), sx=np.int32(2), random=np.bool_(True)), methods.tome),
        (lambda: methods.ca_tome(match_steps=[0, 7, 10, 12, 19, *range(24, 49)]), methods.ca_tome),
        (lambda: methods.ca_tome(match_steps=np.array([0, 7, 10, 12, 19])), methods.ca_tome),
        (lambda: methods.todo(factor=torch.tensor(2)), methods.todo),
        (lambda: methods.todo().plus(KeyDownsampling(np.array([2, 1]))), methods.todo),
        (lambda: methods.faster_diffusion(key_steps=torch.tensor([0, 1, 2, 3, 5, 10, 15])), methods.faster_diffusion),
        (lambda: methods.duca(interval=np.int64(3), soft=np.float64(0.25)), methods.duca),
        (lambda: methods.duca(fresh_ratio=1, soft=-0.0), lambda: methods.duca(fresh_ratio=1.0, soft=0.0)),
        (lambda: methods.ca_tome(threshold=1), lambda: methods.ca_tome(threshold=1.0)),
        (lambda: methods.tgate(gate_step=np.float32(0.5), warm_up=np.int8(0)), methods.tgate),
    ],
)
def test_a_plan_of_numpys_values_or_of_lists_is_the_plan_of_plain_ones(given, plain):
    assert given().id == plain().id
    assert hash(given().steps) == hash(plain().steps)


def test_equal_plans_are_equal_and_hash_alike():
    steps, row = [Step(), Step(scale=np.float64(1))], [["a.attn1", [np.float64(0.5), 0]]]
    listed = Plan(
        "a",
        steps,
        [
            ScheduledModules([["a.attn1", "#."]], window=np.float64(0.25)),
            TokenMerging(threshold=np.float32(0.5), merged=row),
            DeepCache("##", branch=np.int64(2)),
        ],
    )
    plain = Plan(
        "a",
        (Step(), Step()),
        (
            TokenMerging(threshold=0.5, merged=(("a.attn1", (0.5, 0.0)),)),
            ScheduledModules((("a.attn1", "#."),)),
        ),
    )
    assert listed == plain
    assert hash(listed) == hash(plain)


FLOATS = {  # a call, by the argument that it is given
    "beta": lambda x: methods.postdiff(beta=x),
    "s": lambda x: methods.postdiff(s=x),
    "low_first's beta": lambda x: postdiff.low_first(methods.dense(), x, 0.5),
    "low_first's s": lambda x: postdiff.low_first(methods.dense(), 0.5, x),
    "ratio": lambda x: methods.tome(ratio=x),
    "threshold": lambda x: methods.ca_tome(threshold=x),
    "prior_noise": lambda x: methods.faster_diffusion(prior_noise=x),
    "fresh_ratio": lambda x: methods.duca(fresh_ratio=x),
    "soft": lambda x: methods.duca(soft=x),
    "scale": lambda x: Step(scale=x),
    "window": lambda x: ScheduledModules((), x),
    "merged": lambda x: TokenMerging(merged=(("a", (x,)),)),
    "a merging's ratio": TokenMerging,
    "a cache's ratio": lambda x: TokenCache("S.", x),
    "a cache's soft": lambda x: TokenCache("S.", soft=x),
    "an encoder's prior_noise": lambda x: EncoderPropagation("S.", prior_noise=x),
}
WHOLE = {
    "steps": methods.dense,
    "every method's steps": lambda x: [method(x) for method in methods.METHODS.values() if method is not methods.dense],
    "k": lambda x: methods.postdiff(k=x),
    "branch": lambda x: methods.deepcache(branch=x),
    "sp_interval": lambda x: methods.tgate(sp_interval=x),
    "fi_interval": lambda x: methods.tgate(fi_interval=x),
    "warm_up": lambda x: methods.tgate(warm_up=x),
    "sx": lambda x: methods.tome(sx=x),
    "sy of what is off": lambda x: methods.tome(ratio=0, sy=x),
    "max_downsample": lambda x: methods.tome(max_downsample=x),
    "match_steps": lambda x: methods.ca_tome(match_steps=(0, x)),
    "key_steps": lambda x: methods.faster_diffusion(key_steps=[0, x]),
    "factor": lambda x: methods.todo(factor=x),
    "factor_2": lambda x: methods.todo(factor_2=x),
    "factors": lambda x: KeyDownsampling((x,)),
    "a deep part's branch": lambda x: DeepCache("S.", x),
    "a cache's interval": lambda x: TokenCache("S.", interval=x),
    "interval": lambda x: methods.duca(interval=x),
}
FLAGS = {
    "guided": lambda x: Step(guided=x),
    "ahead": lambda x: methods.faster_diffusion(ahead=x),
    "parallel": lambda x: EncoderPropagation("S.", x),
    "random": lambda x: methods.tome(random=x),
    "attention": lambda x: methods.tome(attention=x),
    "cross_attention": lambda x: methods.tome(cross_attention=x),
    "mlp": lambda x: TokenMerging(mlp=x),
}
TEXTS = {
    "mode": lambda x: methods.postdiff(mode=x),
    "size_condition": lambda x: methods.mixed_resolution(size_condition=x),
    "low_first's size_condition": lambda x: postdiff.low_first(methods.dense(), 1.0, 0.0, x),
    "half": lambda x: Plan("a", (Step(),), half=x),
    "an attention's mode": lambda x: AttentionCache("S.", mode=x),
    "score": lambda x: TokenCache("S.", score=x),
    "a plan's name": lambda x: Plan(x, (Step(),)),
    "method": methods.settings_of,
}
OTHERS = {
    "steps": lambda x: Plan("a", x),
    "a step": lambda x: Plan("a", (Step(), x)),
    "mechanisms": lambda x: Plan("a", (Step(),), x),
    "a mechanism": lambda x: Plan("a", (Step(),), (x,)),
    "a mechanism that is added": lambda x: methods.dense().plus(x),
    "deep": DeepCache,
    "encoder": EncoderPropagation,
    "blocks": TokenCache,
    "cross": AttentionCache,
    "own": lambda x: AttentionCache(own=x),
    "matching": lambda x: TokenMerging(matching=x),
    "modules": ScheduledModules,
    "a module": lambda x: ScheduledModules((x,)),
    "a module's marks": lambda x: ScheduledModules((("a", x),)),
    "a module's name": lambda x: ScheduledModules(((x, "#"),)),
    "merged": lambda x: TokenMerging(merged=x),
    "shares": lambda x: TokenMerging(merged=(("a", x),)),
    "low_first's plan": lambda x: postdiff.low_first(x, 0.5, 0.5),
    "a picture's plan": draw_plan,
}
GATES = {"m": lambda x: methods.postdiff(m=x), "gate_step": lambda x: methods.tgate(gate_step=x)}


@pytest.mark.parametrize(
    ("call", "values"),
    [
        *((call, NO_NUMBER) for call in FLOATS.values()),
        *((call, NO_WHOLE_NUMBER) for call in WHOLE.values()),
        *((call, NO_FLAG) for call in FLAGS.values()),
        *((call, (None, 1, True, b"cond", ["cond"], "Cond!", "", "\x1b[2J", NAN)) for call in TEXTS.values()),
        *((call, (1, True, "a#", b"#", {"a": "#"}, {"a"}, methods.dense, object(), NAN)) for call in OTHERS.values()),
        *((call, (NAN, INF, None, True, "15", 0, 0.0, -1, 21, 1.5, [15])) for call in GATES.values()),
    ],
    ids=[*FLOATS, *WHOLE, *FLAGS, *TEXTS, *OTHERS, *GATES],
)
def test_settings_of_another_kind_are_refused_in_one_line_that_says_what_came(call, values):
    for value in values:
        with pytest.raises(ValueError, match=r", got |^unknown method") as refusal:
            call(value)
        assert str(refusal.value).isprintable()
        assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: methods.dense(20.0), "steps must be a whole number from 1 to 10000, got 20.0"),
        (lambda: methods.dense(10**9), "steps must be a whole number from 1 to 10000, got 1000000000"),
        (lambda: Plan("a", (Step(),) * 10_001), "a plan must have from 1 to 10000 steps, got 10001"),
        (lambda: Step(guided="no"), "guided must be True or False, got 'no'"),
        (lambda: methods.faster_diffusion(ahead="false"), "ahead must be True or False, got 'false'"),
        (lambda: DeepCache("S.", branch=1.5), "branch must be a whole number of 0 or more, got 1.5"),
        (lambda: TokenMerging(random="no"), "random must be True or False, got 'no'"),
        (lambda: TokenMerging(threshold=NAN), r"threshold must be in \[-1, 1\], got nan"),
        (lambda: KeyDownsampling((2.0,)), r"factors\[0\] must be a whole number of 1 or more, got 2.0"),
        (lambda: TokenCache("St", score=1), "score must be one of entropy, random, got 1"),
        (lambda: TokenCache("St", soft=NAN), "soft must be 0 or more, got nan"),
        (lambda: DeepCache(None), r"deep: expected marks, each one of # S \., got None"),
        (lambda: Plan("a", methods.dense), "steps must be a list of Steps, got <function dense"),
        (lambda: Plan("a", (Step(),), ["merge"]), r"mechanisms\[0\] must be a Mechanism, got 'merge'"),
        (lambda: Plan("a", (Step(),), [DeepCache]), r"mechanisms\[0\] must be a Mechanism, got <class .*>: call it"),
        (lambda: Plan("a", (Step(),), TokenMerging()), "mechanisms must be a list of Mechanisms, got TokenMerging"),
        (lambda: Plan("a" * 101, (Step(),)), "a plan's name is made of 1 to 100 letters"),
        (lambda: ScheduledModules((("a\x1b[2Jb", "#"),)), r"module's name is .*, got 'a\\x1b\[2Jb'"),
        (lambda: ScheduledModules((("ä.b", "#"),)), "module's name is words of letters, digits"),
        (lambda: ScheduledModules((("a", "#."), ("a", "##"))), "must name a module once, got a"),
        (lambda: postdiff.low_first(methods.dense, 0.5, 0.5), "plan must be a Plan, got <function dense .*>: call it"),
        (lambda: methods.todo(factor=np.array([2, 2])), r"factor must be a whole number of 1 or more, got array"),
    ],
)
def test_what_was_expected_and_what_came_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_modules_within_others_are_found_whatever_is_sorted_between():
    rows = [(name, "#.") for name in ("a", "a0", "a_b", "b")]
    assert len(ScheduledModules(rows).modules) == 4
    with pytest.raises(ValueError, match=r"within another has no schedule of its own, got a, a\.b"):
        ScheduledModules([*rows, ("a.b", "#.")])


def test_long_plans_of_few_stores_compose():
    """As long as the longest schedule: no recursion over its steps."""
    marks = "".join({0: "S", 1400: "."}.get(i, "#") for i in range(3000))
    plan = Plan("a", (Step(),) * 3000, [DeepCache(marks)])
    mixed = postdiff.low_first(plan, 0.5, 0.5)
    assert mixed.mechanisms == plan.mechanisms
    assert mixed.switches == (1500,)


def test_a_picture_is_drawn_of_any_names_and_refused_where_it_would_fill_the_memory():
    rows = [("a.0.attn1", "#."), ("a.b.attn1", "#."), ("a.10.attn1", "#."), ("a.9.attn1", "#.")]
    assert draw_plan(Plan("a", (Step(),) * 2, [ScheduledModules(rows)])).size[0] > 100
    wide = Plan("a", (Step(),) * 10_000, [ScheduledModules([(f"a.{i}", "#" + "." * 9_999) for i in range(100)])])
    with pytest.raises(ValueError, match=r"at most 268435456 pixels, got 50.*x.* of 10000 steps and 100 modules"):
        draw_plan(wide)


# What the sampler is given. One dense step of the mini model at 32 pixels is the measure of "works".
SAMPLE = functools.partial(postdiff.sample, size=32)
ONE = methods.dense(1)


@pytest.fixture(scope="module")
def expected(backbone):
    return SAMPLE(backbone, PROMPTS[:2], [0, 1], ONE)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": tuple(PROMPTS[:2])},
        {"prompts": np.array(PROMPTS[:2])},
        {"prompts": np.array(PROMPTS[:2], dtype=object)},
        {"prompts": Series(PROMPTS[:2]), "seeds": Series([np.int64(0), np.int64(1)])},
        {"seeds": range(2)},
        {"seeds": np.arange(2)},
        {"seeds": torch.arange(2)},
        {"seeds": (torch.tensor(0), np.uint8(1))},
        {"size": np.int64(32), "guidance": np.float32(2), "batch_size": np.int64(2)},
        {"guidance": 2, "solver": np.str_("dpm"), "batch_size": None},
    ],
    ids=lambda change: "-".join(f"{name}:{type(value).__name__}" for name, value in change.items()),
)
def test_what_is_plainly_meant_gives_the_images_of_plain_values(backbone, expected, change):
    given = {"prompts": PROMPTS[:2], "seeds": [0, 1], "plan": ONE, "size": 32, **change}
    np.testing.assert_array_equal(postdiff.sample(backbone, **given), expected)


def test_negative_and_large_seeds_are_seeds(backbone):
    one, other = SAMPLE(backbone, PROMPTS[:1] * 2, [-1, 2**64], ONE)
    assert (one != other).any()


THREE = "expected one seed a prompt and at least one prompt, got 3 and"
BAD = [
    *[
        ({"seeds": seeds}, message)
        for seeds, message in [
            (None, "seeds must be a list of whole numbers, got None"),
            (0, "seeds must be a list of whole numbers, got 0"),
            (0.0, "seeds must be a list of whole numbers, got 0.0"),
            (torch.Generator(), "seeds must be a list of whole numbers, got <torch._C.Generator"),
            (torch.tensor(3), r"seeds must be a list of whole numbers, got tensor\(3\)"),
            ("012", "seeds must be a list of whole numbers, got '012'"),
            (b"012", "seeds must be a list of whole numbers, got b'012'"),
            ({0, 1, 2}, "seeds must be a list of whole numbers"),
            ({0: 1, 1: 1, 2: 1}, "seeds must be a list of whole numbers"),
            (np.zeros((3, 1), int), r"seeds must be a list of whole numbers, got array\(\[\[0\], \[0\]"),
            ((i for i in range(3)), "seeds must be a list of whole numbers, got <generator"),
            ([11, None, 13], r"seeds\[1\] must be a whole number, got None"),
            ([11, 0.0, 13], r"seeds\[1\] must be a whole number, got 0.0"),
            ([11, 12, 1.5], r"seeds\[2\] must be a whole number, got 1.5"),
            ([NAN, 12, 13], r"seeds\[0\] must be a whole number, got nan"),
            ([True, 12, 13], r"seeds\[0\] must be a whole number, got True"),
            (["11", 12, 13], r"seeds\[0\] must be a whole number, got '11'"),
            ([torch.Generator()] * 3, r"seeds\[0\] must be a whole number, got <torch._C.Generator"),
            (np.arange(3.0), r"seeds\[0\] must be a whole number, got 0.0"),
            (torch.tensor([True, False, True]), r"seeds\[0\] must be a whole number, got True"),
            ([0], f"{THREE} 1"),
            (range(4), f"{THREE} 4"),
        ]
    ],
    *[
        ({"prompts": prompts}, message)
        for prompts, message in [
            ("cat", "prompts must be a list of strings, got 'cat'"),
            (b"cat", "prompts must be a list of strings, got b'cat'"),
            (None, "prompts must be a list of strings, got None"),
            ({"cat": 1, "dog": 2, "cow": 3}, "prompts must be a list of strings, got {'cat': 1"),
            ({"cat", "dog", "cow"}, "prompts must be a list of strings, got {"),
            (np.array([["cat", "dog", "cow"]]), r"prompts must be a list of strings, got array\(\[\['cat'"),
            (["cat", None, "cow"], "prompts must be a list of strings of whole characters, got None at 1"),
            (["cat", "dog", b"cow"], "prompts must be a list of strings of whole characters, got b'cow' at 2"),
            (["cat", ["dog"], "cow"], r"prompts must be a list of strings of whole characters, got \['dog'\] at 1"),
            (["cat", NAN, "cow"], "prompts must be a list of strings of whole characters, got nan at 1"),
            (["cat", "\ud83d", "cow"], r"prompts must be a list of strings of whole characters, got '\\ud83d' at 1"),
            ([], "at least one prompt, got 0 and 3"),
        ]
    ],
    *[
        ({"guidance": guidance}, "guidance must be 1 or more, got .*; for none use a plan without it")
        for guidance in (NAN, INF, -INF, "7.5", True, [7.5], 0, 10**400)
    ],
    ({"guidance": 1e30}, r"guidance must be at most 1000, got 1e\+30"),
    *[
        ({"size": size}, "size must be a whole number of at most 32768, got .*; no machine holds a larger image")
        for size in (64.0, NAN, "64", True, (64, 64.0), [64, "64"], (10**9, 64), 10**9, 2**15 + 8)
    ],
    *[
        ({"size": size}, r"size must be a whole number or \(height, width\), got ")
        for size in ([64], (64, 64, 64), np.array([64]))
    ],
    ({"size": (64, 66)}, "size must be a positive multiple of 4 pixels, got 64x66"),
    ({"size": 0}, "size must be a positive multiple of 4 pixels, got 0"),
    *[
        ({"batch_size": size}, "batch_size must be a whole number from 1 to 16384, got ")
        for size in (2.0, NAN, True, "2", 0, -1, 10**9)
    ],
    *[({"solver": name}, "solver must be one of ddim, dpm, .*, plms, got ") for name in (1, True, ["dpm"], "")],
    ({"plan": methods.dense}, "plan must be a Plan, got <function dense .*>: call it"),
    ({"plan": {"steps": 2}}, "plan must be a Plan, got {'steps': 2}"),
    ({"plan": None}, "plan must be a Plan, got None"),
    ({"plan": "postdiff"}, "plan must be a Plan, got 'postdiff'"),
    ({"on_step": 1}, "on_step must be a function or None, got 1"),
    ({"embeddings": {"text": 1}}, "embeddings must be an Embeddings, got {'text': 1}"),
    ({"backbone": "mini-sd"}, "backbone must be a Backbone, got 'mini-sd'"),
    ({"backbone": None}, "backbone must be a Backbone, got None"),
    ({"plan": methods.dense(1001)}, "steps must be at most 1000, all that mini-sd was trained with, got 1001"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _) in enumerate(BAD)])
def test_what_the_sampler_is_not_meant_to_be_given_is_refused_before_any_work(backbone, monkeypatch, change, message):
    monkeypatch.setattr(sampling, "encode", None)  # the first work
    good = {"backbone": backbone, "prompts": PROMPTS, "seeds": SEEDS, "plan": methods.dense(2)}
    with pytest.raises(ValueError, match=message) as refusal:
        postdiff.sample(**{**good, **change})
    assert str(refusal.value).isprintable()


def test_steps_are_at_most_those_of_the_training_schedule(backbone, backbones, monkeypatch):
    monkeypatch.setattr(sampling, "encode", None)

    def refused(of, steps, **given):
        with pytest.raises(ValueError, match="steps") as refusal:
            postdiff.sample(of, PROMPTS[:1], [0], methods.dense(steps), **given)
        return str(refusal.value)

    lcm = backbones("lcm")
    assert refused(lcm, 51) == f"steps must be at most 50, all that {lcm.spec.name} was trained with, got 51"
    shipped = backbone.pipe.scheduler
    of = SimpleNamespace(**{**vars(backbone.pipe), "unet": backbone.denoiser})
    of.scheduler = type(shipped).from_config(shipped.config, num_train_timesteps=8)
    assert "at most 8, all that mini-sd was trained with, got 9" in refused(postdiff.Backbone(backbone.spec, of), 9)
    # SD1.5's: diffusers' DDIM would begin at level 1000 of 0 to 999.
    of.scheduler = type(shipped).from_config(shipped.config, timestep_spacing="leading", steps_offset=1)
    message = refused(postdiff.Backbone(backbone.spec, of), 1000, solver="ddim")
    assert message == "ddim has no schedule of 1000 of mini-sd's 1000 steps; expected fewer"


def test_embeddings_of_another_backbone_are_refused_before_any_work(backbone, backbones, monkeypatch):
    sdxl = backbones("sdxl")
    theirs, ours = (postdiff.encode(of, PROMPTS[:1], 1) for of in (sdxl, backbone))
    monkeypatch.setattr(sampling, "begin", None)
    for of, made in ((backbone, theirs), (sdxl, ours)):
        with pytest.raises(ValueError, match=rf"embeddings for {of.spec.name} must have rows of {{.*}}, got {{.*}}"):
            postdiff.sample(of, PROMPTS[:1], [0], ONE, embeddings=made)
    narrow = Embeddings({"text": ours.cond["text"][..., :-1]}, ours.uncond)
    with pytest.raises(ValueError, match="embeddings for mini-sd must have rows of"):
        postdiff.sample(backbone, PROMPTS[:1], [0], ONE, embeddings=narrow)
    with pytest.raises(ValueError, match="batches of 1, got ones for batches of 0"):
        postdiff.sample(backbone, PROMPTS[:1], [0], ONE, embeddings=Embeddings(ours.cond, {}))


@pytest.mark.parametrize(
    ("prompts", "batch_size", "message"),
    [
        ("cat", 1, "prompts must be a list of strings, got 'cat'"),
        ([], 1, "expected at least one prompt, got 0"),
        (["cat"], 0, "batch_size must be a whole number from 1 to 16384, got 0"),
        (["cat"], 2.0, "batch_size must be a whole number from 1 to 16384, got 2.0"),
    ],
)
def test_encode_is_told_the_same(backbone, prompts, batch_size, message):
    with pytest.raises(ValueError, match=message):
        postdiff.encode(backbone, prompts, batch_size)


SEARCHES = {
    "block_caching": (search.block_caching, {"delta": NO_NUMBER}, ONE),
    "ditfastattn": (search.ditfastattn, {"threshold": NO_NUMBER, "window": (*NO_NUMBER, 0, 1.5)}, ONE),
    "ca_tome": (search.ca_tome, {}, methods.ca_tome(1)),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_refuse_before_any_work(backbone, monkeypatch, name):
    run, settings, plan = SEARCHES[name]
    monkeypatch.setattr(sampling, "encode", None)
    settings = {
        **settings, "guidance": (NAN, "2"), "size": (64.0, 10**9), "solver": (1, "rk45"), "on_step": (1, "print"),
        "plan": (methods.dense, None, {}), "seeds": ([NAN], [None], 0), "prompts": ("a", [None]), "backbone": ("sd15",),
    }  # fmt: skip
    good = {"backbone": backbone, "prompts": PROMPTS[:1], "seeds": [0], "plan": plan}
    for setting, values in settings.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{setting}.* must be .*, got "):
                run(**{**good, setting: value})
    with pytest.raises(TypeError, match="guidanc"):
        run(**good, guidanc=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": methods.dense}, "plan must be a Plan, got <function dense .*>: call it"),
        ({"spec": "sd15"}, "spec must be a Spec, got 'sd15'"),
        ({"size": 64.0}, "size must be a whole number of at most 32768, got 64.0"),
        ({"size": 10**9}, "size must be a whole number of at most 32768, got 1000000000; no machine holds"),
    ],
)
def test_costs_are_told_the_same(backbone, change, message):
    with pytest.raises(ValueError, match=message):
        postdiff.cost(**{"plan": ONE, "spec": backbone.spec, **change})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("torch.bfloat16", torch.bfloat16),
        (np.str_("float16"), torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_dtype_may_be_named(value, expected):
    assert arguments.as_dtype(value) is expected


@pytest.mark.parametrize("value", [torch.int8, torch.float64, "half", "fp16", "int8", "", None, 16, np.float16, float])
def test_other_dtypes_are_refused(value):
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got "):
        arguments.as_dtype(value)


def test_numbers_are_plain_and_finite():
    for given in (0.5, np.float64(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5), np.longdouble(0.5)):
        found = arguments.number("x", given, "(0, 1)")
        assert type(found) is float
        assert found == 0.5
    assert math.copysign(1, arguments.number("x", -0.0, "[0, inf)")) == 1
    assert arguments.number("x", 10**300, "(0, inf)") == 1e300
    for interval, outside in (("(0, 1]", 0), ("[0, 1)", 1), ("(0, inf)", 0), ("[1, inf)", 0.99), ("[-1, 1]", 1.01)):
        with pytest.raises(ValueError, match="x must be"):
            arguments.number("x", outside, interval)
    for given in (3, np.int8(3), np.array(3), torch.tensor(3)):
        assert type(arguments.whole_number("x", given)) is int


def test_what_came_is_shown_on_one_line_without_control_characters():
    assert arguments.shown("a\x1b[2J\nb\u202e") == r"'a\x1b[2J\nb\u202e'"
    assert arguments.shown(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"
    hostile = type("Hostile", (), {"__repr__": lambda self: "a\x1b[2J\n\x9bb"})()
    assert arguments.shown(hostile) == r"a\x1b[2J \x9bb"
    assert len(arguments.shown(["x" * 10_000] * 10_000)) < 1000


@pytest.fixture
def double():
    """A program that computes in float64 elsewhere."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        ("sd", methods.tome(2, beta=0.5, s=0.5)),
        ("lcm", methods.mixed_resolution(2)),
        ("sdxl", methods.postdiff(4, m=2)),
        ("pixart", methods.duca(3, score="random")),
        ("pixart", methods.duca(3)),
    ],
    ids=lambda of: of if isinstance(of, str) else of.name,
)
def test_torchs_default_dtype_changes_no_image(request, backbone, backbones, kind, plan):
    under_test = backbone if kind == "sd" else backbones(kind)
    plain = latents(under_test, PROMPTS[:1], [3], plan)
    request.getfixturevalue("double")
    assert sampling.draw([3], "initial", 4, (2, 2)).dtype == torch.float32
    found = latents(under_test, PROMPTS[:1], [3], plan)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)
