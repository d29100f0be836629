"""One writer a file, one spec and one driver a store: of those that come at one moment, in a folder and in a bucket."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import unquote

import pytest
from moto.s3.responses import S3Response

from pipelines.engine import bucket, records, retry
from pipelines.engine import lease as leases
from pipelines.engine.cluster import Stopped
from pipelines.engine.lease import lease
from pipelines.engine.store import Store


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Where a store is, by its name."""
    return request.getfixturevalue("s3") if request.param == "bucket" else lambda name: str(tmp_path / name)


def together(work, arguments):
    """What `work` returns of each argument, or the error that it raises: all begin at one moment."""
    barrier, answers = threading.Barrier(len(arguments)), {}

    def one(i, argument):
        barrier.wait(60)
        try:
            answers[i] = work(argument)
        except (ValueError, Stopped) as error:
            answers[i] = error

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(arguments)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[i] for i in range(len(arguments))]


def test_the_first_writer_wins(tmp_path, s3):
    for store in (Store(tmp_path), Store("memory://bucket/first"), Store(s3("first"))):
        assert store.commit("a/x.bin", b"first")
        assert not store.commit("a/x.bin", b"second")
        assert store.get("a/x.bin") == b"first"
        store.put("a/x.bin", b"replaced")
        assert store.get("a/x.bin") == b"replaced"
    assert os.listdir(tmp_path / "a") == ["x.bin"]


def test_of_writers_of_one_moment_one_writes(place, monkeypatch):
    """All have asked before any writes."""
    store = Store(place("commits"))
    has = Store._has
    for n in range(60):
        asked, mine = threading.Barrier(3), threading.local()

        def ask(of, name, asked=asked, mine=mine):
            if hasattr(mine, "asked"):
                return has(of, name)
            mine.asked = True
            asked.wait(60)
            return False

        if not store.is_local:
            monkeypatch.setattr(Store, "_has", ask)
        wrote = together(lambda text: store.commit(f"a/{n}.bin", text), [b"0", b"1", b"2"])  # noqa: B023
        monkeypatch.setattr(Store, "_has", has)
        assert sorted(wrote) == [False, False, True]
        assert store.get(f"a/{n}.bin") == b"%d" % wrote.index(True)


def test_of_two_specs_that_claim_a_store_at_once_one_does(place):
    for n in range(60):
        specs = [{"prompts": "a"}, {"prompts": "b"}]
        answers = together(lambda spec: Store(place(f"claim-{n}")).claim(spec), specs)  # noqa: B023
        (refused,) = filter(None, answers)
        assert "is of another spec" in str(refused)
        assert Store(place(f"claim-{n}")).record("spec.json") == specs[answers.index(None)]


def test_a_bucket_whose_path_needs_quotes_holds_one_name_for_all_calls(s3):
    store = Store(s3("a%20b+c%25d"))
    assert store.commit("x y+%.bin", b"1")
    assert store.names() == {"x y+%.bin"}
    assert store.get("x y+%.bin") == b"1"


def test_a_refusal_where_nothing_is_is_tried_again(s3, monkeypatch):
    """So S3 answers a write that meets a removal."""
    create, answers = bucket.create, iter([False, False])
    monkeypatch.setattr(bucket, "create", lambda *args: next(answers, None) is None and create(*args))
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    assert Store(s3("removal")).commit("x.bin", b"1")
    assert Store(s3("removal")).get("x.bin") == b"1"


