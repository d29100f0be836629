"""Names over 255 bytes, which no file system takes: refused as those of nothing that is there, in one line."""

from pathlib import Path

import logbooks
import pytest

from pipelines.data import fetch, named_images, pairs, prompts, rows
from pipelines.engine.store import Store
from pipelines.metrics import encoders
from pipelines.report import runs
from pipelines.stages import features
from postdiff import cli

LONG = "a" * 300


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (lambda: prompts.load_prompts(f"{LONG}.tsv"), "no prompt file at"),
        (lambda: rows.text(Path(LONG)), "must be a file, got no such file"),
        (lambda: named_images.read(Path(LONG), ()), "which is no folder"),
        (lambda: features.reference_files(Path(LONG)), "which is no folder"),
        (lambda: pairs.open_pairs(LONG), "training pairs must be"),
        (lambda: encoders.clip_folder(LONG), "unknown CLIP model"),
        (lambda: encoders.inception_file(f"{LONG}.pt"), "no Inception weights at"),
        (lambda: fetch.check_folder(Path(LONG)), "name must be of 255 bytes at most"),
    ],
)
def test_what_reads_a_name_refuses_it(read, line):
    with pytest.raises(ValueError, match=line) as refused:
        read()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["cost", "mini-sd", LONG], "unknown method"),
        (["cost", LONG, "dense"], "unknown model"),
        (["generate", "x", "--out", LONG], "--out must be a folder that files can be written to, got "),
    ],
)
def test_the_console_script_refuses_it_before_any_work(command, line, monkeypatch, capsys):
    monkeypatch.setattr("postdiff.load", None)
    with pytest.raises(SystemExit):
        cli.main(command)
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_what_is_evaluated_may_have_a_long_name(tmp_path, monkeypatch):
    """W&B takes 128 characters of a run's id, and the group is a file's name: what is left out, the digest knows."""
    book = logbooks.book(Store(str(tmp_path)))
    long, other = (
        logbooks.book(Store(str(tmp_path)), sweep="sweep-" + "+lora=style.safetensors:0.5" * n) for n in (20, 21)
    )
    assert long.group != other.group
    assert long.group[:80] == other.group[:80]
    for one in (book, long):
        assert all(len(run.id) <= 128 for run in one.runs())
    assert book.group.rpartition("-")[0] == book.sweep  # as it was
    assert not runs.is_path("org/" + LONG)
