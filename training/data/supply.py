"""The songs of a run, brought and decoded in the background, so that training begins before the last one is here."""

import random
import threading
from collections.abc import Callable, Sequence

from training.data.decoded import DecodedSong
from training.data.musdb18 import Song
from training.errors import DataError

ENOUGH_SONGS = 16
"""Half of the examples mix stems of different songs: sixteen give 240 pairs of vocals and accompaniment and 43,680 mixtures
of four songs, and none is heard in more than a sixteenth of the excerpts of a stem."""

GROUP = 8

Schedule = Sequence[tuple[int, Sequence[str]]]
"""Names of songs by the step that training knows them from."""

Prepare = Callable[[Sequence[Song]], list[DecodedSong]]
"""Brings songs and decodes them."""


class Supply:
    """Songs that are wanted, group by group, in the order given. Closed at the end, whether all have come or not."""

    def __init__(self, songs: Sequence[Song], prepare: Prepare) -> None:
        self.groups = [songs[start : start + GROUP] for start in range(0, len(songs), GROUP)]
        self.prepare = prepare
        self.lock = threading.Lock()
        self.ready: list[DecodedSong] = []
        self.failure: Exception | None = None
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.work, name="songs", daemon=True)
        self.thread.start()

    def work(self) -> None:
        for group in self.groups:
            if self.closed.is_set():
                return
            try:
                songs = self.prepare(group)
            except Exception as error:  # it belongs to the thread that asks
                self.failure = error
                return
            with self.lock:
                self.ready += songs

    def arrived(self) -> list[DecodedSong]:
        """The songs that have come since the last call. Raises what kept the next ones from coming."""
        with self.lock:
            songs, self.ready = self.ready, []
        if not songs and self.failure is not None:
            raise self.failure
        return songs

    def close(self) -> None:
        """Bring no more songs."""
        self.closed.set()


def first_songs(songs: Sequence[Song], seed: int, complete: bool) -> Schedule:
    """What a new run starts with: all songs where it is to be `complete`, else ENOUGH_SONGS drawn by the seed."""
    names = sorted(song.name for song in songs)
    if not complete:
        random.Random(seed).shuffle(names)
    return [(0, names if complete else names[:ENOUGH_SONGS])]


def scheduled(songs: Sequence[Song], schedule: Schedule) -> tuple[list[tuple[int, list[Song]]], list[Song]]:
    """The songs of a schedule, and the others. Raises DataError where the data set lacks one."""
    by_name = {song.name: song for song in songs}
    for _, names in schedule:
        for name in names:
            if name not in by_name:
                raise DataError(
                    f"the data set has no song {name}, which this run was trained on: resume with the same data"
                )
    known = {name for _, names in schedule for name in names}
    return (
        [(step, [by_name[name] for name in names]) for step, names in schedule],
        [song for song in songs if song.name not in known],
    )
