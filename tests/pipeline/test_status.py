"""What a store tells of its run: counts, pace and the driver, from one listing."""

import os
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from pipelines import status
from pipelines.engine import cluster, records
from pipelines.engine.store import Store, shard_name

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import status as job  # a job is a script, not a package

NOW = 1_800_000_000.0


def at(store, name, ago, data=b"12345"):
    store.put(name, data)
    os.utime(f"{store.root}/{name}", (NOW - ago, NOW - ago))


@pytest.fixture
def store(tmp_path):
    """Two configurations of four shards, the second three times as dear; five units done in the last ten minutes, two
    an hour ago; the driver started twenty minutes ago."""
    store = Store(tmp_path)
    store.put("spec.json", b"{}")
    labels = {"aaa": "mini-sd dense T=20", "bbb": "mini-sd postdiff T=20 s=0.5 k=2 m=15 mode=cond and a long name"}
    status.announce(store, labels, {"aaa": 1, "bbb": 3}, 4, ["clip", "inception", "clip"])
    (run,) = store.names("runs")
    os.utime(tmp_path / run, (NOW - 1200, NOW - 1200))
    for i, ago in enumerate((3600, 3500, 600, 400)):
        at(store, shard_name("images/bbb", i, 4), ago)
    for i, ago in enumerate((300, 200, 60)):
        at(store, shard_name("images/aaa", i, 4), ago)
    for encoder in ("clip-1", "inception-2"):
        for i in range(4):
            at(store, shard_name(f"features/{encoder}/bbb", i, 4), 30)
            at(store, shard_name(f"features/{encoder}/prompts", i, 4), 30)
    at(store, "scores/bbb-12345678.json", 10)
    reason = {"unit": "x", "reason": "ValueError: all is\nlost " + "x" * 100}
    name = "failed/images/aaa/00003-of-00004.parquet.json"
    at(store, name, 5, records.to_json(reason, name))
    return store


def test_units_are_counted_by_configuration(store):
    state = status.read(store, NOW)
    one, two = state.progress["aaa"], state.progress["bbb"]
    assert (one.images, one.shards, one.features, one.encoders, one.scored, one.failed) == (3, 4, 0, 2, False, 1)
    assert (two.images, two.shards, two.features, two.encoders, two.scored, two.failed) == (4, 4, 8, 2, True, 0)
    assert two.complete
    assert not state.complete
    assert state.failed == 1
    assert state.files == len(store.names())
    assert state.size == sum(os.path.getsize(f"{store.root}/{name}") for name in store.names())


def test_the_pace_is_of_the_units_since_the_driver_started(store):
    found = status.pace(status.read(store, NOW))
    assert (found.units, found.seconds) == (5, 1200)
    assert found.left == pytest.approx(1 / (3 + 3 + 1 + 1 + 1) * 1200)  # by cost: the unit that is left is a cheap one
    later = status.pace(status.read(store, NOW + 1200))  # nothing more came: half as fast
    assert (later.units, later.seconds) == (5, 2400)
    assert later.left == pytest.approx(2 * found.left)
    store.delete(shard_name("images/bbb", 3, 4))  # a dear unit is left too
    assert status.pace(status.read(store, NOW)).left == pytest.approx((1 + 3) / (3 + 1 + 1 + 1) * 1200)


def test_long_units_are_timed_over_more_than_the_window(store):
    (run,) = store.names("runs")
    os.utime(f"{store.root}/{run}", (NOW - 9e5, NOW - 9e5))
    for i in range(12):
        at(store, shard_name("images/slow", i, 20), 7200 * (i + 1))
    for name in store.names("images/aaa") | store.names("images/bbb"):
        store.delete(name)
    found = status.pace(status.read(store, NOW))
    assert (found.units, found.seconds) == (status.FEWEST, 7200 * 11)


def test_no_unit_since_the_start_is_no_pace_and_times_that_are_not_told_are_none(store):
    (run,) = store.names("runs")
    os.utime(f"{store.root}/{run}", (NOW - 30, NOW - 30))
    assert "pace     none, over the last 30 s" in status.describe(status.read(store, NOW))
    state = status.read(store, NOW)
    for one in state.progress.values():
        one.times.clear()
    assert status.pace(state) is None
    assert "not known" in status.describe(state)


