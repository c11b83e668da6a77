"""The checkpoints of a run: the last few in its folder, mirrored to object storage, each with its own hash in its name.

A file gets its name, `step-00001234-<first 16 hex digits of its sha256>.safetensors`, when it is complete and on disk. So a
killed run can resume, and damage is found before training continues from it. The caller decides what a checkpoint contains.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from serving.errors import StorageError
from serving.storage.storage import exists, fetch_file
from training.checkpoints.mirror import Mirror
from training.errors import CheckpointError
from training.progress import say

CHECKPOINT_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.safetensors")


class Checkpoints:
    """The checkpoints in one folder, which the mirror copies.

    Only one process may use it. Creating it touches nothing.
    """

    def __init__(self, folder: Path, mirror_url: str | None, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._scratch = folder / ".partial"  # the file system of the folder, so that a rename is enough
        self._mirror = Mirror(mirror_url, self._scratch, self._surplus) if mirror_url is not None else None
        self._finisher = ThreadPoolExecutor(1, "checkpoint")
        self._finishing: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Save the checkpoint of a step. `write` has written it to the given path when it returns.

        Flushing, hashing and mirroring go on in the background. Raises CheckpointError if this checkpoint or the one before
        cannot be written; older ones stay.
        """
        self._finish()
        partial = self._scratch / "saving"
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            write(partial)
        except OSError as error:
            partial.unlink(missing_ok=True)  # gives its share of a full disk back
            raise self._unwritable(step, error) from error
        self._finishing = self._finisher.submit(self._complete, step, partial)

    def mirror(self, path: Path) -> None:
        """Copy another file of the run to the mirror, before the next checkpoint. Call again when it has changed."""
        if self._mirror is not None:
            self._mirror.store(path)

    def newest(self) -> Path | None:
        """The newest intact checkpoint, fetched if only the mirror has it; None if there is none.

        Prints the names of damaged ones. Raises CheckpointError if all are damaged, or if the folder has none and the
        mirror cannot be reached.
        """
        self._finish()
        shutil.rmtree(self._scratch, ignore_errors=True)  # what killed writers left
        local = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        remote, unreachable = self._remote()
        damaged: list[str] = []
        for name in sorted(filter(CHECKPOINT_NAME.fullmatch, {*local, *remote}), key=step_of, reverse=True):
            path = self.folder / name
            sound = name in local and is_sound(path)
            if name in local and not sound:
                damaged.append(str(path))
            if sound and name not in remote and self._mirror is not None:
                self._mirror.store_checkpoint(path)
            if sound or (name in remote and self._fetch_sound(remote[name], path, damaged)):
                if damaged:
                    say(f"damaged: {', '.join(damaged)}; {path} is used instead")
                if unreachable:
                    say(f"{unreachable}; {path} is used, and the mirror may hold a newer one")
                return path
        if damaged:
            found = f"no sound checkpoint is left, damaged: {', '.join(damaged)}"
            raise CheckpointError(f"{found}; {unreachable or 'train again in a new folder'}")
        if unreachable:
            raise CheckpointError(f"{self.folder} holds no checkpoint and {unreachable}")
        return None

    def fetch(self, name: str) -> bool:
        """Fetch a file that `mirror` stored into the folder. False if the mirror has none. Raises StorageError."""
        if self._mirror is None or not exists(f"{self._mirror.url}/{name}"):
            return False
        fetched = self._scratch / name
        fetch_file(f"{self._mirror.url}/{name}", fetched)
        fetched.replace(self.folder / name)
        return True

    def close(self, timeout_s: float) -> None:
        """Wait for the last checkpoint, then up to `timeout_s` for the mirror; print the names of files that it lacks.

        Raises CheckpointError if the last checkpoint could not be written.
        """
        try:
            self._finish()
        finally:
            self._finisher.shutdown()
            if self._mirror is not None:
                self._mirror.close(timeout_s)
            with suppress(OSError):  # not empty where an upload was cut off
                self._scratch.rmdir()

    def _finish(self) -> None:
        """Wait until the last `save` is complete. Raises the error that it ended with."""
        if self._finishing is not None:
            finishing, self._finishing = self._finishing, None
            finishing.result()

    def _complete(self, step: int, partial: Path) -> None:
        try:
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            path = partial.replace(self.folder / f"step-{step:08d}-{digest[:16]}.safetensors")
            flush_names(self.folder)
        except OSError as error:
            raise self._unwritable(step, error) from error
        if self._mirror is not None:
            self._mirror.store_checkpoint(path)
        for name in self._surplus([path.name for path in self.folder.iterdir()], path.name):
            (self.folder / name).unlink(missing_ok=True)

    def _unwritable(self, step: int, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {step} cannot be written to {self.folder} ({error}): make room there, then --resume"
        )

    def _surplus(self, names: Iterable[str], saved: str) -> list[str]:
        """The checkpoints to remove once `saved` exists: all but the last few, and later ones that a resumed run has
        redone."""
        others = sorted(filter(CHECKPOINT_NAME.fullmatch, {*names} - {saved}), key=step_of, reverse=True)
        earlier = [name for name in others if step_of(name) < step_of(saved)]
        return [name for name in others if name not in earlier[: self.keep - 1]]

    def _remote(self) -> tuple[dict[str, str], str | None]:
        """The URLs in the mirror by name, or the reason why they are not known."""
        if self._mirror is None:
            return {}, None
        try:
            return self._mirror.urls(), None
        except StorageError as error:
            return {}, f"the mirror cannot be read ({error})"

    def _fetch_sound(self, url: str, path: Path, damaged: list[str]) -> bool:
        """Fetch a checkpoint. Returns False and adds to `damaged` if it is damaged or cannot be fetched."""
        fetched = self._scratch / path.name
        try:
            fetch_file(url, fetched)
        except StorageError as error:
            damaged.append(str(error))
            return False
        if not is_sound(fetched):
            fetched.unlink()
            damaged.append(url)
            return False
        fetched.replace(path)
        return True


def is_sound(path: Path) -> bool:
    """True if a checkpoint can be read and matches the hash in its name."""
    name = CHECKPOINT_NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            return name is not None and hashlib.file_digest(file, "sha256").hexdigest().startswith(name[2])
    except OSError:
        return False


def step_of(name: str) -> int:
    """The step of the checkpoint of this name."""
    return int(name.removeprefix("step-").partition("-")[0])


def flush_names(folder: Path) -> None:
    """Flush a folder's entries to disk; else a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
