"""Where a store can be: paths and URLs, what may be printed of them, and what may not stand in them."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from postdiff.arguments import shown
from postdiff.terminal import one_line

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of all file systems that Linux usually has
OBJECT_STORES = {"s3", "s3a", "gcs", "gs", "az", "abfs", "abfss", "adl", "r2", "oss", "memory"}
SECRETS = re.compile(
    r"[?&](access_key|secret_key|session_token|sas_token|token|password|secret|sig|account_key|api_key|x-amz-signature|"
    r"x-amz-credential|x-amz-security-token)=",
    re.IGNORECASE,
)


def local_path(where: str | Path) -> str | None:
    """The absolute path of a store or folder that is named by a path or a file:/// URL; None for any other URL.

    A leading ~ is the home folder. A path is taken as it stands: ? and # are parts of a name.

    Raises: ValueError if it is empty, too long, or looks like a URL and is none (s3:/x, file:x, file://host/x,
        file:///x?y).
    """
    text = str(where)
    if not text:
        raise ValueError("a store must be a folder or a URL, got ''")
    if text.startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
            raise ValueError(f"a file URL must be file:///ABSOLUTE/PATH (with %3F for ?, %23 for #), got {text!r}")
        return checked_length(Path(unquote(parts.path)).absolute())
    if "://" in text:
        return None
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text)
    if scheme and (scheme[1].lower() == "file" or scheme[1].lower() in schemes()):
        raise ValueError(f"a URL must be {scheme[1]}://..., got {text!r} (a folder of that name is ./{text})")
    return checked_length(Path(os.path.expanduser(text)).absolute())  # a worker's own folder is another


def checked_length(path: Path) -> str:
    """`path` as text. Raises ValueError if it, or a name in it, is longer than a file system takes."""
    longest = max(len(os.fsencode(name)) for name in path.parts)
    if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(
            f"a folder's or file's name must be of {LONGEST_NAME} bytes at most, and a path of {LONGEST_PATH}, got "
            f"{longest} of {len(os.fsencode(path))}: {shown(str(path))}"
        )
    return str(path)


def schemes() -> set[str]:
    """What URLs of stores begin with."""
    import fsspec

    return {*fsspec.available_protocols(), *OBJECT_STORES, "hdfs", "viewfs"}


def below(url: str | Path, name: str) -> str:
    """The URL of the folder `name` in the store `url`: in front of its query, where it has one."""
    path, query, rest = (str(url), "", "") if local_path(url) else str(url).partition("?")
    return f"{path.rstrip('/')}/{name}{query}{rest}"


def clean(text: object) -> str:
    """`text` on one line, without the credentials and the query of any URL in it."""
    hidden = re.sub(r"//[^\s/@]*:[^\s@]*@|//[^\s/@]*@", "//", one_line(text))
    return re.sub(r"([A-Za-z][\w+.-]*://[^\s?'\"]*)\?[^\s'\"]*", r"\1", hidden)


def refuse_credentials(url: str) -> None:
    """Raise ValueError, without them, if a URL holds credentials: URLs reach logs, reports and dashboards."""
    before_at = re.match(r"[A-Za-z][\w+.-]*://([^@]*)@", url)
    scheme = url.partition(":")[0].lower()
    port = scheme not in OBJECT_STORES and before_at and re.fullmatch(r"[^/:]*:\d+/.*", before_at[1])
    in_front = before_at and ":" in before_at[1] and not port
    if in_front or SECRETS.search(url):
        raise ValueError(
            f"a store's URL must not hold credentials, got a {scheme}:// URL with some: give them by environment "
            "variables (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...), a profile, or the machine's role"
        )
