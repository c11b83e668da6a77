"""Bytes to float32 audio (c, n) and back, through libsndfile; what it cannot read, such as AAC, is decoded by ffmpeg first.

What a header says about length is not believed: a song is decoded once to be measured, block by block, before anyone works on
it. Lossy songs are long where their bytes are few, so that measuring stops at the limit, not at the end. Of a long song whose
samples can be counted, only the beginning is decoded before; what is wrong with the rest is found when it is read.

Axes: c channel, n sample.
"""

import io
import math
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from serving.audio import Audio
from serving.audio.mp3 import count_samples
from serving.errors import AudioError, AudioTooLong, UnsupportedAudio

Source = bytes | bytearray | Path

BLOCK_SAMPLES = 1 << 16
MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
UNKNOWN_SAMPLES = 2**63 - 1  # libsndfile's count where a header gives none
COUNTED_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC"}
LONG_S, BEGINNING_S = 600, 30
"""Of a longer song, where its samples can be counted, only the beginning is decoded before it is worked on."""
# Speakers by number of channels as Vorbis and Opus order them: where in their order each of WAV's and FLAC's order stands.
VORBIS_ORDER = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}
TAGS = frozenset({"title", "artist", "album", "tracknumber", "date", "genre", "comment", "copyright"})
MAX_TAG_LENGTH = 1_000
FFMPEG_TIMEOUT_S = 300
# Containers that hold audio and name no other file: a playlist could make ffmpeg read what is on the server's disk.
FFMPEG_DEMUXERS = "aac,ac3,ape,asf,avi,flv,matroska,mov,mpegts,ogg,tta,wav,wv"


@dataclass(frozen=True)
class AudioInfo:
    """What a song is, as it was measured. `format` and `subtype` are libsndfile's names, FFMPEG where that decoded; so are
    the names of the `tags`, title, artist and so on."""

    rate_hz: int
    channels: int
    samples: int
    format: str
    subtype: str
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class Song:
    """Audio that has been measured and can be read. `name` is what messages call it."""

    info: AudioInfo
    source: Source
    name: str

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[Audio]:
        """The song from its beginning, as float32 blocks (c, ≤ block_samples), its channels in the order of WAV's speakers.

        Raises AudioError where a song of more than `LONG_S` is damaged, or is not as long as its header says.
        """
        samples = 0
        with decoder(self.source) as file:
            for block in sound(file, self.name, block_samples):
                samples += block.shape[-1]
                yield block
        if samples != self.info.samples:
            raise broken_off(self.name, samples, self.info.samples)


@contextmanager
def open_audio(source: Source, max_duration_s: float | None = None) -> Iterator[Song]:
    """A song from a file or from a file's bytes.

    Raises UnsupportedAudio for bytes in no known format; AudioTooLong for more than `max_duration_s`; AudioError for a
    song that breaks off, has no samples, samples that are not finite, more than 8 channels, or a rate outside
    1,000..384,000 Hz. A WAV file that is shorter than its header says counts as what is there: programs that write WAV
    into a pipe leave such headers.
    """
    if isinstance(source, Path) and not source.is_file():
        raise AudioError(f"{source} is not a file: check the path")
    name = source.name if isinstance(source, Path) else "the audio"
    with ExitStack() as stack:
        if readable(source):
            info = measure(source, name, max_duration_s)
        else:
            source = stack.enter_context(transcoded(source, name, max_duration_s))
            info = replace(measure(source, name, max_duration_s), format="FFMPEG", subtype="FFMPEG")
        yield Song(info, source, name)


def read(source: Source) -> tuple[Audio, int]:
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


