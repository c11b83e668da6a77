"""Songs with stems in the layouts of MUSDB18 and MUSDB18-HQ.

    train|test/<Artist - Title>.stem.mp4                               MUSDB18: five streams of AAC
    train|test/<Artist - Title>/{drums,bass,other,vocals}.wav|flac     MUSDB18-HQ and your own songs, at any sample rate

The mixture of a song is always the sum of its stems, so that stems sum to mixture in training and evaluation alike. The
mixture that comes with a data set is not read: in MUSDB18 it is an AAC stream of its own, 27 dB away from the sum; in
MUSDB18-HQ it is the sum, but for the left channel of `PR - Oh No`.

Axes: s stem, c channel, n sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import yaml
from numpy.typing import NDArray

from training.errors import DataError

SOURCES = ("drums", "bass", "other", "vocals")
SUMS = {"accompaniment": ("drums", "bass", "other"), "mixture": SOURCES}

BLOCK_SAMPLES = 1 << 18

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """What a file says about one stem."""

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
        """The files that are read. Raises DataError where one is missing."""

    @abstractmethod
    def headers(self) -> dict[str, Header]:
        """The header of each source. Raises DataError where one cannot be read."""

    @abstractmethod
    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        """Samples (c, n) of some of SOURCES, and their rate in Hz."""

    @property
    def tolerance_samples(self) -> int:
        """By how much the lengths of stems may differ."""
        return 0

    def check(self) -> None:
        """Raises DataError unless the headers tell of four stems of one length, rate and channel count."""
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

    def read(self, stems: Sequence[str]) -> tuple[Audio, int]:
        """Float32 samples (s, c, n) of stems among SOURCES, "accompaniment" and "mixture", and their rate in Hz.

        Full scale is ±1, which sums may exceed.
        """
        parts = [SUMS.get(stem, (stem,)) for stem in stems]
        names = [name for name in SOURCES if any(name in part for part in parts)]
        sources, rate_hz = self.load(names)
        samples = min(audio.shape[-1] for audio in sources)
        if max(audio.shape[-1] for audio in sources) > samples + self.tolerance_samples:
            raise DataError(f"{self.path} is damaged, its stems differ in length: get the song again")
        audio = np.stack([source[:, :samples] for source in sources])
        return np.stack([audio[[names.index(name) for name in part]].sum(axis=0) for part in parts]), rate_hz

    def stream(self, sources: Sequence[str]) -> tuple[Header, list[Iterator[Audio]]]:
        """What some of SOURCES have in common, and the samples (c, n) of each in blocks, to be read one after the other.

        Raises DataError like `read`, some of it only from the blocks.
        """
        audio, rate_hz = self.read(sources)
        return Header(rate_hz, *audio.shape[1:]), [iter([source]) for source in audio]


@dataclass(frozen=True)
class StemFolder(Song):
    """A folder with a WAV or FLAC file for each stem."""

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.file(stem) for stem in SOURCES)

    def file(self, stem: str) -> Path:
        for path in (self.path / f"{stem}.wav", self.path / f"{stem}.flac"):
            if path.is_file():
                return path
        raise DataError(f"{self.path} lacks {stem}.wav: every song needs {', '.join(SOURCES)} as .wav or .flac")

    def headers(self) -> dict[str, Header]:
        headers = {}
        for stem in SOURCES:
            with readable(self.file(stem)) as file:
                headers[stem] = Header(file.samplerate, file.channels, file.frames)
        return headers

    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        rate_hz = self.headers()[sources[0]].sample_rate_hz
        return [np.concatenate(list(self.blocks(source)), axis=1) for source in sources], rate_hz

    def stream(self, sources: Sequence[str]) -> tuple[Header, list[Iterator[Audio]]]:
        self.check()
        return self.headers()[sources[0]], [self.blocks(source) for source in sources]

    def blocks(self, source: str) -> Iterator[Audio]:
        path = self.file(source)
        with readable(path) as file:
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


@dataclass(frozen=True)
class StemFile(Song):
    """A `.stem.mp4` file: five AAC streams, the mixture and the four stems."""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def tolerance_samples(self) -> int:
        return 2048  # two AAC frames: headers and streams do not agree on the padding

    def headers(self) -> dict[str, Header]:
        with self.opened() as streams:
            return {stem: header(stream) for stem, stream in streams.items()}

    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        with self.opened() as streams:
            wanted = {streams[stem].index: stem for stem in sources}
            blocks: dict[str, list[Audio]] = {
                stem: [np.empty((streams[stem].channels, 0), np.float32)] for stem in sources
            }
            to_float: dict[str, Any] = {stem: av.AudioResampler(format="fltp") for stem in sources}
            try:
                for packet in streams[sources[0]].container.demux(*(streams[stem] for stem in sources)):
                    stem = wanted[packet.stream.index]
                    for frame in packet.decode():
                        blocks[stem] += [part.to_ndarray() for part in to_float[stem].resample(frame)]
            except av.error.FFmpegError as error:
                raise DataError(f"{self.path} is damaged ({error.strerror}): get the song again") from error
            audio = {stem: np.concatenate(parts, axis=1) for stem, parts in blocks.items()}
            for stem, samples in audio.items():
                if samples.shape[1] < header(streams[stem]).samples - self.tolerance_samples:
                    raise DataError(f"{self.path} is damaged, {stem} ends before its header says: get the song again")
                if not np.isfinite(samples).all():
                    raise DataError(
                        f"{self.path} is damaged, {stem} holds samples that are not numbers: get the song again"
                    )
            return [audio[stem] for stem in sources], streams[sources[0]].rate

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        """PyAV's streams of SOURCES. Raises DataError unless there are five that say how long they are."""
        try:
            container: Any = av.open(str(self.path))
        except (av.error.FFmpegError, ValueError) as error:
            raise DataError(f"{self.path} is no readable .stem.mp4 file: get it again") from error
        with container:
            streams = container.streams.audio
            if len(streams) != 5:
                raise DataError(f"{self.path} has {len(streams)} audio streams, not five: get it again")
            if any(stream.duration is None for stream in streams):
                raise DataError(f"{self.path} does not say how long it is: get it again")
            for stream in streams:
                stream.codec_context.thread_count = 1  # songs are decoded beside each other
            yield dict(zip(SOURCES, streams[1:], strict=True))


def header(stream: Any) -> Header:
    return Header(stream.rate, stream.channels, int(stream.duration * stream.time_base * stream.rate))


@cache
def validation_tracks() -> frozenset[str]:
    """The 14 songs of MUSDB18's `train` that are for validation, as the musdb package lists them.

    Its list is read without its code, which cannot be imported where there is no ffmpeg.
    """
    package = find_spec("musdb")
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "the package musdb, which lists MUSDB18's songs, is not installed: pip install 'stemwright[train]'"
        )
    facts = Path(package.submodule_search_locations[0], "configs", "mus.yaml").read_text()
    return frozenset(yaml.safe_load(facts)["validation_tracks"])


def readable(path: Path) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path} is not a readable audio file ({error.error_string}): export or get it again"
        ) from error
