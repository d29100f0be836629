"""Where other people's evaluation tools look for images: which files, named how, each of which of a store's images.

What each tool reads was taken from its own code: GenEval's `evaluation/evaluate_images.py` (djghosh13/geneval at
16f1681), OneIG-Bench's `scripts/` (OneIG-Bench/OneIG-Benchmark at 41b4983), DPG-Bench's
`dpg_bench/compute_dpg_bench.py` (TencentQQGYLab/ELLA at 025f650). A tool passes over what it cannot name, or counts it
as nothing: here that is an error. A benchmark's rows and the store's prompts belong together by the prompt's text.
"""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from pathlib import Path
from typing import Any, TypeVar

from pipelines.data import images, named_images, rows
from pipelines.data.prompts import unfit
from pipelines.engine.records import Prompt

# Categories of OneIG-Bench.csv, and the folders that its scripts look into.
ONEIG_CLASSES = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
DPG_MOST = 4  # crops that DPG-Bench knows of
LONGEST = 255  # bytes of a file's name
T = TypeVar("T")


@dataclass(frozen=True)
class Sheet:
    """An image file. name: below the folder of a configuration, which is below the folder `within`. places: of the
    images on it in the store's order, row by row. columns: of the grid that they are laid out in."""

    name: str
    places: tuple[int, ...]
    columns: int = 1
    within: str = ""


@dataclass(frozen=True)
class Contents:
    """What is written of every configuration. texts: {name below its folder: text, in ASCII}. coverage: how much of the
    benchmark that is, in words. reading: how its tool is called, with OUT and CONFIGURATION where folders stand."""

    sheets: Sequence[Sheet]
    coverage: str
    reading: str
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """contents: of prompts, and of the benchmark's own file if there is one. metadata: which file that is, "" if there
    is none. square: its tool cuts grids into squares."""

    contents: Callable[[Sequence[Prompt], Path], Contents]
    metadata: str = ""
    square: bool = False


def folder(prompts: Sequence[Prompt], _: Path) -> Contents:
    """`ID.png` of every prompt, and metadata.jsonl (file_name, text, id), as jobs/score.py, jobs/finetune.py and
    Hugging Face's imagefolder read them.

    Raises: ValueError, in one line, if a prompt's id cannot be a file's name, or two would be one file.
    """
    names = [_file_name(prompt.id) for prompt in prompts]
    _check_different((named_images.paired_by(name).casefold(), name) for name in names)
    lines = [
        json.dumps({"file_name": name, "text": prompt.text, "id": prompt.id})
        for name, prompt in zip(names, prompts, strict=True)
    ]
    return Contents(
        [Sheet(name, (i,)) for i, name in enumerate(names)],
        f"{len(prompts)} images",
        "python jobs/score.py OUT/CONFIGURATION --prompts OUT/CONFIGURATION/metadata.jsonl",
        {"metadata.jsonl": "".join(f"{line}\n" for line in lines)},
    )


def geneval(prompts: Sequence[Prompt], metadata: Path) -> Contents:
    """`INDEX/metadata.jsonl` and `INDEX/samples/0000.png`, ...: INDEX is the row of evaluation_metadata.jsonl.

    Raises: ValueError, in one line, if the file is another one, or not all prompts are in it.
    """
    listed = []
    for index, (line, row) in enumerate(rows.objects(metadata)):
        # A row without `include` would be correct whatever the image shows.
        if lacks := [key for key in ("tag", "include", "prompt") if not row.get(key)]:
            raise rows.fault(metadata, f"line {line}", f"no {lacks[0]!r}: expected a row of evaluation_metadata.jsonl")
        if reason := unfit(row["prompt"]):
            raise rows.fault(metadata, f"line {line}", reason)
        listed.append((row["prompt"], (f"{index:05}", row)))
    matched = _matched(prompts, listed, metadata)
    sheets = [
        Sheet(f"{index}/samples/{sample:04}.png", (place,))
        for (index, _), places in matched
        for sample, place in enumerate(places)
    ]
    texts = {f"{index}/metadata.jsonl": f"{json.dumps(row)}\n" for (index, row), _ in matched}
    reading = "python evaluation/evaluate_images.py OUT/CONFIGURATION --outfile results.jsonl --model-path DETECTOR"
    return Contents(sheets, _coverage(matched, listed), reading, texts)


