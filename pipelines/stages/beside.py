"""What a worker's threads do beside the one that uses its GPU: they compress, decode, prepare and read ahead."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

MOST = 6  # a GPU makes an image of 512 pixels in about the time that two threads take to compress it
READ = 4  # what was read ahead for units that others were given is let go of after so many more

T = TypeVar("T")
U = TypeVar("U")


def own() -> int:
    """CPU threads of this worker, which Ray tells it."""
    return int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0])  # "4,2": of nested loops


def count() -> int:
    """Threads beside the one that samples: of a worker's own. 0 where there is only one, as on a laptop's workers:
    there, sampling itself would wait for them."""
    return min(MOST, own() - 1)


class Threads:
    """Calls functions, `count` at a time; with 0 at once, in the thread that asks. Pillow lets go of the interpreter
    while it compresses, decodes or resizes."""

    def __init__(self, count: int):
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="beside") if count > 0 else None

    def each(self, function: Callable[[T], U], items: Iterable[T]) -> list[Future[U]]:
        """What becomes of each, in their order."""
        if self.pool:
            return [self.pool.submit(function, item) for item in items]
        return [_now(function, item) for item in items]

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """All results. Raises what the first that failed raised."""
        return [future.result() for future in self.each(function, items)]


def _now(function: Callable[..., U], *given: Any) -> Future[U]:
    future: Future[U] = Future()
    try:
        future.set_result(function(*given))
    except Exception as error:
        future.set_exception(error)
    return future


class Ahead(Generic[U]):
    """What `read` gives for a name, where another thread asked for it ahead. What was not asked for, or could not be
    read, is read when it is taken."""

    def __init__(self, read: Callable[..., U]):
        self.read = read
        self.read_ahead: dict[str, Future[U]] = {}

    def start(self, name: str, *more: Any) -> None:
        future: Future[U] = Future()
        self.read_ahead[name] = future
        for old in list(self.read_ahead)[:-READ]:
            self.read_ahead.pop(old, None)
        try:
            future.set_result(self.read(name, *more))
        except Exception as error:
            future.set_exception(error)

    def take(self, name: str, *more: Any) -> U:
        future = self.read_ahead.pop(name, None)
        return future.result() if future and not future.exception() else self.read(name, *more)
