"""A file is what its name says, or it is named: no flipped bit, torn or foreign file changes a number in silence."""

import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines import evaluation, status, verification
from pipelines.data import prompts
from pipelines.engine import records, retry, workers
from pipelines.engine.cluster import DamagedError, Resources, Unit
from pipelines.engine.lease import lease
from pipelines.engine.store import Store
from pipelines.engine.urls import refuse_credentials
from pipelines.metrics.intervals import mean_interval
from pipelines.stages import scores, worker
from pipelines.stages.generation import timings_name

ROOT = Path(__file__).parents[2]
LISTED = prompts.load_prompts("shapes", 8)
IMAGES = [f"images/c/0000{i}-of-00002.parquet" for i in range(2)]
DAMAGE = ("truncated", "empty", "bit", "swapped", "foreign", "deleted", "renamed", "old temp")


def image_shard(name, shard, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (len(shard), 8, 8, 3), dtype=np.uint8)
    columns = {"prompt_id": [p.id for p in shard], "prompt": [p.text for p in shard], "seed": range(len(shard)),
               "configuration": ["c"] * len(shard), "plan": ["d"] * len(shard),
               "image": [{"bytes": records.encode_image(p), "path": "0.webp"} for p in pixels]}  # fmt: skip
    return records.to_parquet(records.IMAGES, columns, name, prompts.fingerprint(shard))


def fill(store, listed=LISTED):
    """A small store of every kind of file."""
    shards = prompts.shard(listed, 4)
    store.claim({"prompts": prompts.fingerprint(listed), "prompts_per_shard": 4})
    rng = np.random.default_rng(0)
    for i, (name, shard) in enumerate(zip(IMAGES, shards, strict=True)):
        own, timings = prompts.fingerprint(shard), timings_name(name)
        store.put(timings, records.to_json({"seconds": [0.5] * 4}, timings))
        store.put(name, image_shard(name, shard, i))
        for folder in ("features/e/c", "features/e/prompts", "text/k"):
            file = f"{folder}/0000{i}-of-00002.parquet"
            features = rng.normal(size=(4, 16)).astype(np.float32)
            store.put(file, records.feature_rows([p.id for p in shard], features, file, own))
    task = scoring(store, listed)
    scores.score(task)
    return task


def scoring(store, listed):
    inputs = (scores.Input("clip", "features/e/c", "features/e/prompts"),)
    there = tuple(f"features/e/{of}/0000{i}-of-00002.parquet" for of in ("c", "prompts") for i in range(2))
    made_of = tuple(prompts.fingerprint(shard) for shard in prompts.shard(listed, 4))
    return scores.Scoring(store, "c", tuple(p.id for p in listed), tuple(IMAGES), made_of, inputs, there)


