"""Files that are being fetched into a folder. One process at a time fetches; a file gets its name when it is verified.

`<folder>/.fetch/` holds the lock, unfinished files, and a journal of verified files with size and modification time, which
later runs do not read again. After a kill complete files stay and unfinished ones start again.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from training.errors import DataError
from training.progress import say
from training.transfer.file_lock import lock, try_lock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Expected:
    """A file that belongs in a folder, by its name there, with slashes. Other content has another `version`."""

    name: str
    size_bytes: int
    version: str


class Arrivals:
    """The files of one folder. `arrivals` makes it and holds the lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hidden = folder / ".fetch"
        self.lock = threading.Lock()
        self.verified: dict[str, list[object]] = {}
        for line in self.journal.read_text().splitlines() if self.journal.exists() else ():
            try:
                name, *facts = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            self.verified[name] = facts

    @property
    def journal(self) -> Path:
        return self.hidden / "verified.jsonl"

    def missing(self, files: Iterable[Expected]) -> list[Expected]:
        """The files that are not here in the expected version."""
        return [file for file in files if not self.has(file)]

    def has(self, file: Expected) -> bool:
        found = self.facts(self.folder / file.name, file)
        return found is not None and found == self.verified.get(file.name)

    def facts(self, path: Path, file: Expected) -> list[object] | None:
        """The journal's line for an unchanged file; None if no file of its size is here."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return [file.size_bytes, status.st_mtime_ns, file.version] if status.st_size == file.size_bytes else None

    def way_in(self, name: str) -> Path:
        """The path to write a file to until it is complete."""
        return self.hidden / hashlib.sha256(name.encode()).hexdigest()[:24]

    def accept(self, file: Expected) -> None:
        """Give a verified file its name. The file is flushed to disk before the journal lists it."""
        way_in, path = self.way_in(file.name), self.folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(way_in, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        facts = self.facts(way_in, file)
        with self.lock, self.journal.open("a") as journal:
            journal.write("\n" + json.dumps([file.name, *(facts or [])]))  # a line that a kill cut short stays apart
        way_in.replace(path)

    def require_room(self, files: Iterable[Expected]) -> None:
        """Raises DataError unless the disk has room for these files."""
        needed_bytes = sum(file.size_bytes - on_disk_bytes(self.way_in(file.name)) for file in files)
        free_bytes = shutil.disk_usage(self.folder).free
        if needed_bytes > free_bytes:
            raise DataError(
                f"{self.folder} needs room for {needed_bytes / 1e9:.2f} GB more, and {free_bytes / 1e9:.2f} GB are free: "
                "free some, or name a folder on another disk"
            )


@contextmanager
def arrivals(folder: Path, stopping: Event) -> Iterator[Arrivals]:
    """Lock a folder for this process and thread. Waits, with a message, while another has it.

    Raises DataError if the folder cannot be written to or the disk is full, Stopped if `stopping` is set while it waits.
    """
    try:
        (folder / ".fetch").mkdir(parents=True, exist_ok=True)
        with (folder / ".fetch" / "lock").open("w") as file:
            if not try_lock(file):
                say(f"{folder} is being filled already: waiting until that is done")
                lock(file, stopping)
            yield Arrivals(folder)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DataError(
                f"{folder} has no room left: free some and run this again, it goes on from there"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise DataError(f"{folder} cannot be written to ({error}): name another folder") from error
        raise


def on_disk_bytes(path: Path) -> int:
    """The bytes that a file takes on disk; 0 if it does not exist."""
    return path.stat().st_blocks * 512 if path.exists() else 0
