"""The later looks of the claims: their prompts and stores, and that what is pooled is what one store would say."""

import csv
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines import evaluation
from pipelines.engine import records
from pipelines.engine.cluster import DamagedError, Resources, Stopped, WorkersError
from pipelines.engine.store import Store
from pipelines.evaluation import Entry, Protocol
from pipelines.metrics.intervals import mean_interval
from pipelines.metrics.metric import METRICS
from pipelines.paper import claims, looks, run, writing
from pipelines.paper.claim_list import Claim
from pipelines.paper.datasets import Options
from pipelines.pooling import Pool
from pipelines.report.tables import Row
from pipelines.stages import generation, worker
from postdiff import methods

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import reproduce  # a job is a script, not a package

FEW, MORE = methods.dense(2), methods.cross_attention_cache(3, 2)
KEYS = {("lcm", plan.id): plan for plan in (FEW, MORE)}
DECIDED = Claim("1", "two steps are no better than two", "lcm", FEW, FEW, "clip", "alike")
CLAIMS = (
    DECIDED,
    *(Claim("1", "more steps are better", "lcm", MORE, FEW, key, "better") for key in ("fid", "clip", "content")),
)


def options(**more):
    return Options(limit=8, shard=4, batch_size=2, **more)


def protocol(given, n):
    listed = tuple(evaluation.read_prompts(given if n is None else Options(limit=n)))
    reference = tuple(f"reference/{i}" for i in range(32))
    return Protocol("shapes", listed, 4, reference, "mini-clip", "mini-clip")


def test_prompts_of_the_looks_follow_one_another():
    given = options(up_to=40, out="s3://bucket/x?region=r")
    plan = looks.planned(given, protocol(given, 8))
    assert plan.sizes == (8, 16, 40)
    assert [len(one.prompts) for one in plan.protocols] == [8, 8, 24]
    assert [p for one in plan.protocols for p in one.prompts] == list(protocol(given, 40).prompts)
    assert plan.folders[1:] == ("s3://bucket/x/look-2?region=r", "s3://bucket/x/look-3?region=r")
    assert looks.planned(options(), protocol(given, 8)).sizes == (8,)
    assert looks.announcement(given, 8).endswith(
        "8 prompts go on to 16, then 40: at the most 5 times the images of their plans, which what follows counts once"
    )
    assert looks.announcement(options(), 8) == ""


