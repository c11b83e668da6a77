"""A run's reports on disk until they are sent: a journal of operations, and a thread that sends them in order.

It knows nothing of the receiver. A receiver that is slow, hangs or is gone costs the run nothing but disk.
"""

import fcntl
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.storage.retries import pauses
from training.errors import TrackingError
from training.progress import say

INTERVAL_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
PAUSE_AT_THE_END_S = 0.5
BATCH_OPERATIONS = 500

Operation = dict[str, Any]
"""Something to send, as JSON."""

Send = Callable[[list[Operation]], None]
"""Sends operations in order. Raises TrackingError if some may not have arrived; then all of them are sent again."""


class Spool:
    """A folder of operations that wait to be sent.

    `journal.jsonl` has one operation a line, `sent` the number of its bytes that were sent, and `files` the files that
    operations name.

    Raises TrackingError if it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal.jsonl"
        self._lock = threading.Lock()
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.journal.open("ab", buffering=0)
            self._size_bytes = complete_bytes(self.journal)
            self._file.truncate(self._size_bytes)  # a crash of the machine may leave half a line
        self.sent_bytes = min(self._size_bytes, read_count(folder / "sent"))

    def take(self) -> bool:
        """Lock the spool for this process. Returns False if another process holds it, or if the disk has no locks."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def append(self, operation: Operation) -> None:
        """Store an operation. Once this returns, the end of the process does not lose it."""
        line = json.dumps(operation).encode() + b"\n"
        with self._lock, self._explained():
            try:
                written = self._file.write(line)
                if written != len(line):
                    raise OSError(f"{written} of {len(line)} bytes fit")
            except OSError:
                self._file.truncate(self._size_bytes)
                raise
            self._size_bytes += written

    def new_file(self, name: str) -> Path:
        """A path, relative to the folder, for a file that an operation will name."""
        with self._explained():
            path = self.folder / "files" / uuid.uuid4().hex / name
            path.parent.mkdir(parents=True)
        return path

    def unsent(self) -> tuple[list[Operation], int]:
        """The next operations to send, and the journal's size up to their end."""
        with self._explained(), self.journal.open("rb") as file:
            file.seek(self.sent_bytes)
            lines = [line for line, _ in zip(file, range(BATCH_OPERATIONS), strict=False) if line.endswith(b"\n")]
        return [self._read(line) for line in lines], self.sent_bytes + sum(map(len, lines))

    def operations(self) -> Iterator[Operation]:
        """Yield all operations, sent or not."""
        with self._explained(), self.journal.open("rb") as file:
            yield from map(self._read, file)

    def mark_sent(self, up_to_bytes: int) -> None:
        with self._explained():
            # A run that gave up waiting and `sync` may send at once, so each renames a file of its own.
            partial = self.folder / f".sent.{os.getpid()}.{threading.get_ident()}"
            partial.write_text(str(up_to_bytes))
            partial.replace(self.folder / "sent")
        self.sent_bytes = up_to_bytes

    @property
    def is_sent(self) -> bool:
        return self.sent_bytes >= self._size_bytes

    def _read(self, line: bytes) -> Operation:
        try:
            operation: Operation = json.loads(line)
        except ValueError as error:
            raise TrackingError(f"{self.journal} is damaged ({error}): remove the line, then it goes on") from error
        return operation

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrackingError(
                f"{self.folder} cannot be used ({error}): make room or name another run folder"
            ) from error


class Sender:
    """Sends a spool's operations every few seconds, with growing pauses while that fails."""

    def __init__(self, spool: Spool, send: Send, receiver: str) -> None:
        """`receiver` is the receiver's name in messages."""
        self._spool = spool
        self._send = send
        self._receiver = receiver
        self._closing, self._abandoned, self._tried = threading.Event(), threading.Event(), threading.Event()
        # A daemon: a sender that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self._thread.start()

    def tried(self, timeout_s: float) -> bool:
        """Wait for the first attempt. True if it ended, well or not, within `timeout_s`."""
        return self._tried.wait(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for everything to be sent. Returns True if it was. Nothing may be appended afterwards."""
        self._closing.set()
        self._thread.join(timeout_s)
        self._abandoned.set()
        return self._spool.is_sent

    def _work(self) -> None:
        failures, waits = 0, pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                send_all(self._spool, self._send, self._abandoned)
                if failures:
                    say(f"{self._receiver} works again")
                failures, waits = 0, pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)
            except TrackingError as error:
                failures += 1
                if failures == 1:
                    say(f"{self._receiver} lags behind, {self._spool.folder} keeps what it lacks: {error}")
            self._tried.set()
            if closing:
                if not failures:
                    return
                self._abandoned.wait(PAUSE_AT_THE_END_S)
            else:
                self._closing.wait(next(waits) if failures else INTERVAL_S)


def send_all(spool: Spool, send: Send, abandoned: threading.Event | None = None) -> int:
    """Send operations until none is unsent or `closing` is set; returns their number. Raises TrackingError."""
    count = 0
    while abandoned is None or not abandoned.is_set():
        operations, end_bytes = spool.unsent()
        if not operations:
            break
        send(operations)
        spool.mark_sent(end_bytes)
        count += len(operations)
    return count


def complete_bytes(journal: Path) -> int:
    """The size of a file up to the end of its last complete line."""
    size_bytes = 0
    with journal.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                size_bytes += len(line)
    return size_bytes


def read_count(path: Path) -> int:
    """The number in a file, 0 if there is none."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0
