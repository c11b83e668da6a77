"""The checkpoints of a run: the last few in its folder, mirrored to object storage, each with its own hash in its name.

A file appears under its name, `step-00001234-<first 16 hex digits of its sha256>.safetensors`, only when it is complete
and on disk. So a run that is killed at any moment can go on, and damage is found before training goes on from it. The caller
decides the content of a checkpoint.
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
    """The checkpoints in one folder; the mirror is an image of the folder.

    Of several processes only one may use its Checkpoints; making one touches nothing.
    """

    def __init__(self, folder: Path, mirror_url: str | None, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._scratch = folder / ".partial"  # the file system of the folder, so that a rename is enough
        self._mirror = Mirror(mirror_url, self._scratch, self._surplus) if mirror_url is not None else None
        self._finisher = ThreadPoolExecutor(1, "checkpoint")
        self._finishing: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Save the checkpoint of a step. `write` writes its content to the path it is given, and is done on return.

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
        """Store another file of the run in the mirror, before the next checkpoint. Call again when it has changed."""
        if self._mirror is not None:
            self._mirror.store(path)

    def newest(self) -> Path | None:
        """The newest sound checkpoint, fetched from the mirror if only the mirror has it; None if neither holds any.

        Prints the names of damaged ones. Raises CheckpointError if all are damaged, or if the folder has none and the mirror
        cannot be reached.
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
        """Fetch a file that was given to `mirror` into the folder. False if the mirror has none. Raises StorageError."""
        if self._mirror is None or not exists(f"{self._mirror.url}/{name}"):
            return False
        fetched = self._scratch / name
        fetch_file(f"{self._mirror.url}/{name}", fetched)
        fetched.replace(self.folder / name)
        return True

    def close(self, timeout_s: float) -> None:
        """Wait for the last checkpoint, then `timeout_s` at most for the mirror, and print the names of files that it lacks.

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
        """Wait until the checkpoint of the last `save` is complete. Raises the error that it ended with."""
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
        """The names to remove once `saved` is there: all but the last few, and those that a resumed run has passed over."""
        others = sorted(filter(CHECKPOINT_NAME.fullmatch, {*names} - {saved}), key=step_of, reverse=True)
        earlier = [name for name in others if step_of(name) < step_of(saved)]
        return [name for name in others if name not in earlier[: self.keep - 1]]

    def _remote(self) -> tuple[dict[str, str], str | None]:
        """The URLs in the mirror by name, or the reason that they cannot be had."""
        if self._mirror is None:
            return {}, None
        try:
            return self._mirror.urls(), None
        except StorageError as error:
            return {}, f"the mirror cannot be read ({error})"

    def _fetch_sound(self, url: str, path: Path, damaged: list[str]) -> bool:
        """Fetch a checkpoint. False, with a note in `damaged`, if it is damaged or does not arrive."""
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
    """True if the content of a checkpoint can be read and has the hash in its name."""
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
    """Bring a folder's list of names to disk: else a power cut may take back a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
