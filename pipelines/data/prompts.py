"""Prompts of procedural data sets or files, and their shards. Prompts are data: never part of a path or a command."""

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipelines.data import coco, rows
from pipelines.data.procedural import PROCEDURAL, SHAPES, Procedural
from pipelines.engine.records import Prompt
from postdiff.models.families import FAMILIES
from postdiff.models.spec import Spec

# Prompts of the procedural data sets, and the split that each is of; of each data set the second is what another data
# set is to the first.
DRAWN: dict[str, tuple[Procedural, str]] = {
    name + suffix: (data, split)
    for name, data in PROCEDURAL.items()
    for suffix, split in (("", "prompts"), ("-recaption", "recaption"))
}
DRAW = 100_000  # scenes of them from one draw to the next: no draw has more
TEXT_COLUMNS = ("caption", "prompt", "text")
ID_COLUMNS = ("id", "prompt_id", "caption_id", "file_name")
# Control characters that are no white space, a byte order mark inside a text, and halves of a character (surrogates).
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff\ud800-\udfff]")
_SHOWN = 60  # characters of a prompt in `describe`


def load_prompts(source: str, limit: int | None = None, shuffled: bool = False, draw: int = 0) -> list[Prompt]:
    """The first `limit` prompts of `source`: one of DRAWN (256 if there is no limit), or a file.

    .txt: one a line, the line's number is the id; blank lines are layout. .csv, .tsv, .parquet: a column caption,
    prompt or text; ids from a column id, prompt_id, caption_id or file_name, else the row's number, both counted from
    0. .jsonl: the same names in an object a line, as the metadata.jsonl of a folder of images (jobs/fetch.py). .json:
    COCO's annotations (coco.py): one caption an image in a fixed order, of which the first 5,000, 10,000 and 30,000
    are the lists to use. White space around a prompt is no part of it.

    shuffled: of a file, in the order of a hash of ids and texts: a fixed draw, of which more prompts hold fewer.
    draw: other prompts, so that nothing is shared with those of another draw, noise neither (`seed` is of the id): of
        DRAWN the scenes from number `draw` x DRAW on, of a file its `draw`-th stretch of `limit` prompts, from 0.

    Raises: ValueError naming the file, the line (or row, or annotation), and what was expected, if any of the file is
        not what a person would read there: nothing is cut, left out or guessed; if a file has not all the prompts of
        its `draw`. OSError if it cannot be opened.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the number of prompts must be 1 or more, got {limit}")
    if source in DRAWN:
        # A caption may come again, with noise of its own: without that, those of one object run out, and 2,000 prompts
        # are no longer what the references are (FID of real renders: 4.6).
        numbers = range(draw * DRAW, draw * DRAW + (limit or 256))
        data, split = DRAWN[source]
        return [Prompt(f"{source}-{i}", data.scene(split, i).caption) for i in numbers]
    path = Path(source)
    readers = {
        ".txt": _lines,
        ".csv": lambda path: _table(path, ","),
        ".tsv": lambda path: _table(path, "\t"),
        ".parquet": _parquet,
        ".jsonl": _objects,
        ".json": coco.captions,
    }
    read = readers.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"prompts must be {', '.join(map(repr, DRAWN))} or a file ({', '.join(readers)}), got {source!r}"
        )
    if not path.exists():
        raise ValueError(
            f"no prompt file at {source!r} (jobs/fetch.py gets the paper's; COCO's captions are in {coco.SOURCE})"
        )
    places: dict[str, str] = {}  # of ids
    prompts = []
    for where, id, text in read(path):
        if reason := unfit(text):
            raise rows.fault(path, where, reason)
        prompt = Prompt(_id(path, where, id), text.strip())
        if prompt.id in places:
            raise rows.fault(path, where, f"two prompts of one id, {prompt.id!r}: {places[prompt.id]} has it too")
        places[prompt.id] = where
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{source!r} holds no prompt: expected at least one non-empty text")
    if shuffled:
        prompts.sort(key=lambda prompt: sha256(json.dumps([prompt.id, prompt.text]).encode()).digest())
    if not draw:
        return prompts[:limit]
    if limit is None or len(prompts) < (draw + 1) * limit:
        wanted = f"{limit} prompts needs {(draw + 1) * limit}" if limit else "a file needs a number of them (--limit)"
        raise ValueError(f"draw {draw} of {wanted}, {source!r} has {len(prompts)}")
    return prompts[draw * limit : (draw + 1) * limit]


def unfit(text: Any) -> str:
    """Why `text` can be no prompt; "" if it can.

    White space is text; other control characters, lone surrogates and byte order marks are signs of a broken file.
    """
    if not isinstance(text, str):
        return f"a prompt must be text, got {text!r:.60}"
    if match := _NOT_TEXT.search(text):
        return f"a prompt must be text without control characters and halves of characters, got {match[0]!r}"
    return "" if text.strip() else "the prompt is blank"


def _id(path: Path, where: str, id: Any) -> str:
    number = isinstance(id, int | float) and not isinstance(id, bool) and id == id
    if not number and (not isinstance(id, str) or unfit(id)):
        raise rows.fault(path, where, f"an id must be a number or text that is not blank, got {id!r:.60}")
    return str(id)


def describe(prompts: Sequence[Prompt]) -> str:
    """What was read, on one line: how many prompts, and the first three, as `256 prompts, the first: 'a', 'b', 'c'`."""
    texts = [prompt.text for prompt in prompts[:3]]
    shown = ", ".join(repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...") for text in texts)
    return f"{len(prompts)} prompts, the first: {shown}" if len(prompts) > 1 else f"1 prompt: {shown}"


# Readers: (place in the file, id, text) of every prompt.


def _lines(path: Path) -> list[tuple[str, Any, Any]]:
    numbered = enumerate(rows.lines(path))
    return [(f"line {number + 1}", number, text) for number, text in numbered if text.strip()]


def _table(path: Path, delimiter: str) -> list[tuple[str, Any, Any]]:
    header, records = rows.table(path, delimiter)
    return _picked(path, header, [(f"line {line}", row) for line, row in records])


def _objects(path: Path) -> list[tuple[str, Any, Any]]:
    records = [(f"line {line}", row) for line, row in rows.objects(path)]
    return _picked(path, list(dict.fromkeys(name for _, row in records for name in row)), records)


def _parquet(path: Path) -> list[tuple[str, Any, Any]]:
    names = rows.columns(path)
    records = rows.parquet(path, [name for name in _columns(path, names) if name])
    return _picked(path, names, [(f"row {number}", row) for number, row in enumerate(records.to_pylist())])


def _picked(path: Path, names: Sequence[str], records: Sequence[tuple[str, dict]]) -> list[tuple[str, Any, Any]]:
    text, id = _columns(path, names)
    for where, row in records:
        if lacks := [name for name in (text, id) if name and name not in row]:
            raise rows.fault(path, where, f"no {lacks[0]!r}, which other lines have; it has {rows.listed(row)}")
    return [(where, row[id] if id else number, row[text]) for number, (where, row) in enumerate(records)]


def _columns(path: Path, names: Sequence[str]) -> tuple[str, str | None]:
    text = next((name for name in TEXT_COLUMNS if name in names), None)
    if text is None:
        raise ValueError(f"{str(path)!r} needs a column {', '.join(TEXT_COLUMNS)}; it has {rows.listed(names)}")
    id = next((name for name in ID_COLUMNS if name in names), None)
    if twice := next((name for name in (text, id) if name and names.count(name) > 1), None):
        raise ValueError(f"{str(path)!r} has two columns {twice!r}")
    return text, id


def scene(prompt: Prompt) -> str:
    """The scene that a prompt of DRAWN is the caption of, as `real_image` takes it."""
    source, _, number = prompt.id.rpartition("-")
    return scene_key(*DRAWN[source], int(number))


def scene_key(data: Procedural, split: str, index: int) -> str:
    """Names a scene: `reference/7` of Shapes, `scenes/reference/7`."""
    return f"{split}/{index}" if data is SHAPES else f"{data.name}/{split}/{index}"


def references(source: str, n: int) -> list[str]:
    """The first `n` references of DRAWN's data set, as `real_image` takes them; [] of a file, which has none."""
    return [scene_key(DRAWN[source][0], "reference", i) for i in range(n)] if source in DRAWN else []


def seed(prompt: Prompt, sample: int = 0) -> int:
    """The seed of a prompt's `sample`-th image: 63 bits that depend on nothing else."""
    return int.from_bytes(sha256(f"{prompt.id}/{sample}".encode()).digest()[:8], "little") >> 1


def shard(prompts: Sequence[Prompt], size: int) -> list[tuple[Prompt, ...]]:
    if size < 1:
        raise ValueError(f"prompts a shard must be 1 or more, got {size}")
    return [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]


def token_lengths(prompts: Sequence[Prompt], spec: Spec) -> list[int]:
    """Tokens of each prompt, start and end included, by the backbone's tokenizer (open_clip carries CLIP's own).

    Raises: OSError if the tokenizer must come from the hub, and cannot.
    """
    texts, rules = [prompt.text for prompt in prompts], FAMILIES[spec.family]
    if spec.revision and rules.tokenizer == "CLIPTokenizer":
        from open_clip import SimpleTokenizer

        encode = SimpleTokenizer().encode
        return [len(encode(text)) + 2 for text in texts]
    return rules.token_lengths(spec, texts)


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """12 hex digits of ids and texts, in order."""
    return sha256(json.dumps([(p.id, p.text) for p in prompts]).encode()).hexdigest()[:12]
