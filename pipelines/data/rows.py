"""Rows of files: lines, tables, JSON and Parquet. What cannot be read raises one line that names file and place."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


def fault(path: Path, where: str, what: str) -> ValueError:
    """What is wrong at a place of a file, as one line without raw control characters."""
    return ValueError(f"{str(path)!r}, {where}: {what}")


def listed(names: Iterable[str]) -> str:
    """Names of columns on one line, `none` if there are none; control characters are escaped."""
    return ", ".join(repr(name)[1:-1] for name in names) or "none"


def _regular(path: Path) -> None:
    if not os.path.isfile(path):
        kind_of_path = (
            "a folder" if os.path.isdir(path) else "a special file" if os.path.exists(path) else "no such file"
        )
        raise ValueError(f"{str(path)!r} must be a file, got {kind_of_path}")


def text(path: Path) -> str:
    """The text of a file in UTF-8, without the byte order mark that spreadsheets and editors of Windows write.

    Raises: ValueError if it is no regular file, empty, or not UTF-8.
    """
    _regular(path)
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise fault(path, f"line {line}", f"expected UTF-8, got the byte 0x{error.object[error.start]:02x}") from None
    if not content:
        raise ValueError(f"{str(path)!r} is empty")
    return content


def _text_of_lines(path: Path) -> str:
    """The text of a file of lines, whose ends are all LF or CRLF or, as old Macs wrote them, all CR."""
    content = text(path)
    if "\n" in content and (lone := re.search("\r(?!\n)", content)):
        line = content.count("\n", 0, lone.start()) + 1
        raise fault(path, f"line {line}", "a carriage return within the line: lines must end in LF or CRLF")
    return content


def lines(path: Path) -> list[str]:
    """The lines of a text file. What else Unicode calls a line's end is part of a line."""
    return _text_of_lines(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def table(path: Path, delimiter: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header of a CSV or TSV file, and its rows: (line that it begins at, {column: cell}). Blank lines are layout.

    Raises: ValueError naming the line of a row that has not the header's number of cells, of a stray quote, and of a
        quoted cell that may have swallowed the rows below it: in a TSV one of several lines, in a CSV one of several
        lines of which a later one holds a comma.
    """
    reader = csv.reader(io.StringIO(_text_of_lines(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            stray = str(error).replace("\t", r"\t")
            what = f"{stray}: a cell that begins with a quote must end with one, and hold others doubled"
            raise fault(path, f"line {line}", what) from None
        if cells is None:
            return header, rows
        if not cells:
            continue
        if not header:
            header = cells
            continue
        if any(_swallows(cell, delimiter, len(header)) for cell in cells):
            what = f"a quoted cell goes on to line {reader.line_num}: a stray quote, or a text to write in one line"
            raise fault(path, f"line {line}", what)
        if len(cells) != len(header):
            mark = "tab" if delimiter == "\t" else "comma"
            what = f"expected {len(header)} cells as in the header, got {len(cells)} (a {mark} in a cell needs quotes)"
            raise fault(path, f"line {line}", what)
        rows.append((line, dict(zip(header, cells, strict=True))))


def _swallows(cell: str, delimiter: str, columns: int) -> bool:
    later = [line for line in re.split("[\r\n]+", cell)[1:] if line.strip()]
    return bool(later) and (delimiter == "\t" or (columns > 1 and any(delimiter in line for line in later)))


def objects(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines: (line, object). Blank lines are layout.

    Raises: ValueError naming the line that is no JSON object.
    """
    numbered = []
    for line, content in enumerate(lines(path), 1):
        if content.strip():
            value = _json(path, content, line)
            if not isinstance(value, dict):
                raise fault(path, f"line {line}", f"expected an object, got {kind(value)}")
            numbered.append((line, value))
    return numbered


def columns(path: Path) -> list[str]:
    """The columns of a Parquet file. Raises: ValueError if it is none."""
    _regular(path)
    with _parquets_faults(path):
        return pq.read_schema(path).names


def parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of a Parquet file. Raises: ValueError if it cannot be read."""
    with _parquets_faults(path):
        table = pq.read_table(path, columns=list(columns))
        table.validate(full=True)
        return table


@contextmanager
def _parquets_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{str(path)!r} is not readable as .parquet: {str(error).splitlines()[0]}") from error


def inside(folder: Path, name: Any, path: Path, where: str) -> Path:
    """The file `name` of `folder`, as a place of the file `path` tells it: data, which may lead nowhere else.

    Raises: ValueError if it is no relative path, or leads out of the folder, by `..` or by a link.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise fault(path, where, f"a file name must be text that is not blank, got {name!r}")
    file = folder / name
    if Path(name).is_absolute() or not file.resolve().is_relative_to(folder.resolve()):
        how = " by a link" if not Path(name).is_absolute() and ".." not in Path(name).parts else ""
        raise fault(path, where, f"the file {name!r} leads out of {str(folder)!r}{how}")
    return file


def json_value(path: Path) -> Any:
    """The value of a JSON file. Raises: ValueError naming the line that is no JSON."""
    return _json(path, text(path), 1)


def kind(value: Any) -> str:
    """What JSON calls a value of its type."""
    return KINDS.get(type(value), "a number")


def _json(path: Path, content: str, line: int) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} at column {error.colno}"
        raise fault(path, f"line {line + error.lineno - 1}", what) from None
    except RecursionError:
        raise fault(path, f"line {line}", "JSON that is nested too deep") from None
    except ValueError as error:  # a key that is there twice, a number of thousands of digits
        raise fault(path, f"line {line}", f"not JSON: {error}") from None


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        (key, times), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} is there {times} times")
    return result
