"""Features of stored images, of prompts, and of reference images: units of work downstream of the images."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from pipelines.data import images, scenes, shapes
from pipelines.data.images import decode
from pipelines.data.procedural import PROCEDURAL, SHAPES
from pipelines.data.prompts import fingerprint as fingerprint_of
from pipelines.engine import records
from pipelines.engine.cluster import Unit
from pipelines.engine.identity import digest
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store, shard_name
from pipelines.metrics import pixels, preference
from pipelines.metrics.encoders import (
    GRIDS,
    INCEPTION_URL,
    JUDGES,
    ClipEncoder,
    InceptionEncoder,
    clip_folder,
    fingerprint,
)
from pipelines.stages import beside
from pipelines.stages.beside import Ahead, Threads
from postdiff.models.checkpoints import MINI, digest_of

if TYPE_CHECKING:
    from pipelines.metrics.judge_models import JudgeEncoder
    from pipelines.metrics.preference_models import HpsEncoder, ImageRewardEncoder, PickScoreEncoder

    Encoder = ClipEncoder | InceptionEncoder | JudgeEncoder | PickScoreEncoder | HpsEncoder | ImageRewardEncoder

BATCH = 50
_SCENE = re.compile(rf"(?:({'|'.join(PROCEDURAL)})/)?({'|'.join(shapes.SPLITS)})/(\d+)")
# What draws a data set: Scenes' drawings are partly those of Shapes.
SOURCES = {"shapes": (shapes,), "scenes": (shapes, scenes)}
_LOADING = Lock()  # an encoder: a run has room for one of each


@dataclass(frozen=True)
class Encoding:
    """Encode `source` with `encoder` and commit the result as `name`.

    source: the name of a shard of images, or prompts, or real images (as what `real_image` takes).
    against: a shard of other images of the same prompts, which those of `source` are compared with, without encoder.
    shown: the prompts that real images are of, one each, in order; () where they are references, of none.
    """

    name: str
    encoder: str
    source: str | tuple[Prompt, ...] | tuple[str, ...]
    against: str = ""
    shown: tuple[Prompt, ...] = ()


def make_encoder(name: str) -> "Encoder":
    """One of `encoders.CLIPS`, `JUDGES`, `GRIDS`, open_clip's `MODEL/WEIGHTS`, the path of clean-fid's Inception, or a
    network of `preference`."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name in JUDGES or name in GRIDS:
        from pipelines.metrics.judge_models import GridEncoder, JudgeEncoder

        return GridEncoder(MINI / GRIDS[name], device) if name in GRIDS else JudgeEncoder(MINI / name, device)
    if preference.is_named(name):
        from pipelines.metrics import preference_models

        return preference_models.make_encoder(name, device)
    return InceptionEncoder(name, device) if name.endswith(".pt") else ClipEncoder(name, device)


def check_encoder(name: str) -> None:
    """Raise ValueError, in one line, if `make_encoder` could make nothing of `name`. Reads no weights.

    A TorchScript file is a zip archive of code and data; of a CLIP folder open_clip needs its config and weights.
    Networks of preference are checked by `preference.check`: here they are refused, as none of CLIP or FID.
    """
    if preference.is_named(name):
        raise ValueError(f"{name!r} is of human preference: expected a CLIP model or an Inception, it is --preference")
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


def folder(encoder: str, images: str) -> str:
    """Where the features of `images` are kept. `encoder` is named by its weights: another file makes other features."""
    return f"features/{fingerprint(encoder)}/{images}"


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


def real_units(encoder: str, name: str, shards: Sequence[tuple[Prompt, ...]], real: Mapping[str, str]) -> list[Unit]:
    """Of the real images of prompts, kept as those of `name`. real: {a prompt's id: what `real_image` takes}."""
    units = []
    for i, shard in enumerate(shards):
        file = shard_name(folder(encoder, name), i, len(shards))
        task = Encoding(file, encoder, tuple(real[prompt.id] for prompt in shard), shown=shard)
        units.append(Unit(file, encoder, 1, task))
    return units


