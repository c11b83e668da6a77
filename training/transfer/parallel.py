"""Work on many things side by side, where the first failure ends all of it."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


def run_parallel(work: Callable[[T], object], items: Iterable[T], workers: int, stopping: threading.Event) -> None:
    """`work` on each item, in their order, `workers` at a time.

    An error, or an interrupt of the calling thread, is raised when all have ended: `stopping` is set for the work that looks
    at it, and what was not begun is dropped.
    """
    with ThreadPoolExecutor(workers) as pool:
        begun = [pool.submit(work, item) for item in items]
        try:
            for future in wait(begun, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            stopping.clear()
