"""Prompts from Shapes or from files, and their shards. Prompts are data: never part of a path or a command."""

import csv
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import coco, shapes
from pipelines.records import Prompt
from postdiff.backbones import Spec

# Draws of Shapes, and the split that each is of; the second is what another data set is to the first.
SHAPES = {"shapes": "prompts", "shapes-recaption": "recaption"}
TEXT_COLUMNS = ("caption", "prompt", "text")
ID_COLUMNS = ("id", "prompt_id", "caption_id", "file_name")


def load_prompts(source: str, limit: int | None = None, shuffled: bool = False) -> list[Prompt]:
    """The first `limit` prompts of `source`: `shapes` or `shapes-recaption` (256 if there is no limit), or a file.

    .txt: one a line, the line's number is the id. .csv, .tsv, .parquet: a column caption, prompt or text; ids from a
    column id, prompt_id, caption_id or file_name, else the row's number. .jsonl: the same names in an object a line,
    as the metadata.jsonl of a folder of images (jobs/fetch.py). .json: COCO's annotations (coco.py): one caption an
    image in a fixed order, of which the first 5,000, 10,000 and 30,000 are the lists to use.

    shuffled: of a file, in the order of a hash of ids and texts: a fixed draw, of which more prompts hold fewer.

    Raises: ValueError naming the file and what was expected, if it is missing, unreadable, or holds no prompt.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the number of prompts must be 1 or more, got {limit}")
    if source in SHAPES:
        scenes = shapes.distinct_scenes(SHAPES[source], limit or 256)
        return [Prompt(f"{source}-{i}", scene.caption) for i, scene in enumerate(scenes)]
    path = Path(source)
    readers = {
        ".txt": _lines,
        ".csv": _table,
        ".tsv": _table,
        ".parquet": _parquet,
        ".jsonl": _objects,
        ".json": coco.captions,
    }
    if path.suffix not in readers:
        raise ValueError(
            f"prompts must be {', '.join(map(repr, SHAPES))} or a file ({', '.join(readers)}), got {source!r}"
        )
    if not path.is_file():
        raise ValueError(
            f"no prompt file at {source!r} (jobs/fetch.py gets the paper's; COCO's captions are in {coco.SOURCE})"
        )
    try:
        found = [(str(id), "" if text is None else text) for id, text in readers[path.suffix](path)]
    except (
        UnicodeDecodeError,
        json.JSONDecodeError,
        KeyError,
        TypeError,
        csv.Error,
        OSError,
        pa.ArrowInvalid,
    ) as error:
        raise ValueError(f"{source!r} is not readable as {path.suffix}: {error!r}") from error
    other = next((text for _, text in found if not isinstance(text, str)), None)
    if other is not None:
        raise ValueError(f"{source!r}: a prompt must be text, got {other!r}")
    prompts = [Prompt(id, text.strip()) for id, text in found if text.strip()]
    if not prompts:
        raise ValueError(f"{source!r} holds no prompt: expected at least one non-empty text")
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise ValueError(f"{source!r} has two prompts of one id; ids must differ")
    if shuffled:
        prompts.sort(key=lambda prompt: sha256(json.dumps([prompt.id, prompt.text]).encode()).digest())
    return prompts[:limit]


def _lines(path: Path):
    return enumerate(_text_lines(path))


def _text_lines(path: Path) -> list[str]:
    """Lines end at a line feed alone: a prompt may hold what else Unicode calls a line's end. A byte order mark, as
    spreadsheets write it, is no part of the first."""
    return path.read_text(encoding="utf-8-sig").split("\n")


def _table(path: Path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        text, id = _columns(path, reader.fieldnames or [])
        for number, row in enumerate(reader):
            yield row[id] if id else number, row[text]


def _objects(path: Path):
    rows = [json.loads(line) for line in _text_lines(path) if line.strip()]
    text, id = _columns(path, list(rows[0]) if rows else [])
    for number, row in enumerate(rows):
        yield row[id] if id else number, row[text]


def _parquet(path: Path):
    text, id = _columns(path, pq.read_schema(path).names)
    table = pq.read_table(path, columns=[c for c in (text, id) if c])
    for number, row in enumerate(table.to_pylist()):
        yield row[id] if id else number, row[text]


def _columns(path: Path, names: Sequence[str]) -> tuple[str, str | None]:
    text = next((name for name in TEXT_COLUMNS if name in names), None)
    if text is None:
        raise ValueError(f"{str(path)!r} needs a column {', '.join(TEXT_COLUMNS)}; it has {', '.join(names) or 'none'}")
    return text, next((name for name in ID_COLUMNS if name in names), None)


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
    texts = [prompt.text for prompt in prompts]
    if spec.family == "pixart":
        from transformers import T5Tokenizer

        pieces = T5Tokenizer.from_pretrained(spec.source, revision=spec.revision or "main", subfolder="tokenizer")
        return [len(ids) for ids in pieces([text.lower().strip() for text in texts]).input_ids]  # as its pipeline
    if spec.revision:
        from open_clip import SimpleTokenizer

        encode = SimpleTokenizer().encode
        return [len(encode(text)) + 2 for text in texts]
    from transformers import CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(f"{spec.source}/tokenizer")
    return [len(ids) for ids in words(texts).input_ids]


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """12 hex digits of ids and texts, in order."""
    return sha256(json.dumps([(p.id, p.text) for p in prompts]).encode()).hexdigest()[:12]
