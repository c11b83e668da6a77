"""Progress of long work."""

import threading
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the work ("fetch", "send", "receive", "separate"), the amount done and the total, 0 if unknown. Never called
twice at a time."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """A `Progress` that shows nothing."""


def counter(what: str, total: int, progress: Progress) -> Callable[[int], None]:
    """A function that adds up amounts from several threads, such as bytes, and reports the sum."""
    done = 0
    lock = threading.Lock()

    def count(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            progress(what, done, total)

    return count
