import fcntl
import multiprocessing.context
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import soundfile
import soxr

from serving.model.spec import AudioSpec
from tests.data_sets import STEMS, stem_audio, write_folder, write_stem_file
from training.data import decoded as decoded_module
from training.data.decoded import DecodeCache, Span, claimed, decode, resampled, resampled_samples
from training.data.musdb18 import StemMp4
from training.data.song import BLOCK_SAMPLES, Header, Song
from training.data.stem_folder import StemFolder
from training.errors import DataError, Stopped

pytestmark = pytest.mark.slow

DECODE = """
import resource, sys
from pathlib import Path
from threading import Event
from serving.model.spec import AudioSpec
from training.data import decoded as decoded_module
from training.data.decoded import decode
from training.errors import DataError
from training.data.stem_folder import StemFolder
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
print("begin", flush=True)
try:
    songs = [StemFolder(path.name, path) for path in sorted(Path(sys.argv[1]).iterdir())]
    decode(songs, AudioSpec(22_050), ("drums", "bass", "other", "vocals"), Path(sys.argv[2]))
except DataError as error:
    sys.exit(str(error))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def song(path: Path, **facts: int) -> Song:
    write_folder(path, **facts)
    return StemFolder(path.name, path)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def decoding(*arguments: object) -> "subprocess.Popen[str]":
    """A process that decodes a folder of songs into a cache and prints its peak memory in MB."""
    command = [sys.executable, "-c", DECODE, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "begin\n", process.stderr.read()
    return process


def decoding_here(songs: list[Song], cache: Path) -> multiprocessing.context.ForkProcess:
    """A process that decodes songs into a cache; forked, it begins at once."""
    process = multiprocessing.get_context("fork").Process(
        target=decode, args=[songs, AudioSpec(22_050), ("drums", "bass", "other", "vocals"), cache]
    )
    process.start()
    return process


def assert_right(songs: list[Song], cache: Path) -> None:
    """The cache holds the songs, each of them right, and nothing else."""
    decoded = decode(songs, AudioSpec(22_050), STEMS, cache)
    for source, one in zip(songs, decoded, strict=True):
        audio, rate_hz = source.read(STEMS)
        expected = np.stack([soxr.resample(stem.T, rate_hz, 22_050, quality="HQ").T for stem in audio])
        assert np.array_equal(one.samples, np.round(expected * 32768).astype(np.int16))
    assert names_in(cache) == sorted([*(one.path.name for one in decoded), "hashes.sqlite"])


def test_samples_at_the_songs_own_rate_are_the_files_samples(tmp_path: Path) -> None:
    (decoded,) = decode([song(tmp_path / "A - 0")], AudioSpec(44_100), ("vocals", "bass"), tmp_path / "cache")
    assert (decoded.name, decoded.clipped) == ("A - 0", 0)
    assert decoded.samples.dtype == np.int16 and decoded.samples.shape == (2, 2, 4_410)
    for row, stem in zip(decoded.samples, ("vocals", "bass"), strict=True):
        expected, _ = soundfile.read(tmp_path / "A - 0" / f"{stem}.wav", dtype="int16")
        assert np.array_equal(row, expected.T)


@pytest.mark.parametrize("channels", [1, 2])
def test_songs_are_resampled_and_keep_their_channels(tmp_path: Path, channels: int) -> None:
    source = song(tmp_path / "A - 0", samples=48_000, rate=48_000, channels=channels)
    (decoded,) = decode([source], AudioSpec(22_050), STEMS, tmp_path / "cache")
    assert decoded.samples.shape == (4, channels, 22_050)
    expected = soxr.resample(stem_audio("A - 0", "other", 48_000, channels), 48_000, 22_050, quality="HQ").T
    assert np.abs(decoded.samples[2] / 32768 - expected).max() < 1e-4


@pytest.mark.parametrize("rates", [(44_100, 22_050), (48_000, 44_100), (8_000, 44_100), (96_000, 44_100)])
@pytest.mark.parametrize("samples", [1, 77, BLOCK_SAMPLES, BLOCK_SAMPLES + 1, 2 * BLOCK_SAMPLES + 4_321])
def test_resampling_in_blocks_is_resampling_in_one_go(rates: tuple[int, int], samples: int) -> None:
    audio = stem_audio("A - 0", "bass", samples)
    blocks = [audio[start : start + BLOCK_SAMPLES].T for start in range(0, samples, BLOCK_SAMPLES)]
    found = np.concatenate(list(resampled(iter(blocks), Header(rates[0], 2, samples), rates[1])), axis=1)
    assert np.array_equal(found, soxr.resample(audio, *rates, quality="HQ").T)
    assert found.shape[1] == resampled_samples(Header(rates[0], 2, samples), rates[1])


def test_peaks_above_full_scale_are_clipped_and_counted(tmp_path: Path) -> None:
    source = song(tmp_path / "A - 0")
    loud = np.zeros((4_410, 2), np.float32)
    loud[10:13] = [[1.5, 0.5], [-1.5, -1.0], [1.0, 0.0]]  # 1.0 is one step above the largest int16
    soundfile.write(tmp_path / "A - 0" / "drums.wav", loud, 44_100, subtype="FLOAT")
    for _ in range(2):  # the second time from the cache
        (decoded,) = decode([source], AudioSpec(44_100), STEMS, tmp_path / "cache")
        assert decoded.clipped == 3
        assert decoded.samples[0, :, 10:13].tolist() == [[32767, -32768, 32767], [16384, -32768, 0]]


def test_a_song_is_decoded_once_and_again_when_anything_changed(tmp_path: Path) -> None:
    source, cache = song(tmp_path / "A - 0"), tmp_path / "cache"
    (first,) = decode([source], AudioSpec(44_100), STEMS, cache)
    written = first.path.stat().st_mtime_ns
    assert decode([source], AudioSpec(44_100), STEMS, cache) == [first]
    assert first.path.stat().st_mtime_ns == written
    assert names_in(cache) == [first.path.name, "hashes.sqlite"]

    assert decode([source], AudioSpec(22_050), STEMS, cache)[0].path != first.path
    assert decode([source], AudioSpec(44_100), STEMS[::-1], cache)[0].path != first.path
    soundfile.write(tmp_path / "A - 0" / "bass.wav", np.zeros((4_410, 2)), 44_100)
    (changed,) = decode([source], AudioSpec(44_100), STEMS, cache)
    assert not changed.samples[1].any()
    assert first.samples[1].any()


def test_a_copy_and_a_touched_song_are_not_decoded_again(tmp_path: Path) -> None:
    source, cache = song(tmp_path / "A - 0"), tmp_path / "cache"
    (first,) = decode([source], AudioSpec(44_100), STEMS, cache)
    written = first.path.stat().st_mtime_ns
    os.utime(tmp_path / "A - 0" / "bass.wav", (1, 1))
    copy = StemFolder("B - 0", Path(shutil.copytree(tmp_path / "A - 0", tmp_path / "B - 0")))
    again, copied = decode([source, copy], AudioSpec(44_100), STEMS, cache)
    assert again == first and (copied.name, copied.path) == ("B - 0", first.path)
    assert first.path.stat().st_mtime_ns == written


def test_songs_come_in_their_order_with_progress(tmp_path: Path) -> None:
    songs = [song(tmp_path / f"A - {number}", samples=100 + number) for number in range(6)]
    seen: list[tuple[str, int, int]] = []
    decoded = decode(songs, AudioSpec(44_100), STEMS, tmp_path / "cache", lambda *now: seen.append(now))
    assert [one.samples.shape[-1] for one in decoded] == [100, 101, 102, 103, 104, 105]
    assert seen == [(what, done, 6) for what in ("hash songs", "decode songs") for done in range(1, 7)]


def test_errata_are_told_in_samples(tmp_path: Path) -> None:
    songs = [song(tmp_path / name) for name in ("Leaf - Wicked", "A - 0")]
    wicked, other = decode(songs, AudioSpec(1_000), ("vocals", "drums"), tmp_path / "cache")
    assert wicked.avoid == (Span(1, 140_000, 150_000), Span(1, 182_000, 192_000), Span(0, 182_000, 188_000))
    assert other.avoid == ()


def test_a_song_can_be_sent_to_a_process(tmp_path: Path) -> None:
    (decoded,) = decode([song(tmp_path / "A - 0")], AudioSpec(44_100), STEMS, tmp_path / "cache")
    sent = pickle.dumps(decoded)
    assert len(sent) < 1_000
    assert np.array_equal(pickle.loads(sent).samples, decoded.samples)


def test_stem_files_are_decoded(tmp_path: Path) -> None:
    source = StemMp4("A - 0", write_stem_file(tmp_path / "A - 0.stem.mp4"))
    (decoded,) = decode([source], AudioSpec(44_100), ("vocals", "drums"), tmp_path / "cache")
    audio, _ = source.read(("vocals", "drums"))
    assert np.array_equal(decoded.samples, np.round(audio * 32768).astype(np.int16))


def test_memory_depends_neither_on_the_number_of_songs_nor_on_their_length(tmp_path: Path) -> None:
    for folder, count, samples in (("few", 2, 600_000), ("many", 8, 600_000), ("long", 2, 6_000_000)):
        for number in range(count):
            song(tmp_path / folder / f"A - {number}", samples=samples, channels=1)
    peaks = []
    for folder in ("few", "many", "long"):
        process = decoding(tmp_path / folder, tmp_path / "cache")
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        peaks.append(int(output))
    assert max(peaks) < peaks[0] + 16  # MB; the samples of a long song are 96 MB as floats


class TestFaults:
    """Each leaves nothing under a final name but complete songs."""

    @pytest.fixture
    def songs(self, tmp_path: Path) -> list[Song]:
        """Half a second of work."""
        return [song(tmp_path / "songs" / f"A - {number}", samples=300_000) for number in range(4)]

    def test_a_kill_at_a_random_moment(
        self, songs: list[Song], tmp_path: Path, times: Callable[[int, int], int]
    ) -> None:
        started = time.monotonic()
        decoding_here(songs, tmp_path / "cache").join()
        usual_s = time.monotonic() - started
        for _ in range(times(3, 50)):
            shutil.rmtree(tmp_path / "cache")
            for _ in range(2):
                process = decoding_here(songs, tmp_path / "cache")
                process.join(random.uniform(0, usual_s))
                process.kill()
                process.join()
            assert_right(songs, tmp_path / "cache")

    def test_a_kill_of_one_of_two_processes_at_a_random_moment(
        self, songs: list[Song], tmp_path: Path, times: Callable[[int, int], int]
    ) -> None:
        for _ in range(times(3, 50)):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            killed, other = (decoding_here(songs, tmp_path / "cache") for _ in range(2))
            killed.join(random.uniform(0, 0.8))
            killed.kill()
            killed.join()
            other.join()
            assert other.exitcode == 0
            assert_right(songs, tmp_path / "cache")

    def test_a_stem_file_that_breaks_off_at_a_random_byte(
        self, tmp_path: Path, times: Callable[[int, int], int]
    ) -> None:
        path = write_stem_file(tmp_path / "A - 0.stem.mp4")
        whole, source = path.read_bytes(), StemMp4("A - 0", path)
        for _ in range(times(3, 50)):
            path.write_bytes(whole[: random.randrange(int(0.9 * len(whole)))])
            with pytest.raises(DataError, match=r"A - 0\.stem\.mp4 (is|has|does) .*: get (it|the song) again"):
                decode([source], AudioSpec(22_050), STEMS, tmp_path / "cache")
            assert names_in(tmp_path / "cache") == ["hashes.sqlite"]
        path.write_bytes(whole)
        assert_right([source], tmp_path / "cache")

    def test_a_song_in_the_making_is_of_one_alone_even_if_another_gave_it_up(self, tmp_path: Path) -> None:
        part = tmp_path / ".key.part"

        def claim() -> bool:
            with claimed(part, Event()) as file:
                return os.path.samestat(os.fstat(file.fileno()), part.stat())

        with ThreadPoolExecutor() as pool:
            with claimed(part, Event()):
                waiting = pool.submit(claim)
                time.sleep(0.2)
                part.unlink()
            assert waiting.result()

    def test_a_stop_ends_decoding_within_a_block_and_waiting_for_another_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, stopping = song(tmp_path / "A - 0", samples=3 * BLOCK_SAMPLES, channels=1), Event()
        real, blocks = decoded_module.resampled, 0

        def counted(*given: object) -> Iterator[np.ndarray]:
            nonlocal blocks
            for block in real(*given):  # type: ignore[arg-type]
                blocks += 1
                stopping.set()
                yield block

        monkeypatch.setattr(decoded_module, "resampled", counted)
        with pytest.raises(Stopped):
            decode([source], AudioSpec(44_100), STEMS, tmp_path / "cache", stopping=stopping)
        assert blocks == 1 and names_in(tmp_path / "cache") == ["hashes.sqlite"]
        with (tmp_path / ".key.part").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(Stopped, match="waiting for another process"), claimed(tmp_path / ".key.part", stopping):
                pass

    def test_a_song_is_decoded_by_one_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, written, write = song(tmp_path / "A - 0"), [], DecodeCache.write

        def slow(self: DecodeCache, song: Song, file: object) -> int:
            written.append(song)
            time.sleep(0.2)
            return write(self, song, file)  # type: ignore[arg-type]

        monkeypatch.setattr(DecodeCache, "write", slow)
        monkeypatch.setattr("os.cpu_count", lambda: 4)
        decoded = decode([source] * 4, AudioSpec(44_100), STEMS, tmp_path / "cache")
        assert len(set(decoded)) == 1 and len(written) == 1
        assert names_in(tmp_path / "cache") == [decoded[0].path.name, "hashes.sqlite"]

    def test_what_others_are_making_is_not_removed(self, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        cache.mkdir()
        (cache / ".abandoned.part").write_bytes(b"half a song")
        with (cache / ".locked.part").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            decode([], AudioSpec(44_100), STEMS, cache)
            assert names_in(cache) == [".locked.part", "hashes.sqlite"]

    def test_a_disk_without_room(self, songs: list[Song], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9_500_000))
        message = r"4 songs take 0\.0 GB .* make room or name another folder with --cache"
        with pytest.raises(DataError, match=message):
            decode(songs, AudioSpec(22_050), STEMS, tmp_path / "cache")  # 4 · 4 · 2 · 150,000 samples of 2 bytes
        assert names_in(tmp_path / "cache") == ["hashes.sqlite"]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9_700_000))
        decode(songs, AudioSpec(22_050), STEMS, tmp_path / "cache")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        assert_right(songs, tmp_path / "cache")  # what is decoded needs no room

    def test_a_disk_that_fills_up(self, songs: list[Song], tmp_path: Path) -> None:
        process = decoding(tmp_path / "songs", tmp_path / "cache", 500_000)
        _, errors = process.communicate()
        assert process.returncode == 1
        assert "A - 0 cannot be written to" in errors and "(File too large): make room or name another" in errors
        assert names_in(tmp_path / "cache") == ["hashes.sqlite"]
        assert_right(songs, tmp_path / "cache")

    def test_a_song_that_breaks_off_after_its_header(self, songs: list[Song], tmp_path: Path) -> None:
        flac, wav = (tmp_path / "songs" / "A - 2" / f"bass.{suffix}" for suffix in ("flac", "wav"))
        soundfile.write(flac, *soundfile.read(wav, dtype="int16"))
        flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
        wav.unlink()
        with pytest.raises(DataError, match=r"A - 2/bass\.flac is damaged .*: get the song again"):
            decode(songs, AudioSpec(22_050), STEMS, tmp_path / "cache")
        assert not list((tmp_path / "cache").glob(".*.part"))

    def test_a_song_that_changes_while_it_is_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, write = song(tmp_path / "A - 0"), DecodeCache.write

        def changing(self: DecodeCache, song: Song, file: object) -> int:
            soundfile.write(tmp_path / "A - 0" / "bass.wav", np.zeros((4_410, 2)), 44_100)
            return write(self, song, file)  # type: ignore[arg-type]

        monkeypatch.setattr(DecodeCache, "write", changing)
        with pytest.raises(DataError, match="A - 0 changed while it was decoded: start again when it is complete"):
            decode([source], AudioSpec(44_100), STEMS, tmp_path / "cache")
        assert names_in(tmp_path / "cache") == ["hashes.sqlite"]
