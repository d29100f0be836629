"""Files in a folder of this machine, or one that machines share: written whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # such file systems there are


def put_file(path: str, data: bytes, replace: bool) -> bool:
    """Write `path`; unless it is to `replace` what is there, the first writer wins. Returns whether this wrote."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        if replace:
            os.replace(temporary, path)
            return True
        try:
            os.link(temporary, path)  # fails where a file is: the first writer wins
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.replace(temporary, path)
        return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def below(folder: str) -> Iterator[str]:
    """Paths of all files below `folder`. None is opened or looked at: on a share that would be a call for each."""
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append(entry.path)
                    else:
                        yield entry.path
        except FileNotFoundError:  # not made yet, or removed since
            pass


def check_folder(folder: Path) -> bool:
    """Raise OSError if `folder` is no folder that can be written to, or made. Returns whether the first of two writers
    wins there: it has links. Leaves nothing behind."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError("expected a folder, got a file")
    missing = [at for at in (folder, *folder.parents) if not at.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as own:
            put_file(f"{own}/x", b"", replace=False)
            return not put_file(f"{own}/x", b"", replace=False)
    finally:
        for at in missing:
            with suppress(OSError):  # not made, or another process's by now
                at.rmdir()
