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
PARTS = ("engine", "data", "metrics", "stages", "report", "paper")  # of pipelines: each may import those before it


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


@pytest.mark.parametrize(
    ("package", "door"), [("ray", "workers.py"), ("wandb", "tracking.py"), ("matplotlib", "plots.py")]
)
def test_one_door_for_each_heavy_dependency(package, door):
    users = {file.name for file in SOURCES if package in imports(file)}
    assert users == {door}


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
