"""Prompt files of every kind, and what is told when they are wrong."""

import json
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import prompts
from pipelines.records import Prompt

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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "\n \n", "holds no prompt"),
        ("none.csv", "a,b\n1,2\n", "needs a column caption, prompt, text; it has a, b"),
        ("twice.csv", "id,caption\n1,x\n1,y\n", "two prompts of one id"),
        ("broken.json", "{", "not readable as .json"),
        ("other.json", "{}", "not readable as .json"),
        ("list.json", "[1, 2]", "not readable as .json"),
        ("number.json", '{"annotations": [{"id": 1, "image_id": 1, "caption": 7}]}', "a prompt must be text, got 7"),
        ("null.json", '{"annotations": [{"id": 1, "image_id": 1, "caption": null}]}', "holds no prompt"),
        ("broken.parquet", "x", "not readable as .parquet"),
        ("p.docx", "x", "prompts must be 'shapes', 'shapes-recaption' or a file"),
    ],
)
def test_bad_files_are_told(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        prompts.load_prompts(str(tmp_path / name))


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


def test_a_quote_that_is_never_closed_is_told(tmp_path):
    (tmp_path / "p.csv").write_text('id,caption\n1,a cat\n2,"a dog\n3,a bird\n')
    with pytest.raises(ValueError, match=r"not readable as .csv"):
        prompts.load_prompts(str(tmp_path / "p.csv"))


def test_a_byte_order_mark_and_unicodes_line_ends_are_no_part_of_the_format(tmp_path):
    (tmp_path / "p.csv").write_text("caption\na cat\n", encoding="utf-8-sig")
    assert prompts.load_prompts(str(tmp_path / "p.csv")) == [Prompt("0", "a cat")]
    (tmp_path / "p.txt").write_text("a\u2028cat\nb\n", encoding="utf-8-sig")
    assert [p.text for p in prompts.load_prompts(str(tmp_path / "p.txt"))] == ["a\u2028cat", "b"]


def test_more_captions_than_shapes_has_are_told(monkeypatch):
    monkeypatch.setattr(prompts.shapes, "scene", lambda split, i: prompts.shapes.Scene("one", "snow", (0, 0, 0), ()))
    with pytest.raises(ValueError, match="expected 2 different captions of Shapes, its split 'prompts' gives 1"):
        prompts.load_prompts("shapes", 2)
