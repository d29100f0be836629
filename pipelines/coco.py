"""COCO's captions as fixed, nested lists, and the images that they are of.

One caption an image, as is usual, in an order that is the same for ever: first the 5,000 captions that MLPerf Inference
fixed (their ids: coco_5k.txt), then one of every other image, by a hash of the image's id. So the first 5,000, 10,000
and 30,000 of val2014 hold one another, and anybody who has the annotations has the same lists.
"""

import json
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipelines.records import Prompt

SOURCE = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"  # holds captions_val2014.json
VAL2014 = 40_504  # images
FIRST_FINGERPRINT = "82d1e57f8e1f"  # prompts.fingerprint of MLPerf's 5,000
IMAGES = "http://images.cocodataset.org/zips/val2014.zip"


@cache
def first() -> dict[int, int]:
    """{annotation id: place} of MLPerf's 5,000 captions."""
    lines = (Path(__file__).parent / "coco_5k.txt").read_text().split()
    return {int(id): place for place, id in enumerate(lines)}


def captions(path: Path) -> list[tuple[int, Any]]:
    """(annotation id, caption) of COCO's annotation file, one an image, in the fixed order.

    Raises: KeyError, TypeError or ValueError if it is no such file.
    """
    chosen: dict[int, dict] = {}
    for row in sorted(json.loads(path.read_text(encoding="utf-8"))["annotations"], key=lambda row: row["id"]):
        if row["id"] in first():
            chosen[row["image_id"]] = row
        chosen.setdefault(row["image_id"], row)

    def place(row: dict) -> tuple[int, bytes]:
        return first().get(row["id"], len(first())), sha256(str(row["image_id"]).encode()).digest()

    return [(row["id"], row["caption"]) for row in sorted(chosen.values(), key=place)]


def images(path: Path, folder: Path, prompts: Sequence[Prompt]) -> list[str]:
    """The image files that `prompts` are captions of, in their order.

    Raises: ValueError, naming what is missing and where it is to be had.
    """
    value = json.loads(path.read_text(encoding="utf-8"))
    files = {image["id"]: image["file_name"] for image in value["images"]}
    of = {str(row["id"]): files.get(row["image_id"], "") for row in value["annotations"]}
    found = [folder / of[prompt.id] for prompt in prompts]
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(found)} images that the captions of {str(path)!r} are of are not in "
            f"{str(folder)!r}, the first {missing[0].name!r}: expected the files of {IMAGES}"
        )
    return [str(file.absolute()) for file in found]