@pytest.mark.parametrize("kind", ["images", "features", "text", "scores"])
def test_no_flipped_bit_is_read_as_something_else(tmp_path, kind):
    store = Store(tmp_path)
    fill(store)
    name = min(store.names(kind))
    data, draw, seen = store.get(name), random.Random(0), 0
    for _ in range(300):
        changed = bytearray(data)
        bit = draw.randrange(8 * len(changed))
        changed[bit // 8] ^= 1 << bit % 8
        store.put(name, bytes(changed))
        with pytest.raises(DamagedError) as damaged:
            store.record(name) if name.endswith(".json") else store.table(name)
        assert damaged.value.name == name
        seen += 1
    assert seen == 300
    store.put(name, data)
    store.record(name) if name.endswith(".json") else store.table(name)


def test_a_shard_of_other_prompts_is_told_though_its_name_is_right(tmp_path):
    """As of another store that was copied over this one: the same names, ids and number of rows."""
    others = [records.Prompt(prompt.id, f"{prompt.text} indeed") for prompt in LISTED]
    store, foreign = Store(tmp_path / "a"), Store(tmp_path / "b")
    task = fill(store)
    fill_others = prompts.shard(others, 4)
    name = "features/e/c/00001-of-00002.parquet"
    rows = records.feature_rows([p.id for p in LISTED[4:]], np.ones((4, 16)), name, prompts.fingerprint(fill_others[1]))
    foreign.put(name, rows)
    store.put(name, foreign.get(name))
    with pytest.raises(DamagedError, match=r"features/e/c/00001-of-00002.parquet must be made of \w+, got one of \w+"):
        scores.score(task)


def test_files_of_others_beside_the_shards_change_no_number(tmp_path):
    store = Store(tmp_path)
    task = fill(store)
    before = scores.score(task)
    for name in (".DS_Store", ".tmp-abc", "00000-of-00002.parquet.bad", "notes.parquet"):
        (tmp_path / "features/e/c" / name).write_bytes(b"x")
    assert scores.score(task) == before
    assert scores.read_features(store, "features/e/c")[0] == [prompt.id for prompt in LISTED]
    (tmp_path / "features/e/c/00001-of-00002.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"has not all of its 2 shards: features/e/c/00001-of-00002.parquet is missing"
    ):
        scores.read_features(store, "features/e/c")


def damage(root, name, how):
    """Damage the file `name`; returns what is to be named for it."""
    file = root / name
    data = file.read_bytes()
    if how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "bit":
        file.write_bytes(data[:40] + bytes([data[40] ^ 4]) + data[41:])
    elif how == "swapped":  # with its neighbour, or another kind where there is none
        other = next((f for f in sorted(file.parent.glob("*")) if f != file and f.is_file()), root / IMAGES[0])
        file.write_bytes(other.read_bytes())
    elif how == "foreign":  # of another store: the same name, other prompts
        with_others = Store(root.parent / "other")
        fill(with_others, [records.Prompt(p.id, p.text + "!") for p in LISTED])
        file.write_bytes(with_others.get(name))
    elif how == "deleted":
        file.unlink()
    elif how == "renamed":
        file.rename(file.with_name(f"00000-of-00002x{file.suffix}"))
        return str(file.with_name(f"00000-of-00002x{file.suffix}").relative_to(root))
    elif how == "old temp":
        (file.parent / ".tmp-old").write_bytes(data[:9])
        return str((file.parent / ".tmp-old").relative_to(root))
    return name


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("kind", ["images", "features", "text", "scores", "spec.json"])
def test_every_kind_of_damage_is_named(tmp_path, kind, how, capsys):
    root = tmp_path / "store"
    store = Store(root)
    fill(store)
    assert verification.verify(store).is_whole
    if (kind, how) in [("scores", "foreign"), ("spec.json", "foreign"), ("scores", "deleted")]:
        pytest.skip("a spec and a score are named by what they are of; a score may be wanting")
    name = min(store.names(kind)) if kind != "spec.json" else kind
    named = damage(root, name, how)
    found = verification.verify(store)
    listed = {**found.damaged, **dict.fromkeys([*found.missing, *found.foreign, *found.left])}
    if (kind, how) == ("spec.json", "renamed"):
        named = "spec.json"  # is missing
    assert named in listed, (kind, how, str(found))
    assert found.is_whole == (how == "old temp")
    verification.repair(store, found)
    again = verification.verify(store)
    assert not again.damaged
    assert not [left for left in again.left if not left.endswith(".bad")]


def test_what_a_run_leaves_beside_its_shards_is_sealed_too(tmp_path, monkeypatch):
    store = Store(tmp_path)
    fill(store)
    status.announce(store, {"c": "dense"}, {"c": 1.0}, 2, ["e"])
    monkeypatch.setattr(workers, "run", lambda *_, **__: {"images/d/x": "ValueError: x"})
    worker.run([Unit("images/d/x", "", 1.0, None)], store, Resources(1), "images")
    with lease(store):
        for folder in ("failed", "runs", "lease"):
            found = verification.verify(store)
            assert found.is_whole
            assert found.there[folder] == 1
            (name,) = store.names(folder)
            good = store.get(name)
            damage(tmp_path, name, "bit")
            assert list(verification.verify(store).damaged) == [name]
            store.put(name, good)
    assert store.record("failed/images/d/x.json") == {"unit": "images/d/x", "reason": "ValueError: x"}


def test_the_job_says_what_is_there_and_ends_with_its_state(tmp_path):
    fill(Store(tmp_path))
    command = [sys.executable, str(ROOT / "jobs/verify.py"), str(tmp_path)]

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True)

    good = run()
    assert (good.returncode, good.stderr) == (0, "")
    assert "       2 images\n" in good.stdout
    name = "features/e/c/00000-of-00002.parquet"
    damage(tmp_path, name, "bit")
    bad = run("--repair")
    assert bad.returncode == 1
    assert f"damaged: {name}: must hold what was written, got" in bad.stdout
    assert (tmp_path / f"{name}.bad").exists()
    assert f"missing: {name}" in run().stdout
    assert run("--mend").returncode == 2
    empty = subprocess.run([*command[:2], str(tmp_path / "none")], capture_output=True, text=True)
    assert "no store at" in empty.stderr


def test_a_damaged_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(DamagedError("a/b.parquet", "is torn")))
    assert (error.name, error.why) == ("a/b.parquet", "is torn")


class Passing(OSError):
    """What S3 says when it is busy."""


def test_a_store_that_is_away_for_a_while_gets_the_bytes(monkeypatch):
    slept = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    store, calls = Store("memory://bucket/away"), []
    right = store.fs.get_file_info

    def away(path):
        calls.append(path)
        if len(calls) < 7:
            raise Passing("When testing for existence: AWS Error SLOW_DOWN during HeadObject operation")
        return right(path)

    monkeypatch.setattr(store, "fs", SimpleNamespace(get_file_info=away))
    assert not store.has("x.bin")
    assert len(slept) == 6
    assert all(0.25 * 2**i <= pause <= 0.5 * 2**i for i, pause in enumerate(slept))


