"""What the README, docs/cluster.md and the tutorial show runs as it stands there."""

import argparse
import csv
import re
import runpy
import shlex
import sys
from pathlib import Path

import diffusers
import pytest

import postdiff
from postdiff import cli
from postdiff.mechanisms import ScheduledModules

README_FILE = Path(__file__).parents[1] / "README.md"
README = README_FILE.read_text()
DOCS = README_FILE.parent / "docs"
SHELL = "".join(file.read_text() for file in (README_FILE, DOCS / "cluster.md", DOCS / "pages" / "tutorial.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def commands(program):
    """The words of each command of `program` in the shell blocks; of a job of Ray or SLURM, what it runs."""
    for block in re.findall(r"```bash\n(.*?)```", SHELL, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace(";", " ; "), comments=True)
            while words:
                end = words.index(";") if ";" in words else len(words)
                command, words = words[:end], words[end + 1 :]
                if command[:2] == ["ray", "job"] and program != ["ray"]:
                    command = command[command.index("--") + 1 :]
                if command[:1] == ["sbatch"] and program == ["python"] and "python" in command:
                    command = command[command.index("python") :]
                if command[: len(program)] == program:
                    yield command[len(program) :]


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.split("\n")[0])
def test_python_of_the_readme_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "from_pretrained" in code:  # of the hub; a mini stands for it
        pipe = postdiff.load("mini-sdxl", device="cpu").pipe
        monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "from_pretrained", lambda name: pipe)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    if "pipe" in names:
        assert [image.size for image in names["images"]] == [(64, 64)]
        return
    assert names["images"].shape == (1, 64, 64, 3)
    for file in tmp_path.glob("*.json"):
        assert postdiff.load_plan(file) == names["plan"]


def test_the_first_block_is_three_lines_on_a_pipeline_of_ones_own():
    lines = [line for line in BLOCKS[0].splitlines() if line and "import" not in line]
    assert [line.split()[0] for line in lines] == ["pipe", "fast", "images"]


def test_a_method_of_your_own_is_short_and_what_it_says():
    own = next(code for code in BLOCKS if "def guidance_interval" in code)
    assert len(own.splitlines()) < 40
    names = {}
    exec(own.split("backbone =")[0], names)
    plan = names["guidance_interval"]()
    assert [step.guided for step in plan.steps] == [False] * 4 + [True] * 12 + [False] * 4
    assert plan.get(ScheduledModules).rows()["mid_block.attentions.0"].count(".") == 10


def test_the_tree_tells_of_every_file_and_of_no_other():
    root = Path(__file__).parents[1]
    tree = next(block for block in README.split("```") if "THE METHOD" in block)
    told = set(re.findall(r"\w+\.py", tree))
    folders = ("postdiff", "pipelines", "jobs")
    assert told == {f.name for folder in folders for f in (root / folder).rglob("*.py") if f.name != "__init__.py"}


def test_prose_is_no_wider_than_a_screen():
    for file in (README_FILE, README_FILE.parent / "jobs" / "results" / "README.md"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith(("|", "![", "  ("))]
        assert [line for line in lines if len(line) > 125] == []


class Parsed(BaseException):
    """Stops a program once it has read its arguments."""


@pytest.fixture
def stop_when_parsed(monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.mark.parametrize("words", commands(["postdiff"]), ids=" ".join)
def test_every_postdiff_command_is_read(words):
    assert cli._parse(words).run is getattr(postdiff.commands, words[0])


@pytest.fixture
def run_job(monkeypatch):
    def run(file, *words):
        monkeypatch.setattr(sys, "argv", [str(file), *words])
        monkeypatch.setattr(sys, "path", [*sys.path])
        runpy.run_path(str(README_FILE.parent / file), run_name="__main__")

    return run


@pytest.mark.parametrize("words", commands(["python"]), ids=" ".join)
def test_every_job_that_is_shown_is_read(words, stop_when_parsed, run_job):
    with pytest.raises(Parsed):
        run_job(*words)


@pytest.mark.parametrize("words", commands(["ray"]), ids=" ".join)
def test_every_ray_command_is_read(words):
    """By Ray's own parser, which refuses options that it does not know; nothing is run."""
    from ray.scripts.scripts import cli

    words = words[: words.index(">")] if ">" in words else words
    group = cli
    while hasattr(command := group.get_command(None, words[0]), "commands"):
        group, words = command, words[1:]
    assert command.make_context(words[0], words[1:]).command is command


@pytest.mark.parametrize("words", [w for p in ("kubectl", "docker", "sbatch") for w in commands([p])], ids=" ".join)
def test_every_file_that_is_shown_to_a_scheduler_is_there(words):
    files = [word for word in words if word.startswith("jobs/cluster/")]
    assert all((README_FILE.parent / file).is_file() for file in files)
    assert files or words[0] in ("logs", "push")


@pytest.mark.parametrize("job", sorted((README_FILE.parent / "jobs").glob("*.py")), ids=lambda file: file.name)
def test_every_job_says_what_it_takes(job, run_job, capsys):
    with pytest.raises(SystemExit) as done:
        run_job(job, "--help")
    assert not done.value.code
    assert f"usage: {job.name}" in capsys.readouterr().out


def test_every_make_target_that_is_shown_is_one():
    targets = set(re.findall(r"^([\w-]+):", (README_FILE.parent / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"\bmake ([\w-]+)", "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))))
    assert shown == {"install", "sweep", "reproduce", "quick", "test", "test-all", "check", "chaos", "docs"}
    assert shown <= targets


def test_the_claims_that_are_counted_are_those_that_were_measured():
    file = README_FILE.parent / "jobs/results/paper/claims.csv"
    verdicts = [row["verdict"] for row in csv.DictReader(file.open())]
    counts = {verdict: verdicts.count(verdict) for verdict in ("agrees", "contradicts", "equivalent", "not resolved")}
    assert sum(counts.values()) == len(verdicts) >= 24
    assert len(verdicts) - counts["not resolved"] >= 15
    agree, contradicted, equivalent, unknown = counts.values()
    assert contradicted == 0
    told = (
        f"Of {len(verdicts)} claims {agree} agree, none is contradicted, {equivalent} show no difference that matters"
    )
    assert f"{told}, {unknown} cannot be told" in re.sub(r"\s+", " ", README)