def reference_files(folder: Path, chosen: Sequence[Path] | None = None) -> tuple[list[str], str]:
    """The absolute paths of all images of a folder, or of those `chosen` from it, and one line that says what is used.

    Each is read whole, since a broken one would be met hours from now.

    Raises: ValueError if there are fewer than 2, or naming the first that cannot be read.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"--reference must be a folder of at least 2 images, got {str(folder)!r}, which is no folder")
    listed, left_out = images.find(folder)
    files = [file.absolute() for file in (listed if chosen is None else chosen)]
    if len(files) < len(listed):
        left_out["images that no prompt is of"] = len(listed) - len(files)
    if len(files) < 2:
        rest = images.counted(left_out) or "nothing"
        raise ValueError(
            f"--reference must be a folder of at least 2 images, got {len(files)} in {str(folder)!r}, left out: {rest}"
        )
    return list(map(str, files)), images.describe(str(folder), images.examine(files, "reference images"), left_out)


def reference_name(keys: Sequence[str]) -> str:
    """Names a reference set by all that its features depend on, so that two of them never mix in one store.

    Files count by their bytes and the version of their reader, wherever they are and however they are called; scenes
    by their numbers, the program that draws them, and the first picture.

    Raises: ValueError if a file cannot be read as an image.
    """
    if match := _SCENE.fullmatch(keys[0]):
        facts = [json.dumps(list(keys)).encode()]
        for source in SOURCES[match[1] or SHAPES.name]:
            file = Path(str(source.__file__))
            facts.append(digest_of(file, file.stat().st_size, file.stat().st_mtime_ns))
        facts.append(real_image(keys[0]).tobytes())
    else:
        examined = images.examine([Path(key) for key in keys], "reference images")
        facts = [f"reader {images.VERSION}".encode(), *(file.digest for file in examined)]
    return f"reference-{digest(b''.join(facts))}"


def _numbered(encoder: str, where: str, shards: Sequence[tuple]) -> list[Unit]:
    named = [(shard_name(where, i, len(shards)), shard) for i, shard in enumerate(shards)]
    return [Unit(name, encoder, 1, Encoding(name, encoder, shard)) for name, shard in named]


def real_image(key: str) -> np.ndarray:
    """uint8 [H, W, 3] of a scene (`prompts.scene_key`), or of an image file."""
    if match := _SCENE.fullmatch(key):
        data = PROCEDURAL[match[1] or SHAPES.name]
        return data.render(data.scene(match[2], int(match[3])))
    return np.asarray(images.open_file(Path(key)).rgb)


@cache
def _loaded(name: str) -> "Encoder":
    return make_encoder(name)


def loaded_encoder(name: str) -> "Encoder":
    """`make_encoder(name)`, once a process: a run has one to six, and all of a worker's tasks share them."""
    with _LOADING:
        return _loaded(name)


@dataclass(frozen=True)
class Pictures:
    """Images uint8 [H, W, 3], whose they are, and what they were made of. prepared: for encoders, by their names.
    texts: their prompts, for encoders that read those too; () for references, which have none."""

    pixels: Sequence[np.ndarray]
    ids: Sequence[str]
    made_of: str
    prepared: Mapping[str, list[Future]] = field(default_factory=dict)
    texts: Sequence[str] = ()


