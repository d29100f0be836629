"""Features of stored images, of prompts, and of reference images: units of work downstream of the images."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

import numpy as np

from pipelines.data import images, shapes
from pipelines.data.images import decode
from pipelines.data.prompts import fingerprint as fingerprint_of
from pipelines.engine import records
from pipelines.engine.cluster import Unit
from pipelines.engine.identity import digest
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store, shard_name
from pipelines.metrics import pixels
from pipelines.metrics.encoders import (
    INCEPTION_URL,
    JUDGES,
    ClipEncoder,
    InceptionEncoder,
    clip_folder,
    fingerprint,
)
from postdiff.models.checkpoints import MINI, digest_of

if TYPE_CHECKING:
    from pipelines.metrics.judge_models import JudgeEncoder

BATCH = 50
_SHAPES = re.compile(r"reference/\d+")


@dataclass(frozen=True)
class Encoding:
    """Encode `source` with `encoder` and commit the result as `name`.

    source: the name of a shard of images, or prompts, or reference images (as what `reference_images` takes).
    against: a shard of other images of the same prompts, which those of `source` are compared with, without encoder.
    """

    name: str
    encoder: str
    source: str | tuple[Prompt, ...] | tuple[str, ...]
    against: str = ""


def make_encoder(name: str) -> "ClipEncoder | InceptionEncoder | JudgeEncoder":
    """`mini-clip`, open_clip's `MODEL/WEIGHTS`, the path of clean-fid's Inception (.pt), or `mini-judges`."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == JUDGES:
        from pipelines.metrics.judge_models import JudgeEncoder

        return JudgeEncoder(MINI / JUDGES, device)
    return InceptionEncoder(name, device) if name.endswith(".pt") else ClipEncoder(name, device)


def check_encoder(name: str) -> None:
    """Raise ValueError, in one line, if `make_encoder` could make nothing of `name`. Reads no weights.

    A TorchScript file is a zip archive of code and data; of a CLIP folder open_clip needs its config and weights.
    """
    fingerprint(name)  # raises if there is no such file, folder or pretrained model
    if not name.endswith(".pt"):
        where = clip_folder(name)
        if where and not (where / "open_clip_config.json").is_file():
            raise ValueError(f"a CLIP folder must hold open_clip_config.json, {name!r} does not")
        if where and not any(where.glob("*.safetensors")):
            raise ValueError(f"a CLIP folder must hold its weights as .safetensors, {name!r} does not")
        return
    try:
        with ZipFile(name) as archive:
            code = [entry for entry in archive.namelist() if "/code/" in entry and entry.endswith(".py")]
            texts = [archive.read(entry) for entry in code]
    except BadZipFile:
        texts = []
    if not any(b"layers" in text for text in texts):
        raise ValueError(f"{name!r} must be a TorchScript file with `layers`, as {INCEPTION_URL}")


def folder(encoder: str, of: str) -> str:
    """Where the features of `of` are kept. `encoder` is named by its weights: another file makes other features."""
    return f"features/{fingerprint(encoder)}/{of}"


def image_units(encoder: str, image_names: Sequence[str]) -> list[Unit]:
    """One unit a committed shard of images, named after it."""
    named = [(name.replace("images/", folder(encoder, ""), 1), name) for name in image_names]
    return [Unit(name, encoder, 1, Encoding(name, encoder, source)) for name, source in named]


def prompt_units(encoder: str, shards: Sequence[tuple[Prompt, ...]]) -> list[Unit]:
    return _numbered(encoder, folder(encoder, "prompts"), shards)


def reference_units(encoder: str, keys: Sequence[str], per_shard: int = 250) -> list[Unit]:
    """`keys`: all `reference/INDEX` of Shapes, or all paths of image files that every worker can read."""
    shards = [tuple(keys[i : i + per_shard]) for i in range(0, len(keys), per_shard)]
    return _numbered(encoder, folder(encoder, reference_name(keys)), shards)


