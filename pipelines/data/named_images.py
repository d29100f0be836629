"""Folders of images, one a prompt, that any program made: paired with the prompts by name, or refused in one line.

Neither order nor what a file says of itself (a PNG can hold a prompt) pairs anything: an image and a prompt belong
together if the file's name, without folder and suffix, is the prompt's id.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipelines.data import images
from pipelines.data.prompts import fingerprint
from pipelines.engine.identity import digest
from pipelines.engine.records import Prompt


@dataclass(frozen=True)
class NamedImages:
    """The image files of a folder, one a prompt, in the order of the prompts, and what is known of each.

    left_out: what else is in the folder, counted by kind.
    """

    folder: Path
    prompts: tuple[Prompt, ...]
    files: tuple[Path, ...]
    facts: tuple[images.Facts, ...]
    left_out: Counter[str]

    @cached_property
    def id(self) -> str:
        """12 hex digits that stand for these pixels of these prompts, wherever the files are."""
        read = [images.VERSION, fingerprint(self.prompts), [fact.digest.hex() for fact in self.facts]]
        return digest(read)

    def __str__(self) -> str:
        return images.describe(str(self.folder), self.facts, self.left_out)

    def pixels(self, i: int) -> np.ndarray:
        """uint8 [H, W, 3] of the image of prompt `i`. Raises ValueError if the file is another one by now."""
        data = self.files[i].read_bytes()
        if sha256(data).digest() != self.facts[i].digest:
            raise ValueError(f"{str(self.files[i])!r} was changed while this ran: expected the bytes of its beginning")
        return images.decode(data, str(self.files[i]))


def read(folder: Path, listed: Sequence[Prompt], others: Sequence[Prompt] = ()) -> NamedImages:
    """The images of the prompts `listed` in `folder` and all that is in it; each is read whole.

    others: further prompts, whose images may be there and are left out.

    Raises: ValueError, in one line, if `folder` is none, two files or two prompts have one name, a prompt has no image
        or an image no prompt, or an image cannot be read or is not plain RGB: grey, palettes, transparency, and what a
        viewer would turn are what programs write by mistake, and no two readers make the same pixels of them.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"expected a folder of images, got {str(folder)!r}, which is no folder")
    files, left_out = images.find(folder)
    file_of: dict[str, Path] = {}
    for file in files:
        other = file_of.setdefault(paired_by(file.name), file)
        if other != file:
            raise ValueError(
                f"{str(folder)!r} has two images of one name, {str(other.relative_to(folder))!r} and "
                f"{str(file.relative_to(folder))!r}: expected one a prompt"
            )
    own, further = _by_name(listed), _by_name(others)
    lacking = [prompt for name, prompt in own.items() if name not in file_of]
    unasked = [file for name, file in file_of.items() if name not in own and name not in further]
    if lacking or unasked:
        raise ValueError(f"{str(folder)!r} does not pair with the prompts: {_unpaired(own, lacking, unasked)}")
    if beyond := len(files) - len(own):
        left_out["images of prompts beyond --limit"] = beyond
    chosen = tuple(file_of[name] for name in own)
    facts = tuple(images.examine(chosen, f"images of {str(folder)!r}"))
    odd = [(file, fact) for file, fact in zip(chosen, facts, strict=True) if fact.mode != "RGB" or fact.notes]
    if odd:
        file, fact = odd[0]
        kind = ", ".join((*fact.notes, f"mode {fact.mode}"))
        raise ValueError(
            f"{len(odd)} of {len(chosen)} images of {str(folder)!r} are not plain RGB, the first {file.name!r} "
            f"({kind}): expected RGB of 8 bits without transparency"
        )
    return NamedImages(folder, tuple(listed), chosen, facts, left_out)


def paired_by(name: str) -> str:
    """What a file's name or a prompt's id is paired by: without suffix; a number without the zeros before it, so that
    00012.png is the image of prompt 12."""
    stem = Path(name).stem if Path(name).suffix.lower() in images.SUFFIXES else name
    return str(int(stem)) if re.fullmatch("[0-9]{1,30}", stem) else stem


def _by_name(listed: Sequence[Prompt]) -> dict[str, Prompt]:
    prompt_of: dict[str, Prompt] = {}
    for prompt in listed:
        other = prompt_of.setdefault(paired_by(prompt.id), prompt)
        if other != prompt:
            raise ValueError(f"two prompts are of one name, {other.id!r} and {prompt.id!r}: expected one an image")
    return prompt_of


def _unpaired(own: dict[str, Prompt], lacking: Sequence[Prompt], unasked: Sequence[Path]) -> str:
    parts = []
    if lacking:
        parts.append(f"{len(lacking)} of {len(own)} prompts have no image, the first has the id {lacking[0].id!r}")
    if unasked:
        parts.append(f"{len(unasked)} images are of no prompt, the first {unasked[0].name!r}")
    return f"{' and '.join(parts)} (an image is named by its prompt's id)"


def check_pair(first: NamedImages, second: NamedImages) -> None:
    """Raise ValueError, in one line, if an image and the other of the same prompt differ in size, or all are equal."""
    if first.id == second.id:
        raise ValueError(
            f"{str(first.folder)!r} and {str(second.folder)!r} hold the same images: there is nothing to compare"
        )
    differ = [i for i, (a, b) in enumerate(zip(first.facts, second.facts, strict=True)) if a.size != b.size]
    if differ:
        a, b = ("x".join(map(str, one.facts[differ[0]].size)) for one in (first, second))
        raise ValueError(
            f"{len(differ)} of {len(first.files)} pairs differ in size, the first of the prompt "
            f"{first.prompts[differ[0]].id!r}: {a} in {str(first.folder)!r}, {b} in {str(second.folder)!r}"
        )