class Extractor:
    """A worker's handler: commits one file a task, and one a rider. All of them are of images that are decoded once."""

    def __init__(self, store: Store, threads: Threads | None = None):
        self.store, self.threads = store, threads or Threads(beside.count())
        self.stored = Ahead(self._stored)

    def ahead(self, task: Encoding) -> None:
        """`task` is likely the next: its images are read and decoded."""
        if isinstance(task.source, str):
            self.stored.start(task.source)

    def __call__(self, task: Encoding, riders: Sequence[Encoding] = ()) -> tuple[str, ...] | Callable[[], Any]:
        """Names of the riders that are committed too."""
        if isinstance(task.source, str):
            pictures = self.stored.take(task.source)
            if task.against:
                return self._compare(task, pictures)
        elif isinstance(task.source[0], Prompt):
            return self._prompts(task, task.source)
        else:
            drawn = self.threads.map(real_image, task.source)
            ids = [prompt.id for prompt in task.shown] or task.source
            made_of = fingerprint_of(task.shown) if task.shown else digest(task.source)
            pictures = Pictures(drawn, ids, made_of, texts=[prompt.text for prompt in task.shown])
        features = self.features(task.encoder, pictures)
        commit_riders = self.ride(riders, pictures)

        def commit() -> tuple[str, ...]:
            self._commit(task.name, features, pictures)
            return commit_riders()

        return commit if beside.count() else commit()

    def _compare(self, task: Encoding, pictures: Pictures) -> tuple[str, ...]:
        others = self._stored(task.against)
        if list(others.ids) != list(pictures.ids):
            raise ValueError(f"{task.source} and {task.against} must be of the same prompts, in one order")
        self._commit(task.name, pixels.compare(np.stack(pictures.pixels), np.stack(others.pixels)), pictures)
        return ()

    def _stored(self, name: str) -> Pictures:
        table = self.store.table(name, ["prompt_id", "prompt", "image"])
        decoded = self.threads.map(lambda row: decode(row["bytes"]), table["image"].to_pylist())
        ids, texts = (table[column].to_pylist() for column in ("prompt_id", "prompt"))
        return Pictures(decoded, ids, records.made_of(table), texts=texts)

    def _prompts(self, task: Encoding, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        encoder: Any = loaded_encoder(task.encoder)
        if not hasattr(encoder, "texts"):
            raise ValueError(f"{task.encoder} encodes images only, not prompts")
        texts, ids = [prompt.text for prompt in prompts], [prompt.id for prompt in prompts]
        features = np.concatenate([encoder.texts(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)])
        self.store.commit(task.name, records.feature_rows(ids, features, task.name, fingerprint_of(prompts)))
        return ()

    def prepare(self, encoder: str, pictures: Sequence[np.ndarray]) -> list[Future]:
        """What `encoder` will take of each, or none if it cannot be loaded: who asks for its features is told."""
        try:
            return self.threads.each(loaded_encoder(encoder).prepare, pictures)
        except Exception:
            return []

    def features(self, encoder: str, pictures: Pictures) -> np.ndarray:
        """float32 [N, D]. Threads prepare the next batch while one is encoded."""
        loaded: Any = loaded_encoder(encoder)
        n = len(pictures.pixels)
        reads = getattr(loaded, "reads_prompts", False)
        if reads and len(pictures.texts) != n:
            raise ValueError(f"{encoder} needs the prompt of each of {n} images, got {len(pictures.texts)}")
        ready = pictures.prepared.get(encoder, [])

        def start(i: int) -> list[Future]:
            batch = slice(i, i + BATCH)
            return ready[batch] if len(ready) == n else self.threads.each(loaded.prepare, pictures.pixels[batch])

        parts, coming = [], start(0)
        for i in range(0, n, BATCH):
            prepared: list[Any] = [one.result() for one in coming]
            coming = start(i + BATCH)
            parts.append(loaded.encode(prepared, pictures.texts[i : i + BATCH]) if reads else loaded.encode(prepared))
        return np.concatenate(parts)

    def ride(self, riders: Sequence[Encoding], pictures: Pictures) -> Callable[[], tuple[str, ...]]:
        """Encode for `riders` too. Returns what commits their features, and tells which: one that failed is left to be
        tried as a unit of its own, whose failure it is."""
        made = []
        for rider in riders:
            with suppress(Exception):
                made.append((rider.name, self.features(rider.encoder, pictures)))

        def commit() -> tuple[str, ...]:
            for name, features in made:
                self._commit(name, features, pictures)
            return tuple(name for name, _ in made)

        return commit

    def _commit(self, name: str, features: np.ndarray, pictures: Pictures) -> None:
        self.store.commit(name, records.feature_rows(pictures.ids, features, name, pictures.made_of))
