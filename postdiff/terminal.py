"""What reaches the terminal: one line for an error, a warning or a library's message, and nothing raw in it."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from postdiff.arguments import printable

LONGEST = 600  # characters of a line; a prompt or a library's page of advice is not told whole
# Libraries say these with the whole prompt; `commands` tells them in a line of its own.
_TOLD_ELSEWHERE = ("The following part of your input was truncated", "Token indices sequence length is longer")


def one_line(text: object, longest: int = LONGEST) -> str:
    """`text` on one line: control characters and lone surrogates escaped, credentials of URLs left out, cut."""
    line = re.sub(r"(?<=://)[^/@\s]+@", "***@", " ".join(str(text).split()))
    line = printable(line)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def error_line(error: BaseException) -> str:
    """What an error says to a user: what was being done (`doing`), and what was wrong."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("while ")]
    return one_line(": ".join([*reversed(notes), _cause(error)]))


def _cause(error: BaseException) -> str:
    # torch.OutOfMemoryError is of a GPU; a CPU's is a RuntimeError.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "t allocate memory" in str(error)
    ):
        return "out of memory; a smaller --size or --batch-size, fewer images or a smaller backbone need less"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename)!s}: {error.strerror}"
    if isinstance(error, (ValueError, OSError, ArithmeticError)) and str(error):  # meant for a user
        return str(error)
    return f"{type(error).__name__}: {error}"


@contextmanager
def doing(activity: str) -> Iterator[None]:
    """An error inside says what was being done: a library's own words seldom do."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while {activity}")
        raise


def warn(text: object) -> None:
    print(f"warning: {one_line(text)}", file=sys.stderr)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """What `warnings.warn` says inside is one line, without the file and line of code that Python adds, and is said
    once."""
    printed: set[str] = set()

    def print_once(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in printed:
            printed.add(str(message))
            warn(message)

    with warnings.catch_warnings():
        warnings.showwarning = print_once
        yield


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not message.startswith(_TOLD_ELSEWHERE):
            warn(message)


def quiet_libraries() -> None:
    """No bars while diffusers and transformers read weights; what they warn of is one line."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        logging.getLogger(library.__name__).handlers = [_Lines()]


def flush() -> None:
    """Write out what was printed. A pipe that was closed or a disk that is full is told here, and not once more when
    Python ends."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
