"""What every job's command line has in common: numbers in bounds, options given once, an end in one line."""

import argparse
import sys
import warnings
from pathlib import Path

import pytest
from conftest import refusal

from pipelines import command_line
from pipelines.command_line import Parser
from postdiff.terminal import doing

JOBS = Path(__file__).parents[2] / "jobs"
sys.path.insert(0, str(JOBS))
import analyse  # noqa: E402  (jobs are scripts, not a package)
import bench  # noqa: E402
import bench_methods  # noqa: E402
import calibrate  # noqa: E402
import coco_sweep  # noqa: E402
import compare  # noqa: E402
import finetune  # noqa: E402
import reproduce  # noqa: E402
import train_mini  # noqa: E402

ALL = (analyse, bench, bench_methods, calibrate, coco_sweep, compare, finetune, reproduce, train_mini)
ABSURD = ("nan", "inf", "-inf", "-1", "1e400", "1_0", "x", "", "9" * 5000)


class Seen(Exception):
    pass


@pytest.mark.parametrize("job", ALL, ids=lambda job: job.__name__)
def test_no_option_of_any_job_takes_a_number_that_is_none(job, monkeypatch):
    """int and float, which take NaN, infinity and what no machine holds, are converters of no option."""

    def seen(parser, args=None, namespace=None):
        raise Seen(parser)

    monkeypatch.setattr(Parser, "parse_args", seen)
    with pytest.raises(Seen) as found:
        job.parse([])
    (parser,) = found.value.args
    converters = {action.type for action in parser._actions} - {None, str, Path}
    assert converters.isdisjoint({int, float})
    for convert in converters:
        for text in ABSURD:
            with pytest.raises(argparse.ArgumentTypeError, match=r"^must be "):
                convert(text)


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (command_line.whole(1, 9), "9", 9),
        (command_line.whole(1, 9), "+1", 1),
        (command_line.number(0, 1), "0", 0.0),
        (command_line.number(0, 1), "1e-3", 0.001),
        (command_line.rounds(), "3", 3),
        (command_line.rounds(zero=True), "0", 0),
        (command_line.gpus, "0.25", 0.25),
        (command_line.gpus, "2", 2.0),
    ],
)
def test_what_is_in_bounds_is_taken(convert, text, value):
    assert convert(text) == value


@pytest.mark.parametrize(
    ("convert", "text", "message"),
    [
        (command_line.whole(1, 9, "of a hand"), "10", "must be at most 9 (of a hand), got 10"),
        (command_line.whole(1, 9), "1.0", "must be a whole number from 1 to 9, got '1.0'"),
        (command_line.number(0, 1, above=True), "0", "must be above 0, got 0"),
        (command_line.number(0, 1), "nan", "must be 0 or more, got nan"),
        (command_line.rounds(), "0", "must be 3 or more (a median of fewer says little), got 0"),
        (
            command_line.rounds(zero=True),
            "1",
            "must be 0 (no latencies) or 3 or more (a median of fewer says little), got 1",
        ),
    ],
)
def test_what_is_out_of_bounds_says_expected_and_got(convert, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        convert(text)
    assert str(refused.value) == message


def one_option(argv):
    parser = Parser("a job")
    parser.add_argument("--size", type=command_line.whole(1, 9), default=3)
    parser.add_argument("--kind", choices=["a", "b"])
    return parser.parse_args(argv)


def test_what_was_given_is_known_from_what_is_the_default():
    assert one_option([]).given == frozenset()
    given = one_option(["--size", "3"])
    assert given.given == {"size"}
    with pytest.raises(ValueError, match=r"^--size has no effect here$"):
        command_line.refuse(given, "here", "kind", "size")
    command_line.refuse(given, "here", "kind")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--size", "0"], "--size must be 1 or more, got 0 (--help lists the options)"),
        (["--size", "1", "--size=2"], "--size is given twice (--help lists the options)"),
        (["--siz", "1"], "unrecognized arguments: --siz 1 (--help lists the options)"),
        (["\x1b[31m\n"], "unrecognized arguments: \\x1b[31m (--help lists the options)"),
        (["--kind", "\udcff"], "arguments must be UTF-8, got \\udcff (--help lists the options)"),
    ],
)
def test_a_parser_refuses_in_one_line(args, line, capsys):
    assert refusal(one_option, args, capsys) == line


