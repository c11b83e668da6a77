"""SIGTERM and SIGINT as a request that the loop answers between two steps; the second one ends the process at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """`signal` is the number of the signal that came, None before one has."""

    signal: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block, the first SIGTERM or SIGINT is noted in the yielded request."""
    request = StopRequest()

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        for s in previous:
            signal.signal(s, exit_on_signal)

    previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    for s in previous:
        signal.signal(s, note)
    try:
        yield request
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def exit_on_signal(number: int, _frame: FrameType | None) -> None:
    """Exit as shells report a death by this signal. A process that is the first of its container has no default for it."""
    raise SystemExit(128 + number)
