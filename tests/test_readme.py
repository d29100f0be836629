"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest

import postdiff

README = (Path(__file__).parents[1] / "README.md").read_text()
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


def test_every_file_of_the_tree_is_told():
    root = Path(__file__).parents[1]
    tree = README.split("```")[1]
    for folder in ("postdiff", "pipelines", "jobs"):
        missing = [f.name for f in (root / folder).glob("*.py") if f.name not in tree and f.name != "__init__.py"]
        assert [name for name in missing if not name.startswith("train_")] == []
