"""The records that cross a stage border, as Parquet schemas. One file holds the records of one unit of work."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


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
    "seconds": {"dtype": "float32", "_type": "Value"},
}
IMAGES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("configuration", pa.string()),  # id of the configuration
        ("plan", pa.string()),  # id of its plan
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),  # lossless WebP
        ("seconds", pa.float32()),  # wall time of the image's batch over the images in it; the only column that varies
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


def to_parquet(schema: pa.Schema, columns: Mapping[str, Sequence]) -> bytes:
    """Columns as the bytes of a Parquet file. Small row groups: one image can be read without the others."""
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)
    sink = pa.BufferOutputStream()
    # Images are compressed already; a dictionary of them would only cost time.
    pq.write_table(table, sink, row_group_size=50, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), columns=columns)


def feature_rows(ids: Sequence[str], features: np.ndarray) -> bytes:
    return to_parquet(FEATURES, {"prompt_id": list(ids), "feature": list(features.astype(np.float32))})


def feature_matrix(table: pa.Table) -> np.ndarray:
    """float32 [N, D] of a FEATURES table."""
    values = table["feature"].combine_chunks()
    return values.flatten().to_numpy().reshape(len(table), -1)


def encode_image(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> lossless WebP: smaller and faster than PNG (shared measurements in NOTES.md)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()
