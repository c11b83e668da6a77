"""Bytes to float32 audio (c, n) and back: libsndfile decodes what it knows, FFmpeg's libraries the rest and MP3.

A song is decoded once to be measured, block by block, before anyone works on it: headers lie about length, and lossy songs are
long where their bytes are few. Measuring stops at the limit. Of a long song whose samples can be counted, only the beginning is
decoded before; damage in the rest is found when it is read.

Axes: c channel, n sample.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from serving.audio import Audio, ffmpeg, sndfile
from serving.audio.chunks import sound_chunk
from serving.audio.decoding import Decoding, broken_off
from serving.audio.sndfile import BLOCK_SAMPLES, TAGS, VORBIS_ORDER
from serving.audio.tags import song_file
from serving.errors import AudioError, AudioTooLong

__all__ = ["BLOCK_SAMPLES", "VORBIS_ORDER", "AudioFile", "AudioInfo", "FileOrBytes", "open_audio", "read", "write"]

FileOrBytes = bytes | bytearray | Path
Decoder = Callable[[], AbstractContextManager[Decoding]]

MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
LONG_S, BEGINNING_S = 600, 30
"""A longer song is decoded only in its beginning before work on it begins, if its samples can be counted."""
LEFT_OVER_S = 0.25
"""Junk behind the samples is shorter than that."""
MAX_TAG_LENGTH = 1_000


@dataclass(frozen=True)
class AudioInfo:
    """Facts of a song, as it was measured.

    `format` and `subtype` are libsndfile's names of the file's and the samples' format; where FFmpeg decodes, `format` is its
    name of the codec, and so is `subtype` where the codec is lossy. `note` says that nothing proves that the song is whole,
    None where it is. `tags` have libsndfile's names: title, artist and so on.
    """

    rate_hz: int
    channels: int
    samples: int
    format: str
    subtype: str
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class AudioFile:
    """Audio that was measured and can be read. `name` is its name in messages."""

    info: AudioInfo
    source: FileOrBytes
    name: str
    decode: Decoder

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[Audio]:
        """The song from its beginning, as float32 blocks (c, ≤ block_samples), its channels in the order of WAV's speakers.

        Raises AudioError where a song of more than `LONG_S` is damaged, or is not as long as it was counted.
        """
        samples = 0
        with self.decode() as decoding:
            for block in sound(decoding, self.name):
                samples += block.shape[-1]
                for start in range(0, block.shape[-1], block_samples):
                    yield block[:, start : start + block_samples]
        if samples != self.info.samples:
            raise broken_off(self.name, samples / self.info.rate_hz, self.info.samples / self.info.rate_hz)


@contextmanager
def open_audio(
    source: FileOrBytes, max_duration_s: float | None = None, max_samples: int | None = None
) -> Iterator[AudioFile]:
    """A song from a file or from a file's bytes.

    Raises UnsupportedAudio for bytes in no known format; AudioTooLong for more than `max_duration_s`, or more than
    `max_samples` of all channels together; AudioError for a song that is cut off or damaged, has no samples, samples that are
    not finite, more than 8 channels, or a rate outside 1,000..384,000 Hz. A WAV that is shorter than its header says counts
    as what is there: programs that write WAV into a pipe leave such headers.
    """
    if isinstance(source, Path) and not source.is_file():
        raise AudioError(f"{source} is not a file: check the path")
    name = source.name if isinstance(source, Path) else "the audio"
    if sndfile.reads(source):
        decode = decode_first = partial(sndfile.decoder, source, name)
    else:
        decode, decode_first = (partial(ffmpeg.decoder, source, name, scan) for scan in (False, True))
    with decode_first() as decoding:
        info = measure(decoding, name, max_duration_s, max_samples)
    check_header(source, name, info)
    yield AudioFile(info, source, name, decode)


def read(source: FileOrBytes) -> tuple[Audio, int]:
    """A whole song (c, n) and its rate in Hz. Raises as `open_audio` does."""
    with open_audio(source) as song:
        return np.concatenate(list(song.blocks()), axis=-1), song.info.rate_hz


def write(path: Path, audio: Audio, rate_hz: int, subtype: str | None = None) -> None:
    """Write audio (c, n) in the format of the path's suffix, clipped at full scale unless `subtype` is FLOAT.

    `subtype` is libsndfile's name of the sample format, by default the usual one of the file format.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        unfinished = Path(folder, path.name)
        soundfile.write(unfinished, audio.T, rate_hz, subtype=subtype)
        unfinished.replace(path)


def check_header(source: FileOrBytes, name: str, info: AudioInfo) -> None:
    """Raises AudioError for a header that counts so few samples that others may follow them."""
    with song_file(source) as song:
        chunk = sound_chunk(song)
    if chunk is None:
        return
    counted_s = info.samples / info.rate_hz
    left_over_s = counted_s * chunk.left_over / (chunk.stop - chunk.start)
    if left_over_s > LEFT_OVER_S:
        raise AudioError(
            f"{name} has {counted_s:.1f} s by its header, and {left_over_s:.1f} s more behind them: save it again as FLAC"
        )


def sound(decoding: Decoding, name: str) -> Iterator[Audio]:
    """The blocks of a song. Raises AudioError where they are damaged or not finite."""
    for block in decoding.blocks:
        if not np.isfinite(block).all():
            raise AudioError(f"{name} has samples that are not finite: export it again without them")
        yield block


def measure(decoding: Decoding, name: str, max_duration_s: float | None, max_samples: int | None) -> AudioInfo:
    """Decode a song, keeping nothing: to its end, or as far as makes its own count of samples worth believing."""
    rate_hz, channels, samples = decoding.rate_hz, decoding.channels, 0
    if channels > MAX_CHANNELS:
        raise AudioError(f"{name} has {channels} channels: mix it down to {MAX_CHANNELS} or fewer")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioError(f"{name} has {rate_hz} Hz: resample it to {MIN_RATE_HZ:,}..{MAX_RATE_HZ:,} Hz")
    longest = math.inf if max_duration_s is None else max_duration_s * rate_hz
    most = math.inf if max_samples is None else max_samples / channels
    counted = decoding.counted_samples
    for block in sound(decoding, name):
        samples += block.shape[-1]
        if samples > longest:
            raise AudioTooLong(f"{name} is longer than {max_duration_s:g} s: send it in parts")
        if samples > most:
            raise AudioTooLong(f"{name} has more than {max_samples:,} samples in {channels} channels: send it in parts")
        if counted and samples > BEGINNING_S * rate_hz and LONG_S * rate_hz < counted <= min(longest, most):
            samples = counted
            break
    if decoding.promised_samples is not None and samples < decoding.promised_samples:
        raise broken_off(name, samples / rate_hz, decoding.promised_samples / rate_hz)
    if samples == 0:
        raise AudioError(f"{name} has no samples: send a file with at least one")
    tags = {
        tag: value.strip()[:MAX_TAG_LENGTH] for tag, value in decoding.tags.items() if tag in TAGS and value.strip()
    }
    return AudioInfo(rate_hz, channels, samples, decoding.format, decoding.subtype, tags, decoding.note)
