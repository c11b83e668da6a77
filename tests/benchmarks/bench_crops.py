"""The cost of a crop beside other ways to read it: python -m pytest -s tests/benchmarks/bench_crops.py

A crop is all stems of one example. On one thread, with the files in the page cache; ratios of one run on one machine.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serving.model.spec import AudioSpec
from tests.data_sets import write_stem_file
from training.data.crops import Crops
from training.data.decoded import decode
from training.data.musdb18 import StemMp4
from training.data.song import SOURCES, Song
from training.data.stem_folder import StemFolder

RATE_HZ = 44_100
CROP_S = 6
SONG_S = 180
SONGS = 4
BATCH = 8

Places = list[list[tuple[int, float]]]


def best_of(times: int, *works: Callable[[], object]) -> list[float]:
    """Seconds of the fastest of several calls of each, taken in turns; the first calls fill the page cache."""
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(1 + times):
        for work, taken in zip(works, spent, strict=True):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return [min(taken[1:]) for taken in spent]


def crops_of(songs: list[Song], cache: Path) -> Crops:
    decoded = decode(songs, AudioSpec(RATE_HZ), SOURCES, cache)
    return Crops(decoded, BATCH, CROP_S * RATE_HZ, seed=0)


@pytest.fixture
def places() -> Places:
    """A song and a second to start at, for each stem of each example."""
    rng = np.random.default_rng(0)
    return [[(int(rng.integers(SONGS)), rng.uniform(0, SONG_S - CROP_S)) for _ in SOURCES] for _ in range(BATCH)]


def test_crops_beside_soundfile_reading_parts_of_wav(tmp_path: Path, places: Places) -> None:
    songs: list[Song] = [StemFolder(f"A - {number}", tmp_path / f"A - {number}") for number in range(SONGS)]
    rng = np.random.default_rng(0)
    for song in songs:
        song.path.mkdir()
        for stem in SOURCES:
            audio = rng.integers(-20_000, 20_000, (SONG_S * RATE_HZ, 2), dtype=np.int16)
            soundfile.write(song.path / f"{stem}.wav", audio, RATE_HZ)

    def read(batch: np.ndarray) -> None:
        for example, of_example in zip(batch, places, strict=True):
            for stem, part, (song, start_s) in zip(SOURCES, example, of_example, strict=True):
                path = songs[song].path / f"{stem}.wav"
                soundfile.read(path, start=int(start_s * RATE_HZ), dtype=batch.dtype.name, out=part)

    shape = (BATCH, len(SOURCES), CROP_S * RATE_HZ, 2)
    floats, integers = np.empty(shape, np.float32), np.empty(shape, np.int16)
    crops = crops_of(songs, tmp_path / "cache")
    spent = best_of(
        20,
        lambda: crops.batch(0),
        lambda: np.copyto(np.empty_like(integers), integers),
        lambda: read(floats),
        lambda: read(integers),
    )
    ours_s, copy_s, floats_s, integers_s = (seconds / BATCH for seconds in spent)
    print(
        f"\n{1 / ours_s:.0f} crops per second and core, {ours_s / copy_s:.1f} times the time of a copy in memory; "
        f"{floats_s / ours_s:.1f} times the rate of soundfile into floats ({1e3 * floats_s:.2f} ms a crop), "
        f"{integers_s / ours_s:.1f} times its rate into integers ({1e3 * integers_s:.2f} ms)"
    )
    assert floats_s > 3 * ours_s


def test_crops_beside_musdb_reading_stem_files(tmp_path: Path, places: Places) -> None:
    import musdb

    first, *others = paths = [tmp_path / "train" / f"A - {number}.stem.mp4" for number in range(SONGS)]
    write_stem_file(first, seconds=SONG_S)
    for path in others:
        shutil.copy(first, path)
    songs: list[Song] = [StemMp4(path.name.removesuffix(".stem.mp4"), path) for path in paths]
    tracks = sorted(musdb.DB(root=str(tmp_path), subsets="train").tracks, key=lambda track: track.name)

    def read() -> list[np.ndarray]:
        parts = []
        for stem, (song, start_s) in zip(SOURCES, places[0], strict=True):
            tracks[song].chunk_start, tracks[song].chunk_duration = start_s, CROP_S
            parts.append(tracks[song].targets[stem].audio)
        return parts

    crops = crops_of(songs, tmp_path / "cache")
    batch_s, theirs_s = best_of(10, lambda: crops.batch(0), read)
    ours_s = batch_s / BATCH
    print(f"\n{1 / ours_s:.0f} crops per second and core, {theirs_s / ours_s:.0f} times the rate of musdb")
    assert theirs_s > 100 * ours_s
