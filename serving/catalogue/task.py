"""One song of a catalogue: where it lies, where its stems go, and what became of it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from serving.songs.batch import AUDIO_SUFFIXES
from serving.storage.storage import walk_files

State = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class Task:
    """A song and the folder of its stems, as URLs."""

    song: str
    out: str


@dataclass(frozen=True)
class Outcome:
    """The end of one task. `message` says why a song failed; `audio_s` is its length, 0 where it was not read."""

    song: str
    out: str
    state: State
    message: str = ""
    seconds: float = 0.0
    audio_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def tasks(songs: str, to: str) -> Iterator[Task]:
    """List the songs below a URL, as they come from the store.

    The stems of `songs/a/b.flac` go to `to/a/b.flac/`: a song that is added later moves no other's stems. What already lies
    below `to` is no song. Raises StorageError.
    """
    inside = f"{to.rstrip('/')}/"
    for file in walk_files(songs):
        path = PurePosixPath(file.name)
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".") and not file.url.startswith(inside):
            yield Task(file.url, f"{inside}{file.name}")
