"""Work on many things side by side, where the first failure ends all of it."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


def run_parallel(work: Callable[[T], object], items: Iterable[T], workers: int, stopping: threading.Event) -> None:
    """`work` on each item, in their order, `workers` at a time.

    An error, or an interrupt of the calling thread, sets `stopping` for the work that looks at it, drops what was not begun,
    waits for the rest and is raised.
    """
    with ThreadPoolExecutor(workers) as pool:
        begun = [pool.submit(work, item) for item in items]
        try:
            for future in wait(begun, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            stopping.clear()
