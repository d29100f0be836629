"""Shards of records on any file system: written once, atomically, under names that say what they are.

    <root>/spec.json                                            what this store was made for
    <root>/lease/00001.json                                     who runs it now
    <root>/images/<configuration>/00003-of-00013.parquet
    <root>/timings/<configuration>/00003-of-00013.json          seconds an image, committed before those images
    <root>/features/<encoder>/<configuration | prompts | reference-...>/00003-of-00013.parquet
    <root>/scores/<configuration>-<hash of what it was scored on>.json
    <root>/failed/<configuration>/00003-of-00013.json           units set aside, each with its reason
    <root>/report-images/<configuration>-3.webp                 images that are too large for report.html, beside it

What is listed is done: there is no other state. A file is complete from the moment that it is visible, and the first
that is committed under a name stays. `NAME.bad` is a file that was not what its name says, kept to be looked at.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from pipelines.engine import records
from pipelines.engine.files import below, check_folder, put_file
from pipelines.engine.retry import PATIENCE, is_busy, persistently
from pipelines.engine.urls import OBJECT_STORES, clean, local_path, refuse_credentials
from postdiff.terminal import one_line

T = TypeVar("T")
SHARD = re.compile(r"(.+)/(\d{5})-of-(\d{5})\.(parquet|json)")  # folder, index, count, format: see `shard_name`
LISTED = 32  # folders of a bucket whose names are asked for at once
ANSWER = 60.0  # seconds that a remote store has, to be opened and to be written to


class Store:
    """A folder at any pyarrow.fs or fsspec URL, or a local path. Picklable: workers open it themselves.

    Raises: ValueError, in one line and without credentials, if it cannot be opened.
    """

    def __init__(self, url: str | Path):
        path = local_path(url)
        self.is_local = path is not None
        self.url = str(url) if path is None else path
        self.patience = PATIENCE  # seconds for which a call is made again when the store does not answer
        if path is None:
            refuse_credentials(self.url)
        self._open()

    def _open(self) -> None:
        if self.is_local:
            self.fs, self.root = fs.LocalFileSystem(), self.url
            return
        try:
            self.fs, self.root = in_time(self._from_uri)
        except Exception as error:  # of a library that reaches over a network: whatever it likes
            raise ValueError(f"cannot open store {self.shown!r}: {clean(error)}") from None
        self.root = self.root.rstrip("/")
        if not self.root:
            raise ValueError(f"cannot open store {self.shown!r}: expected a bucket or a folder after ://")

    def _from_uri(self) -> tuple[fs.FileSystem, str]:
        try:
            return fs.FileSystem.from_uri(self.url)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            if "Unrecognized filesystem type" not in str(error) and not isinstance(error, pa.ArrowNotImplementedError):
                raise  # pyarrow knows the scheme: this is the cause
        import fsspec

        other, root = fsspec.core.url_to_fs(self.url)
        return fs.PyFileSystem(fs.FSSpecHandler(other)), root

    def __reduce__(self):
        return Store, (self.url,)

    @property
    def shown(self) -> str:
        """The URL as it may be printed: without the credentials that one can carry."""
        return one_line(self.url) if self.is_local else clean(self.url)

    @property
    def appears_whole(self) -> bool:
        """Is a file invisible until its stream is closed? So it is in object stores."""
        if isinstance(self.fs, fs.PyFileSystem):
            protocol = self.fs.handler.fs.protocol  # fsspec's: one name, or several
            return not OBJECT_STORES.isdisjoint([protocol] if isinstance(protocol, str) else protocol)
        return self.fs.type_name in OBJECT_STORES

    def _persist(self, work: Callable[[], T]) -> T:
        return persistently(work, self.is_local, self.patience)

    def put(self, name: str, data: bytes) -> None:
        """Write `name` in one piece: readers see all of it or none. A second put of a name replaces the first."""
        self._persist(partial(self._put, name, data, True))

    def commit(self, name: str, data: bytes) -> bool:
        """As `put`, but what is there already stays: the first writer wins. Returns whether this was the first.

        Of two that write at once one does, in a folder with links and in a bucket with conditional writes. Elsewhere
        both may, and the last one's stays: `check_writable` tells it.
        """
        return self._persist(partial(self._put, name, data, False))

    def _put(self, name: str, data: bytes, replace: bool) -> bool:
        path = f"{self.root}/{name}"
        if self.is_local:
            return put_file(path, data, replace)
        if not replace and self._has(name):  # before the bytes are sent in vain
            return False
        if not replace and self._conditional:
            return self._create(name, data)
        # Others than object stores write in place: there a finished file is moved.
        target = path if self.appears_whole else f"{path.rpartition('/')[0]}/.tmp-{uuid4().hex}"
        try:
            self._write(target, data)
            size = self.fs.get_file_info(target).size
            if size != len(data):
                self.fs.delete_file(target)
                raise OSError(f"{path}: wrote {len(data)} bytes, the store holds {size}")
            if target != path:
                if self._has(name):
                    self.fs.delete_file(path)
                self.fs.move(target, path)
            return True
        except BaseException:
            if target != path:
                with suppress(OSError):  # the first error is the one to tell
                    self.fs.delete_file(target)
            raise

    @cached_property
    def _conditional(self) -> Callable[[str, bytes], bool] | None:
        """`bucket.create` of an object that is not there yet; None where the store is no bucket of S3 or GCS."""
        if self.is_local or self.fs.type_name not in ("s3", "gcs"):
            return None
        from pipelines.engine import bucket  # its libraries take 0.2 s to load

        return partial(bucket.create, bucket.conditional(self.fs, self.root.partition("/")[0]))

    def _create(self, name: str, data: bytes) -> bool:
        assert self._conditional
        wrote = self._conditional(f"{self.root}/{name}".partition("/")[2], data)
        if not wrote and not self._has(name):  # S3's answer to a write beside a removal, too: it asks for another try
            raise OSError(f"{self.shown}/{name} was refused as if it were there, and is not")
        return wrote

    def _write(self, path: str, data: bytes) -> None:
        if isinstance(self.fs, fs.PyFileSystem):  # in one call: a stream that is dropped half-way would be completed
            other = self.fs.handler.fs
            other.makedirs(path.rpartition("/")[0], exist_ok=True)
            other.pipe_file(path, data)
            return
        # An object appears when its stream is closed. No `with`: on an error that would close it, and commit half.
        stream = self.fs.open_output_stream(path)
        stream.write(data)
        stream.close()

    def get(self, name: str) -> bytes:
        def read() -> bytes:
            with self.fs.open_input_stream(f"{self.root}/{name}") as stream:
                return stream.read()

        return self._persist(read)

    def has(self, name: str) -> bool:
        return self._persist(partial(self._has, name))

    def _has(self, name: str) -> bool:
        return self.fs.get_file_info(f"{self.root}/{name}").type == fs.FileType.File

    def table(self, name: str, columns: Sequence[str] | None = None, made_of: str | None = None) -> pa.Table:
        """The columns asked for of a Parquet file, all of which is read and checked; see `records.from_parquet`."""
        return records.from_parquet(self.get(name), name, made_of, columns)

    def record(self, name: str) -> dict[str, Any]:
        """The object of a sealed JSON file; see `records.from_json`."""
        return records.from_json(self.get(name), name)

    def names(self, folder: str = "") -> set[str]:
        """Names of the complete files below `folder`."""
        if self.is_local:
            base = f"{self.root}/{folder}".rstrip("/")
            names = self._persist(lambda: [path[len(self.root) + 1 :] for path in below(base)])
        else:
            names = [name for name, _ in self.listing(folder)]
        return {name for name in names if not name.rpartition("/")[2].startswith(".tmp-")}

    def listing(self, folder: str = "") -> Iterator[tuple[str, fs.FileInfo]]:
        """Names of all files below `folder`, those that are being written or were left half-written too, and what the
        file system tells of each.

        A folder is one call, or one for each 1,000 names in a bucket, which is asked for LISTED folders at once.
        """
        level = [f"{self.root}/{folder}".rstrip("/")]
        with ThreadPoolExecutor(1 if self.is_local else LISTED) as pool:
            while level:
                folders = []
                for at in range(0, len(level), LISTED):
                    for info in chain.from_iterable(pool.map(self._in_folder, level[at : at + LISTED])):
                        if info.type == fs.FileType.Directory:
                            folders.append(info.path)
                        elif info.type == fs.FileType.File:
                            yield info.path[len(self.root) + 1 :], info
                level = folders

    def _in_folder(self, path: str) -> list[fs.FileInfo]:
        return self._persist(lambda: self.fs.get_file_info(fs.FileSelector(path, allow_not_found=True)))

    def folders(self) -> list[str]:
        """Names of the folders right below the root."""
        listed = self._in_folder(self.root)
        return sorted(info.path[len(self.root) + 1 :] for info in listed if info.type == fs.FileType.Directory)

    def shards(self, folder: str) -> list[str]:
        """Names of the shards of a folder, in order; no other file that lies there. Raises ValueError if one lacks."""
        matches = (match for match in map(SHARD.fullmatch, self.names(folder)) if match)
        counts = {match[0]: int(match[3]) for match in matches if match[4] == "parquet"}
        for count in set(counts.values()):
            expected = [shard_name(folder, i, count) for i in range(count)]
            if lacking := [name for name in expected if name not in counts]:
                raise ValueError(f"{self.shown}/{folder} has not all of its {count} shards: {lacking[0]} is missing")
        return sorted(counts)

    def delete(self, name: str) -> None:
        """Remove `name` if it is there."""

        def remove() -> None:
            if self._has(name):
                self.fs.delete_file(f"{self.root}/{name}")

        self._persist(remove)

    def set_aside(self, name: str) -> None:
        """Move a file that is not what its name says out of the way: to `name`.bad, so that it is made again."""

        def move() -> None:
            if self._has(name):
                if self._has(f"{name}.bad"):
                    self.fs.delete_file(f"{self.root}/{name}.bad")
                self.fs.move(f"{self.root}/{name}", f"{self.root}/{name}.bad")

        self._persist(move)

    def check_writable(self) -> None:
        """Raise ValueError, naming the store, if it cannot be written. Leaves nothing behind, no folder either.

        Tells in a line where the first of two writers does not win: numbers stay what they are, since both write the
        same, but of two drivers or specs that come at one moment both may be let in.
        """
        try:
            if self.is_local:
                first_wins = check_folder(Path(self.root))
            else:
                hasty, name = Store(self.url), f".tmp-{uuid4().hex}"
                hasty.patience = 0  # what is wrong is told now; a store that is busy is asked again
                first_wins = persistently(
                    lambda: in_time(lambda: hasty._try_to_write(name)), False, self.patience, is_busy
                )
        except Exception as error:  # of a library that reaches over a network: whatever it likes
            raise ValueError(f"store {self.shown!r} is not writable: {clean(error)}") from None
        if not first_wins:
            lacks = "links" if self.is_local else "conditional writes (If-None-Match)"
            print(f"warning: store {self.shown!r} has no {lacks}: run one driver at a time on it", file=sys.stderr)

    def _try_to_write(self, name: str) -> bool:
        """Whether the first of two writers wins. `name` may be there, of a try that was broken off."""
        if self._conditional:
            self._create(name, b"")
            first_wins = not self._create(name, b"")
        else:
            self.put(name, b"")
            first_wins = False
        self.delete(name)
        return first_wins

    def check(self, spec: dict) -> None:
        """Raise ValueError if this is the store of another spec: their shards would mix."""
        new = json.loads(json.dumps(spec))
        if not self.has("spec.json"):
            return
        old = self.record("spec.json")
        differs = [f"{k}: the store has {old.get(k)!r}, this run {new.get(k)!r}" for k in new if old.get(k) != new[k]]
        if differs:
            raise ValueError(f"store {self.shown!r} is of another spec ({'; '.join(differs)}); choose another --out")

    def claim(self, spec: dict) -> None:
        """Make this the store of `spec`. Of several that claim it at once one does, and the others raise ValueError, as
        they do if it is another's."""
        self.commit("spec.json", records.to_json(spec, "spec.json"))
        self.check(spec)


def in_time(work: Callable[[], T]) -> T:
    """What `work` returns or raises; OSError if that takes longer than `ANSWER`: clients of object stores try for a
    quarter of an hour to find credentials or a network that are not there."""
    answer: Future = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()  # an executor's would be waited for at exit
    if wait([answer], ANSWER).not_done:
        raise OSError(f"no answer in {ANSWER:g} s (no network, or no credentials?)")
    return answer.result()


def shard_name(folder: str, index: int, count: int) -> str:
    return f"{folder}/{index:05d}-of-{count:05d}.parquet"
