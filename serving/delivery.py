"""Stems as they leave: blocks of audio in, bytes of one WAV or FLAC file or of a zip of them out, in constant memory.

The first stem is sent while it is made; the others wait in temporary files. The song's length is known before its stems are,
so that headers, which come first, can tell the truth without anyone going back to them.

Axes: s stem, c channel, n sample.
"""

import io
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Self

import soundfile

from serving.audio_io import AudioInfo
from serving.chunks import Audio
from serving.errors import RequestError, StemwrightError

AudioFormat = Literal["wav", "flac"]

PIECE_BYTES = 1 << 20  # well under TorchServe's limit of 6.5 MB for one message
SAMPLE_BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4}


@dataclass(frozen=True)
class Delivery:
    """The form in which stems leave. `subtype` is libsndfile's name; several stems are always a zip."""

    format: AudioFormat
    subtype: str
    rate_hz: int
    channels: int
    samples: int
    zipped: bool

    def __post_init__(self) -> None:
        if not soundfile.check_format(self.format, self.subtype) or self.subtype not in SAMPLE_BYTES:
            raise RequestError(f"there is no {self.format} of {self.subtype} samples here: ask for wav or flac")

    @classmethod
    def like(cls, info: AudioInfo, audio_format: AudioFormat, zipped: bool) -> Self:
        """Stems with the rate, channels, length and bit depth of the song they come from.

        16 bits where the song has fewer or is lossy, 24 in a FLAC where the song has more.
        """
        subtype = {"DOUBLE": "FLOAT"}.get(info.subtype, info.subtype)
        if subtype not in SAMPLE_BYTES:
            subtype = "PCM_16"
        if audio_format == "flac" and subtype != "PCM_16":
            subtype = "PCM_24"
        return cls(audio_format, subtype, info.rate_hz, info.channels, info.samples, zipped)

    @property
    def content_type(self) -> str:
        return "application/zip" if self.zipped else f"audio/{self.format}"

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of all channels, uncompressed."""
        return SAMPLE_BYTES[self.subtype] * self.channels


def stream_stems(blocks: Iterable[Audio], stems: Sequence[str], delivery: Delivery) -> Iterator[bytes]:
    """The bytes of the stems named, whose audio comes as blocks (s, c, n), in pieces of 1 MiB at most.

    Raises StemwrightError, with the stream unfinished, where the blocks hold more or fewer samples than promised.
    """
    if len(stems) > 1 and not delivery.zipped:
        raise RequestError(f"one {delivery.format} file holds one stem, not {', '.join(stems)}: ask for a zip")
    whole = exactly(blocks, delivery.samples)
    written = zip_of_stems(whole, stems, delivery) if delivery.zipped else single_stem(whole, delivery)
    for data in written:
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]


def exactly(blocks: Iterable[Audio], samples: int) -> Iterator[Audio]:
    """The same blocks, once it is sure that they add up to so many samples."""
    count = 0
    for block in blocks:
        count += block.shape[-1]
        if count > samples:
            raise StemwrightError(f"the stems go on after the {samples} samples of the song: report this as a bug")
        yield block
    if count < samples:
        raise StemwrightError(f"the stems end after {count} of the song's {samples} samples: report this as a bug")


def single_stem(blocks: Iterable[Audio], delivery: Delivery) -> Iterator[bytes]:
    with StemFile(delivery) as file:
        for block in blocks:
            yield file.write(block[0])
        yield file.finish()


def zip_of_stems(blocks: Iterable[Audio], stems: Sequence[str], delivery: Delivery) -> Iterator[bytes]:
    """A zip with one uncompressed member for each stem. The same stems give the same bytes: members carry no time."""
    names = [f"{stem}.{delivery.format}" for stem in stems]
    # A member's size follows it; whether the size will need 64 bits has to be said before.
    large = delivery.samples * delivery.sample_bytes > zipfile.ZIP64_LIMIT * 0.9
    outbox = Outbox()
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(outbox, "w"))
        files = [stack.enter_context(StemFile(delivery)) for _ in stems]
        spools = [stack.enter_context(tempfile.TemporaryFile()) for _ in stems[1:]]
        with archive.open(zipfile.ZipInfo(names[0]), "w", force_zip64=large) as member:
            targets = [member, *spools]
            for block in blocks:
                for file, target, audio in zip(files, targets, block, strict=True):
                    target.write(file.write(audio))
                yield outbox.take()
            for file, target in zip(files, targets, strict=True):
                target.write(file.finish())
        for name, spool in zip(names[1:], spools, strict=True):
            spool.seek(0)
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=large) as member:
                while data := spool.read(PIECE_BYTES):
                    member.write(data)
                    yield outbox.take()
    yield outbox.take()


class Outbox(io.RawIOBase):
    """A file that can only be appended to, and whose bytes are taken away to be sent."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self._held += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._held)
        self._held.clear()
        return taken


