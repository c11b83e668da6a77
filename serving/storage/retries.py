"""Pauses between retries."""

import random
from collections.abc import Callable, Iterator
from threading import Event
from typing import TypeVar

from serving.errors import StoreUnavailable

FIRST_PAUSE_S, LONGEST_PAUSE_S, PATIENCE_S = 0.25, 15.0, 90.0

Result = TypeVar("Result")


def pauses(first_s: float, longest_s: float) -> Iterator[float]:
    """Yield the seconds to wait after each failure in a row, doubling up to `longest_s`.

    Each is drawn between half and all of that, so that many clients of one server do not return at once.
    """
    pause_s = min(first_s, longest_s)
    while True:
        yield pause_s * random.uniform(0.5, 1)
        pause_s = min(2 * pause_s, longest_s)


class Patience:
    """Pauses after failures in a row, PATIENCE_S in all. Make a new one after every success."""

    def __init__(self, stopping: Event) -> None:
        self.stopping = stopping
        self.pauses = pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self.spent_s = 0.0

    def wait(self, error: StoreUnavailable) -> None:
        """Pause after an error. Raises it if patience is exhausted or `stopping` is set."""
        pause_s = next(self.pauses)
        if self.spent_s + pause_s > PATIENCE_S or self.stopping.wait(pause_s):
            raise error
        self.spent_s += pause_s


def patiently(request: Callable[[], Result], stopping: Event) -> Result:
    """The result of a request, retried while the store is unavailable and patience lasts."""
    patience = Patience(stopping)
    while True:
        try:
            return request()
        except StoreUnavailable as error:
            patience.wait(error)
