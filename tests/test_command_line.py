"""What the command line refuses: one line, before any work, and nothing is left behind."""

import inspect
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import refusal

import postdiff
from postdiff import cli, commands, search
from postdiff.methods import METHODS, settings_of
from postdiff.settings import GROUPS, SEARCHES, SETTINGS, flag

ROOT = Path(__file__).parents[1]
NUMBERS = [
    flag(name)
    for group in GROUPS
    for name in group.settings
    if inspect.signature(METHODS[group.method]).parameters[name].annotation in (int, float, int | float)
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, the current one; afterwards it must be as empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("load", "sample"):  # the work
        monkeypatch.setattr(postdiff, name, None, raising=False)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "much", ""])
@pytest.mark.parametrize("name", [*NUMBERS, "--guidance"])
def test_numbers_are_finite(here, capsys, name, value):
    told = refusal(cli.main, ["generate", "a cat", f"{name}={value}"], capsys)
    assert told.startswith(f"{name} must be ")
    assert f"got {value!r}" in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "a cat", "--method", "dense", "--plan", "x.json"], "--plan: not allowed with argument --method"),
        (["generate", "a cat", "--plan", "x.json"], "x.json: No such file or directory"),
        (["generate", "a cat", "--plan", "."], "a plan must be a file, got '.'"),
        (["generat", "a cat"], "got 'generat'; did you mean generate?"),
        ([], "expected a command first: generate, cost, search, methods, models; got none"),
        (["generate", "a cat", "--metod", "dense"], "does not take '--metod'; did you mean --method?"),
        (["generate", "a cat", "--meth", "dense"], "does not take '--meth'; did you mean --method?"),
        (["generate", "a cat", "--method", "dens"], "unknown method 'dens'"),
        (["generate", "a cat", "--method", "dense", "--k", "2"], "dense does not take --k; it takes --steps"),
        (["generate", "a cat", "--backbone", "sd16"], "unknown model 'sd16'"),
        (["generate", "a cat", "--solver", "rk45"], "mini-sd's solver must be one of ddim, dpm, euler, unipc"),
        (["generate", "a cat", "--mode", "mean"], "--mode must be one of ave, cond, uncond, cfg, got 'mean'"),
        (["generate", " "], "must be a text, got ' '"),
        (["generate", "a\x1b[2Jcat"], "must have no control characters, got '\\x1b'"),
        (["generate", "a \udcff"], "the command line must be UTF-8 text"),
        (["generate", "a cat", "--n", "2.0"], "--n must be a whole number of 1 or more, got '2.0'"),
        (["generate", "a cat", "--n", "9" * 30], "would need at least"),
        (["generate", "a cat", "--size", "0"], "size must be a positive multiple of 4 pixels, got 0"),
        (["generate", "a cat", "--size", "4000000"], "size must be a whole number of at most 32768"),
        (["generate", "a cat", "--n", "90", "--batch-size", "90", "--size", "32768"], "would need at least"),
        (["generate", "a cat", "--seed", "1e3"], "--seed must be a whole number"),
        (["generate", "a cat", "--steps", "1001"], "--steps must be a whole number from 1 to 1000, got '1001'"),
        (["generate", "a cat", "--key-steps", "0,a"], "--key-steps must be whole numbers with commas between"),
        (["generate", "a cat", "--out", ""], "--out must be a path, got ''"),
        (["generate", "a cat", "--out", "~nobody-of-that-name/x"], "--out must be the home folder of a user"),
        (["generate", "a cat", "--out", "/dev/null"], "--out must be a folder that files can be written to"),
        (["generate", "a cat", "--out", "/proc/nowhere"], "--out must be a folder that files can be written to"),
        (["generate", "a cat", "--plan-picture", "plan.jpg"], "--plan-picture must be a file that ends in .png"),
        (["generate", "a cat", "--plan-picture", "no/plan.png"], "--plan-picture must be in a folder that is there"),
        (["generate", "a cat", "--backbone", "mini-pixart", "--method", "deepcache"], "cannot cache deep features"),
        (["search", "block_caching", "a", "--delta", "-1"], "delta must be 0 or more, got -1.0"),
        (["search", "ditfastattn", "a", "--window", "2"], "window must be in (0, 1], got 2.0"),
        (["search", "ditfastatn", "a"], "got 'ditfastatn'; did you mean ditfastattn?"),
        (["search", "ca_tome", "a", "--delta", "1"], "ca_tome does not take --delta"),
        (["search", "block_caching", "a", "--out", "no/plan.json"], "--out must be in a folder that is there"),
        (["cost", "sd15", "dense", "--size", "nan"], "--size must be a whole number, got 'nan'"),
    ],
    ids=lambda value: " ".join(value)[:60].encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
