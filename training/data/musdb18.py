"""Songs of MUSDB18, `train|test/<Artist - Title>.stem.mp4`, read by PyAV.

The mixture in the file is not read: it is encoded on its own and differs from the sum of the stems by -27 dB.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml

from serving.audio import Audio
from training.data.song import Header, Song
from training.errors import DataError

STREAMS = ("drums", "bass", "other", "vocals")
"""The stems in the order of the file's streams, after the mixture."""


@dataclass(frozen=True)
class StemMp4(Song):
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
        """Open a file; gives PyAV's streams of STREAMS. Raises DataError unless it holds five audio streams with known
        lengths."""
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
            yield dict(zip(STREAMS, streams[1:], strict=True))


def header(stream: Any) -> Header:
    return Header(stream.rate, stream.channels, int(stream.duration * stream.time_base * stream.rate))


@cache
def validation_tracks() -> frozenset[str]:
    """The 14 songs of MUSDB18's `train` for validation, as the musdb package lists them.

    Reads the package's list and not its code, which imports only where ffmpeg is installed.
    """
    package = find_spec("musdb")
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "the package musdb, which lists MUSDB18's songs, is not installed: pip install 'stemwright[train]'"
        )
    facts = Path(package.submodule_search_locations[0], "configs", "mus.yaml").read_text()
    return frozenset(yaml.safe_load(facts)["validation_tracks"])
