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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

OBJECT_STORES = {"s3", "s3a", "gcs", "gs", "az", "abfs", "abfss", "adl", "r2", "oss", "memory"}


class Store:
    """A folder at any pyarrow.fs or fsspec URL, or a local path. Picklable: workers open it themselves."""

    def __init__(self, url: str | Path):
        self.url = str(url)
        if "://" not in self.url:
            self.url = str(Path(self.url).absolute())  # a worker's own folder is another
        self._open()

    def _open(self) -> None:
        if "://" not in self.url:
            self.fs, self.root = fs.LocalFileSystem(), self.url
            return
        try:
            self.fs, self.root = fs.FileSystem.from_uri(self.url)
        except (ValueError, OSError):
            import fsspec

            try:
                other, self.root = fsspec.core.url_to_fs(self.url)
            except (ValueError, ImportError) as error:
                raise ValueError(f"cannot open store {self.shown!r}: {error}") from error
            self.fs = fs.PyFileSystem(fs.FSSpecHandler(other))
        self.root = self.root.rstrip("/")

    def __reduce__(self):
        return Store, (self.url,)

    @property
    def shown(self) -> str:
        """The URL as it may be printed: without the credentials that one can carry."""
        return re.sub(r"//[^/@]*@", "//", self.url).split("?")[0]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, fs.LocalFileSystem)

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

    def check_writable(self) -> None:
        """Raise ValueError, naming the store, if it cannot be written."""
        try:
            self.put(".writable", b"")
            self.delete(".writable")
        except OSError as error:
            raise ValueError(f"store {self.shown!r} is not writable: {error}") from error

    def claim(self, spec: dict) -> None:
        """Make this the store of `spec`, or raise ValueError if it is another's: their shards would mix."""
        new = json.loads(json.dumps(spec))
        if not self.has("spec.json"):
            self.put("spec.json", json.dumps(new, indent=2).encode())
            return
        old = json.loads(self.get("spec.json"))
        differs = [f"{k}: the store has {old.get(k)!r}, this run {new.get(k)!r}" for k in new if old.get(k) != new[k]]
        if differs:
            raise ValueError(f"store {self.shown!r} is of another spec ({'; '.join(differs)}); choose another --out")


def shard_name(folder: str, index: int, count: int) -> str:
    return f"{folder}/{index:05d}-of-{count:05d}.parquet"
