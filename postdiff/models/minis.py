"""Where the mini models are: beside this file, in a checkout and in an installed package.

A job on a Ray cluster is sent mini-SD and what scores alone (`.rayignore`): all of them are more than the 100 MiB that
Ray takes. The others are read from the package that is installed on the node, and must be what the job's SHA256SUMS
says.
"""

import json
from collections.abc import Iterator
from functools import cache
from hashlib import file_digest
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

MINI = Path(__file__).parents[1] / "mini"  # trained by jobs/train_mini.py
SUMS = "SHA256SUMS"  # of every file of every model, in the format of sha256sum


def read_sums(folder: Path) -> dict[str, str]:
    """{file, relative to `folder`: SHA-256 in hex} of `folder`'s SHA256SUMS."""
    lines = (folder / SUMS).read_text().splitlines()
    return {file: digest for digest, file in (line.split("  ", 1) for line in lines)}


def write_sums(folder: Path) -> None:
    """Write the SHA256SUMS of a folder of mini models."""
    files = sorted(file for file in folder.glob("mini-*/**/*") if file.is_file())
    (folder / SUMS).write_text("".join(f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files))


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(file, "rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


# The pipelines; mini-clip and mini-clip-reads are none. Told by the sums, which are there where the models are not.
NAMES = tuple(sorted(file.split("/")[0] for file in read_sums(MINI) if file.endswith("/model_index.json")))


@cache
def folder(name: str) -> Path:
    """The folder of the mini model `name`, one of `NAMES`.

    Raises: FileNotFoundError if it is neither beside this file nor in an installed package; ValueError if the installed
    one is another than this code's.
    """
    if (MINI / name).is_dir():
        return MINI / name
    for mini in _installed():
        if (mini / name).is_dir():
            sums = {file: digest for file, digest in read_sums(MINI).items() if file.startswith(f"{name}/")}
            if different := [f for f, digest in sums.items() if not (mini / f).is_file() or sha256(mini / f) != digest]:
                raise ValueError(
                    f"the {name} that is installed on this node must be the one of this job's code, got another "
                    f"{mini / different[0]}: install this checkout there (cluster.yaml does)"
                )
            return mini / name
    raise FileNotFoundError(
        f"{name} is not sent with a job (.rayignore), and must be in the postdiff that is installed on the node: "
        "install this checkout there (cluster.yaml does), or take its line out of .rayignore"
    )


def _installed() -> Iterator[Path]:
    """Where an installed postdiff has its models: in its package, or in the checkout of `pip install -e`."""
    try:
        package = distribution("postdiff")
    except PackageNotFoundError:
        return
    yield Path(str(package.locate_file("postdiff/mini")))
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        yield Path(url2pathname(urlsplit(origin["url"]).path)) / "postdiff" / "mini"
