"""The console script beside its work: what it refuses and how, what it imports, how errors and warnings are told."""

import inspect
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from postdiff import cli, commands, limits, search
from postdiff.methods import METHODS, settings_of
from postdiff.models import checkpoints
from postdiff.settings import GROUPS, SEARCHES, SETTINGS, flag, meaning
from postdiff.terminal import doing, one_line

ROOT = Path(__file__).parents[2]

GENERATE = ("generate", "a cat")
REALS = ["guidance", "beta", "s", "m", "gate-step", "ratio", "threshold", "prior-noise", "fresh-ratio", "soft"]
WHOLES = [
    "n",
    "seed",
    "size",
    "batch-size",
    "steps",
    "k",
    "branch",
    "sp-interval",
    "fi-interval",
    "warm-up",
    "sx",
    "sy",
    "max-downsample",
    "factor",
    "factor-2",
    "interval",
]


def refused(capfd, folder, args):
    """Code and line of a command that leaves nothing but its line behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert sorted(folder.rglob("*")) == before
    return stopped.value.code, err[:-1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the commands run: files that are none of what they take."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "fifo.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_load", lambda where: pytest.fail("weights were read"))
    return tmp_path


@pytest.mark.parametrize("name", [*REALS, *WHOLES])
def test_what_is_no_number_is_refused(capfd, folder, name):
    kind = "a finite number" if name in REALS else "a whole number"
    for text in ("nan", "inf", "1e999", "lots", "", "-inf", *(["1.5"] if name in WHOLES else [])):
        code, told = refused(capfd, folder, [*GENERATE, f"--{name}={text}"])
        assert code == 2
        assert told.startswith(f"error: --{name} must be {kind}")
        assert f"got {text!r}" in told


MISUSED = [
    ([], "expected a command first: generate, cost, advise, search, methods, models; got none"),
    (["genrate", "a"], "got 'genrate'; did you mean generate?"),
    (["generate"], "expected PROMPT, got none"),
    (["cost", "sd15"], "expected METHOD, got none"),
    ([*GENERATE, "--stepz", "3"], "does not take '--stepz'; did you mean --steps?"),
    (["cost", "sd15", "dense", "--guidance", "3"], "postdiff cost does not take '--guidance'"),
    (["models", "--json"], "postdiff models does not take '--json'"),
    ([*GENERATE, "--n"], "--n must be followed by a value (one that begins with - is written --n=VALUE), got none"),
    ([*GENERATE, "--random=1"], "--random/--no-random must be without a value, got '1'"),
    ([*GENERATE, "--plan", "torn.json", "--method", "dense"], "expected --plan or --method, got both"),
    ([*GENERATE, "--method", "postdiff", "--plan", "torn.json"], "expected --method or --plan, got both"),
    (["generate", "\udcff"], r"the command line must be UTF-8 text, got '\udcff'"),
    ([*GENERATE, "--out", "a\udcff"], r"the command line must be UTF-8 text, got 'a\udcff'"),
    (["generate", "a\0b"], r"the command line must be UTF-8 text, got 'a\x00b'"),
    (["generate", ""], "PROMPT must be a text, got ''"),
    (["generate", "a", " \t"], r"PROMPT must be a text, got ' \t'"),
    (["generate", "a\x1b[31m"], r"PROMPT must have no control characters, got '\x1b' in 'a\x1b[31m'"),
    (["search", "ca_tome", "a\nb"], r"PROMPT must have no control characters, got '\n' in 'a\nb'"),
    ([*GENERATE, "--n", "0"], "--n must be a whole number of 1 or more, got '0'"),
    ([*GENERATE, "--size", "64x-8"], "--size must be a whole number or HEIGHTxWIDTH, got '64x-8'"),
    ([*GENERATE, "--n", "9" * 5000], "--n must be a whole number of 1 or more, got '999"),
    ([*GENERATE, "--batch-size", "-1"], "--batch-size must be a whole number of 1 or more, got '-1'"),
    ([*GENERATE, "--seed", str(2**63)], f"--seed must be a whole number from -{2**63} to {2**63 - 1}, got '{2**63}'"),
    ([*GENERATE, "--steps", "1001"], "--steps must be a whole number from 1 to 1000, got '1001'"),
    ([*GENERATE, "--out", "~nobody_/x"], "--out must be the home folder of a user, or begin with ./, got '~nobody_/x'"),
    (["cost", "~nobody_/x", "dense"], "MODEL must be the home folder of a user"),
    ([*GENERATE, "--out", ""], "--out must be a name or a path, got ''"),
    (["cost", "", "dense"], "MODEL must be a name or a path, got ''"),
    ([*GENERATE, "--mode", "conds"], "--mode must be one of ave, cond, uncond, cfg, got 'conds'; did you mean cond?"),
    ([*GENERATE, "--key-steps", "0,,2"], "--key-steps must be whole numbers with commas between, got '0,,2'"),
    (["search", "ditfastatn", "a"], "got 'ditfastatn'; did you mean ditfastattn?"),
    (["search", "block_caching", "a", "--delta", "nan"], "--delta must be a finite number, got 'nan'"),
]


@pytest.mark.parametrize(("args", "message"), MISUSED, ids=[message[:40] for _, message in MISUSED])
def test_a_command_line_that_is_wrong_ends_with_2(capfd, folder, args, message):
    code, told = refused(capfd, folder, args)
    assert code == 2
    assert message in told
    assert told.endswith(" --help)")


IMPOSSIBLE = [
    ([*GENERATE, "--n", "100000000"], "--n: 100000000 images of 64 px would need at least 2289 GiB, this machine has"),
    ([*GENERATE, "--size", "1000000"], "size must be a whole number of at most 32768, got 1000000"),
    ([*GENERATE, "--size", "-8"], "size must be a positive multiple of 4 pixels, got -8"),
    ([*GENERATE, "--size", "65"], "size must be a positive multiple of 4 pixels, got 65"),
    ([*GENERATE, "--size", "64x65"], "size must be a positive multiple of 4 pixels, got 64x65"),
    ([*GENERATE, "--n", "20000", "--batch-size", "9" * 30], "batch_size must be a whole number from 1 to 16384, got"),
    ([*GENERATE, "--guidance", "-0.5"], "guidance must be 0 or more, got -0.5"),
    ([*GENERATE, "--timesteps", "9,5", "--steps", "3"], "timesteps must be 3 numbers for a plan of 3 steps, got 2"),
    ([*GENERATE, "--sigmas", "3,2,0"], "sigmas must be None: the scheduler of dpm"),
    ([*GENERATE, "--eta", "0.5"], "eta must be 0 for dpm, got 0.5"),
    ([*GENERATE, "--guidance-rescale", "0.5", "--guidance", "0"], "guidance_rescale cannot be honoured"),
    ([*GENERATE, "--negative", "x", "--guidance", "0"], "negative cannot be honoured"),
    ([*GENERATE, "--original-size", "64"], "original_size must be None: mini-sd is told no sizes"),
    ([*GENERATE, "--clip-skip", "1", "--backbone", "mini-pixart", "--k", "1"], "clip_skip must be None, got 1"),
    ([*GENERATE, "--guidance", "1e30"], "guidance must be at most 1000, got 1e+30"),
    (
        [*GENERATE, "--solver", "rk45"],
        "solver must be one of ddim, dpm, euler, unipc, dpm_3m, dpm_sde, euler_a, deis, heun, pndm, plms, got 'rk45'",
    ),
    ([*GENERATE, "--out", "file"], "--out must be a folder that files can be written to, got 'file': File exists"),
    ([*GENERATE, "--out", "new/er/../../file/x"], "--out must be a folder that files can be written to, got "),
    ([*GENERATE, "--out", "/proc/nowhere"], "got '/proc/nowhere': No such file or directory"),
    ([*GENERATE, "--plan-picture", "p.jpg"], "--plan-picture must be a file that ends in .png, got 'p.jpg'"),
    (["cost", "mini-sd", "dense", "--plan-picture", "no/p.png"], "--plan-picture must be in a folder that is there"),
    ([*GENERATE, "--plan", "fifo"], "a plan must be a file, got 'fifo', which is none"),
    (["cost", "mini-sd", "fifo.json"], "a plan must be a file, got 'fifo.json', which is none"),
    ([*GENERATE, "--plan", "no.json"], "no.json: No such file or directory"),
    (["cost", "mini-sd", "torn.json"], "torn.json must hold a plan that save_plan wrote: Expecting property name"),
    ([*GENERATE, "--plan", "latin.json"], "latin.json must hold a plan that save_plan wrote: 'utf-8' codec"),
    ([*GENERATE, "--plan", "torn.json", "--s", "0.3"], "torn.json does not take --s; it takes no settings"),
    (["cost", "sd15", "dense", "--gate-step", "5"], "dense does not take --gate-step; it takes --steps"),
    (["cost", "sd15", "dense", "--s", "0.5"], "dense does not take --s; it takes --steps"),
    (["search", "ditfastattn", "a", "--delta", "0.5"], "ditfastattn does not take --delta; it takes --threshold"),
    (["search", "block_caching", "a", "--delta", "-1"], "delta must be 0 or more, got -1.0"),
    (["search", "ditfastattn", "a", "--window", "2"], "window must be in (0, 1], got 2.0"),
    (["search", "ditfastattn", "a", "--out", "no/x.json"], "--out must be in a folder that is there, got 'no/x.json'"),
    (["search", "ditfastattn", "a", "--out", "."], "--out must be a file, got '.', which is there and is none"),
    (["cost", "sd16", "dense"], "or pipeline:MODULE:FUNCTION; did you mean sd15?"),
    (["cost", "no/such", "dense"], "unknown model 'no/such': expected one of "),
    (["cost", "sd15\x1b", "dense"], r"unknown model 'sd15\x1b': expected one of "),
    (["cost", "sd15", "densest"], "faster_diffusion, duca; did you mean dense?"),
    (["cost", "sd15", "warp"], "unknown method 'warp': expected one of dense"),
    (["cost", "mini-sd", "faster_diffusion", "--key-steps", "1,2"], "key_steps must be rising"),
    (["cost", "sd15", "mixed_resolution", "--s=-0.1"], "s must be in [0, 1), got -0.1"),
    (["cost", "sd15", "mixed_resolution", "--beta", "1.5"], "beta must be in (0, 1], got 1.5"),
    (["cost", "sd15", "deepcache", "--k", "0"], "k must be a whole number of 1 or more, got 0"),
    (["cost", "sd15", "postdiff", "--m", "21"], "m must be a step from 1 to T=20"),
    (["cost", "sd15", "deepcache", "--branch", "50"], "branch must be"),
    (["cost", "sd15", "tome", "--ratio", "0.9"], "ratio must be"),
    (["cost", "mini-pixart", "deepcache"], "cannot cache deep features"),
    (["cost", "mini-lcm", "deepcache"], "cannot cache deep features"),
]


@pytest.mark.parametrize(("args", "message"), IMPOSSIBLE, ids=[message[:40] for _, message in IMPOSSIBLE])
def test_what_cannot_be_done_ends_with_1_before_weights_are_read(capfd, folder, args, message):
    code, told = refused(capfd, folder, args)
    assert code == 1
    assert message in told


def python(*args, **options):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60, check=False, **options)


def test_the_parser_needs_no_torch():
    code = "import sys, postdiff, postdiff.cli; postdiff.cli._parser(); print(*sys.modules)"
    modules = set(python("-c", code).stdout.split())
    assert "postdiff.cli" in modules
    assert not {"torch", "diffusers", "transformers"} & modules


HEAVY = {"torch", "diffusers", "transformers", "ray", "matplotlib", "wandb", "sklearn", "scipy"}


def imports(*args, **options):
    """(code, modules, other lines) of a command: its seconds are those of what it imports, 0.1 to 0.5 of user CPU
    without HEAVY, 1 to 6 with any of it. Seconds themselves depend on what else the machine does."""
    done = python("-X", "importtime", *args, **options)
    lines = done.stderr.splitlines()
    modules = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time:")}
    return done.returncode, modules, [line for line in lines if not line.startswith("import time:")]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--help"], 0),
        (["cost", "sd15", "densest"], 1),
        (["cost", "sd16", "dense"], 1),
        (["generate", "a", "--solver", "rk45"], 1),
    ],
    ids=["help", "method", "model", "solver"],
)
def test_help_and_refusals_read_no_heavy_package(args, expected):
    code, modules, _ = imports("-m", "postdiff.cli", *args)
    assert code == expected
    assert "postdiff.terminal" in modules
    assert not HEAVY & modules


def run_instead(monkeypatch, run):
    """`postdiff models` runs `run`."""
    monkeypatch.setattr(commands, "models", run)
    cli.main(["models"])


@pytest.mark.parametrize("kind", [IndexError, TypeError, AssertionError, RuntimeError, KeyError])
def test_what_a_library_raises_is_one_line_that_names_what_was_done(monkeypatch, capsys, kind):
    def run(args: object) -> None:
        with doing("loading a"), doing("reading b"):
            raise kind("so\x1b[31m\nit is")

    with pytest.raises(SystemExit) as stopped:
        run_instead(monkeypatch, run)
    assert stopped.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: while loading a: while reading b: {kind.__name__}: ")
    assert err[:-1].isprintable()


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    def run(args: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run_instead(monkeypatch, run)
    assert (stopped.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_a_warning_is_one_line_and_said_once(monkeypatch, capsys):
    def run(args: object) -> None:
        warnings.simplefilter("always")
        for text in ("see\x1b[31m\nhere", "and there"):
            for _ in range(3):
                warnings.warn(text, stacklevel=1)

    run_instead(monkeypatch, run)
    assert capsys.readouterr().err == "warning: see\\x1b[31m here\nwarning: and there\n"
    run_instead(monkeypatch, run)  # and once again by the next command
    assert capsys.readouterr().err.count("and there") == 1


def test_a_closed_pipe_is_silent():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "postdiff.cli", "methods"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_no_credentials_reach_the_terminal():
    assert one_line("at https://me:secret@host/x\x9b\n\ud800") == r"at https://***@host/x\x9b \ud800"


@pytest.mark.parametrize("name", SEARCHES)
def test_the_settings_of_a_search_are_those_of_its_function(name):
    parameters = inspect.signature(getattr(search, name)).parameters
    all_searches = {"backbone", "prompts", "seeds", "plan", "settings", "on_step"}
    own = {key: of.default for key, of in parameters.items() if key not in all_searches}
    assert own == {key: default for key, (_, default, _) in SEARCHES[name].items()}
    for key, (_, _, interval) in SEARCHES[name].items():
        below = -1.0 if interval[0] == "[" else 0.0
        for outside in (below, *([2.0] if interval.endswith("1]") else [])):
            with pytest.raises(ValueError, match=rf"^{key} must be "):
                getattr(search, name)(SimpleNamespace(), ["a"], [0], METHODS["dense"](2), **{key: outside})


def test_every_setting_has_one_meaning_and_stands_in_one_group_of_flags():
    listed = [name for group in GROUPS for name in group.settings]
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for method in METHODS for name in settings_of(method)}
    for method in METHODS:
        for name in settings_of(method):
            assert meaning(method, name) == SETTINGS[name]
            assert f"\n    {name}: " not in METHODS[method].__doc__  # not another time


def test_the_readme_lists_the_settings_of_each_method():
    text = (ROOT / "README.md").read_text().split("## Methods")[1]
    listed = set()
    for names, cell in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|.*\| (.*) \|$", text, re.MULTILINE):
        row = re.findall(r"\w+", names)
        listed |= {*row}
        settings, shown = {name for method in row for name in settings_of(method)}, {*re.findall(r"`(\w+)`", cell)}
        if cell != "all of the above":
            assert shown <= settings, names
            # steps is every method's; beta and s of the others' methods are told below the table
            assert "..." in cell or settings - shown <= {"steps", "beta", "s", "size_condition"}, names
    assert listed == METHODS.keys()


def test_help_fits_80_columns_and_shows_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser, named = cli._parser()
    for each in (parser, *named.values()):
        assert max(map(len, each.format_help().splitlines())) <= 80
    told = {name: " ".join(each.format_help().split()) for name, each in named.items()}
    for name in SETTINGS:
        assert f"{flag(name)} " in told["generate"] or f"{flag(name)}, " in told["generate"]
    assert "[0,7,10,12,19,24,29,34,44,45,46,47,48]" in told["generate"]
    assert "a plan's JSON file [postdiff] --plan FILE" in told["generate"]
    assert "a block runs when its relative changes add up to more [0.5]" in told["search"]


def test_a_batch_that_no_machine_holds_is_told_and_one_that_fits_is_not():
    spec = checkpoints.resolve("mini-sd")
    with pytest.raises(
        ValueError, match=r"--batch-size: a batch of 10000000 images of 64 px would need at least .* GiB"
    ):
        limits.check_memory(spec, 1, 10**7, (64, 64))
    limits.check_memory(spec, 256, 256, (64, 64))


@pytest.mark.parametrize(
    "command",
    [
        "coco_sweep.py --prompts nowhere.tsv",
        "calibrate.py --share 0.5 --prompts nowhere.tsv",
        "compare.py --backbones mini-sd --size-conditions --prompts nowhere.tsv",
        "reproduce.py table2 --models real --prompts nowhere.tsv",
        "analyse.py --prompts nowhere.tsv",
        "coco_sweep.py --preference pickscore=nowhere",
        "calibrate.py --share 0.5 --by hps --preference hps=nowhere",
        "finetune.py --data nowhere --out out/never",
    ],
)
def test_a_job_that_refuses_reads_no_heavy_package(command):
    job, *words = command.split()
    code, modules, lines = imports(f"jobs/{job}", *words, cwd=ROOT)
    assert code == 1
    assert "pipelines.command_line" in modules
    assert not HEAVY & modules
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


@pytest.mark.parametrize(
    "command",
    [
        "generate star --steps 2 --out .",
        "generate star --method postdiff --steps 4 --m 2 --size 32x64 --out .",
        "cost sd15 postdiff --per-step",
        "search block_caching star --steps 2 --out plan.json",
        "methods",
        "models",
    ],
)
def test_every_command_works_in_a_process_of_its_own(tmp_path, command):
    """What another test imported before must not be what makes it work."""
    words = ["-c", "from postdiff.cli import main; main()", *command.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