def test_prompts_of_a_file_must_suffice_and_begin_with_the_first(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("\n".join(f"caption {i}" for i in range(40)))
    given = options(prompts=str(file), up_to=20)
    of = SimpleNamespace
    first = of(prompts=tuple(evaluation.read_prompts(options(prompts=str(file)))))
    with pytest.raises(ValueError, match="--up-to must be at most the 40 prompts of"):
        looks.planned(options(prompts=str(file), up_to=80), first)
    second = of(prompts=tuple(evaluation.read_prompts(options(prompts=str(file), draw=1))))
    with pytest.raises(
        ValueError, match="--up-to needs prompts that go on: draw 1 of a file has others for each --lim"
    ):
        looks.planned(options(prompts=str(file), up_to=20, draw=1), second)
    with pytest.raises(ValueError, match="--up-to needs prompts that go on"):
        looks.planned(given, second)
    dry = ["claims", "--prompts", str(file), "--models", "real", "--limit", "8", "--dry-run", "--up-to"]
    with pytest.raises(SystemExit, match="--up-to must be at most the 40 prompts of"):
        reproduce.main([*dry, "80"])
    with pytest.raises(SystemExit, match="--up-to needs prompts that go on: draw 1"):
        reproduce.main([*dry, "20", "--draw", "1"])


def made_up(key, n):
    values = np.random.default_rng(int(key[1], 16)).normal(scale=50, size=64)[:n]
    return Row(key[1], "dense", "", 2, 1, 1, 0.1, {"clip": mean_interval(values)})


def test_a_plan_that_one_look_lost_is_not_asked_for_again(tmp_path, monkeypatch):
    """Its prompts would have a gap: pooled over the looks, there is no number."""
    plans = [methods.dense(steps) for steps in (2, 3, 4)]
    open_claims = tuple(Claim("1", f"{len(p)} steps", "lcm", p, plans[0], "clip", "better") for p in plans[1:])
    monkeypatch.setattr(claims, "CLAIMS", open_claims)
    monkeypatch.setattr(claims, "MARGINS", {**claims.MARGINS, "clip": 1e-9})
    own = {
        ("lcm", plan.id): Entry("dense", "", generation.configure("mini-lcm", plan, batch_size=2), 1, 1)
        for plan in plans
    }
    keys = {entry.configuration.id: key for key, entry in own.items()}
    given = options(up_to=40, out=str(tmp_path))
    plan = looks.planned(given, protocol(given, 8))
    lost, asked = own["lcm", plans[2].id], []

    def evaluate(store, entries, of, resources):
        asked.append({keys[entry.configuration.id] for entry in entries})
        rows = [
            None if entry is lost and len(asked) == 1 else made_up(keys[entry.configuration.id], 8) for entry in entries
        ]
        return SimpleNamespace(rows=rows, facts={"missing": "1"} if None in rows else {})

    class Made(Pool):
        def score(self, configuration, metric):
            assert configuration.id != lost.configuration.id
            return made_up(keys[configuration.id], plan.sizes[len(self.stores) - 1]).scores["clip"]

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(evaluation, "claim_store", lambda folder, of: Store(folder))
    monkeypatch.setattr(looks, "Pool", Made)
    monkeypatch.setattr(looks, "measurable", lambda protocols: [METRICS["clip"]])
    rows = {key: made_up(key, 8) for key in own}
    judged, missing = looks.judge(plan, rows, own, Store(str(tmp_path)), Resources(workers=1))
    assert asked == [set(own), set(own) - {("lcm", plans[2].id)}]
    assert [one.measured.n for one in judged] == [40, 8]
    assert {one.verdict for one in judged} == {"not resolved"}
    assert missing == {"look 2, missing": "1"}


def test_a_damaged_file_is_set_aside_in_its_own_store(tmp_path):
    """Looks have files of one name: that of the first is whole."""
    name = "features/e/c/00000-of-00001.parquet"
    first, later = stores = [Store(str(tmp_path / look)) for look in ("first", "later")]
    for store in stores:
        store.put(name, records.feature_rows(["a", "b"], np.ones((2, 4)), name, "x"))
    whole = first.get(name)
    later.put(name, whole[:-1] + bytes([whole[-1] ^ 1]))
    pool = Pool(stores, None)
    with pytest.raises(DamagedError, match=f"^{later.url}: {name} must") as damaged:
        worker.mending(first, lambda: pool._read("features/e/c"))
    assert pickle.loads(pickle.dumps(damaged.value)).store == later.url
    assert first.get(name) == whole
    mended = []

    def work():
        if not later.has(name):
            mended.append(name)
            later.put(name, whole)
        return pool._read("features/e/c")

    assert len(worker.mending(later, work)) == 2
    assert mended == [name]


@pytest.mark.parametrize("error", [Stopped("3 units failed"), WorkersError("the node is lost")])
def test_what_a_look_decided_is_kept_where_the_next_one_stops(tmp_path, monkeypatch, error):
    """At the second look all open plans fail, and there is no third: the claims are as the first left them."""
    plans = [methods.dense(steps) for steps in (2, 3, 4)]
    listed = tuple(Claim("1", f"{len(p)} steps", "lcm", p, plans[0], "clip", "better") for p in plans[1:])
    monkeypatch.setattr(claims, "CLAIMS", listed)
    monkeypatch.setattr(claims, "MARGINS", {**claims.MARGINS, "clip": 1e-9})
    own = {
        ("lcm", plan.id): Entry("dense", "", generation.configure("mini-lcm", plan, batch_size=2), 1, 1)
        for plan in plans
    }
    plan = looks.planned(given := options(up_to=40, out=str(tmp_path)), protocol(options(), 8))
    asked = []

    def evaluate(store, entries, of, resources):
        asked.append(store.root)
        raise error

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    rows = {key: made_up(key, 8) for key in own}
    judged, missing = looks.judge(plan, rows, own, Store(given.out), Resources(workers=1))
    assert asked == [str(tmp_path / "look-2")]
    assert [one.measured.n for one in judged] == [8, 8]
    assert missing == {"look 2, missing": f"all 3 plans of open claims: {error}"}
    names, of = {"lcm": "mini-lcm"}, plan.protocols[0]
    _, markdown = writing.write_claims(Store(given.out), judged, rows, names, of, given, plan.sizes, missing)
    assert f"look 2, missing: all 3 plans of open claims: {error}. Draw 0, protocol" in markdown
    assert (tmp_path / "exhibits/claims.csv").is_file()


def test_a_job_whose_later_look_stopped_says_so_and_fails():
    facts = {"claims": "all", "look 2, missing": "all 3 plans of open claims: 3 units failed"}
    with pytest.raises(Stopped, match=r"^missing: all 3 plans of open claims: 3 units failed$"):
        run.check_whole(facts, [])
    with pytest.raises(Stopped, match=r"^not made for want of configurations: fig4, fig5; missing: all 3 plans"):
        run.check_whole(facts, ["fig4", "fig5"])
    run.check_whole({"claims": "all"}, [])


@pytest.mark.slow
def test_what_is_pooled_over_looks_is_what_one_store_would_say(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", CLAIMS)
    for metric in ("fid", "clip", "content"):
        monkeypatch.setitem(claims.MARGINS, metric, 1e-9)  # so that no noise lies within it
    given = options(up_to=16, out=str(tmp_path / "some"))
    plan, alone = looks.planned(given, protocol(given, 8)), protocol(given, 16)
    own = {
        key: Entry("dense", "", generation.configure("mini-lcm", of_key, batch_size=2), 1, 1)
        for key, of_key in KEYS.items()
    }
    entries, one_worker = list(own.values()), Resources(workers=1)
    some, whole = (
        evaluation.claim_store(str(tmp_path / name), of)
        for name, of in zip(("some", "all"), (plan.protocols[0], alone), strict=True)
    )
    rows = dict(zip(own, evaluation.evaluate(some, entries, plan.protocols[0], one_worker).rows, strict=True))
    judged, missing = looks.judge(plan, rows, own, some, one_worker)
    assert missing == {}
    expected = dict(zip(own, evaluation.evaluate(whole, entries, alone, one_worker).rows, strict=True))
    differences = claims.differences(expected)
    assert judged[0].measured.n == 8  # decided at the first look
    for one in judged[1:]:
        told = differences[one.claim, one.claim.metric]
        assert (one.measured.n, one.verdict) == (16, "not resolved")
        assert one.measured.value == pytest.approx(told.value, abs=1e-4)
        assert one.measured.low < told.low
        assert len(one.alone) == len(METRICS[one.claim.metric].judges)
    pool = Pool([some, Store(plan.folders[1])], alone)
    metrics = looks.measurable(plan.protocols)
    assert {"fid", "clip", "psnr_dense", "content_transformer"} <= {metric.key for metric in metrics}
    for key, entry in own.items():
        for metric in metrics:
            if metric.key in expected[key].scores:  # a distilled model has no solution
                pooled, told = pool.score(entry.configuration, metric), expected[key].scores[metric.key]
                assert pooled.n == told.n
                assert [pooled.value, *pooled.left_out] == pytest.approx([told.value, *told.left_out], abs=1e-4)
    again, _ = looks.judge(plan, rows, own, some, one_worker)  # all is there
    assert again == judged


@pytest.mark.slow
def test_the_job_looks_again_at_what_is_open_and_says_so(ray_session, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "CLAIMS", CLAIMS)
    for metric in ("fid", "clip", "content"):
        monkeypatch.setitem(claims.MARGINS, metric, 1e-9)
    few = [
        "--limit",
        "8",
        "--n-reference",
        "32",
        "--shard",
        "4",
        "--batch-size",
        "2",
        "--workers",
        "1",
        "--rounds",
        "0",
    ]
    asked = ["claims", *few, "--rounds", "0", "--up-to", "16", "--out", str(tmp_path)]
    reproduce.main([*asked, "--dry-run"])
    assert "claims that are not resolved by 8 prompts go on to 16: at the most 2 times" in capsys.readouterr().out
    assert not (tmp_path / "look-2").exists()
    reproduce.main(asked)
    rows = list(csv.DictReader((tmp_path / "exhibits/claims.csv").read_text().splitlines()))
    assert [row["n"] for row in rows] == ["8", "16", "16", "16"]
    assert {row["looks"] for row in rows} == {"8 16"}
    text = (tmp_path / "exhibits/claims.md").read_text()
    assert "looked at with 8 and 16 prompts: a claim that one look does not resolve goes on" in text
    assert "looked at with 8 and 16 prompts" in (tmp_path / "report.html").read_text()
    shards = {file: file.stat().st_mtime_ns for file in tmp_path.glob("**/images/**/*.parquet")}
    assert len(shards) >= 2 * (2 + 2)
    reproduce.main(asked)  # all is there
    assert shards == {file: file.stat().st_mtime_ns for file in tmp_path.glob("**/images/**/*.parquet")}