def oneig(prompts: Sequence[Prompt], metadata: Path) -> Contents:
    """`CLASS/CONFIGURATION/ID.webp`, a grid of a prompt's images: class and id are those of OneIG-Bench.csv (-ZH).

    Raises: ValueError, in one line, if the file is another one, not all prompts are in it, or the images of a prompt
        fill no grid.
    """
    header, records = _csv(metadata)
    columns = [name for name in ("prompt_en", "prompt_cn") if name in header]
    _needs(metadata, header, "category", "id", *(columns or ["prompt_en"]))
    listed = []
    for line, row in records:
        if row["category"] not in ONEIG_CLASSES or not re.fullmatch("[0-9]{3}", row["id"]):
            # Its scripts take an image's first three characters for the id, and any name that begins with it.
            what = f"expected a category of {', '.join(ONEIG_CLASSES)} and an id of three digits"
            raise rows.fault(metadata, f"line {line}", f"{what}, got {row['category']!r:.60} and {row['id']!r:.60}")
        named = ONEIG_CLASSES[row["category"]], row["id"]
        listed += [(row[column], named) for column in columns if row[column].strip()]
    listed = [*dict.fromkeys(listed)]
    matched = _matched(prompts, listed, metadata)
    n = len(matched[0][1])
    across = ceil(sqrt(n))
    if n % across:
        raise ValueError(f"oneig looks at whole grids, of 1, 2, 4, 6 or 9 images of a prompt, got {n}")
    _check_different(((within, id), f"{within}/{id}") for (within, id), _ in matched)
    return Contents(
        [Sheet(f"{id}.webp", places, across, within) for (within, id), places in matched],
        _coverage(matched, listed),
        f"scripts of OneIG-Bench, --image_dirname OUT (alignment, diversity) or OUT/CLASS (text, reasoning, style) "
        f"--model_names CONFIGURATION --image_grid {across},{n // across}",
    )


def dpg(prompts: Sequence[Prompt], metadata: Path) -> Contents:
    """`ITEM.png`, a grid of two columns: the item's name is that of its prompt's file (dpg_bench/prompts/ITEM.txt), and
    in dpg_bench.csv the column item_id. Either can be given: the csv, or the folder.

    Raises: ValueError, in one line, if it is another file, not all prompts are in it, or a prompt has more images than
        the tool cuts out.
    """
    if metadata.is_dir():
        listed = [(rows.text(file), file.stem) for file in sorted(metadata.glob("*.txt"))]
        if not listed:
            raise ValueError(f"{str(metadata)!r} must hold a benchmark's prompts, got a folder without .txt files")
    else:
        header, records = _csv(metadata)
        _needs(metadata, header, "item_id", "text")
        listed = [*dict.fromkeys((row["text"], row["item_id"]) for _, row in records)]  # the file has a row a question
    matched = _matched(prompts, listed, metadata)
    n = len(matched[0][1])
    if n > DPG_MOST:
        raise ValueError(f"dpg looks at up to {DPG_MOST} images of a prompt, got {n}")
    if dotted := [item for item, _ in matched if "." in item]:
        raise ValueError(f"dpg takes an image's name up to its first dot for the item, got the item {dotted[0]!r:.80}")
    _check_different((item.casefold(), item) for item, _ in matched)
    return Contents(
        [Sheet(_file_name(item), places, min(n, 2)) for item, places in matched],
        _coverage(matched, listed),
        f"PIC_NUM={n} bash dpg_bench/dist_eval.sh OUT/CONFIGURATION RESOLUTION",
    )


LAYOUTS = {
    "folder": Layout(folder),
    "geneval": Layout(geneval, "evaluation_metadata.jsonl"),
    "oneig": Layout(oneig, "OneIG-Bench.csv or OneIG-Bench-ZH.csv"),
    "dpg": Layout(dpg, "dpg_bench.csv, or the folder dpg_bench/prompts", square=True),
}