class ForwardDecoder(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that only reads on: the seek which SoundFile does after every read changes samples of MP3 files."""

    def seekable(self) -> bool:
        return False


@contextmanager
def opened(source: Source) -> Iterator[ForwardDecoder]:
    """libsndfile on a source."""
    with as_file(source) as file:
        # By descriptor, because a name that ends in .raw would be taken for headerless samples.
        file_or_descriptor = file.fileno() if isinstance(source, Path) else file
        with ForwardDecoder(file_or_descriptor, closefd=False) as decoder:
            yield decoder


def as_file(source: Source) -> BinaryIO:
    """The bytes of a source as an open file."""
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


@contextmanager
def decoder(source: Source) -> Iterator[ForwardDecoder]:
    """An open decoder. An MP3 goes through a pipe: where libsndfile knows a size it guesses the length from it, and
    leaves out whatever lies behind the guess."""
    with opened(source) as whole:
        if whole.format != "MP3":
            yield whole
            return
    with piped(source) as pipe, ForwardDecoder(pipe, closefd=False) as stream:
        yield stream


@contextmanager
def piped(source: Source) -> Iterator[int]:
    """The read end of a pipe that a thread fills with the source."""
    read_end, write_end = os.pipe()

    def feed() -> None:
        # The reader may leave before the end.
        with suppress(BrokenPipeError), os.fdopen(write_end, "wb") as pipe:
            if isinstance(source, Path):
                with source.open("rb") as file:
                    shutil.copyfileobj(file, pipe)
            else:
                pipe.write(source)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        feeder.join()


def decoded(file: ForwardDecoder, block_samples: int) -> Iterator[Audio]:
    # Not SoundFile.blocks(): it repeats old samples where a file ends before its header says.
    order = VORBIS_ORDER.get(file.channels) if file.format == "OGG" else None
    channels = slice(None) if order is None else list(order)
    while len(block := file.read(block_samples, dtype="float32", always_2d=True)):
        yield np.ascontiguousarray(block.T[channels])


def sound(file: ForwardDecoder, name: str, block_samples: int) -> Iterator[Audio]:
    """The blocks that `decoded` gives. Raises AudioError where they are damaged or not finite."""
    samples = 0
    try:
        for block in decoded(file, block_samples):
            samples += block.shape[-1]
            if not np.isfinite(block).all():
                raise AudioError(f"{name} has samples that are not finite: export it again without them")
            yield block
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{name} is damaged after {samples / file.samplerate:.1f} s: send the whole file again"
        ) from error


def broken_off(name: str, samples: int, promised_samples: int) -> AudioError:
    return AudioError(
        f"{name} breaks off: {samples} samples of {promised_samples} can be decoded, send the whole file again"
    )


def tags_of(source: Source) -> dict[str, str]:
    """The tags of a song; those of an MP3 may lie at its end."""
    with opened(source) as file:
        found = {name: value.strip() for name, value in file.copy_metadata().items() if name in TAGS}
    return {name: value[:MAX_TAG_LENGTH] for name, value in found.items() if value}


def readable(source: Source) -> bool:
    """Whether libsndfile knows the format."""
    try:
        with decoder(source):
            return True
    except soundfile.LibsndfileError:
        return False


def measure(source: Source, name: str, max_duration_s: float | None) -> AudioInfo:
    """Decode a song, keeping nothing: to its end, or as far as makes its own count of samples worth believing."""
    with decoder(source) as file:
        rate_hz, channels, samples = file.samplerate, file.channels, 0
        if channels > MAX_CHANNELS:
            raise AudioError(f"{name} has {channels} channels: mix it down to {MAX_CHANNELS} or fewer")
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            raise AudioError(f"{name} has {rate_hz} Hz: resample it to {MIN_RATE_HZ:,}..{MAX_RATE_HZ:,} Hz")
        most_samples = math.inf if max_duration_s is None else max_duration_s * rate_hz
        counted = counted_samples(file, source)
        for block in sound(file, name, BLOCK_SAMPLES):
            samples += block.shape[-1]
            if samples > most_samples:
                raise AudioTooLong(f"{name} is longer than {max_duration_s:g} s: send it in parts")
            if samples > BEGINNING_S * rate_hz and counted is not None and LONG_S * rate_hz < counted <= most_samples:
                samples = counted
                break
        # The header of an MP3 gives a length that encoders get wrong in sound files.
        if file.format != "MP3" and samples < file.frames < UNKNOWN_SAMPLES:
            raise broken_off(name, samples, file.frames)
        if samples == 0:
            raise AudioError(f"{name} has no samples: send a file with at least one")
        return AudioInfo(rate_hz, channels, samples, file.format, file.subtype, tags_of(source))


def counted_samples(file: ForwardDecoder, source: Source) -> int | None:
    """How many samples a song has by a count that can be believed; None where there is none."""
    if file.format in COUNTED_FORMATS and file.frames < UNKNOWN_SAMPLES:
        return int(file.frames)
    if file.format == "MP3":
        with as_file(source) as encoded:
            return count_samples(encoded)
    return None


@contextmanager
def transcoded(source: Source, name: str, max_duration_s: float | None) -> Iterator[Path]:
    """A temporary float WAV of what ffmpeg makes of the source."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise UnsupportedAudio(
            f"{name} is no WAV, FLAC, OGG, Opus, MP3 or AIFF: install ffmpeg here if it is AAC, M4A or WMA"
        )
    with tempfile.TemporaryDirectory() as folder:
        encoded, wav = Path(folder, "encoded"), Path(folder, "decoded.wav")
        if isinstance(source, Path):
            encoded = source.absolute()
        else:
            encoded.write_bytes(source)
        command = [ffmpeg, "-nostdin", "-loglevel", "error"]
        command += ["-protocol_whitelist", "file", "-format_whitelist", FFMPEG_DEMUXERS, "-i", f"file:{encoded}"]
        # One second more than allowed shows that a song is too long.
        limit = [] if max_duration_s is None else ["-t", f"{max_duration_s + 1}"]
        command += ["-map", "0:a:0", *limit, "-c:a", "pcm_f32le", "-f", "wav", "-rf64", "auto", f"file:{wav}"]
        try:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=FFMPEG_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise UnsupportedAudio(f"{name} is no audio: send WAV, FLAC, OGG, Opus, MP3, AIFF or M4A") from error
        except subprocess.TimeoutExpired as error:
            raise AudioError(f"{name} takes ffmpeg more than {FFMPEG_TIMEOUT_S} s: send WAV or FLAC") from error
        yield wav
