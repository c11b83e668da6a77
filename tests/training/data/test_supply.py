import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from training.data.decoded import DecodedSong
from training.data.musdb18 import Song, StemFolder
from training.data.supply import ENOUGH_SONGS, GROUP, Supply, first_songs, scheduled
from training.errors import DataError

SONGS = [StemFolder(f"song {number:02}", Path(f"song {number:02}")) for number in range(20)]


def decoded(song: Song) -> DecodedSong:
    return DecodedSong(song.name, song.path, clipped=0)


def names(songs: Sequence[DecodedSong]) -> list[str]:
    return [song.name for song in songs]


def test_songs_arrive_group_by_group_and_each_once() -> None:
    gates = [threading.Event() for _ in range(3)]
    asked: list[int] = []

    def prepare(songs: Sequence[Song]) -> list[DecodedSong]:
        asked.append(len(songs))
        assert gates[len(asked) - 1].wait(10)
        return [decoded(song) for song in songs]

    supply = Supply(SONGS, prepare)
    assert supply.arrived() == []
    gates[0].set()
    gates[1].set()
    came: list[str] = []
    while len(came) < 2 * GROUP:
        came += names(supply.arrived())
    assert came == [song.name for song in SONGS[: 2 * GROUP]] and supply.arrived() == []
    gates[2].set()
    supply.thread.join(10)
    assert names(supply.arrived()) == [song.name for song in SONGS[2 * GROUP :]] and supply.arrived() == []
    assert asked == [GROUP, GROUP, len(SONGS) - 2 * GROUP]


def test_what_keeps_songs_from_coming_is_raised_after_those_that_came() -> None:
    def prepare(songs: Sequence[Song]) -> list[DecodedSong]:
        if SONGS[GROUP] in songs:
            raise DataError("song 08 is damaged: get it again")
        return [decoded(song) for song in songs]

    supply = Supply(SONGS, prepare)
    supply.thread.join(10)
    assert len(supply.arrived()) == GROUP
    with pytest.raises(DataError, match="song 08"):
        supply.arrived()


def test_a_supply_that_is_closed_brings_no_more() -> None:
    begun, gate = threading.Event(), threading.Event()

    def prepare(songs: Sequence[Song]) -> list[DecodedSong]:
        begun.set()
        assert gate.wait(10)
        return [decoded(song) for song in songs]

    supply = Supply(SONGS, prepare)
    assert begun.wait(10)
    supply.close()
    gate.set()
    supply.thread.join(10)
    assert len(supply.arrived()) == GROUP


def test_a_run_starts_with_enough_songs_drawn_by_the_seed_or_with_all() -> None:
    ((step, drawn),) = first_songs(SONGS, seed=1, complete=False)
    assert step == 0 and len(set(drawn)) == ENOUGH_SONGS
    assert first_songs(SONGS[::-1], 1, complete=False) == [(0, drawn)] != first_songs(SONGS, 2, complete=False)
    assert first_songs(SONGS[::-1], 1, complete=True) == [(0, [song.name for song in SONGS])]


def test_a_run_that_goes_on_has_the_songs_it_had_when_it_had_them() -> None:
    known, others = scheduled(SONGS, [(0, ["song 03", "song 01"]), (7, ["song 02"])])
    assert known == [(0, [SONGS[3], SONGS[1]]), (7, [SONGS[2]])]
    assert others == [SONGS[0], *SONGS[4:]]
    with pytest.raises(DataError, match="no song gone"):
        scheduled(SONGS, [(0, ["gone"])])
