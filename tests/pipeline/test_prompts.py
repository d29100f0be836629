"""Prompt files of every kind, and what is told when they are wrong."""

import json
import os
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import command_line
from pipelines.data import prompts, shapes
from pipelines.data.procedural import SHAPES
from pipelines.engine.records import Prompt
from pipelines.paper import published

TEXTS = ["a cat", 'a "quoted", comma', "</script><b>ünïcode"]


def test_every_format_gives_the_same_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    (tmp_path / "p.tsv").write_text(
        "id\tcaption\n" + "".join(f'{i}\t"{t.replace(chr(34), chr(34) * 2)}"\n' for i, t in enumerate(TEXTS)),
        encoding="utf-8",
    )
    (tmp_path / "p.csv").write_text(
        "prompt\n" + "".join(f'"{t.replace(chr(34), chr(34) * 2)}"\n' for t in TEXTS), encoding="utf-8"
    )
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "p.parquet")
    images = sorted(range(3), key=lambda i: sha256(str(i).encode()).digest())
    rows = [{"id": i, "image_id": image, "caption": t} for i, (image, t) in enumerate(zip(images, TEXTS, strict=True))]
    (tmp_path / "p.json").write_text(json.dumps({"annotations": rows, "images": []}), encoding="utf-8")
    expected = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
    for file in sorted(tmp_path.iterdir()):
        assert prompts.load_prompts(str(file)) == expected, file
        assert prompts.load_prompts(str(file), limit=2) == expected[:2]


