"""A lock on an open file, between processes and threads."""

import fcntl
from threading import Event
from typing import IO, Any

from training.errors import Stopped

POLL_S = 0.1


def try_lock(file: IO[Any]) -> bool:
    """Take the lock; False if another has it. Closing the file releases it, as a kill does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(file: IO[Any], stopping: Event) -> None:
    """Wait for the lock. Raises Stopped soon after `stopping` is set."""
    while not try_lock(file):
        if stopping.wait(POLL_S):
            raise Stopped("waiting for another process was stopped")
