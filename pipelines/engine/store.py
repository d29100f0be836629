"""Shards of records on any file system: written once, atomically, under names that say what they are.

    <root>/spec.json                                            what this store was made for
    <root>/images/<configuration>/00003-of-00013.parquet
    <root>/features/<encoder>/<configuration | prompts | reference-...>/00003-of-00013.parquet
    <root>/scores/<configuration>-<hash of what it was scored on>.json
    <root>/failed/<configuration>/00003-of-00013.json           units set aside, each with its reason

What is listed is done: there is no other state. A file is complete from the moment that it is visible.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from postdiff.terminal import one_line

T = TypeVar("T")
ANSWER = 60.0  # seconds that a remote store has, to be opened and to be written to
OBJECT_STORES = {"s3", "s3a", "gcs", "gs", "az", "abfs", "abfss", "adl", "r2", "oss", "memory"}


def local_path(where: str | Path) -> str | None:
    """The absolute path of a store or folder that is named by a path or a file:/// URL; None for any other URL.

    A leading ~ is the home folder. A path is taken as it stands: ? and # are parts of a name.

    Raises: ValueError if it is empty, or looks like a URL and is none (s3:/x, file:x, file://host/x, file:///x?y).
    """
    text = str(where)
    if not text:
        raise ValueError("a store must be a folder or a URL, got ''")
    if text.startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
            raise ValueError(f"a file URL must be file:///ABSOLUTE/PATH (with %3F for ?, %23 for #), got {text!r}")
        return str(Path(unquote(parts.path)).absolute())
    if "://" in text:
        return None
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text)
    if scheme and (scheme[1].lower() == "file" or scheme[1].lower() in schemes()):
        raise ValueError(f"a URL must be {scheme[1]}://..., got {text!r} (a folder of that name is ./{text})")
    return str(Path(os.path.expanduser(text)).absolute())  # a worker's own folder is another


def schemes() -> set[str]:
    """What URLs of stores begin with."""
    import fsspec

    return {*fsspec.available_protocols(), *OBJECT_STORES, "hdfs", "viewfs"}


def below(url: str | Path, name: str) -> str:
    """The URL of the folder `name` in the store `url`: in front of its query, where it has one."""
    path, query, rest = (str(url), "", "") if local_path(url) else str(url).partition("?")
    return f"{path.rstrip('/')}/{name}{query}{rest}"


def clean(text: object) -> str:
    """`text` on one line, without the credentials and the query of any URL in it."""
    hidden = re.sub(r"//[^\s/@]*:[^\s@]*@|//[^\s/@]*@", "//", one_line(text))
    return re.sub(r"([A-Za-z][\w+.-]*://[^\s?'\"]*)\?[^\s'\"]*", r"\1", hidden)


class Store:
    """A folder at any pyarrow.fs or fsspec URL, or a local path. Picklable: workers open it themselves.

    Raises: ValueError, in one line and without credentials, if it cannot be opened, and why.
    """

    def __init__(self, url: str | Path):
        path = local_path(url)
        self.is_local = path is not None
        self.url = str(url) if path is None else path
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

    def put(self, name: str, data: bytes) -> None:
        """Write `name` in one piece: readers see all of it or none. A second put of a name replaces the first."""
        path = f"{self.root}/{name}"
        if self.is_local:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".tmp-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            return
        # Others than object stores write in place: there a finished file is moved.
        target = path if self.appears_whole else f"{path.rpartition('/')[0]}/.tmp-{uuid4().hex}"
        try:
            self._write(target, data)
            size = self.fs.get_file_info(target).size
            if size != len(data):
                self.fs.delete_file(target)
                raise OSError(f"{path}: wrote {len(data)} bytes, the store holds {size}")
            if target != path:
                self.delete(name)
                self.fs.move(target, path)
        except BaseException:
            if target != path:
                with suppress(OSError):  # the first error is the one to tell
                    self.fs.delete_file(target)
            raise

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
        with self.fs.open_input_stream(f"{self.root}/{name}") as stream:
            return stream.read()

    def has(self, name: str) -> bool:
        return self.fs.get_file_info(f"{self.root}/{name}").type == fs.FileType.File

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The columns asked for of a Parquet file: only they are read, over a network too."""
        with self.fs.open_input_file(f"{self.root}/{name}") as file:
            return pq.read_table(file, columns=columns)

    def names(self, folder: str = "") -> set[str]:
        """Names of the complete files below `folder`: one listing, whatever their number."""
        base = f"{self.root}/{folder}".rstrip("/")
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        files = (info.path for info in self.fs.get_file_info(selector) if info.type == fs.FileType.File)
        return {path[len(self.root) + 1 :] for path in files if not path.rsplit("/", 1)[-1].startswith(".tmp-")}

    def delete(self, name: str) -> None:
        """Remove `name` if it is there."""
        if self.has(name):
            self.fs.delete_file(f"{self.root}/{name}")

    def json(self, name: str) -> dict:
        """The JSON object that `name` holds. Raises ValueError, naming the file, if it holds none."""
        return json_object(self.get(name), f"{self.shown}/{name}")

    def check_writable(self) -> None:
        """Raise ValueError, naming the store, if it cannot be written. Leaves nothing behind, no folder either."""
        try:
            if self.is_local:
                check_folder(Path(self.root))
            else:
                in_time(self._write_and_delete)
        except Exception as error:  # of a library that reaches over a network: whatever it likes
            raise ValueError(f"store {self.shown!r} is not writable: {clean(error)}") from None

    def _write_and_delete(self) -> None:
        self.put(".writable", b"")
        self.delete(".writable")

    def check(self, spec: dict) -> None:
        """Raise ValueError if this is the store of another spec: their shards would mix."""
        new = json.loads(json.dumps(spec))
        if not self.has("spec.json"):
            return
        old = self.json("spec.json")
        differs = [f"{k}: the store has {old.get(k)!r}, this run {new.get(k)!r}" for k in new if old.get(k) != new[k]]
        if differs:
            raise ValueError(f"store {self.shown!r} is of another spec ({'; '.join(differs)}); choose another --out")

    def claim(self, spec: dict) -> None:
        """Make this the store of `spec`. Raises ValueError if it is another's."""
        self.check(spec)
        if not self.has("spec.json"):
            self.put("spec.json", json.dumps(spec, indent=2).encode())


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


def json_object(data: bytes, where: str) -> dict:
    """The JSON object in `data`. Raises ValueError, naming `where` it is from, if it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise ValueError(f"{where} must hold JSON, got {one_line(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(value).__name__}")
    return value


def check_folder(folder: Path) -> None:
    """Raise OSError if `folder` is no folder that can be written to, or made. Leaves nothing behind."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError("expected a folder, got a file")
    missing = [at for at in (folder, *folder.parents) if not at.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for at in missing:
            with suppress(OSError):  # not made, or another process's by now
                at.rmdir()


def shard_name(folder: str, index: int, count: int) -> str:
    return f"{folder}/{index:05d}-of-{count:05d}.parquet"
