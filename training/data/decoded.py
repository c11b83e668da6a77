"""Songs decoded once to the sample rate of a model: training reads excerpts without decoding.

Any number of processes may share the cache, a folder:

    <key>-<clipped>.npy   a complete song; the key follows from the content of its files
    .<key>.part           a song in the making, locked by the process that makes it
    hashes.sqlite         the SHA-256 of every source file: a known file is not read

Axes: s stem, c channel, n sample.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO

import numpy as np
import soxr
from numpy.typing import NDArray

from serving.audio import Audio
from serving.model.spec import AudioSpec
from serving.storage.progress import Progress, counter, no_progress
from training.data.errata import faults
from training.data.file_hashes import FileHashes
from training.data.song import Header, Song
from training.errors import DataError, Stopped
from training.transfer.file_lock import lock, try_lock
from training.transfer.parallel import Item, Result, run_parallel

CACHE_FORMAT = 2
WORKERS = 8  # threads: nearly all of the time is spent in libraries that leave the interpreter free
SAMPLE_BYTES = 2

Samples = NDArray[np.int16]


@dataclass(frozen=True)
class Span:
    """Samples [start, stop) of one stem; `stem` is its row."""

    stem: int
    start: int
    stop: int


@dataclass(frozen=True)
class DecodedSong:
    """A song decoded to a `.npy` file.

    `clipped` counts the samples beyond full scale, which were set to it. Training excerpts stay clear of `avoid`.
    """

    name: str
    path: Path
    clipped: int
    avoid: tuple[Span, ...] = ()

    @property
    def samples(self) -> Samples:
        """Memory map (s, c, n), int16, with the song's own channels. Each call opens it, so the object can be sent to a
        process."""
        samples: Samples = np.load(self.path, mmap_mode="r")
        return samples


def decode(
    songs: Sequence[Song],
    audio: AudioSpec,
    stems: Sequence[str],
    cache_dir: Path,
    progress: Progress = no_progress,
    *,
    stopping: Event | None = None,
) -> list[DecodedSong]:
    """Decode songs to the sample rate of `audio`, stems in the given order; reuse what `cache_dir` holds.

    Songs keep their one or two channels, whatever `audio` says. Memory use depends neither on the number of songs nor, for
    folders of stems, on their length. Raises DataError if a song cannot be read or the disk is too small, and Stopped soon
    after `stopping` is set.
    """
    stopping = stopping or Event()
    cache = DecodeCache(cache_dir, audio.sample_rate_hz, tuple(stems), stopping)
    workers = min(WORKERS, os.cpu_count() or 1)

    def counted(what: str, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        count = counter(what, len(items), progress)

        def step(item: Item) -> Result:
            result = work(item)
            count(1)
            return result

        return run_parallel(step, items, workers, stopping)

    keys = counted("hash songs", cache.key, songs)
    found = list(zip(songs, keys, strict=True))
    cache.require_space([song for song, key in found if cache.find(song, key) is None])
    return counted("decode songs", lambda song_key: cache.decode(*song_key), found)


class DecodeCache:
    """A folder of decoded songs of one sample rate and one list of stems."""

    def __init__(self, folder: Path, sample_rate_hz: int, stems: tuple[str, ...], stopping: Event) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.sample_rate_hz = sample_rate_hz
        self.stems = stems
        self.stopping = stopping
        self.hashes = FileHashes(folder / "hashes.sqlite")
        remove_abandoned(folder)

    def key(self, song: Song) -> str:
        """A hash of file contents, sample rate, stems and cache format, and of nothing else."""
        facts = [f"{CACHE_FORMAT} {self.sample_rate_hz} {' '.join(self.stems)}", *map(self.hashes.sha256, song.files)]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]

    def find(self, song: Song, key: str) -> DecodedSong | None:
        for path in self.folder.glob(f"{key}-*.npy"):
            return self.decoded(song, path)
        return None

    def decoded(self, song: Song, path: Path) -> DecodedSong:
        return DecodedSong(song.name, path, int(path.stem.rpartition("-")[2]), self.avoid(song))

    def avoid(self, song: Song) -> tuple[Span, ...]:
        """The errata of the song, in samples."""
        return tuple(
            Span(
                self.stems.index(fault.stem),
                math.floor(fault.start_s * self.sample_rate_hz),
                math.ceil(fault.stop_s * self.sample_rate_hz),
            )
            for fault in faults(song.name)
            if fault.stem in self.stems
        )

    def require_space(self, songs: Sequence[Song]) -> None:
        """Raises DataError unless the disk has room for all of these songs."""
        needed_bytes = sum(SAMPLE_BYTES * math.prod(self.shape(song.header())) for song in songs)
        free_bytes = shutil.disk_usage(self.folder).free
        if needed_bytes > free_bytes:
            raise DataError(
                f"{len(songs)} songs take {needed_bytes / 1e9:.1f} GB once decoded, but {self.folder} has "
                f"{free_bytes / 1e9:.1f} GB free: make room or name another folder with --cache"
            )

    def shape(self, header: Header) -> tuple[int, int, int]:
        """(s, c, n) of a decoded song."""
        return len(self.stems), header.channels, resampled_samples(header, self.sample_rate_hz)

    def decode(self, song: Song, key: str) -> DecodedSong:
        """Decode a song into the cache, unless it is there. A file gets its name when it is complete."""
        part = self.folder / f".{key}.part"
        with claimed(part, self.stopping) as file:
            try:
                if found := self.find(song, key):  # another process was first
                    return found
                clipped = self.write(song, file)
                if self.key(song) != key:
                    raise DataError(f"{song.path} changed while it was decoded: start again when it is complete")
                return self.decoded(song, part.rename(self.folder / f"{key}-{clipped}.npy"))
            finally:
                part.unlink(missing_ok=True)

    def write(self, song: Song, file: BinaryIO) -> int:
        """Write the song as a `.npy` file; returns the number of clipped samples."""
        header, streams = song.stream(self.stems)
        stems, channels, n_samples = self.shape(header)
        form = {"descr": "<i2", "fortran_order": False, "shape": (stems, channels, n_samples)}
        clipped = 0
        try:
            np.lib.format.write_array_header_1_0(file, form)
            first_byte = file.tell()
            file.truncate(first_byte + SAMPLE_BYTES * stems * channels * n_samples)
            for stem, blocks in enumerate(streams):
                done = 0
                for block in resampled(blocks, header, self.sample_rate_hz):
                    if self.stopping.is_set():
                        raise Stopped(f"{song.name} was stopped while it was decoded")
                    samples, too_loud = integers(block[:, : n_samples - done])
                    for channel, row in enumerate(samples):
                        place = (stem * channels + channel) * n_samples + done
                        write_at(file, first_byte + SAMPLE_BYTES * place, memoryview(row.tobytes()))
                    done += samples.shape[-1]
                    clipped += too_loud
            os.fsync(file.fileno())  # else a power cut could leave a complete name on an incomplete song
        except OSError as error:
            raise DataError(
                f"{song.name} cannot be written to {self.folder} ({error.strerror}): make room or name another folder "
                "with --cache"
            ) from error
        return clipped


def integers(block: Audio) -> tuple[Samples, int]:
    """Samples (c, n) as int16, and the number that exceeded full scale."""
    scaled = np.round(block * 32768)
    too_loud = int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
    return scaled.clip(-32768, 32767).astype("<i2"), too_loud


def write_at(file: BinaryIO, offset_bytes: int, content: memoryview) -> None:
    while content:  # on a nearly full disk a write takes a part; the next one says why
        written = os.pwrite(file.fileno(), content, offset_bytes)
        content, offset_bytes = content[written:], offset_bytes + written


def resampled_samples(header: Header, rate_hz: int) -> int:
    """The number of samples at another rate, rounded half up. At exactly a half the resampler may give one less."""
    return (2 * header.samples * rate_hz + header.sample_rate_hz) // (2 * header.sample_rate_hz)


def resampled(blocks: Iterator[Audio], header: Header, rate_hz: int) -> Iterator[Audio]:
    """Resample blocks (c, n); the result equals resampling all in one go."""
    if header.sample_rate_hz == rate_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(header.sample_rate_hz, rate_hz, header.channels, quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block.T)).T
    yield stream.resample_chunk(np.empty((0, header.channels), np.float32), last=True).T


@contextmanager
def claimed(part: Path, stopping: Event) -> Iterator[BinaryIO]:
    """Open a file that belongs to this process and thread alone until it is renamed or removed. Waits for another owner."""
    while True:
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            lock(file, stopping)
            if is_at(file, part):  # else its owner has renamed or removed it
                yield file
                return


def is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_abandoned(folder: Path) -> None:
    """Remove unfinished songs of killed processes: those that nobody has locked."""
    for part in folder.glob(".*.part"):
        try:
            with part.open("rb") as file:
                if try_lock(file) and is_at(file, part):
                    part.unlink(missing_ok=True)
        except FileNotFoundError:  # its process has just finished
            continue
