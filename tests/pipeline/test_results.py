"""A finished store as a table: what was scored, with the plans' own settings; what is no such store is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from pipelines import open_store, results, status
from pipelines.engine import records
from pipelines.engine.store import Store
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics.intervals import Interval
from pipelines.stages.generation import Configuration
from postdiff import methods

PLANS = [methods.dense(8), methods.postdiff(8, 0.5, 0.25, 2, 6), methods.tome(8)]
SCORES = {"clip": Interval(70.5, 69.0, 72.0, 8, (70.0, 71.0)), "kid": Interval(0.1, -0.2, 0.4, 8, (0.1, 0.1))}
PROMPTS = tuple(records.Prompt(str(i), f"a {i}") for i in range(8))
PROTOCOL = Protocol("captions.txt", PROMPTS, 4, (), "mini-clip", "mini-clip", "tried")


def entries(plans=PLANS):
    made = [Configuration("mini-sd", "w" * 8, plan, 2.0, "ddim", 64, 4) for plan in plans]
    costs = range(3_000, 3_000 - len(plans), -1)  # falling: rows are by rising FLOPs
    return [Entry(of.plan.name, f"of <{i}>", of, 2 * i, i) for i, of in zip(costs, made, strict=True)]


def name_of(entry):
    return f"scores/{entry.configuration.id}-12345678.json"


def put_scores(store, entry, scored=SCORES, seconds=0.25):
    written = {key: vars(interval) for key, interval in scored.items()}
    store.commit(name_of(entry), records.to_json({"seconds": seconds, **written}, name_of(entry)))


def announce(store, made, protocol=PROTOCOL):
    results.announce(store, made, protocol, {entry.configuration.id: name_of(entry) for entry in made})


@pytest.fixture
def store(tmp_path):
    """Three configurations, all scored, the last without timings."""
    store = Store(tmp_path / "store")
    store.put("spec.json", records.to_json({}, "spec.json"))
    made = entries()
    announce(store, made)
    for entry in made:
        put_scores(store, entry, seconds=None if entry is made[-1] else 0.25)
    return store


def test_a_row_is_what_was_run_what_it_costs_and_every_score_with_its_interval(store):
    rows = open_store(store.root).results().table.to_pylist()
    assert [row["method"] for row in rows] == ["tome", "postdiff", "dense"]  # by FLOPs
    tome, ours, dense = rows
    assert {key: ours[key] for key in ("backbone", "steps", "beta", "s", "k", "m", "mode")} == {
        "backbone": "mini-sd", "steps": 8, "beta": 0.5, "s": 0.25, "k": 2, "m": 6, "mode": "cond",
    }  # fmt: skip
    assert [dense[key] for key in ("steps", "beta", "s", "k", "m", "mode")] == [8, None, None, None, None, None]
    assert (tome["TokenMerging_ratio"], dense["TokenMerging_ratio"]) == (0.5, None)
    assert (dense["flops"], dense["macs_paper"], dense["seconds"], tome["seconds"]) == (3_000, 6_000, 0.25, None)
    for row in rows:
        for prefix, of in (("clip_score", SCORES["clip"]), ("kid", SCORES["kid"])):
            ends = [row[f"{prefix}{end}"] for end in ("", "_low", "_high", "_n")]
            assert ends == [of.value, of.low, of.high, of.n]
    assert {"fid", "psnr"}.isdisjoint(rows[0])  # were not measured
    assert (dense["guidance"], dense["solver"], dense["size"], dense["dtype"]) == (2.0, "ddim", "64", "float32")


def test_columns_stand_in_one_order(store):
    names = open_store(store.root).results().table.column_names
    assert names[:8] == ["backbone", "method", "steps", "beta", "s", "k", "m", "mode"]
    assert names[-2:] == ["protocol", "configuration"]
    assert names.index("flops") < names.index("clip_score") < names.index("kid") < names.index("guidance")


def test_the_plans_are_those_that_ran(store):
    loaded = open_store(store.root).results()
    assert {plan.id for plan in loaded.plans.values()} == {plan.id for plan in PLANS}
    by_id = {entry.configuration.id: entry.configuration.plan for entry in entries()}
    assert dict(loaded.plans) == by_id


def test_a_run_that_is_announced_again_counts_once_and_another_protocol_apart(store):
    announce(store, [*entries()[:2]])  # as when the job runs again with a smaller grid
    assert len(open_store(store.root).results()) == 3
    other = replace(PROTOCOL, name="other")
    again = entries()[0]
    name = f"scores/{again.configuration.id}-87654321.json"
    results.announce(store, [again], other, {again.configuration.id: name})
    store.commit(name, records.to_json({"seconds": 1.0, "clip": vars(SCORES["clip"])}, name))
    loaded = open_store(store.root).results()
    assert len(loaded) == 4
    assert set(loaded.protocols) == {PROTOCOL.facts()["protocol"], other.facts()["protocol"]}
    assert ">protocol</th>" in loaded._repr_html_()


def test_what_is_not_finished_says_so_or_is_left_out_on_request(store):
    announce(store, entries([*PLANS, methods.dense(4)]))
    with pytest.raises(ValueError, match=r"must be finished, got 1 of 4 configurations without scores: run its job"):
        open_store(store.root).results()
    assert len(open_store(store.root).results(unfinished=True)) == 3
    for name in store.names("scores"):
        store.delete(name)
    with pytest.raises(ValueError, match=r"4 of 4 configurations without scores: run its job again$"):
        open_store(store.root).results(unfinished=True)


def test_what_holds_no_results_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"must be the store of a job, got no spec\.json in it$"):
        open_store(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    for name in ("", "round-1/", "round-2/"):
        Store(tmp_path).put(f"{name}spec.json", b"{}")
    with pytest.raises(
        ValueError, match="must hold the results of an evaluation, got none; stores are in round-1, round-2"
    ):
        open_store(tmp_path).results()
    (tmp_path / "spec.json").unlink()
    with pytest.raises(ValueError, match=r"got no spec\.json in it; stores are in round-1, round-2$"):
        open_store(tmp_path)
    status.announce(Store(tmp_path / "round-1"), {"a": "dense"}, {"a": 1.0}, 2, ["clip"])  # as it was before
    with pytest.raises(ValueError, match=r"got a run of an earlier version, .* run its job again"):
        open_store(tmp_path / "round-1").results()


def test_a_damaged_plan_is_named(store):
    (name,) = store.names("runs")
    run = store.record(name)
    first = next(iter(run["configurations"].values()))
    first["plan"] = json.dumps({**json.loads(first["plan"]), "id": "0" * 12})
    store.put(name, records.to_json(run, name))
    with pytest.raises(
        ValueError, match=r"the plan of 'mini-sd .*must hold a plan that save_plan wrote: it was written as"
    ):
        open_store(store.root).results()


def test_results_draw_themselves(store):
    loaded = open_store(store.root).results()
    text, page = repr(loaded), loaded._repr_html_()
    for line in ("postdiff T=8 of <2999>", "70.50 [69.00, 72.00]", "CLIP score", "GFLOPs"):
        assert line in text
    assert ">protocol</th>" not in page  # one alone is in the caption
    assert "postdiff T=8 of &lt;2999&gt;" in page
    assert "of <2999>" not in page
    assert page.count("<tr>") == 1 + 3
    assert len(loaded.to_pandas()) == 3


def test_a_long_table_says_that_it_goes_on(store, monkeypatch):
    monkeypatch.setattr(results, "MOST_LINES", 2)
    page = open_store(store.root).results()._repr_html_()
    assert page.count("<tr>") == 1 + 2
    assert "3 rows, the first 2 here" in page


def test_results_load_neither_torch_nor_ray():
    code = "import sys; from pipelines import open_store; print(sorted({'torch', 'ray', 'pandas'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(ImportError, match="open_shop"):
        from pipelines import open_shop  # noqa: F401
