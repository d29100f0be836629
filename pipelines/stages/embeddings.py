"""Text embeddings of a shard of prompts: made once a sweep, and shared by all of its configurations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

import postdiff
from pipelines.data import prompts as prompting
from pipelines.engine import records
from pipelines.engine.cluster import Unit
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store, shard_name
from postdiff.models.checkpoints import check_weights
from postdiff.plan import PIXELS

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from postdiff.models.family import Text
    from postdiff.text import Embeddings


@dataclass(frozen=True)
class TextEncoding:
    name: str
    backbone: str
    weights: str
    dtype: str
    batch_size: int
    prompts: tuple[Prompt, ...]

    def load(self) -> postdiff.Backbone:
        check_weights(self.backbone, self.weights)
        return postdiff.load(self.backbone, dtype=self.dtype, parts="text")


def name(weights: str, dtype: str, batch_size: int, shard: int, shards: int) -> str:
    """Where the embeddings of a shard are kept: named by all that changes their bits."""
    key = sha256(json.dumps([weights, dtype, batch_size, PIXELS]).encode()).hexdigest()[:12]
    return shard_name(f"text/{key}", shard, shards)


def units(backbone: str, weights: str, dtype: str, batch_size: int, shards: Sequence[tuple[Prompt, ...]]) -> list[Unit]:
    tasks = [
        TextEncoding(name(weights, dtype, batch_size, i, len(shards)), backbone, weights, dtype, batch_size, shard)
        for i, shard in enumerate(shards)
    ]
    return [
        Unit(task.name, f"text {backbone} {dtype}", 0.01 * len(task.prompts), task, on_demand=True) for task in tasks
    ]


def make(backbone: postdiff.Backbone, task: TextEncoding) -> bytes:
    """The embeddings of the task's prompts as a Parquet file (records.TEXT)."""
    made = postdiff.encode(backbone, [prompt.text for prompt in task.prompts], task.batch_size)
    return to_bytes(made, [prompt.id for prompt in task.prompts], task.name, prompting.fingerprint(task.prompts))


def to_bytes(embeddings: Embeddings, ids: Sequence[str], name: str, made_of: str) -> bytes:
    """A Parquet file (records.TEXT), one row a tensor of a prompt. What a mask hides is left out. name, made_of: as
    `records.to_parquet` takes them."""
    import torch

    columns: dict[str, list] = {column: [] for column in records.TEXT.names}
    halves = [("uncond", embeddings.uncond, [""] * len(embeddings.uncond.get("text", ())))]
    for half, text, prompts in [*halves, ("cond", embeddings.cond, list(ids))]:
        for i, prompt in enumerate(prompts):
            for tensor, rows in text.items():
                value = rows[i]
                if tensor == "text" and "mask" in text:
                    value = value[: int(text["mask"][i].sum())]
                flat = value.cpu().contiguous()
                columns["prompt_id"].append(prompt)
                columns["half"].append(half)
                columns["tensor"].append(tensor)
                columns["dtype"].append(str(flat.dtype).removeprefix("torch."))
                columns["shape"].append(list(flat.shape))
                columns["data"].append(flat.view(torch.uint8).numpy().tobytes())
    return records.to_parquet(records.TEXT, columns, name, made_of)


def read(store: Store, name: str, prompts: Sequence[Prompt]) -> Embeddings:
    """The embeddings of `prompts`, as `name` in the store. Raises DamagedError if it is not that."""
    return from_table(store.table(name, made_of=prompting.fingerprint(prompts)))


def from_table(table: pa.Table) -> Embeddings:
    """The embeddings as they were; zeros where a mask hides."""
    import torch

    from postdiff.text import Embeddings

    tensors: dict[str, dict[str, list[torch.Tensor]]] = {"uncond": {}, "cond": {}}
    for row in table.to_pylist():
        raw = torch.from_numpy(np.frombuffer(row["data"], np.uint8).copy())
        value = raw.view(getattr(torch, row["dtype"])).reshape(row["shape"])
        tensors[row["half"]].setdefault(row["tensor"], []).append(value)
    return Embeddings(*(_stack(tensors[half]) for half in ("cond", "uncond")))


def _stack(tensors: dict[str, list[torch.Tensor]]) -> Text:
    import torch

    if "mask" in tensors:
        length = len(tensors["mask"][0])
        tensors["text"] = [torch.cat([v, v.new_zeros(length - len(v), v.shape[1])]) for v in tensors["text"]]
    return {name: torch.stack(values) for name, values in tensors.items()}