def test_an_error_that_nobody_foresaw_says_what_was_being_done_and_where(monkeypatch):
    def run(args):
        with doing("drawing"):
            one_option(None if args else [])
            command_line.whole(1, "9")("3")  # compares a number with a text

    with pytest.raises(SystemExit) as stopped:
        command_line.job(run, list, [])
    told = stopped.value.code
    assert told.startswith("error: while drawing: TypeError: '<=' not supported")
    assert " in pipelines/command_line.py, line " in told
    assert told.endswith("(POSTDIFF_TRACEBACK=1 shows the whole traceback)")
    monkeypatch.setenv("POSTDIFF_TRACEBACK", "1")
    with pytest.raises(TypeError):
        command_line.job(run, list, [])


@pytest.mark.filterwarnings("default")
def test_a_warning_inside_a_job_is_one_line_and_said_once(capsys):
    def run(args):
        for _ in "ab":
            warnings.warn("a scheduler is replaced", stacklevel=2)

    command_line.job(run, list, [])
    assert capsys.readouterr().err == "warning: a scheduler is replaced\n"


def test_what_a_library_notes_is_not_what_was_being_done():
    def run(args):
        error = KeyError("x")
        error.add_note("see the manual")
        with doing("drawing"):
            raise error

    with pytest.raises(SystemExit, match=r"^error: while drawing: KeyError: 'x'"):
        command_line.job(run, list, [])


def test_prompts_are_of_what_a_mini_model_draws_unless_others_are_named():
    sweep = coco_sweep.parse(["--backbone", "mini-sd-scenes"])
    assert (sweep.prompts, sweep.clip, sweep.fid) == ("scenes", "mini-clip-scenes", "mini-clip-scenes")
    assert coco_sweep.parse(["--backbone", "mini-lcm"]).prompts == "shapes"
    assert coco_sweep.parse(["--backbone", "sd15"]).prompts == "shapes"
    assert coco_sweep.parse(["--backbone", "mini-sd-scenes", "--prompts", "captions.txt"]).prompts == "captions.txt"
    assert compare.parse(["--backbones", "sd15", "mini-sd-scenes"]).prompts == "scenes"


@pytest.mark.parametrize("kind", [IndexError, AssertionError, RuntimeError, KeyError, MemoryError, RecursionError])
def test_errors_of_libraries_are_one_line(kind):
    def run(args):
        raise kind("first\nsecond")

    with pytest.raises(SystemExit) as stopped:
        command_line.job(run, list, [])
    assert stopped.value.code.startswith(f"error: while this job was at work: {kind.__name__}: ")
    assert "\n" not in stopped.value.code


def test_ctrl_c_ends_in_one_line_and_130(capsys):
    def run(args):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        command_line.job(run, list, [])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.strip() == "stopped; run again to go on"


@pytest.mark.parametrize(
    ("job", "args", "message"),
    [
        (analyse, ["--reference", "x"], "--reference has no effect here: there is no FID"),
        (analyse, ["--limit", "-1"], "--limit must be 1 or more, got -1"),
        (analyse, ["--prompts", "scenes"], "mini-sd draws shapes: expected --prompts shapes, got scenes"),
        (compare, ["--backbones", "x", "mini-sd", "--prompts", "scenes"], "mini-sd draws shapes: expected --prompts"),
        (coco_sweep, ["--prompts", "scenes-recaption"], "mini-sd draws shapes: expected --prompts shapes, got scenes-"),
        (
            coco_sweep,
            ["--backbone", "mini-sd-scenes", "--prompts", "shapes"],
            "mini-sd-scenes draws scenes: expected --prompts scenes, got",
        ),
        (
            reproduce,
            ["table2", "--prompts", "scenes"],
            "no mini model of scenes plays pixart: expected exhibits of sd15,",
        ),
        (bench, ["latency", "--methods", "warp"], "unknown method 'warp': expected one of dense, "),
        (bench, ["overhead", "--backbone", "sd15"], "--backbone has no effect on overhead"),
        (bench, ["planning", "--pairs", "3"], "--pairs has no effect on planning"),
        (bench, ["latency", "--rounds", "1"], "--rounds must be 3 or more"),
        (bench_methods, ["dense"], "argument what: invalid choice: 'dense' (choose from 'speedup', 'authors', "),
        (bench_methods, ["speedup", "--pairs", "0"], "--pairs must be 1 or more, got 0"),
        (train_mini, ["unet", "--workers", "0"], "--workers must be 1 or more, got 0"),
        (train_mini, ["unet", "--out", "x"], "--out has no effect on unet"),
    ],
)
def test_the_other_jobs_refuse_in_one_line(job, args, message, capsys):
    assert message in refusal(job.main, args, capsys)
