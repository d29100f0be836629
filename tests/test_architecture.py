"""Imports point one way, heavy dependencies have one door each, and cluster.yaml is what Ray's launcher takes."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from postdiff.models.families import FAMILIES

ROOT = Path(__file__).parents[1]
SOURCES = [f for folder in ("postdiff", "pipelines", "jobs") for f in sorted((ROOT / folder).rglob("*.py"))]
# Of pipelines: each may import those before it; "" are the modules that are in no part (evaluation, options, ...).
PARTS = ("engine", "data", "metrics", "training", "stages", "report", "", "paper", "gpu")
MOST_BRANCHES = 15


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down_and_files_are_short(file):
    above = {"postdiff": {"pipelines", "jobs", "ray", "pyarrow", "wandb"}, "pipelines": {"jobs"}, "jobs": set()}
    assert not set(imports(file)) & above[file.relative_to(ROOT).parts[0]]
    assert len(file.read_text().splitlines()) <= 320


def part_of(module):
    """The part of `pipelines.PART.MODULE`."""
    name = module.split(".")[1]
    return name if (ROOT / "pipelines" / name).is_dir() else ""


def parts(source):
    """The parts of pipelines that a file imports from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipelines":
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.startswith("pipelines.")]
        else:
            continue
        yield from map(part_of, modules)


@pytest.mark.parametrize("file", sorted((ROOT / "pipelines").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_no_part_of_the_evaluation_imports_one_above_it(file):
    own = part_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
    above = PARTS[PARTS.index(own) + 1 :]
    assert [part for part in parts(file.read_text()) if part in above] == []


def test_imports_are_found_wherever_they_stand():
    source = "from pipelines import paper, options\ndef f():\n    from pipelines.report.plots import x\n"
    source += "    import pipelines.gpu.runs"
    assert list(parts(source)) == ["paper", "", "report", "gpu"]
    there = {f.name for f in (ROOT / "pipelines").iterdir() if f.is_dir()}
    assert there - {"__pycache__"} == set(PARTS) - {""}


def branches(function):
    """Branch points: if, for, while, except, a ternary, each `and`, `or` and `if` of a comprehension."""
    count = 0
    for node in ast.walk(function):
        count += isinstance(node, ast.If | ast.For | ast.While | ast.ExceptHandler | ast.IfExp)
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        count += len(node.ifs) if isinstance(node, ast.comprehension) else 0
    return count


def functions(source):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_function_is_a_maze(file):
    found = {function.name: branches(function) for function in functions(file.read_text())}
    over = {(file.name, name) for name, count in found.items() if count > MOST_BRANCHES}
    assert not over


def test_modules_are_named_where_models_are_described_alone():
    """Mechanisms, costs and pictures ask `anatomy`; pipelines/training builds and trains the mini models themselves."""
    names = re.compile(r"\b(attn[12]|transformer_blocks|(down|up)_blocks|mid_block|resnets)\b")
    told = {file.relative_to(ROOT) for file in SOURCES if names.search(file.read_text())}
    assert {str(file.parent) for file in told} == {"postdiff/models", "pipelines/training"}


def test_every_branch_counts():
    (function,) = functions(
        "def f(x):\n    for i in [y for y in x if y if i]:\n        if i and x or y:\n            return 1 if x else 2"
        "\n    while x:\n        try:\n            pass\n        except ValueError:\n            pass\n"
    )
    assert branches(function) == 9


@pytest.mark.parametrize(
    ("package", "door"),
    [
        ("ray", "workers.py"),
        ("wandb", "tracking.py"),
        ("wandb_workspaces", "workspaces.py"),
        ("matplotlib", "plots.py"),
        ("obstore", "bucket.py"),
        ("boto3", "bucket.py"),
    ],
)
def test_one_door_for_each_heavy_dependency(package, door):
    users = {file.name for file in SOURCES if package in imports(file)}
    assert users == {door}


VAGUE = {"found", "of", "told", "said", "there", "kept"}


def names_given(source):
    """The names that functions, parameters, variables and aliases of a file are given (not a class's fields)."""
    tree = ast.parse(source)
    fields = {id(node.target) for c in ast.walk(tree) if isinstance(c, ast.ClassDef)
              for node in c.body if isinstance(node, ast.AnnAssign)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_names_say_what_a_thing_is():
    vague = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in SOURCES
        for name in names_given(file.read_text())
        if name.strip("_") in VAGUE
    }
    assert vague == set()
    assert [
        *names_given(
            "class A:\n    of: int = 1\n    def found(self, told):\n        self.said = [there for there in ()]"
        )
    ] == ["A", "found", "self", "told", "said", "there"]


def test_which_family_a_model_is_of_is_asked_in_models_alone():
    asks = re.compile(rf'(==|!=|\bin) \(?"({"|".join(FAMILIES)})"')
    files = [f for f in SOURCES if not f.is_relative_to(ROOT / "postdiff/models")]
    assert [f.name for f in files if asks.search(f.read_text())] == []


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_checks_that_a_change_must_pass(command):
    tool, *rest = command.split()
    done = subprocess.run([sys.executable, "-m", tool, *rest], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_method_alone_needs_nothing_of_the_evaluation():
    """`pip install .`, without the extra `pipelines`, is enough for postdiff."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [re.split(r"[^\w-]", line)[0] for line in project["optional-dependencies"]["pipelines"]]
    blocked = [
        name.replace("clean-fid", "cleanfid").replace("-", "_") for name in extra if name != "fsspec"
    ]  # of torch
    script = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import postdiff\n"
        "from postdiff import cli, commands, sampling, search\n"
        "postdiff.load('mini-sd')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"ray", "pyarrow", "cleanfid", "wandb", "matplotlib"} <= set(blocked)


def test_cluster_yaml_is_valid_for_rays_launcher():
    import jsonschema
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    validate_config(prepare_config(cluster))
    workers = cluster["available_node_types"]["gpu_worker"]
    assert workers["min_workers"] == 0
    assert workers["resources"]["GPU"] >= 1
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert "GPU" not in head["resources"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 3}, schema)
