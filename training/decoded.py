"""Songs decoded once to the sample rate of a model, so that training reads random excerpts without decoding anything.

Axes: s stem, c channel, n sample.
"""

import hashlib
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from serving.spec import AudioSpec
from serving.storage import Progress, no_progress
from training.musdb18 import Song

FORMAT = 1
WORKERS = 4  # each holds one song, some 100 MB a minute

Samples = NDArray[np.int16]


@dataclass(frozen=True)
class DecodedSong:
    """A song in a `.npy` file. `clipped` counts the samples that exceeded full scale and were set to it."""

    name: str
    path: Path
    clipped: int

    @property
    def samples(self) -> Samples:
        """Memory map (s, c, n), int16, c as in the song. Opened on each call, so that a song can be sent to a process."""
        samples: Samples = np.load(self.path, mmap_mode="r")
        return samples

    @property
    def n_samples(self) -> int:
        return int(self.samples.shape[-1])


def decode(
    songs: Sequence[Song], audio: AudioSpec, stems: Sequence[str], cache_dir: Path, progress: Progress = no_progress
) -> list[DecodedSong]:
    """Each song at the sample rate of `audio`, with the given stems in their order; what `cache_dir` holds is reused.

    Songs keep their own channels: one or two, whatever `audio` says. Raises DataError where a song cannot be read.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    decoded = []
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        for song in pool.map(lambda song: decode_song(song, audio.sample_rate_hz, stems, cache_dir), songs):
            decoded.append(song)
            progress("decode songs", len(decoded), len(songs))
    return decoded


def decode_song(song: Song, sample_rate_hz: int, stems: Sequence[str], cache_dir: Path) -> DecodedSong:
    key = cache_key(song, sample_rate_hz, stems)
    for path in cache_dir.glob(f"{key}-*.npy"):
        return DecodedSong(song.name, path, clipped=int(path.stem.rpartition("-")[2]))
    audio, rate_hz = song.read(stems)
    scaled = [np.round(soxr.resample(stem.T, rate_hz, sample_rate_hz, quality="HQ").T * 32768) for stem in audio]
    clipped = sum(int(np.count_nonzero((stem > 32767) | (stem < -32768))) for stem in scaled)
    samples = np.stack([stem.clip(-32768, 32767).astype(np.int16) for stem in scaled])
    part = cache_dir / f".{uuid.uuid4().hex}.part"
    with part.open("wb") as file:
        np.save(file, samples)
    path = part.replace(cache_dir / f"{key}-{clipped}.npy")
    return DecodedSong(song.name, path, clipped)


def cache_key(song: Song, sample_rate_hz: int, stems: Sequence[str]) -> str:
    """Changes with the files (name, size, time of change), the rate, the stems and the format of the cache."""
    facts = [f"{FORMAT} {sample_rate_hz} {' '.join(stems)} {song.path.resolve()}"]
    for file in song.files:
        facts.append(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
