"""Work in parallel threads that do not keep a process from ending."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from training.errors import Stopped

GRACE_S = 1.0
"""Seconds that work in progress gets once it is told to stop. A silent connection takes longer and is abandoned."""
POLL_S = 0.1

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, stopping: threading.Event
) -> list[Result]:
    """Run `work` on each item in `workers` threads; gives the results in the order of the items.

    After an error no further item begins; the error of the first item is raised when those in progress have ended. Raises
    Stopped within GRACE_S once `stopping` is set, which long work has to check. An interrupt of the calling thread sets it.
    """
    waiting = list(enumerate(items))[::-1]
    count = len(waiting)
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}

    def take() -> None:
        while not errors and not stopping.is_set():
            try:
                index, item = waiting.pop()
            except IndexError:
                return
            try:
                results[index] = work(item)
            except BaseException as error:  # raised in the calling thread
                errors[index] = error

    # Daemons: a process ends without waiting for them, unlike for those of concurrent.futures.
    threads = [threading.Thread(target=take, name="parallel", daemon=True) for _ in range(min(workers, count))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive() and not stopping.is_set():
                thread.join(POLL_S)
    finally:
        if any(thread.is_alive() for thread in threads):
            stopping.set()
            deadline = time.monotonic() + GRACE_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
    if len(results) == count:
        return [results[index] for index in range(count)]
    if stopping.is_set():  # errors follow from it, such as that of a file that was left on its way
        raise Stopped("the work was stopped before it was complete") from errors.get(min(errors, default=0))
    raise errors[min(errors)]
