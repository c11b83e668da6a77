"""A song as a folder with a file for each stem: MUSDB18-HQ, and songs of your own in any format that is read here.

    {vocals,drums,bass,other}.*     for every preset
    vocals.* and accompaniment.*    for presets of two stems
    vocals.* and mixture.*          the same: the accompaniment is the mixture without the vocals

A mixture beside the four stems is not read. In MUSDB18-HQ it is their sum, but for the left channel of `PR - Oh No`.

Axes: c channel, n sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from serving.audio import Audio
from serving.audio.audio_io import open_audio
from serving.errors import AudioError
from training.data.song import BLOCK_SAMPLES, PAIR, SOURCES, Header, Song
from training.errors import DataError

LOSSLESS_SUFFIXES = (".wav", ".flac", ".aif", ".aiff")
LOSSY_SUFFIXES = (".mp3", ".m4a", ".ogg", ".opus")
STEM_SUFFIXES = (*LOSSLESS_SUFFIXES, *LOSSY_SUFFIXES)
"""File suffixes in order of preference."""

WITH_MIXTURE = ("vocals", "mixture")
LAYOUTS = (SOURCES, PAIR, WITH_MIXTURE)
"""The sets of files that make a song."""

LOSSY_TOLERANCE_SAMPLES = 2_400  # two frames of any of the codecs: encoders pad to whole ones
LEAST_SHARE = 0.5
"""The share of the vocals' energy, by correlation, that a mixture must hold.

A sum holds nearly all of it. Another song, another take, or vocals shifted by milliseconds hold nearly none.
"""
SILENT = 1e-6
"""Energy relative to the mixture's (-60 dB) up to which an accompaniment counts as silent."""


@dataclass(frozen=True)
class StemFolder(Song):
    """A folder with a file for each of `stems`, one of LAYOUTS."""

    stems: tuple[str, ...] = SOURCES

    @property
    def sources(self) -> tuple[str, ...]:
        return SOURCES if self.stems == SOURCES else PAIR

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.file(stem) for stem in self.stems)

    @property
    def tolerance_samples(self) -> int:
        return LOSSY_TOLERANCE_SAMPLES if any(file.suffix in LOSSY_SUFFIXES for file in self.files) else 0

    def file(self, stem: str) -> Path:
        for suffix in STEM_SUFFIXES:
            path = self.path / f"{stem}{suffix}"
            if path.is_file():
                return path
        raise DataError(f"{self.path} lacks {stem}.wav: every song needs {needed()}")

    def headers(self) -> dict[str, Header]:
        return {stem: header_of(self.file(stem)) for stem in self.stems}

    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        return [np.concatenate(list(self.blocks(source)), axis=1) for source in sources], self.header().sample_rate_hz

    def stream(self, stems: Sequence[str]) -> tuple[Header, list[Iterator[Audio]]]:
        self.check()
        return self.header(), [self.summed(self.parts(stem)) for stem in stems]

    def summed(self, parts: Sequence[str]) -> Iterator[Audio]:
        for blocks in side_by_side([self.blocks(part) for part in parts]):
            yield np.sum(blocks, axis=0)

    def blocks(self, source: str) -> Iterator[Audio]:
        """Samples (c, n) of one of `sources`, block by block."""
        if source == "accompaniment" and self.stems == WITH_MIXTURE:
            return self.without_vocals()
        return blocks_of(self.file(source))

    def without_vocals(self) -> Iterator[Audio]:
        """The mixture minus the vocals. Raises DataError at the end if the mixture does not contain the vocals."""
        mixture_energy = vocals_energy = shared = left = 0.0
        for mixture, vocals in side_by_side([blocks_of(self.file("mixture")), blocks_of(self.file("vocals"))]):
            accompaniment = mixture - vocals
            mixture_energy += float(np.vdot(mixture, mixture))
            vocals_energy += float(np.vdot(vocals, vocals))
            shared += float(np.vdot(mixture, vocals))
            left += float(np.vdot(accompaniment, accompaniment))
            yield accompaniment
        if shared < LEAST_SHARE * vocals_energy:
            raise DataError(
                f"{self.path}: the vocals are not in the mixture: export both from one session, from the same start, "
                "without effects on the sum"
            )
        if left <= SILENT * mixture_energy:
            raise DataError(f"{self.path}: the mixture without the vocals is silent: export the mixture with all stems")


def needed() -> str:
    return f"{', '.join(SOURCES)}, or vocals with accompaniment or mixture, as {', '.join(STEM_SUFFIXES)}"


def side_by_side(streams: Sequence[Iterator[Audio]]) -> Iterator[list[Audio]]:
    """Cut the blocks of several streams to equal lengths. Ends with the shortest stream."""
    blocks = [next(stream, None) for stream in streams]
    while all(block is not None for block in blocks):
        found = [block for block in blocks if block is not None]
        samples = min(block.shape[-1] for block in found)
        yield [block[:, :samples] for block in found]
        blocks = [
            block[:, samples:] if block.shape[-1] > samples else next(stream, None)
            for block, stream in zip(found, streams, strict=True)
        ]


def header_of(path: Path) -> Header:
    """The header of a file. Raises DataError if the file cannot be read."""
    if path.suffix in LOSSLESS_SUFFIXES:
        with open_sound(path) as file:
            return Header(file.samplerate, file.channels, file.frames)
    facts = path.stat()
    return measured(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=10_000)
def measured(path: Path, _size_bytes: int, _mtime_ns: int) -> Header:
    """The header of a lossy file, which takes decoding. Cached until size or modification time change."""
    try:
        with open_audio(path) as song:
            return Header(song.info.rate_hz, song.info.channels, song.info.samples)
    except AudioError as error:
        raise DataError(f"{path} is not a readable audio file ({error}): export or get it again") from error


def blocks_of(path: Path) -> Iterator[Audio]:
    """Samples (c, n) of a file in blocks. Raises DataError if the file is damaged."""
    if path.suffix not in LOSSLESS_SUFFIXES:
        try:
            with open_audio(path) as song:
                yield from song.blocks()
        except AudioError as error:
            raise DataError(f"{path} is damaged ({error}): get the song again") from error
        return
    with open_sound(path) as file:
        left = file.frames
        while left > 0:
            try:
                block = file.read(min(BLOCK_SAMPLES, left), dtype="float32", always_2d=True).T
            except soundfile.LibsndfileError as error:
                raise DataError(f"{path} is damaged ({error.error_string}): get the song again") from error
            if block.size == 0:
                raise DataError(f"{path} is damaged, it ends before its header says: get the song again")
            if not np.isfinite(block).all():
                raise DataError(f"{path} holds samples that are not numbers: export it again")
            left -= block.shape[-1]
            yield block


def open_sound(path: Path) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path} is not a readable audio file ({error.error_string}): export or get it again"
        ) from error
