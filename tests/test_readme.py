"""What the README shows runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import postdiff

README_FILE = Path(__file__).parents[1] / "README.md"
README = README_FILE.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.split("\n")[0])
def test_python_of_the_readme_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["images"].shape == (1, 64, 64, 3)
    for file in tmp_path.glob("*.json"):
        assert postdiff.load_plan(file) == names["plan"]


def test_a_method_of_your_own_is_short_and_what_it_says():
    own = next(code for code in BLOCKS if "def guidance_interval" in code)
    assert len(own.splitlines()) < 40
    names = {}
    exec(own.split("backbone =")[0], names)
    plan = names["guidance_interval"]()
    assert [step.guided for step in plan.steps] == [False] * 4 + [True] * 12 + [False] * 4
    assert dict(plan.modules)["mid_block.attentions.0"].count(".") == 10


def test_the_tree_tells_of_every_file_and_of_no_other():
    root = Path(__file__).parents[1]
    tree = next(block for block in README.split("```") if "THE METHOD" in block)
    told = set(re.findall(r"[\w*]+\.py", tree)) - {"train_*.py"}
    folders = ("postdiff", "pipelines", "jobs")
    there = {f.name for folder in folders for f in (root / folder).glob("*.py") if f.name != "__init__.py"}
    assert told == {name for name in there if not name.startswith("train_") or name == "train_mini.py"}


def test_prose_is_no_wider_than_a_screen():
    for file in (README_FILE, README_FILE.parent / "jobs" / "results" / "README.md"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith(("|", "![", "  ("))]
        assert [line for line in lines if len(line) > 125] == []


@pytest.mark.parametrize("job", sorted((README_FILE.parent / "jobs").glob("*.py")), ids=lambda file: file.name)
def test_every_job_that_is_shown_says_what_it_takes(job):
    """Every option that the README shows is one of the job's."""
    shown = re.findall(rf"python jobs/{job.name}((?:[^\n\\]|\\\n)*)", README)
    options = set(re.findall(r"--[\w-]+", " ".join(shown)))
    done = subprocess.run([sys.executable, str(job), "--help"], capture_output=True, text=True, cwd=README_FILE.parent)
    assert done.returncode == 0, done.stderr
    assert options <= set(re.findall(r"--[\w-]+", done.stdout))
