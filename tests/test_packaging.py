"""What leaves the checkout: the package of a Ray job, a wheel, and what `ray up` copies to the nodes."""

import ast
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE, get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from setuptools import Distribution

from postdiff.models import minis

ROOT = Path(__file__).parents[1]
MIB = 2**20
LEFT_BEHIND = (
    ".git",
    ".venv",
    "out",
    "wandb",
    ".train",
    "build",
    "__pycache__",
    "*.egg-info",
    "*_cache",
    "*.pt",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The checkout as links to its files, beside what README's commands put there: gigabytes, of holes."""
    root = tmp_path_factory.mktemp("checkout") / "postdiff"
    link = lambda source, target: os.symlink(source, target)  # noqa: E731
    named = shutil.ignore_patterns(*LEFT_BEHIND)

    def ignore(folder, names):
        return named(folder, names) | ({"data"} if Path(folder) == ROOT else set())  # pipelines/data is code

    shutil.copytree(ROOT, root, ignore=ignore, copy_function=link)
    for name in ("data/coco2014/val2014/1.jpg", "out/sweep/images/0.parquet", ".venv/lib/torch.so", ".git/objects/1",
                 "inception-2015-12-05.pt", ".train/unet.pt", "wandb/run/0.wandb"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with open(root / name, "wb") as hole:
            hole.truncate(500 * MIB)
    (root / "captions.tsv").write_text("id\tcaption\n1\ta red star\n")
    return root


@pytest.fixture(scope="module")
def package(checkout, tmp_path_factory):
    """What `ray job submit --working-dir .` sends, made by Ray's own function."""
    file = tmp_path_factory.mktemp("package") / "package.zip"
    quiet = logging.getLogger("quiet")
    quiet.setLevel(logging.ERROR)
    excludes = get_runtime_env_default_excludes()
    create_package(str(checkout), file, include_gitignore=True, excludes=excludes, logger=quiet)
    return file


def test_a_job_package_leaves_room_and_holds_what_a_cluster_needs(checkout, package):
    with ZipFile(package) as opened:
        sent = set(opened.namelist())
    assert package.stat().st_size <= DASHBOARD_CLIENT_MAX_SIZE - 35 * MIB
    files = {str(file.relative_to(checkout)) for file in checkout.rglob("*") if file.is_file()}
    code = {file for file in files if file.startswith(("postdiff/", "pipelines/", "jobs/"))}
    scorers = "mini-clip", "mini-judges"  # of either data set
    models = tuple(f"postdiff/mini/{name}" for name in ("mini-sd/", *scorers, "SHA256SUMS"))
    aside = ("postdiff/mini/", "jobs/results/")
    needed = {file for file in code if not file.startswith(aside) or file.startswith(models)} | {"captions.tsv"}
    assert needed >= {
        "pipelines/paper/published.csv",
        "pipelines/data/coco_5k.txt",
        "jobs/coco_sweep.py",
        f"{models[0]}model_index.json",
    }
    assert needed - sent == set()


def test_a_job_package_holds_nothing_else(package):
    with ZipFile(package) as opened:
        sent = opened.namelist()
    models = {name.split("/")[2] for name in sent if name.startswith("postdiff/mini/mini-")}
    assert [name for name in models if name in minis.NAMES] == ["mini-sd"]
    own = {".gitignore", ".rayignore", "Makefile", "cluster.yaml", "pyproject.toml", "captions.tsv"}
    assert {name.split("/")[0] for name in sent} <= {"postdiff", "pipelines", "jobs", *own}
    assert [name for name in sent if name.endswith((".png", ".md", ".pt"))] == []


def test_a_wheel_holds_every_model_and_no_picture(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    project = Distribution({"script_name": "setup.py"})
    project.parse_config_files()
    build = project.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {os.path.join(folder, file) for _, folder, _, files in build.data_files for file in files}
    assert {f"postdiff/mini/{file}" for file in minis.read_sums(minis.MINI)} <= packed
    assert {"postdiff/mini/SHA256SUMS", "pipelines/paper/published.csv", "pipelines/data/coco_5k.txt"} <= packed
    pages = {str(file.relative_to(ROOT)) for file in (ROOT / "pipelines/report/page").iterdir()}
    assert {f"pipelines/report/page/page.{kind}" for kind in ("html", "css", "js")} <= pages <= packed
    assert [file for file in packed if file.endswith(".png")] == []


def test_ray_up_copies_what_pip_installs_and_the_token_to_nodes_that_ask_for_it():
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    mounts = cluster["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert mounts == {f"~/postdiff/{name}": name for name in ("pyproject.toml", "README.md", "postdiff", "pipelines")}
    assert all((ROOT / name).exists() for name in mounts.values())
    assert any('pip install -q "$HOME/postdiff[pipelines]"' in command for command in cluster["setup_commands"])
    for kind in ("head", "worker"):
        (start,) = (command for command in cluster[f"{kind}_start_ray_commands"] if "ray start" in command)
        assert "RAY_AUTH_MODE=token ray start" in start


# The models that are not sent.


def test_the_sums_are_those_of_the_models(tmp_path):
    """If a model was trained again: python -c "from postdiff.models import minis; minis.write_sums(minis.MINI)"."""
    link = lambda source, target: os.symlink(source, target)  # noqa: E731
    shutil.copytree(minis.MINI, tmp_path / "mini", ignore=shutil.ignore_patterns("SHA256SUMS"), copy_function=link)
    minis.write_sums(tmp_path / "mini")
    assert (tmp_path / "mini" / "SHA256SUMS").read_text() == (minis.MINI / "SHA256SUMS").read_text()
    of_shapes = "mini-bk-sdm", "mini-lcm", "mini-pixart", "mini-sd", "mini-sdxl"
    of_scenes = "mini-bk-sdm-scenes", "mini-lcm-scenes", "mini-sd-full-scenes", "mini-sd-scenes", "mini-sdxl-scenes"
    assert sorted(minis.NAMES) == sorted((*of_shapes, *of_scenes))


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node: a job's code with mini-sd alone, and an installed postdiff in `site`."""
    job, site = tmp_path / "job", tmp_path / "site"
    for folder in (job, site / "postdiff" / "mini"):
        folder.mkdir(parents=True)
    shutil.copy(minis.MINI / "SHA256SUMS", job)
    os.symlink(minis.MINI / "mini-sd", job / "mini-sd")
    os.symlink(minis.MINI / "mini-lcm", site / "postdiff" / "mini" / "mini-lcm")
    (site / "postdiff-0.1.0.dist-info").mkdir()
    (site / "postdiff-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: postdiff\nVersion: 0.1.0\n"
    )
    monkeypatch.setattr(minis, "MINI", job)
    monkeypatch.syspath_prepend(site)
    return site


find = minis.folder.__wrapped__  # not remembered from test to test


def test_a_job_reads_what_it_was_not_sent_from_the_installed_package(node):
    assert find("mini-sd") == minis.MINI / "mini-sd"
    assert find("mini-lcm") == node / "postdiff" / "mini" / "mini-lcm"


def test_an_installed_checkout_counts_as_a_package(node, tmp_path):
    os.rename(node / "postdiff", tmp_path / "postdiff")
    origin = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    (node / "postdiff-0.1.0.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    assert find("mini-lcm") == tmp_path / "postdiff" / "mini" / "mini-lcm"


@pytest.mark.parametrize("changed", ["unet/config.json", "postdiff.json"])
def test_another_model_of_the_same_name_is_refused(node, changed):
    installed = node / "postdiff" / "mini" / "mini-lcm"
    installed.unlink()
    shutil.copytree(ROOT / "postdiff" / "mini" / "mini-lcm", installed)
    (installed / changed).write_text("{}")
    expected = rf"mini-lcm that is installed on this node must be the one of this job's code, got another .*{changed}"
    with pytest.raises(ValueError, match=expected):
        find("mini-lcm")
    (installed / changed).unlink()
    with pytest.raises(ValueError, match=expected):
        find("mini-lcm")


def test_what_is_nowhere_is_told_with_the_way_out(node):
    with pytest.raises(FileNotFoundError, match=r"mini-sdxl is not sent with a job \(.rayignore\), and must be in"):
        find("mini-sdxl")


# `make install`.


def make(folder, *args):
    tool = shutil.which("make")
    return subprocess.run(
        [tool, *args], cwd=ROOT, env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )


def python(folder, name, line):
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


def test_make_install_takes_the_first_python_that_is_new_enough(tmp_path):
    python(tmp_path, "python3.11", "exit 127")  # as pyenv's, of a version that is not there
    python(tmp_path, "python3.12", f'exec {sys.executable} "$@"')
    python(tmp_path, "python3", "exit 1")  # too old
    shown = make(tmp_path, "-n", "install", f"VENV={tmp_path}/venv").stdout
    assert f"python3.12 -m venv {tmp_path}/venv" in shown
    assert (
        f"mypython -m venv {tmp_path}/venv"
        in make(tmp_path, "-n", "install", "PYTHON=mypython", f"VENV={tmp_path}/venv").stdout
    )


def test_make_install_without_a_python_says_so_in_one_line(tmp_path):
    python(tmp_path, "python3", "exit 1")
    done = make(tmp_path, "install", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == "error: python must be 3.11 or later, found none: make install PYTHON=FILE"
    assert not (tmp_path / "venv").exists()


# What comes with a declared package, and what bench_methods.py times ours against, and says that it needs.
BROUGHT = {"grpc": "ray", "tokenizers": "transformers"}
AUTHORS = {"pipelines/bench_methods.py: " + name for name in ("DeepCache", "tgate", "tomesd")}


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {re.match(r"[\w-]+", one)[0].lower().replace("_", "-") for one in chain(*lists)}


@pytest.mark.parametrize(
    ("folder", "extras"), [("postdiff", ()), ("pipelines", ("pipelines", "dashboard")), ("jobs", ("pipelines",))]
)
def test_what_the_code_imports_is_what_it_is_installed_with(folder, extras):
    """At any depth of it: what only the tests are installed with would be missed by users alone."""
    owners = packages_distributions()
    own = {"postdiff", "pipelines", *(file.stem for file in (ROOT / "jobs").glob("*.py"))}
    missing = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in names} - own - set(sys.stdlib_module_names):
                if not {one.lower().replace("_", "-") for one in owners.get(BROUGHT.get(top, top), [top])} & declared(
                    *extras
                ):
                    missing.add(f"{file.relative_to(ROOT)}: {top}")
    assert missing - AUTHORS == set()