def test_what_a_bucket_refuses_for_good_is_told_at_once(s3, monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        Store(s3("x").replace("//bucket", "//no-such-bucket")).commit("x.bin", b"1")
    for code, said in (("403", "Forbidden"), ("501", "Not Implemented")):  # the latter where headers are not known
        with monkeypatch.context() as patch:
            patch.setattr(S3Response, "put_object", lambda of, code=code: (int(code), {}, ""))
            with pytest.raises(OSError, match=f"status code: {code} {said}"):
                Store(s3("refused")).commit("x.bin", b"1")
            with pytest.raises(
                ValueError, match=rf"^store 's3://bucket/refused' is not writable: .*{code} {said}[^\n]*$"
            ):
                Store(s3("refused")).check_writable()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    with pytest.raises(PermissionError, match="no AWS credentials"):
        bucket.conditional(Store(s3("x")).fs, "bucket")


@pytest.mark.parametrize("code", ["429", "500", "503"])
def test_a_bucket_that_is_busy_when_a_job_starts_is_waited_for(s3, monkeypatch, code):
    answers, sleeps = iter([code, code, None, code, None, None]), []
    put = S3Response.put_object
    monkeypatch.setattr(retry.time, "sleep", sleeps.append)
    with monkeypatch.context() as patch:
        busy = lambda of: (int(code), {}, "") if next(answers, None) else put(of)  # noqa: E731
        patch.setattr(S3Response, "put_object", busy)
        Store(s3("busy")).check_writable()
        assert len(sleeps) == 3
        assert Store(s3("busy")).names() == set()
        patch.setattr(S3Response, "put_object", lambda of: (int(code), {}, ""))
        clock = count(0, 10)
        patch.setattr(retry.time, "monotonic", lambda: next(clock))
        with pytest.raises(ValueError, match=rf"^store 's3://bucket/busy' is not writable: .*status code: {code}"):
            Store(s3("busy")).check_writable()


def test_credentials_come_from_a_profile_too(s3, tmp_path, monkeypatch):
    (tmp_path / "credentials").write_text("[other]\naws_access_key_id = OTHER\naws_secret_access_key = x\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "other")
    sent, put = [], S3Response.put_object
    monkeypatch.setattr(S3Response, "put_object", lambda of: sent.append(of.headers["Authorization"]) or put(of))
    assert Store(s3("profile")).commit("x.bin", b"1")
    assert "Credential=OTHER/" in sent[0]
    assert "us-east-1/s3" in sent[0]


def test_a_store_that_cannot_keep_the_first_is_told(s3, tmp_path, monkeypatch, capsys):
    Store(s3("told")).check_writable()
    Store(tmp_path).check_writable()
    assert capsys.readouterr().err == ""
    put = S3Response.put_object

    def ignoring(of):
        of.headers = {name: value for name, value in of.headers.items() if name.lower() != "if-none-match"}
        return put(of)

    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(S3Response, "put_object", ignoring)
    monkeypatch.setattr(os, "link", no_links)
    for store, lacks in (
        (Store(s3("told")), "conditional writes (If-None-Match)"),
        (Store("memory://bucket/told"), "conditional writes (If-None-Match)"),
        (Store(tmp_path), "links"),
    ):
        store.check_writable()
        said = f"warning: store {store.shown!r} has no {lacks}: run one driver at a time on it\n"
        assert capsys.readouterr().err == said
        assert store.names() == set()
        assert not store.fs.get_file_info(f"{store.root}/.tmp-").size


def test_gcs_is_asked_for_generation_0(monkeypatch):
    """Of a pretended GCS: pyarrow's own calls are not answered."""
    there = {}

    class Server(BaseHTTPRequestHandler):
        def do_PUT(self):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            name = unquote(self.path)
            refused = self.headers["x-goog-if-generation-match"] == "0" and name in there
            if not refused:
                there[name] = data
            self.send_response(412 if refused else 200)
            self.send_header("ETag", "x")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "x")
    store = Store(f"gs://bucket/sweep?scheme=http&endpoint_override={where}")
    create = bucket.conditional(store.fs, "bucket")
    assert [bucket.create(create, "a/x.bin", text) for text in (b"first", b"second")] == [True, False]
    assert there == {"/bucket/a/x.bin": b"first"}
    server.shutdown()


def test_a_second_driver_is_told_who_runs_the_store(tmp_path):
    store = Store(tmp_path)
    with lease(store):
        with (
            pytest.raises(Stopped, match=rf"is run by process {os.getpid()} on .* since .* UTC, renewed 0 s ago: wait"),
            lease(Store(tmp_path)),
        ):
            pytest.fail("two drivers")
        assert store.names("lease") == {"lease/00001.json"}
    assert store.names("lease") == set()
    with lease(store):
        pass


def leave(store, gone):
    """A lease of a driver whose `process` is gone from this machine, of another `host`, or `damaged`."""
    held = {"id": "x", "host": "elsewhere", "process": 1, "since": 0.0, "renewed": 0.0}
    if gone == "process":
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        held |= {"host": leases.platform.node(), "process": ended.pid, "renewed": leases.time.time()}
    store.put("lease/00007.json", records.to_json(held, "lease/00007.json") if gone != "damaged" else b"{")


@pytest.mark.parametrize("gone", ["process", "host", "damaged"])
def test_what_a_dead_driver_left_is_taken_over(tmp_path, capsys, gone):
    store = Store(tmp_path)
    leave(store, gone)
    store.put("lease/.DS_Store", b"")
    store.put("lease/00009.json.bad", b"")
    with lease(store):
        assert store.record("lease/00008.json")["process"] == os.getpid()
        assert not store.has("lease/00007.json")
    assert ("taking over from process" in capsys.readouterr().err) == (gone != "damaged")


@pytest.mark.parametrize("gone", [None, "host"])
def test_of_drivers_of_one_moment_one_runs(place, monkeypatch, gone):
    """All find that there is no lease, or the same one that is stale, before any writes."""
    names = Store.names
    for n in range(15):
        stores = [Store(place(f"lease-{gone}-{n}")) for _ in range(4)]
        found, ended = threading.Barrier(4), threading.Barrier(4)
        if gone:
            leave(stores[0], gone)

        def find(store, folder, found=found, began=set()):  # noqa: B006
            there = names(store, folder)
            if store not in began:
                began.add(store)
                found.wait(60)
            return there

        def drive(store, ended=ended):
            try:
                with lease(store):
                    ended.wait(60)
                    return True
            except Stopped:
                ended.wait(60)
                raise

        monkeypatch.setattr(Store, "names", find)
        assert together(drive, stores).count(True) == 1
        monkeypatch.setattr(Store, "names", names)
        assert stores[0].names("lease") == set()


def test_a_driver_that_found_another_state_looks_again_and_sees_who_runs(tmp_path, monkeypatch):
    """It finds a gone driver's lease, then stands still; that one's is given back, and a third driver begins."""
    store, late = Store(tmp_path), Store(tmp_path)
    leave(store, "host")
    commit = Store.commit

    def after_the_third(of, name, data):
        monkeypatch.setattr(Store, "commit", commit)
        store.delete("lease/00007.json")
        third.__enter__()
        assert name == "lease/00008.json"
        return commit(of, name, data)

    third = lease(store)
    monkeypatch.setattr(Store, "commit", after_the_third)
    with pytest.raises(Stopped, match="is run by process"), lease(late):
        pytest.fail("two drivers")
    assert store.names("lease") == {"lease/00001.json"}
    third.__exit__(None, None, None)


def test_a_lease_is_renewed_until_another_takes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leases, "RENEWED", 0.05)
    store = Store(tmp_path)

    def wait(until):
        end = leases.time.monotonic() + 20
        while not until():
            assert leases.time.monotonic() < end
            leases.time.sleep(0.02)

    with lease(store):
        first = store.record("lease/00001.json")["renewed"]
        wait(lambda: store.record("lease/00001.json")["renewed"] > first)
        store.delete("lease/00001.json")  # as one does that took it for stale
        told = []
        wait(lambda: told.append(capsys.readouterr().err) or "another driver has taken" in "".join(told))
        assert not store.has("lease/00001.json")
