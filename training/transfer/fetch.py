"""Objects of a bucket fetched into a folder in parallel.

Each is verified before it gets its name. After a kill the next run fetches only what is not complete.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from serving.errors import StorageError
from serving.storage.progress import Progress, counter
from serving.storage.s3 import CONNECTIONS
from serving.storage.storage import StoredFile, read_file
from training.transfer.arrivals import Arrivals, Expected
from training.transfer.parallel import run_parallel


@dataclass(frozen=True)
class Wanted:
    """An object, its name in the folder, and its SHA-256 if a manifest has one."""

    name: str
    stored: StoredFile
    sha256: str | None

    @property
    def expected(self) -> Expected:
        return Expected(self.name, self.stored.size_bytes, self.sha256 or self.stored.etag)


def fetch_objects(objects: Sequence[Wanted], folder: Arrivals, progress: Progress, stopping: Event) -> None:
    """Fetch the objects that a folder lacks. Complete files stay if it fails.

    Raises StorageError if an object changed since it was listed, does not match its SHA-256 or cannot be fetched; DataError
    if the disk is too small; Stopped.
    """
    missing = set(folder.missing(wanted.expected for wanted in objects))
    folder.require_room(missing)
    count = counter("fetch", sum(file.size_bytes for file in missing), progress)

    def bring(wanted: Wanted) -> None:
        way_in, sha256 = folder.way_in(wanted.name), hashlib.sha256()
        with way_in.open("wb") as file:
            for block in read_file(wanted.stored, 0, wanted.stored.size_bytes, stopping):
                file.write(block)
                sha256.update(block)
                count(len(block))
        if wanted.sha256 not in (None, sha256.hexdigest()):
            way_in.unlink()
            raise StorageError(
                f"{wanted.stored.url} is not what its manifest says (its SHA-256 is {sha256.hexdigest()}): push it again"
            )
        folder.accept(wanted.expected)

    run_parallel(bring, [wanted for wanted in objects if wanted.expected in missing], CONNECTIONS, stopping)
