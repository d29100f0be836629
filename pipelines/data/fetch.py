"""The paper's data sets as folders that every job reads: images beside a metadata.jsonl (file_name, text, id, sha256).

COCO comes as its own zips, checked by their MD5. The others are Parquet files of images and captions, as the Hugging
Face hub keeps them, of which a fixed draw is taken: files in the order of a hash of their names, and of each file the
rows whose ids' hashes come first. So the draw is the same for everybody, and only those files are downloaded.
"""

import hashlib
import http.client
import io
import json
import os
import re
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipelines.data import coco, images, prompts, rows
from pipelines.engine.urls import checked_length

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
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    for url, (md5, wanted) in COCO2014.items():
        file = out / url.rpartition("/")[2]
        if not file.is_file():
            _download(url, file)
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "md5").hexdigest()
        if digest != md5:
            raise ValueError(f"{file} has MD5 {digest}, expected {md5}: remove it, and it is downloaded again ({url})")
        with zipfile.ZipFile(file) as packed:
            names = [name for name in packed.namelist() if name.startswith(wanted) and not name.endswith("/")]
            for name in tqdm(names, desc=file.name, unit="file"):
                if not (out / name).is_file() or (out / name).stat().st_size != packed.getinfo(name).file_size:
                    packed.extract(name, out)


def _download(url: str, file: Path) -> None:
    part = file.with_name(file.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(part, "wb") as written:
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, desc=file.name, unit="B", unit_scale=True) as bar:
                while chunk := answer.read(2**20):
                    bar.update(written.write(chunk))
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"cannot download {url} to {str(part)!r}: {_reason(error)}") from error
    if size and part.stat().st_size != size:
        raise OSError(f"{url}: {part.stat().st_size} of {size} bytes came; run again")
    os.replace(part, file)


def draw(source: Source, out: Path) -> tuple[int, Counter[str]]:
    """Draw `source` into the folder `out`; returns how many pairs, and how many rows were left out for which reason.

    Left out is what has no image that can be read, or no caption that can be a prompt. Run it again after a failure,
    and it goes on after the last whole file.

    Raises: ValueError if the files have no such columns, or `out` is of another draw, before anything is written
        there; OSError if they cannot be had.
    """
    spec = json.dumps({"files": _shown(source.files), "text": source.text, "n": source.n, "per_file": source.per_file})
    claim = out / "source.json"
    check_folder(out)
    if claim.is_file() and claim.read_text("utf-8") != spec:
        raise ValueError(f"{out} holds another draw ({claim.read_text('utf-8')}); choose another --out")
    system, names = _listed(source.files)
    with _parquet(system, names[0], source):  # what cannot be read claims no folder
        (out / "parts").mkdir(parents=True, exist_ok=True)
    claim.write_text(spec, "utf-8")
    drawn: list[dict] = []
    left_out: Counter[str] = Counter()
    with tqdm(total=source.n or len(names), desc=out.name, unit="pair" if source.n else "file") as bar:
        for name in names:
            if source.n and len(drawn) >= source.n:
                break
            part = out / "parts" / f"{_hash(name)[:16]}.jsonl"
            if not part.is_file():
                new = _rows(system, name, source, out, {row["id"] for row in drawn})
                part.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in new), "utf-8")
                os.replace(part.with_suffix(".tmp"), part)
            read = [json.loads(line) for line in part.read_text("utf-8").splitlines()]
            left_out.update(row["left_out"] for row in read if "left_out" in row)
            new = [row for row in read if "left_out" not in row]
            bar.update(min(len(new), source.n - len(drawn)) if source.n else 1)
            drawn += new
    if source.n and len(drawn) < source.n:
        raise ValueError(
            f"{_shown(source.files)} gave {len(drawn)} pairs at {source.per_file} a file, expected {source.n}"
        )
    chosen = drawn[: source.n]
    for row in drawn[len(chosen) :]:  # as references, all images of the folder are used
        (out / row["file_name"]).unlink(missing_ok=True)
    (out / METADATA).write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return len(chosen), left_out


