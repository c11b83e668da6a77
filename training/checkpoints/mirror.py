"""A copy of a run's files in object storage, made in the background. The run never waits for the network.

Each upload is a process of its own (`python -m training.checkpoints.mirror FILE URL`): it takes no time from the
interpreter that trains, and it can be ended if it hangs, which a thread could not.
"""

import itertools
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from serving.errors import StorageError
from serving.storage.retries import pauses
from serving.storage.storage import delete, is_remote, list_files, store_file
from training.progress import say

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_PAUSE_AT_THE_END_S = 1.0
CHECKPOINT = "checkpoint"


class Mirror:
    """Copies files below a URL, each under its own name. Retries a failed upload with growing pauses.

    Other files go before a checkpoint, so everything that a checkpoint in the mirror refers to is there and not older. Of
    several waiting checkpoints only the newest is sent.
    """

    def __init__(self, url: str, scratch: Path, surplus: Callable[[list[str], str], list[str]]) -> None:
        """`surplus` gives the stored names to remove once the checkpoint of the given name is stored."""
        self.url = url.rstrip("/")
        self._scratch = scratch
        self._surplus = surplus
        self._waiting: dict[str, tuple[int, Path]] = {}
        self._count = itertools.count()
        self._upload: subprocess.Popen[str] | None = None
        self._closing = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def store(self, path: Path) -> None:
        """Copy a file, in the version that it has when its turn comes."""
        self._ask(path.name, path)

    def store_checkpoint(self, path: Path) -> None:
        """Copy a checkpoint, which never changes, and remove those that it replaces."""
        self._ask(CHECKPOINT, path)

    def urls(self) -> dict[str, str]:
        """The URL of every stored file, by name. Empty for a folder that does not exist yet."""
        if not is_remote(self.url) and not Path(self.url).exists():
            return {}
        return {file.name: file.url for file in list_files(self.url)}

    def close(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` until all files are stored. Prints the names of those that are not."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, timeout_s)
            missing = [path.name for _, path in self._waiting.values()]
            self._closed = True
            self._changed.notify_all()
            if self._upload is not None:
                self._upload.kill()
        if missing:
            say(f"the mirror {self.url} lacks {', '.join(missing)}: copy them there before this machine goes")

    def _ask(self, key: str, path: Path) -> None:
        with self._changed:
            if not self._thread.ident:
                self._thread.start()
            self._waiting[key] = (next(self._count), path)
            self._changed.notify_all()

    def _work(self) -> None:
        failures, waits = 0, pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while (entry := self._next()) is not None:
            key, request = entry
            try:
                self._store(request[1], is_checkpoint=key == CHECKPOINT)
            except (StorageError, OSError) as error:
                failures += 1
                self._pause(failures, next(waits), error)
                continue
            if failures:
                say(f"the mirror {self.url} works again")
            failures, waits = 0, pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)
            with self._changed:
                if self._waiting[key] == request:  # else a newer version came meanwhile
                    del self._waiting[key]
                self._changed.notify_all()

    def _next(self) -> tuple[str, tuple[int, Path]] | None:
        """The file to store now; None once the mirror is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            key = next((key for key in self._waiting if key != CHECKPOINT), CHECKPOINT)
            return key, self._waiting[key]

    def _store(self, path: Path, is_checkpoint: bool) -> None:
        copy = self._scratch / f"storing-{path.name}"
        self._scratch.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)  # the file may be replaced or removed while it is on its way
        try:
            self._run_upload(copy, f"{self.url}/{path.name}")
        finally:
            copy.unlink(missing_ok=True)
        if is_checkpoint:
            urls = self.urls()
            for name in self._surplus(list(urls), path.name):
                delete(urls[name])

    def _run_upload(self, path: Path, url: str) -> None:
        """Run an upload to its end. Raises StorageError with the message of its process."""
        command = [sys.executable, "-m", __spec__.name, str(path), url]
        with self._changed:
            if self._closed:
                return
            # its own session: Ctrl-C ends the run, which then waits for this process as long as it can
            self._upload = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        _, said = self._upload.communicate()
        if self._upload.returncode != 0:
            raise StorageError(said.strip().rpartition("\n")[2])

    def _pause(self, failures: int, pause_s: float, error: Exception) -> None:
        with self._changed:
            if failures == 1 and not self._closed:
                say(f"the mirror {self.url} is behind, training goes on and it is tried again: {error}")
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, pause_s)
            else:
                self._changed.wait_for(lambda: self._closed, LONGEST_PAUSE_AT_THE_END_S)


if __name__ == "__main__":
    try:
        store_file(Path(sys.argv[1]), sys.argv[2])
    except StorageError as problem:
        sys.exit(str(problem))
