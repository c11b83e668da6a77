"""A song with known stems, in whatever files.

Its mixture is always the sum of its stems, so stems sum to the mixture in training and evaluation alike.

Axes: s stem, c channel, n sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.audio import Audio
from serving.model.spec import STEMS
from training.errors import DataError

SOURCES = tuple(stem for stem in STEMS if stem != "accompaniment")
"""The four stems of MUSDB18, in the order of every array that holds them."""
PAIR = ("vocals", "accompaniment")
SUMS = {"accompaniment": SOURCES[1:], "mixture": SOURCES}

BLOCK_SAMPLES = 1 << 18


@dataclass(frozen=True)
class Header:
    """Facts in the header of one stem."""

    sample_rate_hz: int
    channels: int
    samples: int


@dataclass(frozen=True)
class Song(ABC):
    """One song with its stems; `path` is a file or a folder."""

    name: str
    path: Path

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that are read. Raises DataError if one is missing."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The stems that the song is made of: SOURCES or PAIR."""
        return SOURCES

    @abstractmethod
    def headers(self) -> dict[str, Header]:
        """The header of each file or stream that is read, by name. Raises DataError if one cannot be read."""

    @abstractmethod
    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        """Samples (c, n) of some of `sources`, and their rate in Hz."""

    @property
    def tolerance_samples(self) -> int:
        """The difference in length between stems that is allowed."""
        return 0

    def header(self) -> Header:
        """The header that all stems share, with the length of the shortest. Raises DataError as `headers` does."""
        headers = list(self.headers().values())
        return Header(headers[0].sample_rate_hz, headers[0].channels, min(header.samples for header in headers))

    def check(self) -> None:
        """Raises DataError unless all stems have one length, rate and channel count."""
        headers = self.headers()
        (reference, expected), *others = headers.items()
        for stem, header in others:
            for what, unit in (("sample_rate_hz", "Hz"), ("channels", "channels"), ("samples", "samples")):
                found, wanted = getattr(header, what), getattr(expected, what)
                if abs(found - wanted) > (self.tolerance_samples if what == "samples" else 0):
                    raise DataError(
                        f"{self.path}: {stem} has {found} {unit}, but {reference} has {wanted}: export all stems alike"
                    )
        if expected.samples == 0:
            raise DataError(f"{self.path}: the stems have no samples: remove the song or export it again")
        if expected.channels > 2:
            raise DataError(f"{self.path}: the stems have {expected.channels} channels: mix them down to stereo")

    def parts(self, stem: str) -> tuple[str, ...]:
        """The sources that add up to a stem. Raises DataError if the song lacks the stem."""
        if stem in self.sources:
            return (stem,)
        if stem == "mixture":
            return self.sources
        if stem in SUMS and set(SUMS[stem]) <= set(self.sources):
            return SUMS[stem]
        raise DataError(
            f"{self.path} has {' and '.join(self.sources)}, no {stem}: take a preset of two stems, or add the four stems"
        )

    def read(self, stems: Sequence[str]) -> tuple[Audio, int]:
        """Float32 samples (s, c, n) of stems among `sources`, "accompaniment" and "mixture", and their rate in Hz.

        Full scale is ±1, which sums may exceed.
        """
        parts = [self.parts(stem) for stem in stems]
        names = [name for name in self.sources if any(name in part for part in parts)]
        sources, rate_hz = self.load(names)
        samples = min(audio.shape[-1] for audio in sources)
        if max(audio.shape[-1] for audio in sources) > samples + self.tolerance_samples:
            raise DataError(f"{self.path} is damaged, its stems differ in length: get the song again")
        audio = np.stack([source[:, :samples] for source in sources])
        return np.stack([audio[[names.index(name) for name in part]].sum(axis=0) for part in parts]), rate_hz

    def stream(self, stems: Sequence[str]) -> tuple[Header, list[Iterator[Audio]]]:
        """The shared header of some stems, and the samples (c, n) of each in blocks; read one after the other.

        Raises DataError as `read` does; damage only shows in the blocks.
        """
        audio, rate_hz = self.read(stems)
        return Header(rate_hz, *audio.shape[1:]), [iter([source]) for source in audio]