DEEP = "[" * 100_000
COCO = '{"annotations": [%s]}'
BAD = [
    ("empty.txt", "\n \n", "holds no prompt"),
    ("nothing.txt", "", "is empty"),
    ("nul.txt", "a cat\na\0dog\n", r"line 2: a prompt must be text without control characters .* got '\\x00'"),
    ("joined.txt", "a cat\n\ufeffa dog\n", r"line 2: .* got '\\ufeff'"),
    ("cr.txt", "a cat\na dog\ra bird\n", "line 2: a carriage return within the line"),
    ("none.csv", "a,b\n1,2\n", "needs a column caption, prompt, text; it has a, b"),
    ("escape.csv", "a\x1b[2J,b\n1,2\n", r"it has a\\x1b\[2J, b"),
    ("header.csv", "id,caption\n", "holds no prompt"),
    ("two.csv", "caption,caption\na,b\n", "has two columns 'caption'"),
    ("more.csv", "id,caption\n0,x\n1,a man, sitting\n", "line 3: expected 2 cells as in the header, got 3"),
    ("fewer.csv", "id,caption\n1\n", "line 2: expected 2 cells as in the header, got 1"),
    ("blank.csv", "id,caption\n1,a\n2, \n", "line 3: the prompt is blank"),
    ("no id.csv", "id,caption\n,a\n", "line 2: an id must be a number or text that is not blank, got ''"),
    ("twice.csv", "id,caption\n1,x\n2,y\n1,z\n", "line 4: two prompts of one id, '1': line 2 has it too"),
    ("open.csv", 'id,caption\n1,a cat\n2,"a dog\n3,a bird\n', "line 3: unexpected end of data"),
    ("swallowed.csv", 'id,caption\n1,"a cat\n2,a dog"\n', "line 2: a quoted cell goes on to line 3"),
    ("swallowed.tsv", 'id\tcaption\n1\t"a cat\n2\ta dog\n3\ta bird"\n', "line 2: a quoted cell goes on to line 4"),
    ("sign.tsv", 'id\tcaption\n1\tx\n2\t"Stop" sign\n', "line 3: .* expected after"),
    ("broken.jsonl", '{"text": "a"}\n\n{"text"\n', "line 3: not JSON: .* at column 8"),
    ("list.jsonl", "[1]\n", "line 1: expected an object, got a list"),
    ("key.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2: no 'prompt', which other lines have; it has text"),
    ("id.jsonl", '{"prompt": "a"}\n{"prompt": "b", "id": 7}\n', "line 1: no 'id'"),
    ("twice.jsonl", '{"prompt": "a", "prompt": "b"}\n', "line 1: not JSON: the key 'prompt' is there 2 times"),
    ("null.jsonl", '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": null}\n', "line 2: an id must be .* got None"),
    ("number.jsonl", '{"prompt": "a"}\n{"prompt": 7}\n', "line 2: a prompt must be text, got 7"),
    ("half.jsonl", '{"prompt": "a star \\ud83d"}\n', r"line 1: .* halves of characters, got '\\ud83d'"),
    ("deep.jsonl", '{"prompt": "a"}\n' + DEEP, "line 2: JSON that is nested too deep"),
    ("broken.json", "{\n]", "line 2: not JSON"),
    ("other.json", "{}", "must be COCO's annotations, an object with a list 'annotations', got an object of none"),
    ("list.json", "[1, 2]", "must be COCO's annotations, an object with a list 'annotations', got a list"),
    ("deep.json", DEEP, "line 1: JSON that is nested too deep"),
    (
        "row.json",
        COCO % '{"id": 1, "image_id": 1}',
        "number 1 of 'annotations': expected .* caption, got an object of id",
    ),
    ("number.json", COCO % '{"id": 1, "image_id": 1, "caption": 7}', "annotation 1: a prompt must be text, got 7"),
    ("null.json", COCO % '{"id": 1, "image_id": 5, "caption": null}', "image 5 has no caption that is not blank"),
    ("id.json", COCO % '{"id": null, "image_id": 1, "caption": "a"}', "number 1 of .* id must be a whole number"),
    ("ids.json", COCO % ", ".join(['{"id": 1, "image_id": 1, "caption": "a"}'] * 2), "two annotations of one id, 1"),
    ("broken.parquet", "x", "not readable as .parquet"),
    ("p.docx", "x", "prompts must be 'shapes', 'shapes-recaption', 'scenes', 'scenes-recaption' or a file"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_files_are_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(ValueError, match=message) as told:
        prompts.load_prompts(str(tmp_path / name))
    assert str(told.value).isprintable()  # one line, and nothing that a terminal would obey
    assert name in str(told.value)


def test_what_is_no_file_of_text_is_told(tmp_path):
    (tmp_path / "latin.txt").write_bytes("a cat\na café\n".encode("latin-1"))
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "null.parquet")
    for name, message in (
        ("latin.txt", "line 2: expected UTF-8, got the byte 0xe9"),
        ("folder.csv", "must be a file, got a folder"),
        ("pipe.jsonl", "must be a file, got a special file"),
        ("null.parquet", "row 1: a prompt must be text, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            prompts.load_prompts(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("P.CSV", 'id,caption\r\n7,a cat\r\n\r\n8,"a dog, red"\r\n', {"7": "a cat", "8": "a dog, red"}),
        ("mac.csv", "caption\ra cat\ra dog\r", {"0": "a cat", "1": "a dog"}),
        ("mac.txt", "a cat\r\ra dog", {"0": "a cat", "2": "a dog"}),
        ("pandas.csv", 'id,caption\n1,"a cat\n"\n2,a dog\n', {"1": "a cat", "2": "a dog"}),
        ("lines.csv", 'prompt\n"a cat,\nred"\n', {"0": "a cat,\nred"}),
        ("quote.tsv", 'caption\n"a ""Stop"" sign"\na 12" pizza\n', {"0": 'a "Stop" sign', "1": 'a 12" pizza'}),
        ("numbers.jsonl", '{"text": " a ", "id": 3}\n\n{"text": "b", "id": "x"}\n', {"3": "a", "x": "b"}),
    ],
)
def test_what_is_plainly_meant_is_read(tmp_path, name, content, expected):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / name).write_bytes(content.encode(encoding))
        assert {prompt.id: prompt.text for prompt in prompts.load_prompts(str(tmp_path / name))} == expected


def test_an_image_of_coco_whose_first_caption_is_blank_is_not_lost(tmp_path):
    captions = [(4, 5, "a real one"), (1, 5, " "), (2, 6, "another"), (3, 5, None), (9, 5, "a later one")]
    rows = [{"id": id, "image_id": image, "caption": text} for id, image, text in captions]
    (tmp_path / "c.json").write_text(json.dumps({"annotations": rows}), encoding="utf-8-sig")
    assert {p.id: p.text for p in prompts.load_prompts(str(tmp_path / "c.json"))} == {"4": "a real one", "2": "another"}


def test_a_description_of_what_was_read_is_one_line():
    listed = [Prompt("0", "a cat"), Prompt("1", "b" * 100), Prompt("2", "a\n\x1bdog"), Prompt("3", "unseen")]
    shown = "'" + "b" * 57 + "...'"
    assert prompts.describe(listed) == rf"4 prompts, the first: 'a cat', {shown}, 'a\n\x1bdog'"
    assert prompts.describe(listed[:1]) == "1 prompt: 'a cat'"


def test_lists_that_exist_are_what_they_were():
    """Seeds come from ids, and stores are claimed by fingerprints."""
    known = {"shapes": "0b2d10527a8a", "shapes-recaption": "1256c4b84e02", str(published.APPENDIX_J): "549b41621607"}
    assert {source: prompts.fingerprint(prompts.load_prompts(source)) for source in known} == known


