"""One owner a model at a time: its modules are wrapped while it runs, so a second run would go through the first one's
wrappers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch


class _Owned:
    def __init__(self) -> None:
        self.lock = Lock()
        self.thread: int | None = None


_models: WeakKeyDictionary[torch.nn.Module, _Owned] = WeakKeyDictionary()
_guard = Lock()


@contextmanager
def owned(model: torch.nn.Module) -> Iterator[None]:
    """Hold `model` for this thread; other threads wait until it is free.

    Raises: RuntimeError if this thread holds it already, as a callback of a run that starts another one does: it would
        wait for itself.
    """
    with _guard:
        owner = _models.setdefault(model, _Owned())
    if owner.thread == get_ident():
        raise RuntimeError(
            f"this {type(model).__name__} is in the middle of a run of this thread: expected the next run to start "
            "after it, not in one of its callbacks"
        )
    with owner.lock:
        owner.thread = get_ident()
        try:
            yield
        finally:
            owner.thread = None
