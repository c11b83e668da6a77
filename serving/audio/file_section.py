"""A part of a file, as a file of its own."""

import io
import os
from typing import IO, Self


class FileSection(io.RawIOBase):
    """Bytes [start, stop) of a file. It has a position of its own, so that several can read the same file in turns."""

    def __init__(self, file: IO[bytes] | io.RawIOBase, start: int, stop: int) -> None:
        self._file, self._start, self._stop, self._at = file, start, stop, 0

    @classmethod
    def whole(cls, file: IO[bytes] | io.RawIOBase) -> Self:
        return cls(file, 0, file.seek(0, os.SEEK_END))

    def part(self, start: int, stop: int) -> "FileSection":
        """Bytes [start, stop) of this section."""
        return FileSection(self._file, self._start + start, self._start + stop)

    @property
    def size(self) -> int:
        return self._stop - self._start

    @property
    def is_whole(self) -> bool:
        return self._start == 0 and self._stop == self._file.seek(0, os.SEEK_END)

    def read_at(self, at: int, size: int) -> bytes:
        """Up to `size` bytes from `at`; b"" beyond the ends. The position stays."""
        if not 0 <= at < self.size:
            return b""
        self._file.seek(self._start + at)
        return self._file.read(min(size, self.size - at))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        data = self.read_at(self._at, len(into))
        into[: len(data)] = data
        self._at += len(data)
        return len(data)