def _matched(
    prompts: Sequence[Prompt], listed: Sequence[tuple[str, T]], metadata: Path
) -> list[tuple[T, tuple[int, ...]]]:
    """The benchmark's rows whose prompt the store has, in its order, and the places of each one's images.

    listed: (prompt, what the row is called). Prompts of one text are images of one row; where several rows have that
    text, each takes as many of them.

    Raises: ValueError, in one line, if a prompt is in no row, or rows would have different numbers of images: a tool
        that counts images would count one prompt for more than another.
    """
    places_of, rows_of = defaultdict(list), defaultdict(list)
    for place, prompt in enumerate(prompts):
        places_of[prompt.text].append(place)
    for text, row in listed:
        rows_of[text.strip()].append(row)  # as `load_prompts` reads a prompt
    if lacking := [text for text in places_of if text not in rows_of]:
        raise ValueError(
            f"{len(lacking)} of {len(places_of)} prompts are not in {str(metadata)!r}, the first {lacking[0]!r:.100}: "
            "expected the benchmark's own texts"
        )
    matched = []
    for text, places in places_of.items():
        n, rest = divmod(len(places), len(rows_of[text]))
        if rest or n == 0:
            raise ValueError(
                f"{len(rows_of[text])} rows of {str(metadata)!r} are {text!r:.100}: expected as many images of each, "
                f"the store has {len(places)}"
            )
        matched += [(row, tuple(places[i * n : (i + 1) * n])) for i, row in enumerate(rows_of[text])]
    numbers = sorted({len(places) for _, places in matched})
    if len(numbers) > 1:
        raise ValueError(f"expected as many images of each prompt, got from {numbers[0]} to {numbers[-1]}")
    return matched


def _coverage(matched: Sequence[tuple[T, tuple[int, ...]]], listed: Sequence[tuple[str, T]]) -> str:
    """In words, how much of the benchmark the store has."""
    n = len(matched[0][1])
    return f"{len(matched)} of the benchmark's {len(listed)} prompts, {n} image{'s' * (n > 1)} each"


def _csv(file: Path) -> tuple[Sequence[str], list[tuple[int, dict[str, Any]]]]:
    """Columns and rows (with the line that each begins at) of a benchmark's own table. Its texts may have several
    lines, which `rows.table` refuses: there a stray quote would have swallowed rows."""
    reader = csv.DictReader(io.StringIO(rows.text(file), newline=""), strict=True)
    line, records = 1, []
    try:
        header = reader.fieldnames or ()
        line = reader.line_num + 1
        for row in reader:
            if None in row or None in row.values():  # too many cells, too few
                raise rows.fault(file, f"line {line}", f"expected {len(header)} cells as in the header")
            records.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise rows.fault(file, f"line {line}", str(error)) from None
    return header, records


def _needs(file: Path, header: Sequence[str], *columns: str) -> None:
    if lacks := [name for name in columns if name not in header]:
        raise ValueError(f"{str(file)!r} needs a column {lacks[0]!r}; it has {rows.listed(header)}")


def _file_name(id: str) -> str:
    """The PNG that `named_images` pairs with a prompt of this id. Raises ValueError if there can be none."""
    stem = Path(id).stem if Path(id).suffix.lower() in images.SUFFIXES else id
    name = f"{stem}.png"
    fits = re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*", stem) and len(name.encode()) <= LONGEST
    if not fits or named_images.paired_by(name) != named_images.paired_by(id):
        raise ValueError(f"an image is named by its prompt's id, got {id!r:.100}, which cannot be a file's name")
    return name


def _check_different(names: Iterable[tuple[Hashable, str]]) -> None:
    """Raise ValueError if two of `names` (what a file's name amounts to, the name) would be one file."""
    seen: dict[Hashable, str] = {}
    for key, name in names:
        if key in seen:
            raise ValueError(f"two images would be named {seen[key]!r:.100} and {name!r:.100}: expected one a prompt")
        seen[key] = name