class EncoderOutbox(Outbox):
    """An outbox for libsndfile, which goes back to the header at the end: what it writes there is let go, as those bytes
    have been sent."""

    def __init__(self) -> None:
        super().__init__()
        self._position = self._end = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if self._position == self._end:
            super().write(data)
            self._end += len(data)
        self._position += len(data)
        return len(data)


class ForwardEncoder(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that does not seek between writes."""

    def seekable(self) -> bool:
        return False


class StemFile:
    """One WAV or FLAC file that is handed over as it is encoded.

    libsndfile encodes. The header of a WAV, which is nothing but sizes, is written here; in that of a FLAC the number of
    samples is filled in.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._outbox = EncoderOutbox()
        wav = delivery.format == "wav"
        self._encoder = ForwardEncoder(
            self._outbox,
            "w",
            samplerate=delivery.rate_hz,
            channels=delivery.channels,
            format="RAW" if wav else "FLAC",
            subtype=delivery.subtype,
            endian="LITTLE" if wav else "FILE",
        )
        self._delivery = delivery
        self._head_sent = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._encoder.close()

    def write(self, audio: Audio) -> bytes:
        """The bytes that are ready after more audio (c, n), clipped at full scale if they are integers."""
        self._encoder.write(audio.T)
        return self._take()

    def finish(self) -> bytes:
        """The last bytes."""
        self._encoder.close()
        # A chunk of odd length is followed by a zero.
        odd = self._delivery.format == "wav" and self._delivery.samples * self._delivery.sample_bytes % 2
        return self._take() + bytes(odd)

    def _take(self) -> bytes:
        data = self._outbox.take()
        if self._head_sent or not data:
            return data
        self._head_sent = True
        return (
            wav_header(self._delivery) + data
            if self._delivery.format == "wav"
            else with_samples(data, self._delivery.samples)
        )


def wav_header(delivery: Delivery) -> bytes:
    """All that stands before the samples of a WAV; of an RF64 where 32 bits are too few for the sizes (EBU Tech 3306)."""
    float_samples = delivery.subtype == "FLOAT"
    data_bytes = delivery.samples * delivery.sample_bytes
    form = struct.pack(
        "<4sIHHIIHH",
        b"fmt ",
        16,
        3 if float_samples else 1,
        delivery.channels,
        delivery.rate_hz,
        delivery.rate_hz * delivery.sample_bytes,
        delivery.sample_bytes,
        8 * SAMPLE_BYTES[delivery.subtype],
    )
    if float_samples:
        form += struct.pack("<4sII", b"fact", 4, min(delivery.samples, 0xFFFFFFFF))
    riff_bytes = 4 + len(form) + 8 + data_bytes + data_bytes % 2
    if riff_bytes <= 0xFFFFFFFF:
        return struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE") + form + struct.pack("<4sI", b"data", data_bytes)
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, riff_bytes + 36, data_bytes, delivery.samples, 0)
    return struct.pack("<4sI4s", b"RF64", 0xFFFFFFFF, b"WAVE") + ds64 + form + struct.pack("<4sI", b"data", 0xFFFFFFFF)


def with_samples(flac: bytes, samples: int) -> bytes:
    """The beginning of a FLAC with its number of samples, so far 0: the last 36 bits of bytes 21..25 (RFC 9639, 8.2)."""
    field = int.from_bytes(flac[21:26], "big") | samples
    return flac[:21] + field.to_bytes(5, "big") + flac[26:]