@pytest.mark.parametrize(
    ("ago", "told"),
    [
        (None, "driver   none (no lease)"),
        (20, "driver   alive, its last sign 20 s ago"),
        (100, "driver   gone, its last sign 100 s ago; run the job again to go on"),  # as the next driver would find it
        (3600, "driver   gone, its last sign 60 min ago; run the job again to go on"),
    ],
)
def test_the_lease_says_whether_a_driver_lives(store, ago, told):
    if ago is not None:
        at(store, "lease/00001.json", ago + 50)
        at(store, "lease/00002.json", ago)  # two drivers that came at one moment; one of them goes
    assert told in status.describe(status.read(store, NOW)).splitlines()


def test_what_is_printed_fits_a_terminal_and_says_it(store):
    text = status.describe(status.read(store, NOW))
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert "images   7 of 8 units (88%)\n" in text
    assert "failed   1 set aside\n" in text
    assert "0.25 units of images a minute, over the last 20 min; 2.22 min to go" in text
    (line,) = (line for line in text.splitlines() if line.startswith("mini-sd dense"))
    assert line.split() == ["mini-sd", "dense", "T=20", "3/4", "0/8", "1", "failed"]
    assert "ValueError: all is lost xxx" in text


def test_many_configurations_are_told_in_a_sum(store):
    status.announce(store, {f"c{i}": f"c{i}" for i in range(168)}, {f"c{i}": 1 for i in range(168)}, 4, ["clip"])
    lines = status.describe(status.read(store, NOW)).splitlines()
    assert len(lines) < 20
    assert "and others: 1 complete, 168 not begun" in lines


def test_a_store_without_a_plan_tells_what_its_names_say(store):
    for name in store.names("runs"):
        store.delete(name)
    state = status.read(store, NOW)
    assert [(one.label, one.images, one.shards) for one in state.progress.values()] == [("aaa", 3, 4), ("bbb", 4, 4)]
    assert status.describe(state)


def test_a_bucket_is_read_by_one_listing(store, s3):
    remote = Store(s3("status"))
    for name in store.names():
        remote.put(name, store.get(name))
    local, found = status.read(store, NOW), status.read(remote)
    assert {id: (one.images, one.features) for id, one in found.progress.items()} == {"aaa": (3, 0), "bbb": (4, 8)}
    assert (found.size, found.failed, found.reasons) == (local.size, 1, local.reasons)
    assert sum(len(one.times) for one in found.progress.values()) == 7


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be the store of a run, got a folder without spec\.json"):
        status.read(Store(tmp_path))


def test_the_job_prints_until_all_is_done(store, capsys, monkeypatch):
    def finish(seconds):
        assert seconds == 3
        at(store, shard_name("images/aaa", 3, 4), 0)
        at(store, "scores/aaa-12345678.json", 0)

    monkeypatch.setattr(job.time, "sleep", finish)
    job.main([store.root, "--watch", "3"])
    out = capsys.readouterr().out
    assert out.count("store    ") == 2
    assert out.count("pace     all is done") == 1


def test_a_half_written_file_is_not_counted(store):
    store.fs.open_output_stream(f"{store.root}/images/aaa/.tmp-123").close()
    assert store.fs.get_file_info(f"{store.root}/images/aaa/.tmp-123").type == fs.FileType.File
    assert status.read(store, NOW).files == len(store.names())


def test_a_score_that_is_set_aside_is_of_its_configuration(store):
    name = "failed/scores/aaa-12345678.json.json"
    store.put(name, records.to_json({"reason": "no memory"}, name))
    state = status.read(store, NOW)
    assert (state.progress["aaa"].failed, state.progress["bbb"].failed, state.failed) == (2, 0, 2)


def test_a_plan_that_is_none_is_named_and_a_unit_taken_up_again_has_no_reason(store):
    assert status._why(store, ["failed/images/aaa/00000-of-00004.parquet.json"]) == {}
    store.put("runs/x.json", records.to_json({"configurations": {"aaa": 3}}, "runs/x.json"))
    with pytest.raises(ValueError, match=r"/runs/x\.json must hold what a run makes, got TypeError"):
        status.read(store)


def test_damage_is_told_where_a_run_and_a_reason_are_read(store):
    (failed,) = store.names("failed")
    store.put(failed, store.get(failed).replace(b"lost", b"last"))
    reasons = status.read(store).reasons
    assert reasons[failed].startswith("not known: must hold what was written")
    store.put(f"{failed}.bad", b"")
    assert status.read(store).failed == 1
    (run,) = store.names("runs")
    store.put(run, store.get(run).replace(b"mini-sd dense", b"mini-sd tense"))
    with pytest.raises(cluster.DamagedError, match=r"^runs/\w+\.json must hold what was written, got .*--repair"):
        status.read(store)
