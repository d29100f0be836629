"""Images compressed by threads, while the thread that adds them makes the next ones."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipelines.engine import records


class Compressor:
    """Compresses what is added, by `threads` threads; with 0 at once, in the thread that adds it. Pillow lets go of the
    interpreter while it compresses. To be used in a `with`, which leaves no thread behind, nor work that was not begun.
    """

    def __init__(self, threads: int):
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="compress") if threads > 0 else None
        self.made: list[bytes | Future[bytes]] = []

    def __enter__(self) -> "Compressor":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def add(self, images: Iterable[np.ndarray]) -> None:
        """Images, uint8 [H, W, 3] each."""
        if self.pool:
            self.made += [self.pool.submit(records.encode_image, image) for image in images]
        else:
            self.made += [records.encode_image(image) for image in images]

    def result(self) -> list[bytes]:
        """All of them as lossless WebP, in their order. Raises what compressing one of them raised."""
        return [one.result() if isinstance(one, Future) else one for one in self.made]
