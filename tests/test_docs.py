"""The site is built, its links strict; the example notebook and the tutorial run as they stand there."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

import pytest

from postdiff import cli, commands, methods

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "example.ipynb"
TUTORIAL = (ROOT / "docs" / "pages" / "tutorial.md").read_text()


def missing(*modules):
    return [name for name in modules if importlib.util.find_spec(name) is None]


SITE = ("mkdocs", "material", "mkdocstrings_handlers")
needs_mkdocs = pytest.mark.skipif(bool(missing(*SITE)), reason=f"pip install '.[docs]': no {', '.join(missing(*SITE))}")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All pages, built as `make docs` does: a warning, as of a link to nothing, is an error."""
    out = tmp_path_factory.mktemp("docs")
    words = ["-m", "mkdocs", "build", "--strict", "-q", "-f", str(ROOT / "docs" / "mkdocs.yml"), "-d", str(out)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@needs_mkdocs
def test_every_page_is_built_and_nothing_is_fetched(site):
    pages = {str(file.relative_to(site)) for file in site.rglob("*.html")}
    docs = {f"{file.stem}.html" for folder in ("docs", "docs/pages") for file in (ROOT / folder).glob("*.md")}
    exhibits = {f"results/paper/{file.stem}.html" for file in (ROOT / "jobs/results/paper").glob("*.md")}
    assert docs | exhibits | {"contributing.html", "results/index.html"} <= pages
    for page in ("index.html", "methods.html", "results/index.html"):
        assert not re.search(
            r'<(script|img|link rel="stylesheet")[^>]*(src|href)="?(https?:)?//', (site / page).read_text()
        )
    assert "{{" not in re.sub(
        r"<(pre|code)\b.*?</\1>", "", "".join((site / page).read_text() for page in docs), flags=re.S
    )


@needs_mkdocs
def test_every_method_has_its_place_and_its_picture(site):
    page = (site / "methods.html").read_text()
    for name in methods.METHODS:
        assert f'id="{name}"' in page
        assert f'src="pictures/{name}.png"' in page
        assert (site / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "DeepCache&#39;s interval" in page or "DeepCache's interval" in page


@needs_mkdocs
def test_what_the_package_offers_is_on_the_page_of_the_interface(site):
    import postdiff

    page = (site / "api.html").read_text()
    offered = [name for name in postdiff.__all__ if name != "methods"]
    assert [name for name in (*offered, "open_store") if not re.search(rf'id="[\w.]+\.{name}"', page)] == []


def hooks():
    """docs/hooks.py, which mkdocs loads by its path."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_mkdocs
@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[a](docs/cluster.md#the-store)", "[a](../cluster.md#the-store)"),
        ("[a](jobs/results/paper/claims.md)", "[a](paper/claims.md)"),
        ("![a](jobs/results/plan.png)", "![a](plan.png)"),
        ("[a](#there)", "[a](#there)"),
        ("[a](https://b.c/d)", "[a](https://b.c/d)"),
        ("[.rayignore](.rayignore)", "`.rayignore`"),  # a file that is no page
        ("[a](nothing.md)", "[a](nothing.md)"),  # which --strict refuses
        ("[a]: docs/gpu.md", "[a]: ../gpu.md"),
        ("```\n[a](docs/gpu.md)\n```", "```\n[a](docs/gpu.md)\n```"),
    ],
)
def test_links_of_the_repository_lead_to_pages(link, expected):
    assert hooks().linked(link, "README.md", "results/index.md") == expected


@pytest.mark.slow
def test_the_notebook_runs_and_ends_in_results_and_a_plan(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    # Ray's sockets have short paths.
    client.execute(
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "WANDB_MODE": "disabled",
            "TMPDIR": str(tmp_path),
            "RAY_TMPDIR": gettempdir(),
        }
    )
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    drawn = [data for data in shown if "image/png" in data and "text/html" in data]
    assert len(drawn) == 2  # two plans
    (table,) = (data["text/html"] for data in shown if "CLIP score" in data.get("text/html", ""))
    assert table.count("<tr>") == 1 + 7


def test_the_notebook_is_kept_without_what_a_machine_put_there():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)


def test_the_quick_commands_of_the_tutorial_run(capsys):
    lines = [line for line in blocks("bash")[0].splitlines() if line.startswith("postdiff ")]
    assert len(lines) == 3
    for line in lines:
        words = cli._parse(shlex.split(line)[1:])
        getattr(commands, shlex.split(line)[1])(words)
    assert "mini-sd" in capsys.readouterr().out
    exec(compile(blocks("python")[0], "tutorial.md", "exec"), {})
    assert "postdiff: 20 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_tutorial_runs_in_its_order(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    program = [sys.executable, "-m", "postdiff.cli"]
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", TUTORIAL, re.DOTALL):
        if language == "python":
            done = [[sys.executable, "-c", block]]
        else:
            words = [shlex.split(line) for line in block.splitlines()]
            done = [
                program + w[1:] if w[0] == "postdiff" else [sys.executable, str(ROOT / w[1]), *w[2:]] for w in words
            ]
        for command in done:
            subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "out" / "calibration" / "plan.json").exists()
    assert list((tmp_path / "out" / "deployed").glob("*.png"))