def test_a_draw_shares_neither_ids_nor_noise_with_another_and_is_of_the_same_kind(tmp_path):
    first, other, third = (prompts.load_prompts("shapes", 300, draw=draw) for draw in (0, 1, 2))
    assert first == prompts.load_prompts("shapes", 300)
    seeds = [prompts.seed(prompt) for prompt in (*first, *other, *third)]
    assert len(set(seeds)) == 900
    assert other[7] == Prompt("shapes-100007", shapes.scene("prompts", 100_007).caption)
    assert sum(a.text == b.text for a, b in zip(first, other, strict=True)) < 10
    assert all(shapes.is_held_out(prompt.text) for prompt in other)
    assert command_line.MOST_OF_SHAPES[0] <= prompts.DRAW  # so that draws never meet
    file = tmp_path / "p.txt"
    file.write_text("\n".join(f"caption {i}" for i in range(9)))
    draws = [prompts.load_prompts(str(file), 3, draw=draw) for draw in (0, 1, 2)]
    assert [prompt for draw in draws for prompt in draw] == prompts.load_prompts(str(file))
    mixed = [prompts.load_prompts(str(file), 3, True, draw) for draw in (0, 1)]
    assert {p.id for p in mixed[0]}.isdisjoint(p.id for p in mixed[1])
    with pytest.raises(ValueError, match=r"draw 3 of 3 prompts needs 12, '.*p\.txt' has 9"):
        prompts.load_prompts(str(file), 3, draw=3)
    with pytest.raises(ValueError, match=r"draw 1 of a file needs a number of them \(--limit\)"):
        prompts.load_prompts(str(file), draw=1)


def test_missing_file_and_bad_limit_are_told():
    with pytest.raises(ValueError, match=r"no prompt file at 'nowhere\.txt'"):
        prompts.load_prompts("nowhere.txt")
    with pytest.raises(ValueError, match="1 or more, got 0"):
        prompts.load_prompts("shapes", 0)


def test_seeds_depend_on_the_prompts_id_alone():
    assert prompts.seed(Prompt("7", "a cat")) == prompts.seed(Prompt("7", "a dog"))
    assert len({prompts.seed(Prompt(str(i), "")) for i in range(1000)}) == 1000
    assert prompts.seed(Prompt("7", "")) != prompts.seed(Prompt("7", ""), sample=1)
    assert 0 <= prompts.seed(Prompt("7", "")) < 2**63


def test_shards_partition_the_prompts():
    listed = prompts.load_prompts("shapes", 21)
    for size in (1, 8, 20, 21, 50):
        assert [p for shard in prompts.shard(listed, size) for p in shard] == listed
    with pytest.raises(ValueError, match="1 or more, got 0"):
        prompts.shard(listed, 0)


def test_a_byte_order_mark_and_unicodes_line_ends_are_no_part_of_the_format(tmp_path):
    (tmp_path / "p.csv").write_text("caption\na cat\n", encoding="utf-8-sig")
    assert prompts.load_prompts(str(tmp_path / "p.csv")) == [Prompt("0", "a cat")]
    (tmp_path / "p.txt").write_text("a\u2028cat\nb\n", encoding="utf-8-sig")
    assert [p.text for p in prompts.load_prompts(str(tmp_path / "p.txt"))] == ["a\u2028cat", "b"]


def test_more_captions_than_shapes_has_are_told(monkeypatch):
    drawn = lambda split, i: shapes.Scene("one", "snow", (0, 0, 0), ())  # noqa: E731
    monkeypatch.setattr(shapes, "scene", drawn)
    monkeypatch.setitem(prompts.DRAWN, "shapes", (replace(SHAPES, scene=drawn), "prompts"))
    with pytest.raises(ValueError, match="expected 2 different captions of shapes, its split 'prompts' gives 1"):
        replace(SHAPES, scene=drawn).distinct("prompts", 2)
    assert [(p.id, p.text) for p in prompts.load_prompts("shapes", 2)] == [("shapes-0", "one"), ("shapes-1", "one")]


def test_many_prompts_of_shapes_are_drawn_as_the_references_are():
    """Without a caption twice those of one object would run out: 45 % of few prompts, 14 % of 2,000."""
    assert len({prompt.id for prompt in prompts.load_prompts("shapes", 2000)}) == 2000
    shares = []
    for captions in (
        [prompt.text for prompt in prompts.load_prompts("shapes", 2000)],
        [shapes.scene("reference", i).caption for i in range(2000)],
    ):
        shares.append(np.mean([" a " not in caption[1:] for caption in captions]))
    assert shares == pytest.approx([0.45, 0.45], abs=0.04)
