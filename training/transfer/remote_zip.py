"""Members of a zip as files of a folder. From a zip in a bucket, only the bytes of those members are fetched."""

import io
import queue
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from typing import IO

from serving.storage.progress import Progress, counter
from serving.storage.s3 import CONNECTIONS
from serving.storage.storage import BLOCK_BYTES, StoredFile, read_file
from training.errors import DataError, Stopped
from training.transfer.arrivals import Arrivals, Expected
from training.transfer.parallel import run_parallel

TAIL_BYTES = 1 << 20  # holds the central directory of some 9,000 members: one request


class RangedFile(io.RawIOBase):
    """An object as a seekable file; one request for each stretch that is read in one go.

    A request ends at the next of the sorted `bounds`. The bytes from `tail_start` on are in memory.
    """

    def __init__(self, stored: StoredFile, tail: bytes, bounds: Sequence[int], stopping: Event) -> None:
        self.stored, self.tail, self.bounds, self.stopping = stored, tail, bounds, stopping
        self.tail_start = stored.size_bytes - len(tail)
        self.position = 0
        self.blocks: Iterator[bytes] = iter(())
        self.rest = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.stored.size_bytes}[whence]
        if position < 0:
            raise OSError("a position before the start of the file")
        if position != self.position:
            self.position, self.blocks, self.rest = position, iter(()), b""
        return position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if self.position >= self.tail_start:
            found = self.tail[self.position - self.tail_start :][: len(buffer)]
        else:
            found = self.rest or next(self.blocks, b"") or self.next_stretch()
            found, self.rest = found[: len(buffer)], found[len(buffer) :]
        buffer[: len(found)] = found
        self.position += len(found)
        return len(found)

    def next_stretch(self) -> bytes:
        stop = min(self.tail_start, self.bounds[bisect_right(self.bounds, self.position)])
        self.blocks = read_file(self.stored, self.position, stop, self.stopping)
        return next(self.blocks)


def opener(stored: StoredFile) -> Callable[[Event], IO[bytes]]:
    """A function that opens a zip in a bucket, once per thread. No request reads on into the next member."""
    tail_start = max(0, stored.size_bytes - TAIL_BYTES)
    tail = b"".join(read_file(stored, tail_start, stored.size_bytes))

    def opened(bounds: Sequence[int], stopping: Event) -> IO[bytes]:
        return io.BufferedReader(RangedFile(stored, tail, bounds, stopping), BLOCK_BYTES)

    whole = [stored.size_bytes]
    with zipfile.ZipFile(opened(whole, Event())) as archive:
        bounds = [*sorted(member.header_offset for member in archive.infolist()), *whole]
    return lambda stopping: opened(bounds, stopping)


@contextmanager
def zip_errors(zip_url: str) -> Iterator[None]:
    """Turns errors of the zipfile module into a DataError that names the zip."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: a password, a method
        raise DataError(f"{zip_url} cannot be unpacked ({error}): get it again") from error


def bring_members(
    open_zip: Callable[[Event], IO[bytes]],
    members: Mapping[str, zipfile.ZipInfo],
    folder: Arrivals,
    progress: Progress,
    stopping: Event,
) -> None:
    """Extract members that a folder lacks, each under its name, in parallel; zipfile checks their CRC-32."""
    missing = folder.missing(Expected(name, member.file_size, f"{member.CRC:08x}") for name, member in members.items())
    folder.require_room(missing)
    count = counter("unpack", sum(file.size_bytes for file in missing), progress)
    idle: queue.SimpleQueue[zipfile.ZipFile] = queue.SimpleQueue()

    def bring(file: Expected) -> None:
        try:
            archive = idle.get_nowait()
        except queue.Empty:
            archive = zipfile.ZipFile(open_zip(stopping))
        with archive.open(members[file.name]) as source, folder.way_in(file.name).open("wb") as sink:
            while block := source.read(BLOCK_BYTES):
                if stopping.is_set():
                    raise Stopped(f"{file.name} was stopped on its way")
                sink.write(block)
                count(len(block))
        idle.put(archive)
        folder.accept(file)

    run_parallel(bring, missing, CONNECTIONS, stopping)
