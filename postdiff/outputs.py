"""Files that a command writes: told before any work where they cannot be, and whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from uuid import uuid4


def check_folder(flag: str, folder: Path, file: str) -> None:
    """Raise ValueError if no file with a name as long as `file` can be made in `folder`, which need not be there yet.

    It is tried: rights tell little of a full disk, a read-only one, or what root may do. Nothing of it stays.
    """
    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=file[8:]):  # and eight characters of its own
            pass
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{flag} must be a folder that files can be written to, got {str(folder)!r}: {why}") from None
    finally:
        for path in new:
            with suppress(OSError, ValueError):
                path.rmdir()


def check_file(flag: str, file: Path, suffix: str = "") -> None:
    """Raise ValueError if `file` does not end in `suffix`, is there and no file, or cannot be made in its folder."""
    if not file.name.lower().endswith(suffix):
        raise ValueError(f"{flag} must be a file that ends in {suffix}, got {str(file)!r}")
    if os.path.lexists(file) and not file.is_file():
        raise ValueError(f"{flag} must be a file, got {str(file)!r}, which is there and is none")
    if not file.parent.is_dir():
        raise ValueError(f"{flag} must be in a folder that is there, got {str(file)!r}")
    check_folder(f"the folder of {flag}", file.parent, file.name)


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path to write to, that becomes `file` when all is written, and is gone if it is not."""
    file = file.resolve()  # through a link, which stays
    part = file.with_name(f".{uuid4().hex}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
