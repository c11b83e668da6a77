"""The songs of a run, fetched and decoded in the background, so that training begins before the last one is here."""

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence

from serving.errors import StemwrightError
from serving.storage.retries import pauses
from training.data.decoded import DecodedSong
from training.data.song import Song
from training.errors import DataError, Stopped, TrainingError
from training.progress import say

ENOUGH_SONGS = 16
"""Songs that training starts with. Half of the examples mix stems of different songs: sixteen give 240 pairs of vocals and
accompaniment and 43,680 mixtures of four, and no song fills more than a sixteenth of a stem's excerpts."""

GROUP = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
CLOSE_S = 1.0

Schedule = Sequence[tuple[int, Sequence[str]]]
"""Song names by the first step that may draw from them."""

Prepare = Callable[[Sequence[Song], threading.Event], list[DecodedSong]]
"""Fetches and decodes songs. Raises Stopped soon after the event is set."""


class Supply:
    """Fetches and decodes songs group by group, in the given order, in a thread of its own. Close it at the end.

    A song that fails is reported once and retried with growing pauses as long as the run lasts.
    """

    def __init__(self, songs: Sequence[Song], prepare: Prepare) -> None:
        self.prepare = prepare
        self.waiting = deque(songs[start : start + GROUP] for start in range(0, len(songs), GROUP))
        self.lock = threading.Lock()
        self.ready: list[DecodedSong] = []
        self.missed: set[Song] = set()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.work, name="songs", daemon=True)
        self.thread.start()

    def work(self) -> None:
        """Prepare group after group. A song that fails goes to the end of the queue, in a group of its own. After a round of
        failures comes a pause."""
        waits, failures = pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S), 0
        while self.waiting and not self.stopping.is_set():
            group = self.waiting[0]
            try:
                songs = self.prepare(group, self.stopping)
            except Stopped:
                return
            except (TrainingError, StemwrightError, OSError) as error:
                self.note_missed(group, error)
                self.waiting.extend([song] for song in group)
                failures += 1
            else:
                with self.lock:
                    self.ready += songs
                waits, failures = pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S), 0
            self.waiting.popleft()
            if failures and failures >= len(self.waiting):
                self.stopping.wait(next(waits))
                failures = 0

    def note_missed(self, group: Sequence[Song], error: Exception) -> None:
        """Report once why a song is missing. A failed group is retried song by song, which finds the one that fails."""
        if len(group) == 1 and group[0] not in self.missed:
            self.missed.update(group)
            say(f"training goes on without {group[0].name}, which is tried again: {error}")

    def arrived(self) -> list[DecodedSong]:
        """The songs that are ready since the last call."""
        if self.waiting and not self.stopping.is_set() and not self.thread.is_alive():
            raise RuntimeError("the thread that brings songs has died: its traceback is above")
        with self.lock:
            songs, self.ready = self.ready, []
        return songs

    def close(self) -> None:
        """Stop. Work in progress gets CLOSE_S to end, then it is abandoned."""
        self.stopping.set()
        self.thread.join(CLOSE_S)


def first_songs(songs: Sequence[Song], seed: int, complete: bool) -> Schedule:
    """The schedule of a new run: all songs if it is to be `complete`, else ENOUGH_SONGS drawn by the seed."""
    names = sorted(song.name for song in songs)
    if not complete:
        random.Random(seed).shuffle(names)
    return [(0, names if complete else names[:ENOUGH_SONGS])]


def scheduled(songs: Sequence[Song], schedule: Schedule) -> tuple[list[tuple[int, list[Song]]], list[Song]]:
    """Split songs by a schedule: (step, songs) of the scheduled ones, and the others.

    Raises DataError if a scheduled song is not in the data set.
    """
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
