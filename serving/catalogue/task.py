"""One song of a catalogue: its URL, the folder for its stems, and its outcome."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from serving.songs.batch import AUDIO_SUFFIXES
from serving.storage.storage import walk_files

State = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class Task:
    """A song and the folder for its stems, as URLs."""

    song: str
    out: str


@dataclass(frozen=True)
class Outcome:
    """The result of one task. `message` says why a song failed; `audio_s` is its length, 0 if it was not read."""

    song: str
    out: str
    state: State
    message: str = ""
    seconds: float = 0.0
    audio_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def tasks(songs: str, to: str) -> Iterator[Task]:
    """Yield the songs below a URL in the store's order.

    The stems of `songs/a/b.flac` go to `to/a/b.flac/`, so adding a song moves no other's stems. Files below `to` are no
    songs. Raises StorageError.
    """
    inside = f"{to.rstrip('/')}/"
    for file in walk_files(songs):
        path = PurePosixPath(file.name)
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".") and not file.url.startswith(inside):
            yield Task(file.url, f"{inside}{file.name}")
