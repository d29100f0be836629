"""Image files as RGB: the one reader of references, training pairs, fetched data sets and stored images.

What a person sees is what is read: turned as EXIF says, transparency on white, 16 bits scaled to 8, and of several
pictures (an animation, pages) the first. A file with none of these is read as by clean-fid, Pillow's convert("RGB")
without colour profiles. clean-fid itself turns nothing, drops transparency and saturates 16 bits.
"""

import io
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

VERSION = 1  # of the reader: another one gives other pixels for some file
# No others: Pillow would run Ghostscript for an EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
TIFF_BITS = 258  # the tag of bits a sample
MAX_PIXELS = 2**30 // 12  # where Pillow begins to warn of a decompression bomb
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # here it is an error


@dataclass(frozen=True)
class Picture:
    """The first picture of a file in RGB; notes: what had to be done to it; mode: Pillow's, of the file."""

    rgb: Image.Image
    format: str
    notes: tuple[str, ...]
    mode: str


@dataclass(frozen=True)
class Facts:
    """Of an image file that can be read: SHA-256 of its bytes, width and height, and what `Picture` says."""

    digest: bytes
    size: tuple[int, int]
    notes: tuple[str, ...]
    mode: str


def open_picture(data: bytes, name: str) -> Picture:
    """The picture in the bytes of the file `name`, decoded whole.

    Raises: ValueError naming the file if it is broken, truncated, over 89 million pixels, or of no format in FORMATS.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} are more than {MAX_PIXELS} pixels")
        image.load()
        kind, mode = str(image.format), image.mode
        notes = ["of several pictures (the first)"] if getattr(image, "is_animated", False) else []
        image, how = _rgb(image)
        return Picture(image, kind, (*notes, *how), mode)
    except UnidentifiedImageError:
        raise ValueError(
            f"{name!r} cannot be read as an image: it is broken, or none of {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # whatever a decoder raises on a broken file
        raise ValueError(f"{name!r} cannot be read as an image: {error}") from error


def _rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    notes = []
    if _orientation(image) != 1:
        notes.append("turned (EXIF)")
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        if "transparency" in image.info or getattr(image, "tag_v2", {}).get(TIFF_BITS, (16,)) != (16,):
            raise ValueError("grey of 12 bits, or of 16 with a transparent colour, is not read")
        notes.append("of 16 bits")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # as Pillow reads colours of 16 bits
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of the mode {image.mode!r}, 32 bits, have no white that is known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            notes.append("transparent (on white)")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), notes


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of EXIF that is damaged, which viewers pass over
        return 1


def decode(data: bytes, name: str = "a stored image") -> np.ndarray:
    """uint8 [H, W, 3] of the bytes of an image file. Raises: ValueError as `open_picture`."""
    return np.asarray(open_picture(data, name).rgb)


def open_file(file: Path) -> Picture:
    """The picture of an image file. Raises: ValueError as `open_picture`, or if there is no such regular file."""
    if not file.is_file():
        raise ValueError(f"no image file at {str(file)!r}")
    return open_picture(file.read_bytes(), str(file))


def find(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The image files of a folder and all that is in it, sorted, and how many files of which kind are none.

    Hidden files and folders are left out (macOS puts a `._x.jpg` beside x.jpg). Links are followed, a folder once.

    Raises: OSError if a folder cannot be listed.
    """
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    seen = set()
    for where, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        stat = os.stat(where)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        hidden = [name for name in (*folders, *names) if name.startswith(".")]
        left_out["hidden"] += len(hidden)
        folders[:] = sorted(set(folders) - set(hidden))
        for file in (Path(where, name) for name in names if name not in hidden):
            suffix = file.suffix.lower()
            if suffix not in SUFFIXES:
                left_out[repr(suffix)[1:-1] or "without a suffix"] += 1
            elif not file.is_file():
                left_out[f"{suffix} that is no file"] += 1
            else:
                files.append(file)
    return sorted(files), +left_out


def _raise(error: OSError) -> None:
    raise error


def examine(files: Sequence[Path], what: str) -> list[Facts]:
    """Facts of image files, in their order: each is read whole, on all cores, with a bar if that takes long.

    A file that has not changed is not read again in one process.

    Raises: ValueError with the number of files that cannot be read, and the first of them. `what` says what they are.
    """
    with ThreadPoolExecutor() as pool:
        bar = tqdm(pool.map(_facts, files), total=len(files), desc=f"reading {what}", unit="file", delay=2)
        results = list(bar)
    facts = [fact for fact in results if isinstance(fact, Facts)]
    if len(facts) < len(files):
        first = next(fact for fact in results if not isinstance(fact, Facts))
        raise ValueError(f"{len(files) - len(facts)} of {len(files)} {what} cannot be used, the first: {first}")
    return facts


def _facts(file: Path) -> Facts | Exception:
    try:
        stat = file.stat()
        return _examined(file, stat.st_size, stat.st_mtime_ns)
    except (ValueError, OSError) as error:
        return error


@cache
def _examined(file: Path, size: int, changed: int) -> Facts:
    if not str(file).isascii() and str(file) != str(file).encode(errors="replace").decode():
        raise ValueError(f"{str(file)!r} has a name that is not UTF-8, and cannot be stored beside its features")
    data = file.read_bytes()
    picture = open_picture(data, str(file))
    return Facts(sha256(data).digest(), picture.rgb.size, picture.notes, picture.mode)


def describe(where: str, facts: Sequence[Facts], left_out: Counter[str]) -> str:
    """What is used of a folder, as `3 images of 'photos', 64x64 to 640x480, 1 of 16 bits; left out: 2 .txt`."""
    by_area = sorted({fact.size for fact in facts}, key=lambda size: (size[0] * size[1], size))
    sizes = " to ".join(f"{width}x{height}" for width, height in dict.fromkeys((by_area[0], by_area[-1])))
    notes = Counter(note for fact in facts for note in fact.notes)
    used = ", ".join([f"{len(facts)} images of {where!r}", sizes, *(f"{n} {note}" for note, n in notes.most_common())])
    return used + (f"; left out: {counted(left_out)}" if left_out else "")


def counted(left_out: Counter[str]) -> str:
    """Kinds of files with their numbers, the most frequent first, at most eight."""
    shown = [f"{n} {kind}" for kind, n in left_out.most_common(8)]
    return ", ".join(shown) + (f", {len(left_out) - 8} other kinds" if len(left_out) > 8 else "")
