"""The images of a finished store as files, where other people's evaluation tools look for them (`data/layouts.py`).

Pixels are the store's own, bit for bit: PNG and lossless WebP. What is written appears when all of it is there.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipelines.data import images
from pipelines.data.layouts import LAYOUTS, Contents, Sheet
from pipelines.engine import records
from pipelines.engine.records import Prompt
from pipelines.engine.store import Store, shard_name
from pipelines.results import FinishedStore
from postdiff.arguments import one_of

# Of `Results.table`, what configurations.json says of each folder.
FACTS = ("configuration", "backbone", "method", "settings", "steps", "guidance", "solver", "size", "dtype", "protocol")


@dataclass(frozen=True)
class Export:
    """What is going to be written. configurations: {name of its folder: its row of `Results.table`}. made_of: digest of
    the prompts of each shard, in order: the same for all configurations."""

    store: Store
    layout: str
    configurations: Mapping[str, Mapping[str, Any]]
    made_of: Sequence[str]
    contents: Contents

    def __str__(self) -> str:
        return f"{len(self.configurations)} configurations of {self.store.shown!r}: {self.contents.coverage}"


def prepare(finished: FinishedStore, layout: str, metadata: Path | None, wanted: Sequence[str] = ()) -> Export:
    """All that is written, planned: nothing is written yet, and what cannot be is refused.

    layout, metadata: as `check_layout` says. wanted: ids of configurations, or names of methods; all if there are none.

    Raises: ValueError, in one line, if the store is not finished or lacks images, a wanted one is not in it, or as the
        layout does; DamagedError if a file of the store is not what its name says.
    """
    check_layout(layout, metadata)
    store = finished.store
    rows = _chosen(finished.results().table.to_pylist(), wanted)
    shards = [store.shards(f"images/{row['configuration']}") for row in rows]
    for row, names in zip(rows, shards, strict=True):
        expected = [shard_name(f"images/{row['configuration']}", i, len(shards[0])) for i in range(len(shards[0]))]
        if not names or names != expected:
            raise ValueError(
                f"{store.shown!r} must hold the images that it has scored, in as many files of every configuration: "
                f"expected {len(expected) or 'some'} of {_folder(row)}, got {len(names)}"
            )
    if LAYOUTS[layout].square and (oblong := [row for row in rows if "x" in row["size"]]):
        raise ValueError(f"{layout} cuts grids into squares, got images of {oblong[0]['size']} of {_folder(oblong[0])}")
    prompts: list[Prompt] = []
    made_of = []
    for name in shards[0]:
        table = store.table(name, ["prompt_id", "prompt"])
        made_of.append(records.made_of(table))
        prompts += [Prompt(row["prompt_id"], row["prompt"]) for row in table.to_pylist()]
    contents = LAYOUTS[layout].contents(prompts, metadata or Path())
    return Export(store, layout, {_folder(row): row for row in rows}, made_of, contents)


def _chosen(rows: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> list[Mapping[str, Any]]:
    """Rows of different configurations that are wanted. Raises ValueError if one of `wanted` is none."""
    different = {row["configuration"]: row for row in rows}
    names = {*different, *(row["method"] for row in rows)}
    if unknown := [one for one in wanted if one not in names]:
        methods = ", ".join(sorted({row["method"] for row in rows}))
        raise ValueError(
            f"expected ids of configurations (results.csv has them) or methods ({methods}), got {unknown[0]!r:.80}"
        )
    return [row for row in different.values() if not wanted or {row["configuration"], row["method"]} & {*wanted}]


def _folder(row: Mapping[str, Any]) -> str:
    """The name of a configuration's folder: what a person knows it by, and its id."""
    return re.sub(r"[^\w.+-]", "-", f"{row['method']}-T{row['steps']}-{row['configuration']}", flags=re.ASCII)


def check_layout(layout: str, metadata: Path | None) -> None:
    """Raise ValueError if there is no `layout` of that name, or if it needs the benchmark's own file and there is no
    `metadata`, or the other way round."""
    one_of("layout", layout, tuple(LAYOUTS))
    needed = LAYOUTS[layout].metadata
    if needed and metadata is None:
        raise ValueError(f"the layout {layout} needs --metadata, the benchmark's own {needed}")
    if metadata and not needed:
        raise ValueError(f"--metadata has no effect with the layout {layout}")


def check_out(out: Path) -> None:
    """Raise ValueError if there is something at `out` already."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ValueError(f"--out must be a folder that is not there yet, or empty, got {str(out)!r}")


def write(export: Export, out: Path) -> None:
    """Write all of it below `out`, which appears when it is complete: nothing is left of what was broken off.

    Raises: ValueError if `out` is not empty; DamagedError if a file of the store is not what its name says; OSError.
    """
    out = out.absolute()  # the parent of `.` is another folder
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    total = len(export.configurations) * sum(len(sheet.places) for sheet in export.contents.sheets)
    with TemporaryDirectory(dir=out.parent, prefix=".tmp-export-") as temporary, ThreadPoolExecutor() as pool:
        root = Path(temporary, "export")
        root.mkdir()
        facts = {name: {key: row[key] for key in FACTS} for name, row in export.configurations.items()}
        about = {"store": export.store.shown, "layout": export.layout, "configurations": facts}
        (root / "configurations.json").write_text(json.dumps(about, indent=2) + "\n")
        with tqdm(total=total, desc="exporting", unit="image", delay=2) as bar:
            for name, row in export.configurations.items():
                for path, text in export.contents.texts.items():
                    _made(root / name / path).write_text(text)
                # One shard's sheets at a time: what waits in the pool stays small.
                for sheets in _complete(export, row["configuration"]):
                    for count in pool.map(partial(_write_sheet, root, name), sheets):
                        bar.update(count)
        check_out(out)
        os.replace(root, out)


def _complete(export: Export, id: str) -> Iterator[list[tuple[Sheet, list[bytes]]]]:
    """For each shard of a configuration, the sheets that are complete with it, and their images as they are stored.
    The images of other sheets wait in memory, compressed: copies of a prompt that follow one another wait shortly."""
    sheet_of = {place: sheet for sheet in export.contents.sheets for place in sheet.places}
    waiting: dict[int, bytes] = {}
    place = 0
    for i, made_of in enumerate(export.made_of):
        shard = shard_name(f"images/{id}", i, len(export.made_of))
        complete = []
        for image in export.store.table(shard, ["image"], made_of)["image"].to_pylist():
            waiting[place] = image["bytes"]
            sheet = sheet_of[place]
            if all(one in waiting for one in sheet.places):
                complete.append((sheet, [waiting.pop(one) for one in sheet.places]))
            place += 1
        yield complete


def _write_sheet(root: Path, configuration: str, complete: tuple[Sheet, Sequence[bytes]]) -> int:
    """Write an image file; returns how many images are on it."""
    sheet, stored = complete
    pixels = grid([images.decode(data) for data in stored], sheet.columns)
    path = _made(root / sheet.within / configuration / sheet.name)
    if path.suffix == ".webp":
        path.write_bytes(records.encode_image(pixels))
    else:
        Image.fromarray(pixels).save(path, "PNG", compress_level=1)  # 1024 px: a quarter of the time, 18 % larger
    return len(stored)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def grid(pixels: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """uint8 [H, W, 3] each, of one size -> uint8 [rows x H, columns x W, 3], row by row; black where none is left."""
    blank = [np.zeros_like(pixels[0])] * (-len(pixels) % columns)
    cells = [*pixels, *blank]
    return np.concatenate([np.concatenate(cells[at : at + columns], 1) for at in range(0, len(cells), columns)])
