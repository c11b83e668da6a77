"""SIGTERM and SIGINT as a request to stop, which is met within seconds.

The first signal sets the request. The loop checks it between steps, long work at its pauses. If the process is inside a
long library call, a thread saves and ends the process instead. A second signal ends it at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

PATIENCE_S = 3.5
"""Seconds until the thread ends the process. `docker stop` waits ten; saving takes some of them, on a busy machine more."""
SHORT_PATIENCE_S = 1.5
"""The same for a process that has nothing to save yet."""


def save_nothing() -> None:
    """Save nothing."""


@dataclass
class StopRequest:
    """`signal` is the number of the first signal, None before one has come. `event` is set from then on."""

    signal: int | None = None
    event: threading.Event = field(default_factory=threading.Event)
    save: Callable[[], None] = save_nothing
    """Saves what is not saved yet. Called from another thread if the process does not stop by itself."""
    noted_at: float | None = None

    def note(self, number: float) -> None:
        """Record a signal by its number, 0 for none. Only the first counts."""
        if number and self.signal is None:
            self.noted_at = time.monotonic()  # before `signal`, which another thread looks at first
            self.signal = int(number)
            self.event.set()

    @property
    def left_s(self) -> float:
        """Seconds until the process is ended; infinity before a signal."""
        patience_s = SHORT_PATIENCE_S if self.save is save_nothing else PATIENCE_S
        return float("inf") if self.noted_at is None else max(0.0, self.noted_at + patience_s - time.monotonic())


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block, turn the first SIGTERM or SIGINT into a stop request, and end the process seconds later."""
    request = StopRequest()
    over = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        request.note(number)
        for s in previous:
            signal.signal(s, exit_on_signal)

    previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    # Python runs `note` once the main thread returns from library code; the wake-up pipe is written at once.
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
    """End the process a few seconds after the first signal, unless the run is over by then."""
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
    """Exit with the code that shells report for this signal. The first process of a container has no default action."""
    raise SystemExit(128 + number)
