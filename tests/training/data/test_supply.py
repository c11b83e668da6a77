import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving.errors import StorageError
from training.data import supply as supply_module
from training.data.decoded import DecodedSong
from training.data.song import Song
from training.data.stem_folder import StemFolder
from training.data.supply import ENOUGH_SONGS, GROUP, Supply, first_songs, scheduled
from training.errors import DataError, Stopped

SONGS = [StemFolder(f"song {number:02}", Path(f"song {number:02}")) for number in range(20)]


def decoded(song: Song) -> DecodedSong:
    return DecodedSong(song.name, song.path, clipped=0)


def names(songs: Sequence[DecodedSong]) -> list[str]:
    return [song.name for song in songs]


def test_songs_arrive_group_by_group_and_each_once() -> None:
    gates = [threading.Event() for _ in range(3)]
    asked: list[int] = []

    def prepare(songs: Sequence[Song], _: threading.Event) -> list[DecodedSong]:
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


@pytest.mark.parametrize("error", [DataError("damaged"), StorageError("away"), OSError("gone")])
def test_a_song_that_does_not_come_is_said_once_and_tried_until_it_does(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply_module, "FIRST_PAUSE_S", 0.001)
    bad, tries = SONGS[GROUP + 1], 0

    def prepare(songs: Sequence[Song], _: threading.Event) -> list[DecodedSong]:
        nonlocal tries
        if bad in songs:
            tries += 1
            if tries < 6:
                raise error
        return [decoded(song) for song in songs]

    supply = Supply(SONGS, prepare)
    supply.thread.join(10)
    came = names(supply.arrived())
    assert sorted(came) == [song.name for song in SONGS] and came[-1] == bad.name and tries == 6
    assert supply.arrived() == []
    said = capsys.readouterr().err
    assert said.count("training goes on without song 09, which is tried again") == 1 and str(error) in said


def test_songs_that_never_come_are_tried_less_and_less_often_and_closing_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supply_module, "FIRST_PAUSE_S", 0.05)
    tries: list[float] = []

    def prepare(_songs: Sequence[Song], _: threading.Event) -> list[DecodedSong]:
        tries.append(time.monotonic())
        raise DataError("damaged")

    supply = Supply(SONGS[:1], prepare)
    while len(tries) < 4:
        time.sleep(0.01)
    supply.close()
    assert not supply.thread.is_alive() and supply.arrived() == []
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps[0] >= 0.025 and gaps[1] >= 0.05 and gaps[2] >= 0.1


def test_a_fault_of_the_program_is_not_taken_for_a_song_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def prepare(_songs: Sequence[Song], _: threading.Event) -> list[DecodedSong]:
        raise KeyError("a bug")

    supply = Supply(SONGS, prepare)
    supply.thread.join(10)
    with pytest.raises(RuntimeError, match="the thread that brings songs has died: its traceback is above"):
        supply.arrived()


def test_closing_tells_the_work_in_progress_and_waits_for_it_a_moment() -> None:
    begun, asked = threading.Event(), 0

    def prepare(songs: Sequence[Song], stopping: threading.Event) -> list[DecodedSong]:
        nonlocal asked
        asked += 1
        begun.set()
        if stopping.wait(10):
            raise Stopped("told to stop")
        return [decoded(song) for song in songs]

    supply = Supply(SONGS, prepare)
    assert begun.wait(10)
    supply.close()
    assert not supply.thread.is_alive() and supply.arrived() == [] and asked == 1


def test_work_that_does_not_listen_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply_module, "CLOSE_S", 0.1)
    begun, gate = threading.Event(), threading.Event()

    def prepare(songs: Sequence[Song], _: threading.Event) -> list[DecodedSong]:
        begun.set()
        assert gate.wait(10)
        return [decoded(song) for song in songs]

    supply = Supply(SONGS, prepare)
    assert begun.wait(10)
    supply.close()
    assert supply.thread.is_alive() and supply.thread.daemon
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
