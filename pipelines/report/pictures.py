"""Images as a page shows them: whole where they are small, else smaller ones on the page and whole ones beside it."""

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from pipelines.engine.store import Store
from pipelines.report import chart
from pipelines.report.tables import Row

EXAMPLES = 8  # prompts in the grid of images
LIMIT = 5_000_000  # characters that the images of a page take at the most
SIDES = (256, 192, 128, 96, 64, 48, 32)  # pixels of the longer side of a smaller image: the first whose sum fits
SAMPLED = 24  # images that a size is first tried on
QUALITY = 82, 92  # of WebP: of smaller images, and of the whole ones beside the page
FOLDER = "report-images"  # beside the page


@dataclass(frozen=True)
class Picture:
    """shown: WebP, as it is on the page. whole: the file with all of its pixels, "" where `shown` has them."""

    shown: bytes
    whole: str = ""

    @property
    def url(self) -> str:
        return f"data:image/webp;base64,{base64.b64encode(self.shown).decode()}"


@dataclass(frozen=True)
class Line:
    """Of a gallery: the images of a plan, one a prompt. id: the configuration; family: as the style sheet numbers them,
    -1 for none."""

    label: str
    pictures: list[Picture]
    id: str = ""
    family: int = -1


@dataclass(frozen=True)
class Gallery:
    """A column a prompt, with the same noise down it, and a line a plan."""

    prompts: list[str]
    lines: list[Line]

    @property
    def is_beside(self) -> bool:
        """Are there whole images beside the page?"""
        return any(picture.whole for line in self.lines for picture in line.pictures)


def examples(store: Store, rows: Sequence[Row], labels: Sequence[str] | None = None) -> Gallery:
    """The first images of every configuration. Whole ones that the page has no room for are written to the store."""
    prompts: list[str] = []
    taken: list[list[bytes]] = []
    for row in rows:
        first = store.shards(f"images/{row.configuration}")[0]
        table = store.table(first, ["prompt", "image"]).slice(0, EXAMPLES)
        prompts = table["prompt"].to_pylist()
        taken.append([image["bytes"] for image in table["image"].to_pylist()])
    rows_of_images = [
        (label, row.configuration, own)
        for row, own, label in zip(rows, taken, labels or [row.label for row in rows], strict=True)
    ]
    return gallery(store, prompts, rows_of_images, families=[chart.family(row) for row in rows])


def gallery(
    store: Store,
    prompts: Sequence[str],
    rows: Sequence[tuple[str, str, Sequence[bytes]]],
    limit: int = LIMIT,
    families: Sequence[int] | None = None,
) -> Gallery:
    """A gallery of (label, configuration, an image a prompt, WebP) each, as `fitted`."""
    images = [image for _, _, own in rows for image in own]
    names = [f"{FOLDER}/{id}-{at}.webp" for _, id, own in rows for at in range(len(own))]
    shown = iter(fitted(store, images, names, limit))
    lines = [
        Line(label, [next(shown) for _ in own], id, family)
        for (label, id, own), family in zip(rows, families or [-1] * len(rows), strict=True)
    ]
    return Gallery(list(prompts), lines)


def fitted(store: Store, images: Sequence[bytes], names: Sequence[str], limit: int = LIMIT) -> list[Picture]:
    """The images (WebP) as they are, if all of them take at most `limit` characters; else as large as do, and whole, a
    little compressed, in the store under `names`, where they are not there yet."""
    if _characters(images) <= limit:
        return [Picture(image) for image in images]
    stored = store.names(FOLDER)

    def write(image: bytes, name: str) -> None:
        if name not in stored:
            store.put(name, _encode(_open(image), QUALITY[1]))

    small = _each(lambda image: _shrink(_open(image), SIDES[0]), images)
    _each(lambda pair: write(*pair), list(zip(images, names, strict=True)))
    some = small[:: max(1, len(small) // SAMPLED)]
    for side in SIDES:
        guess = _characters(_at(side, some)) * len(small) / len(some)
        if side != SIDES[-1] and guess > 1.1 * limit:
            continue
        shown = _at(side, small)
        if _characters(shown) <= limit:
            break
    return [Picture(image, name) for image, name in zip(shown, names, strict=True)]


def _at(side: int, images: Sequence[Image.Image]) -> list[bytes]:
    return _each(lambda image: _encode(_shrink(image, side), QUALITY[0]), images)


def _characters(images: Sequence[bytes]) -> int:
    return sum(4 * -(-len(image) // 3) for image in images)


def _each(work: Callable, items: Sequence) -> list:
    with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes and encodes
        return list(pool.map(work, items))


def _open(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image), formats=("WEBP",))


def _shrink(image: Image.Image, side: int) -> Image.Image:
    smaller = image.convert("RGB")
    smaller.thumbnail((side, side))
    return smaller


def _encode(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=1)
    return buffer.getvalue()
