"""The paper's data sets as folders that every job reads: images beside a metadata.jsonl (file_name, text, id, sha256).

COCO comes as its own zips, checked by their MD5. The others are Parquet files of images and captions, as the Hugging
Face hub keeps them, of which a fixed draw is taken: files in the order of a hash of their names, and of each file the
rows whose ids' hashes come first. So the draw is the same for everybody, and only those files are downloaded.
"""

import hashlib
import io
import json
import os
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from pipelines import coco

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Source:
    """files: a glob of Parquet files, any fsspec URL; their column `image` holds bytes. text: the captions' column.
    n: rows to draw (None: all); per_file: at most so many of one file."""

    files: str
    text: str
    n: int | None = None
    per_file: int | None = None


SOURCES = {
    # App. E: 10,000 prompts, drawn at random. Of its two captions an image, the one that fits CLIP's 77 tokens. 200
    # files: the more, the more of its classes; the fewer, the less is downloaded.
    "imagenet21k-recaption": Source(
        "hf://datasets/gmongaras/Imagenet21K_Recaption/data/*.parquet", "recaption_short", 10_000, 50
    ),
    # App. F trains on it.
    "laion-art": Source("hf://datasets/fantasyfish/laion-art/data/*.parquet", "text"),
}
COCO2014 = {  # zip -> (its MD5, what is needed of it)
    coco.SOURCE: ("0a379cfc70b0e71301e0f377548639bd", "annotations/captions_val2014.json"),
    coco.IMAGES: ("a3d79f5ed8d289b7a7554ce06a5782b3", "val2014/"),
}


def fetch_coco(out: Path) -> None:
    """`out`/annotations/captions_val2014.json and `out`/val2014/*.jpg. A zip that is there already is not downloaded.

    Raises: ValueError for a zip of another checksum; OSError if it cannot be had.
    """
    out.mkdir(parents=True, exist_ok=True)
    for url, (md5, wanted) in COCO2014.items():
        file = out / url.rpartition("/")[2]
        if not file.is_file():
            _download(url, file)
        with open(file, "rb") as opened:
            found = hashlib.file_digest(opened, "md5").hexdigest()
        if found != md5:
            raise ValueError(f"{file} has MD5 {found}, expected {md5}: remove it, and it is downloaded again ({url})")
        with zipfile.ZipFile(file) as packed:
            names = [name for name in packed.namelist() if name.startswith(wanted) and not name.endswith("/")]
            for name in tqdm(names, desc=file.name, unit="file"):
                if not (out / name).is_file() or (out / name).stat().st_size != packed.getinfo(name).file_size:
                    packed.extract(name, out)


def _download(url: str, file: Path) -> None:
    part = file.with_name(file.name + ".part")
    with urllib.request.urlopen(url, timeout=60) as answer, open(part, "wb") as written:
        size = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=file.name, unit="B", unit_scale=True) as bar:
            while chunk := answer.read(2**20):
                bar.update(written.write(chunk))
    if size and part.stat().st_size != size:
        raise OSError(f"{url}: {part.stat().st_size} of {size} bytes came; run again")
    os.replace(part, file)


def draw(source: Source, out: Path) -> int:
    """Draw `source` into the folder `out`; returns how many pairs. What cannot be decoded, or has no caption, is left
    out. Run it again after a failure, and it goes on after the last whole file.

    Raises: ValueError if the files have no such columns, or `out` is of another draw; OSError if they cannot be had.
    """
    spec = json.dumps({"files": source.files, "text": source.text, "n": source.n, "per_file": source.per_file})
    (out / "parts").mkdir(parents=True, exist_ok=True)
    claim = out / "source.json"
    if claim.is_file() and claim.read_text() != spec:
        raise ValueError(f"{out} holds another draw ({claim.read_text()}); choose another --out")
    claim.write_text(spec)
    system, names = _listed(source.files)
    lines: list[str] = []
    with tqdm(total=source.n or len(names), desc=out.name, unit="pair" if source.n else "file") as bar:
        for name in names:
            left = source.n - len(lines) if source.n else None
            if left == 0:
                break
            part = out / "parts" / f"{_hash(name)[:16]}.jsonl"
            if not part.is_file():
                rows = _rows(system, name, source, out)
                part.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
                os.replace(part.with_suffix(".tmp"), part)
            new = part.read_text("utf-8").splitlines()[:left]
            lines += new
            bar.update(len(new) if source.n else 1)
    if source.n and len(lines) < source.n:
        raise ValueError(f"{source.files} gave {len(lines)} pairs at {source.per_file} a file, expected {source.n}")
    (out / METADATA).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _listed(files: str) -> tuple[Any, list[str]]:
    try:
        system, pattern = fsspec.core.url_to_fs(files)
        names = system.glob(pattern)
    except Exception as error:  # of the hub's client, which are many
        raise OSError(
            f"cannot list {files}: {error!r}. Download its files, and give them as 'FOLDER/*.parquet'"
        ) from error
    if not names:
        raise ValueError(f"no file matches {files}")
    return system, sorted(names, key=lambda name: _hash(Path(name).name))


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _rows(system, name: str, source: Source, out: Path) -> list[dict]:
    """The chosen rows of one file: their images written, what metadata.jsonl says of them returned."""
    with system.open(name, "rb") as opened:
        try:
            parquet = pq.ParquetFile(opened)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{name} is no Parquet file: {error}") from error
        columns = parquet.schema_arrow.names
        if missing := [column for column in (source.text, "image") if column not in columns]:
            raise ValueError(f"{name} has no column {' or '.join(missing)}: it has {', '.join(columns)}")
        ids = [f"{Path(name).name}/{i}" for i in range(parquet.metadata.num_rows)]
        if "id" in columns:
            ids = [str(id) for id in parquet.read(["id"])["id"].to_pylist()]
        chosen = sorted(range(len(ids)), key=lambda i: _hash(ids[i]))[: source.per_file]
        found: dict[int, dict] = {}
        start = 0
        for group in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            here = [i for i in chosen if start <= i < end]
            if here:
                table = parquet.read_row_group(group, [source.text, "image"])
                for i in here:
                    text, image = (table[column][i - start].as_py() for column in (source.text, "image"))
                    row = _written(ids[i], text, (image or {}).get("bytes"), out)
                    found |= {i: row} if row else {}
            start = end
    return [found[i] for i in chosen if i in found]


def _written(id: str, text: str | Sequence[str] | None, data: bytes | None, out: Path) -> dict | None:
    text = text if isinstance(text, str) else (list(text or []) or [""])[0]  # some have lists of captions
    if not text.strip() or not data:
        return None
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except OSError:
        return None
    if image.format not in SUFFIXES:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        data, suffix = buffer.getvalue(), ".png"
    else:
        suffix = SUFFIXES[image.format]
    name = _hash(id)[:16] + suffix  # an id is data, and never part of a path
    (out / name).write_bytes(data)
    return {"file_name": name, "text": text.strip(), "id": id, "sha256": sha256(data).hexdigest()}
