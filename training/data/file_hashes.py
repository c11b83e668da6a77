"""SHA-256 of large files. Each file is read once."""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

BUSY_TIMEOUT_S = 60


class FileHashes:
    """Remembers file hashes in SQLite. A hash holds as long as size and modification time stay the same.

    Threads and processes may share the SQLite file. A kill does it no harm.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.table() as table:
            table.execute(
                "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size_bytes INT, mtime_ns INT, sha256 TEXT)"
            )

    def sha256(self, file: Path) -> str:
        """The hash in hexadecimal digits. Reads the file only if the hash is not remembered."""
        name, facts = os.fsencode(file.resolve()), file.stat()
        query = "SELECT sha256 FROM files WHERE path = ? AND size_bytes = ? AND mtime_ns = ?"
        with self.table() as table:
            found: tuple[str] | None = table.execute(query, (name, facts.st_size, facts.st_mtime_ns)).fetchone()
        if found:
            return found[0]
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        with self.table() as table:
            row = (name, facts.st_size, facts.st_mtime_ns, digest)
            table.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", row)
        return digest

    @contextmanager
    def table(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread. Commits at the end of the block, rolls back after an error."""
        with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as connection, connection:
            yield connection
