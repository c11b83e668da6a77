"""Small data sets in every layout, whose stems are noises that can be told apart."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.encoders import encode

STEMS = ("drums", "bass", "other", "vocals")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def stem_audio(song: str, stem: str, samples: int = 4_410, channels: int = 2) -> np.ndarray:
    """Noise (n, c) of its own for each song and stem, peak below 0.2."""
    rng = np.random.default_rng([*song.encode(), *stem.encode()])
    return rng.uniform(-0.2, 0.2, (samples, channels)).astype(np.float32)


def write_folder(
    folder: Path, samples: int = 4_410, channels: int = 2, rate: int = 44_100, suffix: str = ".wav"
) -> Path:
    """A song as a folder of stems, named as the folder."""
    folder.mkdir(parents=True)
    for stem in STEMS:
        audio = stem_audio(folder.name, stem, samples, channels)
        soundfile.write(folder / f"{stem}{suffix}", audio, rate, subtype="PCM_16")
    return folder


def write_data_set(root: Path, train: int = 4, test: int = 1) -> Path:
    """Songs "A - 0", "A - 1" … to train on and "B - 0" … to test on, mixtures included."""
    for split, artist, count in (("train", "A", train), ("test", "B", test)):
        for number in range(count):
            folder = write_folder(root / split / f"{artist} - {number}")
            shutil.copy(folder / "drums.wav", folder / "mixture.wav")  # not the sum: it is not to be read
    return root


def write_stem_file(path: Path, stems: tuple[str, ...] = STEMS, seconds: float = 1.0) -> Path:
    """A song as an NI stem file: an AAC stream of silence as the mixture, then tones of 200, 400 … Hz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(int(44_100 * seconds)) / 44_100
    tones = [0.1 * np.sin(2 * np.pi * 200 * number * time_s) for number in range(len(stems) + 1)]
    streams = [np.stack([tone, tone]).astype(np.float32) for tone in tones]
    encode(streams, "mp4", "aac", options={"movflags": "faststart"}, path=path)
    return path
