"""Objects of a bucket as files of a folder: by parts, in parallel, verified.

A part that arrived is noted with its CRC-32 in a journal beside the file that it is written to; a run after a kill, or after
a power cut, goes on with the parts that are missing or not what was noted.
"""

import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from serving.errors import StorageError
from serving.storage.storage import CONNECTIONS, Progress, StoredFile, counter
from training.transfer.arrivals import Arrivals, Expected
from training.transfer.bucket import BLOCK_BYTES, Bucket
from training.transfer.parallel import run_parallel

PART_BYTES = 16 << 20
FILES_IN_TURNS = 4


@dataclass(frozen=True)
class Wanted:
    """An object, the name it gets in the folder, and its SHA-256 where a manifest tells it."""

    name: str
    stored: StoredFile
    sha256: str | None

    @property
    def expected(self) -> Expected:
        return Expected(self.name, self.stored.size_bytes, self.sha256 or self.stored.etag)


def fetch_objects(bucket: Bucket, objects: Sequence[Wanted], folder: Arrivals, progress: Progress) -> None:
    """Bring the objects that are missing in a folder.

    Raises StorageError where an object changed since it was listed, is not what its SHA-256 says, or does not come; DataError
    where there is too little room. What had arrived by then stays.
    """
    missing = set(folder.missing(wanted.expected for wanted in objects))
    folder.require_room(missing)
    incoming = [Incoming(wanted, folder) for wanted in objects if wanted.expected in missing]
    parts = list(in_turns(incoming))
    count = counter("fetch", sum(file.part_bytes(part) for file, part in parts), progress)
    for file in incoming:
        if not file.missing:
            file.finish()
    run_parallel(lambda piece: piece[0].bring(piece[1], bucket, count), parts, CONNECTIONS, bucket.stopping)


def in_turns(files: Sequence["Incoming"]) -> Iterator[tuple["Incoming", int]]:
    """The missing parts of a few files take turns, then those of the next few.

    The kernel lets one thread at a time write to a file: 16 that all bring the same one spend a fifth of their system time on
    waiting for each other. Only a few files, so that the first ones are complete early.
    """
    for start in range(0, len(files), FILES_IN_TURNS):
        rows = [[(file, part) for part in sorted(file.missing)] for file in files[start : start + FILES_IN_TURNS]]
        yield from (piece for turn in zip_longest(*rows) for piece in turn if piece)


class Incoming:
    """A file on its way: its bytes, with holes, and, of more than one part, the journal of those that arrived."""

    def __init__(self, wanted: Wanted, folder: Arrivals) -> None:
        self.wanted, self.folder = wanted, folder
        self.path = folder.way_in(wanted.name)
        self.journal = self.path.with_suffix(".parts")
        self.lock = threading.Lock()
        self.parts = -(-wanted.stored.size_bytes // PART_BYTES)
        self.path.touch()
        self.sha256: str | None = None  # known on arrival of a file of one part
        self.missing = set(range(self.parts)) - self.arrived()

    def part_bytes(self, part: int) -> int:
        return min(PART_BYTES, self.wanted.stored.size_bytes - part * PART_BYTES)

    def arrived(self) -> set[int]:
        """The parts of an earlier run that are still as they were noted, of the version that is wanted."""
        title = f"{self.wanted.expected.version} {self.wanted.stored.size_bytes} {PART_BYTES}"
        noted = self.journal.read_text().splitlines() if self.journal.exists() else []
        if noted[:1] != [title]:
            self.journal.unlink(missing_ok=True)
            if self.parts > 1:
                self.journal.write_text(title)
            return set()
        lines = (re.fullmatch("([0-9]+) ([0-9a-f]{8})", line) for line in noted[1:])
        return {int(line[1]) for line in lines if line and f"{self.crc(int(line[1])):08x}" == line[2]}

    def crc(self, part: int) -> int:
        crc, left = 0, self.part_bytes(part)
        with self.path.open("rb") as file:
            file.seek(part * PART_BYTES)
            while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
                crc, left = zlib.crc32(block, crc), left - len(block)
        return crc

    def sha256_on_disk(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def bring(self, part: int, bucket: Bucket, count: Callable[[int], None]) -> None:
        """Fetch one part; the last one to arrive finishes the file."""
        start, crc, whole = part * PART_BYTES, 0, hashlib.sha256()
        with self.path.open("r+b") as file:
            file.seek(start)
            for block in bucket.read(self.wanted.stored, start, start + self.part_bytes(part)):
                file.write(block)
                if self.parts == 1:
                    whole.update(block)
                else:
                    crc = zlib.crc32(block, crc)
                count(len(block))
        if self.parts == 1:
            self.sha256 = whole.hexdigest()
        with self.lock:
            if self.parts > 1:
                with self.journal.open("a") as journal:
                    journal.write(f"\n{part} {crc:08x}")  # a line that a kill cut short stays apart
            self.missing.discard(part)
            complete = not self.missing
        if complete:
            self.finish()

    def finish(self) -> None:
        """Give the file its name if it is what the manifest says."""
        os.truncate(self.path, self.wanted.stored.size_bytes)
        if self.wanted.sha256:
            found = self.sha256 or self.sha256_on_disk()
            if found != self.wanted.sha256:
                self.path.unlink()
                self.journal.unlink(missing_ok=True)
                raise StorageError(
                    f"{self.wanted.stored.url} is not what its manifest says (its SHA-256 is {found}): push it again"
                )
        self.folder.accept(self.wanted.expected)
        self.journal.unlink(missing_ok=True)
