"""Pairs of image and caption to train on: Shapes, a local folder, or a parquet of URLs such as LAION-Art's."""

import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data import images, prompts, rows
from pipelines.data.procedural import PROCEDURAL, Procedural

MAX_BYTES = 50 * 2**20  # of a download
TIMEOUT = 10  # seconds, of a whole download
TRIES = 50  # pairs in a row that cannot be read before it is called an error


@dataclass
class Pairs:
    """`n` pairs, named by where they are; `read(i)` gives (RGB image, caption) or raises.

    What cannot be read is skipped and counted.
    """

    name: str
    read: Callable[[int], tuple[Image.Image, str]]
    n: int
    skipped: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return self.n

    def batch(self, step: int, size: int, pixels: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
        """The batch of `step`: uint8 [size, pixels, pixels, 3] and captions. A function of (seed, step) alone.

        Each epoch is shuffled anew. A pair that cannot be read is replaced by the next one that can.

        Raises: OSError if 50 in a row cannot be read.
        """
        with ThreadPoolExecutor(16) as pool:
            loaded = list(pool.map(lambda k: self._load(step * size + k, pixels, seed), range(size)))
        return np.stack([image for image, _ in loaded]), [caption for _, caption in loaded]

    def _load(self, position: int, pixels: int, seed: int) -> tuple[np.ndarray, str]:
        error: Exception | None = None
        for attempt in range(TRIES):
            epoch, place = divmod(position + attempt, self.n)
            i = int(_order(seed, epoch, self.n)[place])
            try:
                image, caption = self.read(i)
                return fit(image, pixels), caption
            except Exception as failed:  # of the network, of HTTP, or whatever a decoder raises on a broken file
                self.skipped.add(i)
                error = failed
        raise OSError(f"{TRIES} pairs in a row could not be read; the last: {error}")


@lru_cache(maxsize=3)  # an epoch's end and the next one's beginning
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def fit(image: Image.Image, pixels: int) -> np.ndarray:
    """uint8 [pixels, pixels, 3] of an RGB image: the middle square, resized with antialiasing."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.LANCZOS, box=box))


def open_pairs(where: str, n: int | None = None) -> Pairs:
    """`shapes`, `scenes`, a folder of images with captions (x.jpg beside x.txt, or metadata.jsonl), or a parquet (URL,
    TEXT).

    n: use the first n only; 40,000 of Shapes and Scenes by default.

    Raises: ValueError if there is nothing to train on there, or less than n, or a caption is none, naming its file and
        line. What has no caption beside it is left out, and that is printed.
    """
    if n is not None and n < 1:
        raise ValueError(f"the limit of pairs must be 1 or more, got {n}")
    if where in PROCEDURAL:
        return Pairs(where, partial(_drawn, PROCEDURAL[where]), n or 40_000)
    path = Path(where)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return _table(path, n)
    if path.is_dir():
        return _folder(path, n)
    named = ", ".join(map(repr, PROCEDURAL))
    raise ValueError(f"training pairs must be {named}, a folder of images, or a parquet of URLs, got {where!r}")


def _drawn(data: Procedural, i: int) -> tuple[Image.Image, str]:
    scene = data.scene("train", i)
    return Image.fromarray(data.render(scene)), scene.caption


def _folder(path: Path, n: int | None) -> Pairs:
    listed = path / "metadata.jsonl"
    if listed.is_file():
        described = [_listed(path, listed, line, row) for line, row in rows.objects(listed)]
    else:
        files, left_out = images.find(path)
        described = [(file, _caption(file.with_suffix(".txt"))) for file in files if file.with_suffix(".txt").exists()]
        left_out["images without a caption"] = len(files) - len(described)
        left_out[".txt"] -= len({file.with_suffix(".txt") for file, _ in described})
        if left_out := +left_out:
            print(
                f"training pairs: {len(described)} of {str(path)!r}; left out: {images.counted(left_out)}",
                file=sys.stderr,
            )
    if not described:
        raise ValueError(f"{str(path)!r} holds no image with a caption (x.jpg beside x.txt, or metadata.jsonl)")
    pairs = described[: _most(path, n, len(described))]
    return Pairs(str(path), lambda i: (_large(images.open_file(pairs[i][0]).rgb), pairs[i][1]), len(pairs))


def _most(path: Path, n: int | None, available: int) -> int | None:
    if n is not None and n > available:
        raise ValueError(f"the limit of pairs must be at most the {available} of {str(path)!r}, got {n}")
    return n


def _listed(folder: Path, listed: Path, line: int, row: dict) -> tuple[Path, str]:
    where = f"line {line}"
    if not {"file_name", "text"} <= row.keys():
        raise rows.fault(listed, where, f"every line needs file_name and text, this one has {rows.listed(row)}")
    if reason := prompts.unfit(row["text"]):
        raise rows.fault(listed, where, reason)
    return rows.inside(folder, row["file_name"], listed, where), row["text"]


def _caption(file: Path) -> str:
    caption = rows.text(file).strip()
    if reason := prompts.unfit(caption):
        raise ValueError(f"{str(file)!r}: {reason}")
    return caption


def _table(path: Path, n: int | None) -> Pairs:
    names = rows.columns(path)
    url = next((name for name in ("URL", "url") if name in names), None)
    text = next((name for name in ("TEXT", "text", "caption") if name in names), None)
    if url is None or text is None:
        raise ValueError(f"{str(path)!r} needs columns URL and TEXT; it has {rows.listed(names)}")
    table = rows.parquet(path, [url, text])
    if not len(table):
        raise ValueError(f"{str(path)!r} holds no rows")
    table = table.slice(0, _most(path, n, len(table)))
    urls, texts = table[url], table[text]

    def read(i: int) -> tuple[Image.Image, str]:
        caption = texts[i].as_py()
        if reason := prompts.unfit(caption):
            raise ValueError(f"row {i} of {str(path)!r}: {reason}")
        return fetch(urls[i].as_py()), caption

    return Pairs(str(path), read, len(table))


def fetch(url: str) -> Image.Image:
    """The image at an http(s) address. Raises ValueError or OSError if there is none, or it is over 50 MB."""
    if not str(url).startswith(("http://", "https://")):
        raise ValueError(f"expected an http(s) address, got {url!r}")
    request = urllib.request.Request(url, headers={"User-Agent": "postdiff"})
    data, deadline = bytearray(), time.monotonic() + TIMEOUT
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        while chunk := answer.read1(2**16):
            data += chunk
            if len(data) > MAX_BYTES or time.monotonic() > deadline:  # a host may drip bytes for ever
                raise ValueError(f"{url} is over {MAX_BYTES} bytes or {TIMEOUT} s")
    return _large(images.open_picture(bytes(data), url).rgb)


def _large(image: Image.Image) -> Image.Image:
    if min(image.size) < 16:
        raise ValueError(f"too small to train on: {image.size}")
    return image