def check_folder(out: Path) -> None:
    """Raises ValueError if something else than a folder is at `out`, or its name is too long for one."""
    if os.path.exists(out) and not out.is_dir():
        raise ValueError(f"--out must be a folder, got {str(out)!r}, which is none")
    checked_length(out)


def _shown(text: str) -> str:
    """An address, or what was said of one, without the credentials in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _reason(error: Exception) -> str:
    """What went wrong, on one line: of the hub's client that tells more below."""
    return _shown(next(iter(str(error).splitlines()), "") or repr(error))


def _listed(files: str) -> tuple[Any, list[str]]:
    try:
        system, pattern = fsspec.core.url_to_fs(files)
        names = system.glob(pattern)
    except Exception as error:  # of the hub's client, which are many
        raise OSError(f"cannot list {_shown(files)}: {type(error).__name__}: {_reason(error)}") from error
    if not names:
        raise ValueError(f"no file matches {_shown(files)}")
    return system, sorted(names, key=lambda name: _hash(Path(name).name))


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


@contextmanager
def _parquet(system: Any, name: str, source: Source) -> Iterator[pq.ParquetFile]:
    """A file of captions and images, open. Raises: ValueError if it is none; OSError if it cannot be read."""
    try:
        with system.open(name, "rb") as opened:
            parquet = pq.ParquetFile(opened)
            kinds = {field.name: field.type for field in parquet.schema_arrow}
            if missing := [column for column in (source.text, "image") if column not in kinds]:
                raise ValueError(f"{name} has no column {' or '.join(missing)}: it has {rows.listed(kinds)}")
            image, text = kinds["image"], kinds[source.text]
            if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
                raise ValueError(f"{name}: the column image must hold the bytes of images, as a struct, got {image}")
            if not _is_text(text) and not (pa.types.is_list(text) and _is_text(text.value_type)):
                raise ValueError(f"{name}: the column {source.text} must hold text, or lists of it, got {text}")
            yield parquet
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name} is no Parquet file: {_reason(error)}") from error
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the hub's client
        raise OSError(f"cannot read {name}: {type(error).__name__}: {_reason(error)}") from error


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _rows(system: Any, name: str, source: Source, out: Path, before: Collection[str]) -> list[dict]:
    """The chosen rows of one file: their images written, what metadata.jsonl says of them returned, or why they are
    left out. `before`: ids of other files, which none here may have."""
    with _parquet(system, name, source) as parquet:
        ids = [f"{Path(name).name}/{i}" for i in range(parquet.metadata.num_rows)]
        if "id" in parquet.schema_arrow.names:
            ids = [str(id) for id in parquet.read(["id"])["id"].to_pylist()]
        twice = next((id for id, times in Counter(ids).items() if times > 1 or id in before), None)
        if twice is not None:
            raise ValueError(f"{name}: ids must differ, in all files, got {twice!r} twice")
        chosen = sorted(range(len(ids)), key=lambda i: _hash(ids[i]))[: source.per_file]
        by_index: dict[int, dict] = {}
        start = 0
        for group in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            within = [i for i in chosen if start <= i < end]
            if within:
                table = parquet.read_row_group(group, [source.text, "image"])
                for i in within:
                    text, image = (table[column][i - start].as_py() for column in (source.text, "image"))
                    by_index[i] = _written(ids[i], text, (image or {}).get("bytes"), out)
            start = end
    return [by_index[i] for i in chosen]


def _written(id: str, text: str | list[str] | None, data: bytes | None, out: Path) -> dict:
    text = text if isinstance(text, str) else (text or [""])[0]  # some have lists of captions
    if prompts.unfit(text):
        return {"id": id, "left_out": "without a caption"}
    try:
        data = data or b""
        picture = images.open_picture(data, id)
    except ValueError:
        return {"id": id, "left_out": "without an image that can be read"}
    suffix = SUFFIXES.get(picture.format, ".png")
    if picture.format not in SUFFIXES:
        buffer = io.BytesIO()
        picture.rgb.save(buffer, "PNG")
        data = buffer.getvalue()
    name = _hash(id)[:16] + suffix  # an id is data, and never part of a path
    (out / name).write_bytes(data)
    return {"file_name": name, "text": text.strip(), "id": id, "sha256": sha256(data).hexdigest()}
