"""Progress of long work."""

import threading
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the work ("fetch", "send", "receive", "separate"), how much of it is done and how much there is in all, 0 where
nobody knows yet; never two calls at a time."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """The `Progress` of a caller who does not look."""


def counter(what: str, total: int, progress: Progress) -> Callable[[int], None]:
    """A function that adds up what threads report, such as bytes, and passes the sum on."""
    done = 0
    lock = threading.Lock()

    def count(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            progress(what, done, total)

    return count
