"""A stop that cuts no request: workers hold a lock while they work, and refuse new requests once the server stops.

Server and workers are processes that share a folder. The system releases a lock when its process ends, for whatever reason.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Longer than a worker waits for TorchServe between two steps of an answer.
QUIET_S = 1.0


@dataclass(frozen=True)
class Drain:
    folder: Path

    def begin(self) -> None:
        """Tell the workers to take no new requests."""
        self._order.touch()

    @property
    def begun(self) -> bool:
        return self._order.exists()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the lock of a busy worker."""
        with self._lock.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield
            self._lock.touch()

    @property
    def quiet(self) -> bool:
        """True if no worker has worked for a second."""
        if not self._lock.exists():
            return True
        with self._lock.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return time.time() - self._lock.stat().st_mtime > QUIET_S

    @property
    def _order(self) -> Path:
        return self.folder / "draining"

    @property
    def _lock(self) -> Path:
        return self.folder / "working"