def reference_files(folder: Path, chosen: Sequence[Path] | None = None) -> tuple[list[str], str]:
    """The absolute paths of all images of a folder, or of those `chosen` from it, and one line that says what is used.

    Each is read whole, since a broken one would be met hours from now.

    Raises: ValueError if there are fewer than 2, or naming the first that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"--reference must be a folder of at least 2 images, got {str(folder)!r}, which is no folder")
    found, left_out = images.find(folder)
    files = [file.absolute() for file in (found if chosen is None else chosen)]
    if len(files) < len(found):
        left_out["images that no prompt is of"] = len(found) - len(files)
    if len(files) < 2:
        told = images.counted(left_out) or "nothing"
        raise ValueError(
            f"--reference must be a folder of at least 2 images, got {len(files)} in {str(folder)!r}, left out: {told}"
        )
    return list(map(str, files)), images.describe(str(folder), images.examine(files, "reference images"), left_out)


def reference_name(keys: Sequence[str]) -> str:
    """Names a reference set by all that its features depend on, so that two of them never mix in one store.

    Files count by their bytes and the version of their reader, wherever they are and however they are called; scenes
    of Shapes by their numbers, the program that draws them, and the first picture.

    Raises: ValueError if a file cannot be read as an image.
    """
    if _SHAPES.fullmatch(keys[0]):
        source = Path(shapes.__file__)
        stat = source.stat()
        facts = [json.dumps(list(keys)).encode(), digest_of(source, stat.st_size, stat.st_mtime_ns)]
        facts.append(reference_image(keys[0]).tobytes())
    else:
        found = images.examine([Path(key) for key in keys], "reference images")
        facts = [f"reader {images.VERSION}".encode(), *(file.digest for file in found)]
    return f"reference-{digest(b''.join(facts))}"


def _numbered(encoder: str, where: str, shards: Sequence[tuple]) -> list[Unit]:
    named = [(shard_name(where, i, len(shards)), shard) for i, shard in enumerate(shards)]
    return [Unit(name, encoder, 1, Encoding(name, encoder, shard)) for name, shard in named]


def reference_image(key: str) -> np.ndarray:
    """uint8 [H, W, 3] of `reference/INDEX` (Shapes) or of an image file."""
    if _SHAPES.fullmatch(key):
        return shapes.render(shapes.scene("reference", int(key.rpartition("/")[2])))
    return np.asarray(images.open_file(Path(key)).rgb)


@cache
def loaded_encoder(name: str) -> "ClipEncoder | InceptionEncoder | JudgeEncoder":
    """`make_encoder(name)`, once a process: a run has one to three, and all of a worker's tasks share them."""
    return make_encoder(name)


class Extractor:
    """A worker's handler: commits one file a task."""

    def __init__(self, store: Store):
        self.store = store

    def __call__(self, task: Encoding) -> None:
        if isinstance(task.source, str):
            pictures, ids, made_of = self._images(task.source)
            if not task.against:
                return self.extract(task, pictures, ids, made_of)
            others, theirs, _ = self._images(task.against)
            if ids != theirs:
                raise ValueError(f"{task.source} and {task.against} must be of the same prompts, in one order")
            compared = pixels.compare(np.stack(pictures), np.stack(others))
            self.store.commit(task.name, records.feature_rows(ids, compared, task.name, made_of))
            return None
        encoder = loaded_encoder(task.encoder)
        if isinstance(task.source[0], Prompt):
            if isinstance(encoder, InceptionEncoder):
                raise ValueError(f"{task.encoder} encodes images only, not prompts")
            made_of, ids = fingerprint_of(task.source), [prompt.id for prompt in task.source]
            features = _batched(encoder.texts, [prompt.text for prompt in task.source])
        else:
            made_of, ids = digest(task.source), list(task.source)
            features = _batched(encoder.images, [reference_image(key) for key in task.source])
        self.store.commit(task.name, records.feature_rows(ids, features, task.name, made_of))
        return None

    def _images(self, name: str) -> tuple[list[np.ndarray], list[str], str]:
        """Pixels and prompt ids of a shard, and what it was made of."""
        table = self.store.table(name, ["prompt_id", "image"])
        pictures = [decode(row["bytes"]) for row in table["image"].to_pylist()]
        return pictures, table["prompt_id"].to_pylist(), records.made_of(table)

    def extract(self, task: Encoding, pictures: Sequence[np.ndarray], ids: Sequence[str], made_of: str) -> None:
        """Commit `task`, of images whose pixels are here: uint8 [H, W, 3] each."""
        features = _batched(loaded_encoder(task.encoder).images, pictures)
        self.store.commit(task.name, records.feature_rows(ids, features, task.name, made_of))


def _batched(encode: Callable, items: Sequence) -> np.ndarray:
    return np.concatenate([encode(items[i : i + BATCH]) for i in range(0, len(items), BATCH)])
