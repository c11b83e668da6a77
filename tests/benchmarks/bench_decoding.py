"""The cost of decoding songs: python -m pytest -s tests/benchmarks/bench_decoding.py

Ratios of one run on one machine: rivals take turns. Inputs are made here, but for MUSDB18's excerpts, where
BENCH_EXCERPTS names a folder `train` of `.stem.mp4` files.
"""

import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from serving.audio import ffmpeg
from serving.audio.audio_io import open_audio
from tests.data_sets import STEMS, needs_ffmpeg, write_stem_file
from tests.encoders import encode, song
from training.data.musdb18 import StemMp4

RATE_HZ = 44_100
SONG_S = 240
LONG_S = 7_200
ROUNDS = 5


def noise(seconds: int, audio_format: str) -> bytes:
    """A song of noise, quiet enough in a FLAC that two hours are small."""
    file, chance = io.BytesIO(), np.random.default_rng(0)
    loudest = 1.5 / 32_768 if audio_format == "FLAC" else 0.1
    with soundfile.SoundFile(file, "w", RATE_HZ, 2, format=audio_format) as encoder:
        for _ in range(seconds):
            encoder.write(chance.uniform(-loudest, loudest, (RATE_HZ, 2)))
    return file.getvalue()


def in_turns(rounds: int, **works: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each call."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            spent[name].append(time.perf_counter() - started)
    return spent


def tell(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Print our rate for a song of `SONG_S`, and its ratio to soundfile's."""
    ours()
    spent = in_turns(ROUNDS, ours=ours, theirs=theirs)
    ratios = [b / a for a, b in zip(spent["ours"], spent["theirs"], strict=True)]
    print(
        f"\n{name}: {SONG_S / statistics.median(spent['ours']):.0f} times real time; {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}, {max(ratios):.2f}) times the rate of soundfile"
    )


@pytest.mark.parametrize("audio_format", ["WAV", "FLAC", "MP3"])
def test_a_song_beside_libsndfile(audio_format: str, tmp_path: Path) -> None:
    """Measured and read, which is to decode it twice, beside soundfile reading it twice."""
    path = tmp_path / "song"
    path.write_bytes(noise(SONG_S, audio_format))

    def ours() -> None:
        with open_audio(path) as opened:
            for _ in opened.blocks():
                pass

    def theirs() -> None:
        for _ in range(2):
            with soundfile.SoundFile(path.open("rb")) as file:
                while len(file.read(1 << 16, dtype="float32")):
                    pass

    tell(f"{audio_format}, measured and read", ours, theirs)


def test_one_pass_of_mp3(tmp_path: Path) -> None:
    """Decoded once in the warm process, beside soundfile reading it once."""
    path = tmp_path / "song"
    path.write_bytes(noise(SONG_S, "MP3"))

    def ours() -> None:
        with ffmpeg.decoder(path, "song") as decoding:
            for _ in decoding.blocks:
                pass

    def theirs() -> None:
        with soundfile.SoundFile(path.open("rb")) as file:
            while len(file.read(1 << 16, dtype="float32")):
                pass

    tell("MP3, one pass", ours, theirs)


@pytest.mark.parametrize("audio_format", ["FLAC", "MP3"])
def test_the_first_block_of_two_hours(audio_format: str, tmp_path: Path) -> None:
    """Beside decoding all of it; the memory of this process and of those that decode for it, beside a song of 4 minutes."""
    path = tmp_path / "song"
    path.write_bytes(noise(SONG_S, audio_format))
    read_through(path)  # what is loaded once is no song's
    _, _, short = read_through(path)
    path.write_bytes(noise(LONG_S, audio_format))
    first_s, whole_s, long = read_through(path)
    print(
        f"\n2 hours of {audio_format}: first block after {first_s:.2f} s, {first_s / whole_s:.3f} of the time of all; "
        f"{long / 1e6:.0f} MB at the most, {short / 1e6:.0f} MB for {SONG_S} s"
    )


def read_through(path: Path) -> tuple[float, float, int]:
    """Seconds until the first block, seconds until the last, and the most memory in between."""
    started, first_s, peak = time.perf_counter(), 0.0, 0
    with open_audio(path) as opened:
        for number, _ in enumerate(opened.blocks()):
            first_s = first_s or time.perf_counter() - started
            if number % 100 == 0:
                peak = max(peak, rss())
    return first_s, time.perf_counter() - started, peak


def rss() -> int:
    this = psutil.Process()
    return sum(process.memory_info().rss for process in (this, *this.children(recursive=True)) if process.is_running())


def test_what_the_process_costs(tmp_path: Path) -> None:
    """Its start, once, and a song of a second with it warm."""
    path = tmp_path / "song.m4a"
    path.write_bytes(encode(song(seconds=1), "ipod", "aac"))

    def decode() -> None:
        with ffmpeg.decoder(path, "song") as decoding:
            for _ in decoding.blocks:
                pass

    def cold() -> None:
        ffmpeg.process.cache_clear()
        decode()

    spent = in_turns(ROUNDS, cold=cold, warm=decode)
    print("\n" + ", ".join(f"{name}: {1e3 * statistics.median(times):.0f} ms" for name, times in spent.items()))


@needs_ffmpeg
def test_stem_files_beside_musdb(tmp_path: Path) -> None:
    import musdb

    folder = Path(os.environ.get("BENCH_EXCERPTS", tmp_path / "train"))
    if folder.parent == tmp_path:
        for number in range(8):
            write_stem_file(folder / f"A - {number}.stem.mp4", seconds=7)
    paths = sorted(folder.glob("*.stem.mp4"))
    tracks = musdb.DB(root=str(folder.parent), subsets=["train"]).tracks

    def ours() -> None:
        for path in paths:
            StemMp4(path.name, path).read(STEMS)

    def theirs() -> None:
        for track in tracks:
            for stem in STEMS:
                assert track.sources[stem].audio.size

    spent = in_turns(3, ours=ours, theirs=theirs)
    ratios = [b / a for a, b in zip(spent["ours"], spent["theirs"], strict=True)]
    print(
        f"\n{len(paths)} stem files: {1e3 * statistics.median(spent['ours']) / len(paths):.0f} ms each, "
        f"{statistics.median(ratios):.1f} ({min(ratios):.1f}, {max(ratios):.1f}) times the rate of musdb (wanted 4)"
    )
