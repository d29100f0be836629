"""The records that cross a stage border, as Parquet schemas. One file holds the records of one unit of work.

Each file says under which name it was written and of what it was made, and is sealed: it holds the SHA-256 of its own
bytes. Whoever reads it checks both, so that a flipped bit, a torn file or another store's is an error that names it.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.engine.cluster import DamagedError


@dataclass(frozen=True)
class Prompt:
    """A text to draw. `id` names it for ever: seeds come from it, so it must not depend on order or number."""

    id: str
    text: str


# With this metadata, Hugging Face `datasets` shows `image` as images.
_FEATURES = {
    "prompt_id": {"dtype": "string", "_type": "Value"},
    "prompt": {"dtype": "string", "_type": "Value"},
    "seed": {"dtype": "int64", "_type": "Value"},
    "configuration": {"dtype": "string", "_type": "Value"},
    "plan": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
}
IMAGES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("configuration", pa.string()),  # id of the configuration
        ("plan", pa.string()),  # id of its plan
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),  # lossless WebP
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
TEXT = pa.schema(
    [
        ("prompt_id", pa.string()),  # "" for the empty prompt
        ("half", pa.string()),  # cond, uncond
        ("tensor", pa.string()),  # text, pooled, mask
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("data", pa.binary()),
    ]
)
TRAJECTORY = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("step", pa.int32()),
        ("scale", pa.float32()),  # of the step's resolution
        ("image", IMAGES.field("image").type),  # what the step predicts, lossless WebP; of the first prompts alone
        ("clip_score", pa.float64()),
    ]
)
FEATURES = pa.schema([("prompt_id", pa.string()), ("feature", pa.list_(pa.float32()))])


MARK, ZEROS = b"sha256:", b"0" * 64


def to_parquet(schema: pa.Schema, columns: Mapping[str, Sequence], name: str, made_of: str) -> bytes:
    """Columns as the bytes of a sealed Parquet file. Small row groups: one image can be read without the others.

    name: the file's, in the store. made_of: digest of what it was made of, of prompts their `fingerprint`.
    """
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)
    sink = pa.BufferOutputStream()
    # Images are compressed already; a dictionary of them would only cost time. Page checksums are for other readers.
    writer = pq.ParquetWriter(sink, schema, compression="none", use_dictionary=False, write_page_checksum=True)
    writer.write_table(table, row_group_size=50)
    metadata = json.dumps({"name": name, "made_of": made_of})
    writer.add_key_value_metadata({"postdiff": metadata, "seal": (MARK + ZEROS).decode()})
    writer.close()
    return _seal(sink.getvalue().to_pybytes())


def from_parquet(data: bytes, name: str, made_of: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that was written as `name`. Raises DamagedError if the bytes are others, or of another name or, where
    it is given, made of something else."""
    _check_seal(data, name)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    except pa.ArrowInvalid:
        raise DamagedError(name, "must be Parquet, got a sealed file of another format") from None
    with file:
        metadata = json.loads((file.metadata.metadata or {}).get(b"postdiff", b"{}"))
        _check_owner(metadata, name, made_of)
        return file.read(columns).replace_schema_metadata({b"made_of": metadata["made_of"].encode()})


def made_of(table: pa.Table) -> str:
    """What a table that `from_parquet` read was made of."""
    return table.schema.metadata[b"made_of"].decode()


def to_json(value: Mapping[str, Any], name: str) -> bytes:
    """An object as sealed JSON that a person can read."""
    return _seal(json.dumps({**value, "name": name, "seal": (MARK + ZEROS).decode()}, indent=2).encode())


def from_json(data: bytes, name: str) -> dict[str, Any]:
    """The object that was written as `name`. Raises DamagedError if the bytes are others, or of another name."""
    _check_seal(data, name)
    try:
        record = json.loads(data)
    except ValueError:
        raise DamagedError(name, "must be JSON, got a sealed file of another format") from None
    _check_owner(record, name, None)
    return {key: value for key, value in record.items() if key not in ("name", "seal")}


def _seal(data: bytes) -> bytes:
    """`data` with the zeros after its last MARK replaced by the SHA-256 of all of it as it is."""
    at = data.rindex(MARK + ZEROS) + len(MARK)
    return data[:at] + sha256(data).hexdigest().encode() + data[at + len(ZEROS) :]


def _check_seal(data: bytes, name: str) -> None:
    at = data.rfind(MARK) + len(MARK)
    end = at + len(ZEROS)
    if at < len(MARK):
        raise DamagedError(name, f"must be sealed by its SHA-256, got {len(data)} bytes without one")
    rest = sha256(data[:at])
    rest.update(ZEROS + data[end:])
    if rest.hexdigest().encode() != data[at:end]:
        raise DamagedError(name, f"must hold what was written, got {len(data)} bytes that are not of its SHA-256")


def _check_owner(record: Mapping[str, Any], name: str, made_of: str | None) -> None:
    if record.get("name") != name:
        raise DamagedError(name, f"must hold what was made under that name, got {record.get('name')}")
    if made_of is not None and record.get("made_of") != made_of:
        raise DamagedError(name, f"must be made of {made_of}, got one of {record.get('made_of')}")


def feature_rows(ids: Sequence[str], features: np.ndarray, name: str, made_of: str) -> bytes:
    columns = {"prompt_id": list(ids), "feature": list(features.astype(np.float32))}
    return to_parquet(FEATURES, columns, name, made_of)


def feature_matrix(table: pa.Table) -> np.ndarray:
    """float32 [N, D] of a FEATURES table."""
    values = table["feature"].combine_chunks()
    return values.flatten().to_numpy().reshape(len(table), -1)


def encode_image(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> lossless WebP: smaller and faster than PNG (shared measurements in NOTES.md)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()
