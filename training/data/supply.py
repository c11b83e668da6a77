"""The songs of a run, brought and decoded in the background: training begins before the last one is here."""

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
"""Half of the examples mix stems of different songs: sixteen give 240 pairs of vocals and accompaniment and 43,680 mixtures
of four songs, and none is heard in more than a sixteenth of the excerpts of a stem."""

GROUP = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
CLOSE_S = 1.0

Schedule = Sequence[tuple[int, Sequence[str]]]
"""Names of songs by the step that training knows them from."""

Prepare = Callable[[Sequence[Song], threading.Event], list[DecodedSong]]
"""Brings songs and decodes them. Raises Stopped soon after the event is set."""


class Supply:
    """Brings songs group by group, in the order given, in a thread of its own. Close it at the end.

    A song that does not come is said once and tried again, with growing pauses, for as long as the run lasts.
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
        """Songs that fail go to the end of the queue, each alone; when a whole round of them has failed, a pause follows."""
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
        """Say once what keeps a song away. A group is tried again song by song, which tells the one that fails."""
        if len(group) == 1 and group[0] not in self.missed:
            self.missed.update(group)
            say(f"training goes on without {group[0].name}, which is tried again: {error}")

    def arrived(self) -> list[DecodedSong]:
        """The songs that have come since the last call."""
        if self.waiting and not self.stopping.is_set() and not self.thread.is_alive():
            raise RuntimeError("the thread that brings songs has died: its traceback is above")
        with self.lock:
            songs, self.ready = self.ready, []
        return songs

    def close(self) -> None:
        """Bring no more songs. What is in progress has CLOSE_S to end and is left behind then."""
        self.stopping.set()
        self.thread.join(CLOSE_S)


def first_songs(songs: Sequence[Song], seed: int, complete: bool) -> Schedule:
    """The songs that a new run starts with: all of them if it is to be `complete`, else ENOUGH_SONGS drawn by the seed."""
    names = sorted(song.name for song in songs)
    if not complete:
        random.Random(seed).shuffle(names)
    return [(0, names if complete else names[:ENOUGH_SONGS])]


def scheduled(songs: Sequence[Song], schedule: Schedule) -> tuple[list[tuple[int, list[Song]]], list[Song]]:
    """The songs of a schedule, and the others. Raises DataError if the data set lacks one of the schedule."""
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