def test_what_is_not_meant_is_refused(here, capsys, args, message):
    told = refusal(cli.main, args, capsys)
    assert message in told
    assert told.isprintable()


def test_a_plan_that_is_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "plan.json")
    told = refusal(cli.main, ["cost", "mini-sd", str(tmp_path / "plan.json")], capsys)
    assert told.startswith("a plan must be a file, got ")


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (RuntimeError("mat1 and mat2\nshapes"), "error: while counting: RuntimeError: mat1 and mat2 shapes", 1),
        (IndexError("7"), "error: while counting: IndexError: 7", 1),
        (AssertionError(), "error: while counting: AssertionError:", 1),
        (MemoryError(), "error: while counting: out of memory; a smaller --size", 1),
        (ValueError("s must be in [0, 1)"), "error: s must be in [0, 1)", 1),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied", 1),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_goes_wrong_inside_is_one_line(monkeypatch, capsys, error, line, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(postdiff, "cost", fail, raising=False)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["cost", "mini-sd", "dense"])
    told = capsys.readouterr().err
    assert stopped.value.code == code
    assert told.startswith(line)
    assert told.count("\n") == 1


def test_a_warning_is_one_line_and_said_once(monkeypatch, capsys):
    def warn(args):
        for _ in "ab":
            warnings.warn("a scheduler is replaced", stacklevel=2)

    monkeypatch.setattr(commands, "models", warn)
    cli.main(["models"])
    assert capsys.readouterr().err == "warning: a scheduler is replaced\n"


def run(*command, **options):
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, **options)


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m postdiff.cli methods | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("METHODS")
    assert done.stderr == ""


def test_help_and_refusals_import_neither_torch_nor_diffusers():
    script = (
        "import sys, postdiff, postdiff.cli\n"
        "postdiff.cli._parser()\n"
        "postdiff.backbones.settle(postdiff.backbones.resolve('mini-sd'), None, None, None)\n"
        "print({'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules))\n"
    )
    assert run("-c", script).stdout == "set()\n"


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        (["-m", "postdiff.cli", "--help"], 1.0),
        (["-m", "postdiff.cli", "generate", "a cat", "--method", "dens"], 2.0),
        (["-m", "postdiff.cli", "generate", "a cat", "--backbone", "sd16"], 2.0),
        (["-m", "postdiff.cli", "generate", "a cat", "--solver", "rk45"], 2.0),
        (["jobs/coco_sweep.py", "--prompts", "nowhere.tsv"], 2.0),
        (["jobs/calibrate.py", "--share", "0.5", "--prompts", "nowhere.tsv"], 2.0),
        (["jobs/compare.py", "--backbones", "mini-sd", "--size-conditions", "--prompts", "nowhere.tsv"], 2.0),
        (["jobs/reproduce.py", "table2", "--models", "real", "--prompts", "nowhere.tsv"], 2.0),
        (["jobs/finetune.py", "--data", "nowhere", "--out", "out/never"], 2.0),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_an_answer_takes_little_of_a_processor(command, seconds):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run(*command)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < seconds
    assert done.returncode == (0 if "--help" in command else 1)
    assert len(done.stderr.splitlines()) == done.returncode


# What is told once.


def test_every_setting_has_a_group_and_every_search_its_own_defaults_and_ranges():
    assert set(SETTINGS) == {name for method in METHODS for name in settings_of(method)}
    for name, own in SEARCHES.items():
        parameters = inspect.signature(getattr(search, name)).parameters
        assert {key: parameters[key].default for key in own} == {key: default for key, (_, default, _) in own.items()}


@pytest.mark.parametrize("command", ["generate", "cost", "search"])
def test_a_help_text_fits_the_terminal_and_has_every_setting(monkeypatch, capsys, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(f"  {flag(name)}" in line for line in lines) for name in SETTINGS)
