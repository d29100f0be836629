"""Files of plans: what is no plan is refused in one line that names the file; what is written is whole, and is read."""

import json
import os
from pathlib import Path

import pytest

import postdiff
from postdiff import Plan, Step, methods, planfile
from postdiff.mechanisms import TokenMerging

GOOD = planfile.to_json(methods.duca(4))


def changed(**changes) -> str:
    """The text of a plan, with other fields."""
    whole = json.loads(GOOD)
    whole["plan"] |= changes
    return json.dumps(whole)


def having(kind, **settings) -> str:
    """The text of a plan that has another mechanism."""
    return changed(mechanisms=[{"kind": kind, **settings}])


def modules(value) -> str:
    return having("ScheduledModules", modules=value)


STEP = {"scale": 1.0}
BAD = {
    "empty": ("", "Expecting value: line 1 column 1"),
    "a list": ("[]", r"the file must be an object, got \[\]"),
    "a number": ("1", "the file must be an object, got 1"),
    "null": ("null", "the file must be an object, got None"),
    "a string": ('"plan"', "the file must be an object, got 'plan'"),
    "no plan": ('{"id": "a"}', "the file lacks plan"),
    "nothing": ("{}", "the file lacks id, plan"),
    "more than a plan": (GOOD.replace('"id"', '"di": 1, "id"', 1), "the file has no such thing as 'di'"),
    "a plan that is a list": ('{"plan": [], "id": "a"}', r"the plan must be an object, got \[\]"),
    "a plan that is null": ('{"plan": null, "id": "a"}', "the plan must be an object, got None"),
    "a plan without steps": ('{"plan": {"name": "a"}, "id": "a"}', "the plan lacks steps"),
    "an unknown field": (changed(**{"a\x1b[2J": 1}), r"the plan has no such thing as 'a\\x1b\[2J'"),
    "steps as an object": (changed(steps={"0": STEP}), "steps must be a list of objects, got {'0': {'scale': 1.0}}"),
    "steps as a number": (changed(steps=4), "steps must be a list of objects, got 4"),
    "steps as a string": (changed(steps="####"), "steps must be a list of objects, got '####'"),
    "no steps": (changed(steps=[]), "must have from 1 to 10000 steps, got 0"),
    "a step that is a list": (changed(steps=[STEP, []]), r"step 1 must be an object, got \[\]"),
    "a step of another kind": (changed(steps=[STEP, {"depth": 1}]), "step 1 has no such thing as 'depth'"),
    "a scale that is a string": (changed(steps=[{"scale": "1"}]), r"step 0: scale must be in \(0, 1\], got '1'"),
    "a flag that is a string": (changed(steps=[{"guided": "no"}]), "step 0: guided must be True or False, got 'no'"),
    "marks that are null": (having("DeepCache", marks=None), "DeepCache: deep: expected marks, .* got None"),
    "marks as another list": (having("DeepCache", marks=["S", "."]), r"DeepCache: deep: expected marks, .*got \['S'"),
    "marks of no kind": (having("DeepCache", marks="S.x#"), "DeepCache: deep: expected marks, each one of .*'S.x#'"),
    "too few marks": (having("DeepCache", marks="S."), "deep part: expected 4 marks, one a step, got 'S.'"),
    "no marks": (having("DeepCache"), "DeepCache lacks marks"),
    "what nothing stored": (having("DeepCache", marks="#.##"), "step 1: nothing deep is stored"),
    "a name that is a number": (changed(name=1), "a plan's name is made of .*, got 1"),
    "a name with an escape": (changed(name="a\x1b[2J"), r"a plan's name is made of .*, got 'a\\x1b\[2J'"),
    "half a character": (changed(name="\ud83d"), r"a plan's name is made of .*, got '\\ud83d'"),
    "a branch that is a share": (
        having("DeepCache", marks="S.S.", branch=0.5),
        "DeepCache: branch must be a whole number of 0 or more, got 0.5",
    ),
    "parallel as a number": (
        having("EncoderPropagation", marks="S.S.", parallel=1),
        "EncoderPropagation: parallel must be True or False, got 1",
    ),
    "modules as an object": (modules({"a": "####"}), "modules must be a list of .*, got {'a': '####'}"),
    "modules not in pairs": (modules(["ab"]), "modules must be a list of .*, got 'ab'"),
    "modules of three": (modules([["a", "#", "#"]]), r"modules must be a list of .*, got \['a', '#', '#'\]"),
    "marks as a list": (modules([["a", ["#"] * 4]]), r"a: expected marks, .*got \['#'"),
    "a module's name is a list": (modules([[["a"], "#"]]), r"a module's name is .*, got \['a'\]"),
    "a module's name has an escape": (modules([["a\x1b]0;b", "#"]]), r"module's name is .*'a\\x1b\]0;b'"),
    "a module's name has an end of line": (modules([["a\n", "#"]]), r"a module's name is .*, got 'a\\n'"),
    "merged, of text": (having("TokenMerging", merged=[["a", "0000"]]), "merged must be a list of shares, got '0000'"),
    "merged, too few": (
        having("TokenMerging", merged=[["a", [0.5]]]),
        r"merged, a: expected 4 shares in \[0, 1\), got 1",
    ),
    "mechanisms as an object": (changed(mechanisms={"kind": "TokenMerging"}), "mechanisms must be a list of objects"),
    "mechanisms as a string": (changed(mechanisms="dense"), "mechanisms must be a list of objects, got 'dense'"),
    "a mechanism as a list": (changed(mechanisms=[[]]), r"a mechanism must be an object, got \[\]"),
    "a mechanism that is null": (changed(mechanisms=[None]), "a mechanism must be an object, got None"),
    "a mechanism of no kind": (changed(mechanisms=[{}]), "a mechanism lacks kind"),
    "a mechanism of an unknown kind": (having([]), r"a mechanism's kind must be one of AttentionCache, .*, got \[\]"),
    "a mechanism of another kind": (having("TokenMerging", factors=[]), "TokenMerging has no such thing as 'fac"),
    "a mechanism that is wrong": (having("TokenMerging", random="no"), "TokenMerging: random must be True or"),
    "a mechanism twice": (
        changed(mechanisms=[{"kind": "TokenMerging"}, {"kind": "TokenMerging"}]),
        "a plan has each mechanism once, got TokenMerging twice",
    ),
    "a weight that is text": (
        having("TokenCache", marks="St#S", soft="0"),
        "TokenCache: soft must be 0 or more, got '0'",
    ),
    "infinity by size": (
        having("EncoderPropagation", marks="####", prior_noise=0).replace('"prior_noise": 0', '"prior_noise": 1e999'),
        "EncoderPropagation: prior_noise must",
    ),
    "not a number": (having("EncoderPropagation", prior_noise=float("nan")), "expected numbers, got NaN"),
    "infinity": (having("ScheduledModules", window=float("inf")), "expected numbers, got Infinity"),
    "minus infinity": (having("ScheduledModules", window=float("-inf")), "expected numbers, got -Infinity"),
    "a key twice": (GOOD.replace('"ratio": 0.3', '"ratio": 0.2, "ratio": 0.3'), "it says 'ratio' twice"),
    "an id of another kind": (
        json.dumps({**json.loads(GOOD), "id": ["\x1b"]}),
        r"written as plan \['\\x1b'\], but what",
    ),
    "nested too deep": ('{"plan": ' + "[" * 100_000, "it is nested too deep"),
    "a number of too many digits": (GOOD.replace('"interval": 3', '"interval": ' + "9" * 5000), "digits"),
    "not UTF-8": (GOOD.encode().replace(b"duca", b"d\xfcca"), "'utf-8' codec can't decode byte 0xfc"),
    "UTF-16": (GOOD.encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "'utf-8' codec can't decode byte 0x89"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_plan_is_refused_in_one_line_with_the_files_name(name, tmp_path):
    text, message = BAD[name]
    file = tmp_path / "plan.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"plan\.json must hold a plan that save_plan wrote: .*{message}") as refusal:
        postdiff.load_plan(file)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 600


def test_what_is_no_file_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match=r"expected the file of a plan, got .*, which is none"):
            postdiff.load_plan(tmp_path / name)
        with pytest.raises(ValueError, match=r"expected a file to write the plan to, got .*, which is none"):
            postdiff.save_plan(methods.dense(), tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        postdiff.load_plan(tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        postdiff.save_plan(methods.dense(), tmp_path / "nowhere" / "plan.json")


def test_a_file_larger_than_any_plan_is_not_read(tmp_path, monkeypatch):
    postdiff.save_plan(methods.dense(), tmp_path / "plan.json")
    with open(tmp_path / "large.json", "wb") as stream:
        stream.truncate(10 * 2**30)  # takes no room
    with pytest.raises(ValueError, match=r"large\.json must hold .*: expected 33554432 bytes at most, got more"):
        postdiff.load_plan(tmp_path / "large.json")


def test_a_files_name_reaches_no_terminal_raw(tmp_path):
    (tmp_path / "a\x1b[2J.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\\x1b\[2J\.json must hold a plan"):
        postdiff.load_plan(tmp_path / "a\x1b[2J.json")


def test_the_longest_plans_fit_into_a_file(tmp_path):
    """A thousand steps with the shares of a hundred modules, in every digit."""
    shares = tuple(i / 1001 for i in range(1000))
    merging = TokenMerging(threshold=0.5, merged=tuple((f"a.{i}", shares) for i in range(100)))
    plan = Plan("a", (Step(),) * 1000, (merging,))
    postdiff.save_plan(plan, tmp_path / "plan.json")
    assert postdiff.load_plan(tmp_path / "plan.json") == plan
    assert (tmp_path / "plan.json").stat().st_size < planfile.MAX_BYTES / 8


def test_an_editors_byte_order_mark_and_missing_defaults_are_read(tmp_path):
    whole = json.loads(planfile.to_json(methods.dense(2)))
    whole["plan"] = {"name": "dense", "steps": [{}, {}]}  # as an earlier version wrote, or a hand
    (tmp_path / "plan.json").write_text(json.dumps(whole), encoding="utf-8-sig")
    assert postdiff.load_plan(tmp_path / "plan.json") == methods.dense(2)


@pytest.mark.parametrize(
    ("plan", "notes", "message"),
    [
        (methods.dense, {}, "plan must be a Plan, got <function dense .*>: call it"),
        ({"name": "a"}, {}, "plan must be a Plan, got {'name': 'a'}"),
        (methods.dense(), {"loss": float("nan")}, "Out of range float values are not JSON compliant"),
        (methods.dense(), {"by": {1: "a", "1": "b"}}, "it says '1' twice"),
    ],
)
def test_what_could_not_be_read_is_not_written(plan, notes, message, tmp_path):
    postdiff.save_plan(methods.dense(3), tmp_path / "plan.json")
    with pytest.raises(ValueError, match=message):
        postdiff.save_plan(plan, tmp_path / "plan.json", **notes)
    assert postdiff.load_plan(tmp_path / "plan.json") == methods.dense(3)
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    postdiff.save_plan(methods.dense(3), file)

    def full(self, text, encoding):
        with open(self, "w", encoding=encoding) as stream:
            stream.write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        postdiff.save_plan(methods.dense(4), file)
    monkeypatch.undo()
    assert postdiff.load_plan(file) == methods.dense(3)
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "plan.json")
    postdiff.save_plan(methods.dense(3), tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert postdiff.load_plan(tmp_path / "plan.json") == methods.dense(3)