@pytest.mark.parametrize(
    ("error", "local", "passes"),
    [
        (OSError("AWS Error SLOW_DOWN during PutObject operation"), False, True),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7, Couldn't connect"), False, True),
        (OSError("AWS Error ACCESS_DENIED during PutObject operation"), False, False),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: HTTP status 404"), False, False),
        (OSError("When writing bucket/run-403/ACCESS_DENIED: AWS Error SLOW_DOWN during PutObject"), False, True),
        (FileNotFoundError("x"), False, False),
        (OSError(5, "Input/output error"), True, True),
        (OSError(28, "No space left on device"), True, False),
        (PermissionError(13, "Permission denied"), True, False),
        (KeyError("of ours"), False, False),
    ],
)
def test_what_another_call_may_not_meet(error, local, passes, monkeypatch):
    assert retry.is_passing(error, local) == passes
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    calls = []

    def work():
        calls.append(1)
        if len(calls) < 3:
            raise error
        return "done"

    if passes:
        assert retry.persistently(work, local) == "done"
    else:
        with pytest.raises(type(error)):
            retry.persistently(work, local)
    assert len(calls) == (3 if passes else 1)


def test_patience_ends(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def away():
        raise Passing("AWS Error SLOW_DOWN")

    with pytest.raises(Passing):
        retry.persistently(away, False)
    assert now[0] == pytest.approx(retry.PATIENCE)


def test_a_store_without_its_spec_is_claimed_by_its_own_prompts_alone(tmp_path):
    def protocol(listed, per_shard=4):
        return evaluation.Protocol("shapes", tuple(listed), per_shard, (), "mini-clip", "mini-clip")

    store = Store(tmp_path)
    for i, shard in enumerate(prompts.shard(LISTED, 4)):
        name = f"text/k/0000{i}-of-00002.parquet"
        store.put(name, records.feature_rows([p.id for p in shard], np.ones((4, 2)), name, prompts.fingerprint(shard)))
    others = [records.Prompt(p.id, p.text + "!") for p in LISTED]
    for of in (protocol(others), protocol(LISTED, 8)):
        with pytest.raises(ValueError, match=r"has no spec.json, and shards of other prompts: choose another --out"):
            evaluation.claim_store(str(tmp_path), of)
    assert not store.has("spec.json")
    assert evaluation.claim_store(str(tmp_path), protocol(LISTED)).has("spec.json")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:SEC/RET@bucket/x",
        "s3://KEY:12/SECRET@bucket/x",
        "s3://KEY:SECRET@bucket/x",
        "s3://bucket/x?secret_key=SECRET",
        "gs://b/x?token=SECRET",
        "s3://b/x?X-Amz-Signature=SECRET",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_told(url):
    with pytest.raises(ValueError, match="must not hold credentials") as refused:
        Store(url)
    assert "SEC" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("url", ["s3://bucket/run@2", "hdfs://host:8020/a@b", "s3://bucket/x?region=us-east-1"])
def test_other_urls_are_not(url):
    refuse_credentials(url)


def test_interrupted_scores_are_those_of_the_metric(tmp_path):
    store = Store(tmp_path)
    task = fill(store)
    found = scores.read(store, task.name)
    assert found.seconds == 0.5
    assert found.intervals["clip"].n == mean_interval(np.zeros(8)).n
    (tmp_path / timings_name(IMAGES[1])).unlink()
    assert np.isnan(scores.score(task).seconds)  # a median of half of the images would be another number
    shutil.rmtree(tmp_path / "timings")
    assert np.isnan(scores.score(task).seconds)  # lost seconds are worth no images
    assert json.loads(store.get(task.name))["name"] == task.name


def test_a_report_that_meets_a_damaged_file_has_it_made_again(tmp_path, capsys):
    """As of images, which nothing reads once they have features, but for the pictures of the page."""
    store = Store(tmp_path)
    fill(store)
    good = {name: store.get(name) for name in IMAGES}

    def work():
        for name in IMAGES:
            if not store.has(name):
                store.put(name, good[name])
        return [len(store.table(name)) for name in IMAGES]

    for name in IMAGES:
        damage(tmp_path, name, "bit")
    assert worker.mending(store, work) == [4, 4]
    assert capsys.readouterr().err.count("was damaged: set aside as .bad, and made again") == 2
    assert {name: store.get(name) for name in IMAGES} == good


def test_a_damaged_score_is_made_again(tmp_path):
    store = Store(tmp_path)
    task = fill(store)
    before = scores.read(store, task.name)
    damage(tmp_path, task.name, "bit")

    def work():
        if not store.has(task.name):
            scores.score(task)
        return scores.read(store, task.name)

    assert worker.mending(store, work) == before


def test_a_disk_that_damages_everything_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "MENDS", 3)
    calls = []

    def work():
        calls.append(1)
        raise DamagedError("a", "is torn")

    with pytest.raises(DamagedError):
        worker.mending(Store(tmp_path), work)
    assert len(calls) == 4
