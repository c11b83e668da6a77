"""SIGTERM and SIGINT as a request to stop, which is met within seconds whatever the process is doing.

The first signal is noted. The loop sees it between two steps, long work at its next pause. Where none comes soon, as in a
long call into a library, a thread saves what there is and ends the process. The second signal ends it at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

PATIENCE_S = 4.5
"""`docker stop` waits ten seconds. The thread needs some of them to save, and a busy machine some more."""


def nothing() -> None:
    """Have nothing to save."""


@dataclass
class StopRequest:
    """`signal` is the number of the signal that came, None before one has. `event` is set from then on."""

    signal: int | None = None
    event: threading.Event = field(default_factory=threading.Event)
    save: Callable[[], None] = nothing
    """Saves what is not saved yet, in any thread; called if the process does not stop by itself."""
    noted_at: float | None = None

    def note(self, number: float) -> None:
        """Take note of a signal by its number, 0 for none. Only the first counts."""
        if number and self.signal is None:
            self.signal, self.noted_at = int(number), time.monotonic()
            self.event.set()

    @property
    def left_s(self) -> float:
        """Seconds until the process is ended; infinity before a signal has come."""
        return float("inf") if self.noted_at is None else max(0.0, self.noted_at + PATIENCE_S - time.monotonic())


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block, note the first SIGTERM or SIGINT in the yielded request, and end the process PATIENCE_S after it."""
    request = StopRequest()
    over = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        request.note(number)
        for s in previous:
            signal.signal(s, exit_on_signal)

    previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    # Python runs `note` only when the main thread is back from the library that it is in; the pipe is written to at once.
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    watcher = threading.Thread(target=watch_signals, args=(receiver, request, over), name="signals", daemon=True)
    for s in previous:
        signal.signal(s, note)
    previous_sender = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield request
    finally:
        over.set()
        signal.set_wakeup_fd(previous_sender)
        for s, handler in previous.items():
            signal.signal(s, handler)
        os.write(sender, b"\0")
        watcher.join()
        os.close(receiver)
        os.close(sender)


def watch_signals(receiver: int, request: StopRequest, over: threading.Event) -> None:
    """End the process PATIENCE_S after the first signal, unless all is over by then."""
    number = 0
    while not over.is_set() and number not in (signal.SIGTERM, signal.SIGINT):
        number = os.read(receiver, 1)[0]
    request.note(number)
    if not over.wait(request.left_s if number else 0):
        try:
            request.save()
        finally:
            os._exit(128 + number)


def exit_on_signal(number: int, _frame: FrameType | None) -> None:
    """Exit as shells report a death by this signal. A process that is the first of its container has no default for it."""
    raise SystemExit(128 + number)
