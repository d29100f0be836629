"""What a store's call does when the store does not answer: it is made again, for minutes, holding the bytes."""

import errno
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

T = TypeVar("T")
PATIENCE = 300.0  # seconds from the first failure
FIRST, LONGEST = 0.5, 30.0  # seconds between calls: doubled each time, times a random number from 0.5 to 1
# Errors of a local disk that another call may not meet, as of a network share; a full disk or no permission stay.
PASSING = {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EINTR}
# Of an object store: what is wrong with the request, the bucket or who asks. By its code: paths stand in messages too.
FINAL = re.compile(
    r"AWS Error (ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|VALIDATION)\b|"
    r"HTTP status 40[134]\b|status code: 501\b"
)

BUSY = re.compile(
    r"(HTTP status|status code:) (429|500|502|503|504)\b|"
    r"AWS Error (SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE)\b"
)


def is_passing(error: Exception, local: bool) -> bool:
    """May the same call go well a little later? local: of a folder of this machine, or a share."""
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError | IsADirectoryError):
        return False
    if local:
        return isinstance(error, OSError) and error.errno in PASSING
    if not isinstance(error, OSError | pa.ArrowException):  # a library's own: of a network, or a fault of ours
        return type(error).__module__.partition(".")[0] not in ("builtins", "pipelines")
    return not FINAL.search(str(error)) and getattr(error, "code", None) not in (401, 403, 404)


def is_busy(error: Exception, local: bool = False) -> bool:
    """Did a store answer that it cannot answer now? It is there then, and knows who asks."""
    return not local and isinstance(error, OSError | pa.ArrowException) and bool(BUSY.search(str(error)))


def persistently(
    work: Callable[[], T],
    local: bool,
    patience: float = PATIENCE,
    passing: Callable[[Exception, bool], bool] = is_passing,
) -> T:
    """What `work` returns. An error that is `passing` is met by another call, until `patience` seconds have gone; then
    it, and any other error at once, is raised."""
    began, pause = time.monotonic(), FIRST
    while True:
        try:
            return work()
        except Exception as error:  # of a library that reaches over a network: whatever it likes
            left = began + patience - time.monotonic()
            if left <= 0 or not passing(error, local):
                raise
        time.sleep(min(left, pause * random.uniform(0.5, 1)))
        pause = min(LONGEST, 2 * pause)
