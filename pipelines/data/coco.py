"""COCO's captions as fixed, nested lists, and the images that they are of.

One caption an image, as is usual, in an order that is the same for ever: first the 5,000 captions that MLPerf Inference
fixed (their ids: coco_5k.txt), then one of every other image, by a hash of the image's id. So the first 5,000, 10,000
and 30,000 of val2014 hold one another, and anybody who has the annotations has the same lists.
"""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.data import rows
from pipelines.engine.records import Prompt

SOURCE = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"  # holds captions_val2014.json
VAL2014 = 40_504  # images
FIRST_FINGERPRINT = "82d1e57f8e1f"  # prompts.fingerprint of MLPerf's 5,000
KEYS = {"annotations": ("id", "image_id", "caption"), "images": ("id", "file_name")}  # of the lists in the file
IMAGES = "http://images.cocodataset.org/zips/val2014.zip"


@cache
def first() -> dict[int, int]:
    """{annotation id: place} of MLPerf's 5,000 captions."""
    lines = (Path(__file__).parent / "coco_5k.txt").read_text().split()
    return {int(id): place for place, id in enumerate(lines)}


def captions(path: Path) -> list[tuple[str, int | str, str]]:
    """(place in the file, annotation id, caption) of COCO's annotation file, one an image, in the fixed order.

    A caption that is blank is none: the image's next one is taken.

    Raises: ValueError if it is no such file, or an image has blank captions alone.
    """
    order = sorted(_list(path, rows.json_value(path), "annotations"), key=lambda row: row["id"])
    for row, following in pairwise(order):
        if row["id"] == following["id"]:
            raise ValueError(f"{str(path)!r} has two annotations of one id, {row['id']!r}")
    chosen: dict[int | str, dict] = {}
    for row in order:
        if row["caption"] is not None and not isinstance(row["caption"], str):
            raise rows.fault(path, f"annotation {row['id']!r}", f"a prompt must be text, got {row['caption']!r}")
        if row["caption"] and row["caption"].strip():
            if row["id"] in first():
                chosen[row["image_id"]] = row
            chosen.setdefault(row["image_id"], row)
    if blank := {row["image_id"] for row in order} - chosen.keys():
        raise ValueError(f"{str(path)!r}: image {min(blank)!r} has no caption that is not blank")

    def place(row: dict) -> tuple[int, bytes]:
        return first().get(row["id"], len(first())), sha256(str(row["image_id"]).encode()).digest()

    listed = sorted(chosen.values(), key=place)
    return [(f"annotation {row['id']!r}", row["id"], row["caption"]) for row in listed]


def images(path: Path, folder: Path, prompts: Sequence[Prompt]) -> list[Path]:
    """The image files that `prompts` are captions of, in their order.

    Raises: ValueError, naming what is missing and where it is to be had, or a file name that leads out of `folder`.
    """
    value = rows.json_value(path)
    files = {image["id"]: image["file_name"] for image in _list(path, value, "images")}
    image_of = {str(row["id"]): row["image_id"] for row in _list(path, value, "annotations")}
    images = [image_of[prompt.id] for prompt in prompts]
    if unknown := [image for image in images if image not in files]:  # ids may be 0
        raise ValueError(f"{str(path)!r} has captions of image {unknown[0]!r}, which its images lack")
    files_of_images = [rows.inside(folder, files[image], path, f"image {image!r}") for image in images]
    missing = [file for file in files_of_images if not file.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(files_of_images)} images that the captions of {str(path)!r} are of are not in "
            f"{str(folder)!r}, the first {missing[0].name!r}: expected the files of {IMAGES}"
        )
    return files_of_images


def _list(path: Path, value: Any, name: str) -> list[dict[str, Any]]:
    """The list `name` of COCO's file. Raises: ValueError if an object in it lacks what it must have."""
    if not isinstance(value, dict) or not isinstance(value.get(name), list):
        got = f"an object of {rows.listed(value)}" if isinstance(value, dict) else rows.kind(value)
        raise ValueError(f"{str(path)!r} must be COCO's annotations, an object with a list {name!r}, got {got}")
    types: dict[str, type] = {}  # of ids, which are sorted and compared
    for number, row in enumerate(value[name], 1):
        for key in KEYS[name]:
            if not isinstance(row, dict) or key not in row:
                got = f"an object of {rows.listed(row)}" if isinstance(row, dict) else rows.kind(row)
                what = f"expected an object with {', '.join(KEYS[name])}, got {got}"
                raise rows.fault(path, f"number {number} of {name!r}", what)
            if key.endswith("id") and type(row[key]) is not types.setdefault(
                key, int if type(row[key]) is int else str
            ):
                what = f"{key} must be a whole number (or text, in all of the file), got {row[key]!r}"
                raise rows.fault(path, f"number {number} of {name!r}", what)
    return value[name]
