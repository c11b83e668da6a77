"""One stem as a file that is handed over while it is encoded: WAV, FLAC, MP3 or Ogg Vorbis, in constant memory.

libsndfile encodes, but it goes back to the head of a file when it knows the length. Here the length is known before and the
head has long been sent, so what the head must say of it is written here: all of a WAV's, which is nothing but sizes; the
number of samples in a FLAC's; the gapless tag of an MP3. An Ogg says it at its end.

Axes: c channel, n sample.
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import soundfile

from serving.audio import Audio
from serving.audio.audio_io import BLOCK_SAMPLES, VORBIS_ORDER, AudioInfo
from serving.errors import RequestError

AudioFormat = Literal["wav", "flac", "mp3", "ogg"]
AUDIO_TYPES: Mapping[str, AudioFormat] = {
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
}

SAMPLE_BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4}
BIT_DEPTHS = {"16": "PCM_16", "24": "PCM_24", "float": "FLOAT"}
SUBTYPES = {"wav": set(SAMPLE_BYTES), "flac": {"PCM_16", "PCM_24"}, "mp3": {"MPEG_LAYER_III"}, "ogg": {"VORBIS"}}
# Vorbis at its second highest quality; 320 kbit/s, at 32 kHz and more, for an MP3, whose frames all have one size.
LOSSY: Mapping[str, Mapping[str, Any]] = {
    "mp3": {"compression_level": 0.0, "bitrate_mode": "CONSTANT"},
    "ogg": {"compression_level": 0.2},
}
# A WAV of more than two channels says where its speakers stand, as bits (Microsoft's WAVEFORMATEXTENSIBLE).
SPEAKERS = {3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}
EXTENSIBLE_GUID = bytes.fromhex("000000001000800000AA00389B71")
# The four letters of a WAV's INFO chunks.
INFO_CHUNKS = {
    **{"title": "INAM", "artist": "IART", "album": "IPRD", "tracknumber": "ITRK"},
    **{"date": "ICRD", "genre": "IGNR", "comment": "ICMT", "copyright": "ICOP"},
}
LAME_DELAY_SAMPLES = 576


@dataclass(frozen=True)
class Encoding:
    """What a stem's file says of itself. `subtype` is libsndfile's name of the sample format, `tags` libsndfile's strings."""

    format: AudioFormat
    subtype: str
    rate_hz: int
    channels: int
    samples: int
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.subtype not in SUBTYPES.get(self.format, ()):
            raise RequestError(f"there is no {self.format} of {self.subtype} samples here: ask for another bit depth")

    @classmethod
    def like(cls, info: AudioInfo, audio_format: AudioFormat, bit_depth: str | None = None) -> Self:
        """A stem's file with rate, channels, length, tags and, unless another is asked for, bit depth of the song.

        16 bits where the song has fewer or is lossy, 24 in a FLAC where the song has more. Raises RequestError for a bit
        depth that the format does not have.
        """
        lossy = {"mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}.get(audio_format)
        if bit_depth is not None:
            subtype = BIT_DEPTHS.get(bit_depth, "")
            if lossy or subtype not in SUBTYPES[audio_format]:
                raise RequestError(
                    f"{audio_format} has no bit depth {bit_depth}: wav has 16, 24 and float, flac 16 and 24"
                )
        else:
            subtype = lossy or {"DOUBLE": "FLOAT"}.get(info.subtype, info.subtype)
            if not lossy and subtype not in SAMPLE_BYTES:
                subtype = "PCM_16"
            if audio_format == "flac" and subtype != "PCM_16":
                subtype = "PCM_24"
        return cls(audio_format, subtype, info.rate_hz, info.channels, info.samples, info.tags)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of all channels; those of 32 bits for a lossy format, which has fewer."""
        return SAMPLE_BYTES.get(self.subtype, 4) * self.channels


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
    """One file that is handed over as it is encoded. Raises RequestError where the format cannot hold such audio."""

    def __init__(self, encoding: Encoding) -> None:
        self._outbox = EncoderOutbox()
        self._encoding = encoding
        self._head_sent = False
        wav = encoding.format == "wav"
        try:
            self._encoder = ForwardEncoder(
                self._outbox,
                "w",
                samplerate=encoding.rate_hz,
                channels=encoding.channels,
                format="RAW" if wav else encoding.format,
                subtype=encoding.subtype,
                endian="LITTLE" if wav else "FILE",
                **LOSSY.get(encoding.format, {}),
            )
        except soundfile.LibsndfileError as error:
            what = f"{encoding.channels} channels at {encoding.rate_hz} Hz"
            raise RequestError(f"{encoding.format} cannot hold {what}: ask for wav or flac") from error
        if not wav:
            for name, value in encoding.tags.items():
                setattr(self._encoder, name, value)
        order = VORBIS_ORDER.get(encoding.channels) if encoding.format == "ogg" else None
        self._channels = slice(None) if order is None else np.argsort(order)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._encoder.close()

    def write(self, audio: Audio) -> bytes:
        """The bytes that are ready after more audio (c, n), clipped at full scale unless they are floats."""
        for start in range(0, audio.shape[-1], BLOCK_SAMPLES):  # libvorbis takes all of a write onto the stack
            self._encoder.write(audio[self._channels, start : start + BLOCK_SAMPLES].T)
        return self._take()

    def finish(self) -> bytes:
        """The last bytes."""
        self._encoder.close()
        # A chunk of odd length is followed by a zero.
        odd = self._encoding.format == "wav" and self._encoding.samples * self._encoding.sample_bytes % 2
        return self._take() + bytes(odd)

    def _take(self) -> bytes:
        data = self._outbox.take()
        if self._head_sent or not data:
            return data
        self._head_sent = True
        match self._encoding.format:
            case "wav":
                return wav_header(self._encoding) + data
            case "flac":
                return flac_with_samples(data, self._encoding.samples)
            case "mp3":
                return mp3_with_samples(data, self._encoding.samples)
            case "ogg":
                return data


def wav_header(encoding: Encoding) -> bytes:
    """All that stands before the samples of a WAV; of an RF64 where 32 bits are too few for the sizes (EBU Tech 3306)."""
    data_bytes = encoding.samples * encoding.sample_bytes
    chunks = format_chunk(encoding)
    if encoding.subtype == "FLOAT":
        chunks += struct.pack("<4sII", b"fact", 4, min(encoding.samples, 0xFFFFFFFF))
    chunks += info_chunk(encoding.tags)
    riff_bytes = 4 + len(chunks) + 8 + data_bytes + data_bytes % 2
    if riff_bytes <= 0xFFFFFFFF:
        return struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE") + chunks + struct.pack("<4sI", b"data", data_bytes)
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, riff_bytes + 36, data_bytes, encoding.samples, 0)
    return (
        struct.pack("<4sI4s", b"RF64", 0xFFFFFFFF, b"WAVE") + ds64 + chunks + struct.pack("<4sI", b"data", 0xFFFFFFFF)
    )


def format_chunk(encoding: Encoding) -> bytes:
    tag = 3 if encoding.subtype == "FLOAT" else 1
    bits = 8 * SAMPLE_BYTES[encoding.subtype]
    rates = encoding.rate_hz, encoding.rate_hz * encoding.sample_bytes, encoding.sample_bytes, bits
    if encoding.channels not in SPEAKERS:
        return struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, encoding.channels, *rates)
    extension = struct.pack("<HHIH", 22, bits, SPEAKERS[encoding.channels], tag) + EXTENSIBLE_GUID
    return struct.pack("<4sIHHIIHH", b"fmt ", 40, 0xFFFE, encoding.channels, *rates) + extension


def info_chunk(tags: Mapping[str, str]) -> bytes:
    """A WAV's tags, b"" where there are none."""
    chunks = b""
    for name, letters in INFO_CHUNKS.items():
        if name in tags:
            text = tags[name].encode() + b"\0"
            chunks += struct.pack("<4sI", letters.encode(), len(text)) + text + bytes(len(text) % 2)
    return struct.pack("<4sI4s", b"LIST", 4 + len(chunks), b"INFO") + chunks if chunks else b""


def flac_with_samples(flac: bytes, samples: int) -> bytes:
    """The beginning of a FLAC with its number of samples, so far 0: the last 36 bits of bytes 21..25 (RFC 9639, 8.2)."""
    count = int.from_bytes(flac[21:26], "big") | samples
    return flac[:21] + count.to_bytes(5, "big") + flac[26:]


def mp3_with_samples(mp3: bytes, samples: int) -> bytes:
    """The beginning of an MP3 with the tag that LAME leaves empty until it knows the length: how many frames follow and how
    much of the first and the last is not the song, so that decoders give exactly its samples."""
    frame = 0
    if mp3.startswith(b"ID3"):  # tags, their size in four times seven bits
        frame = 10 + sum(byte << shift for byte, shift in zip(mp3[6:10], (21, 14, 7, 0), strict=True))
    full_rate, mono = bool(mp3[frame + 1] & 8), mp3[frame + 3] >> 6 == 3
    side_bytes = (17 if mono else 32) if full_rate else (9 if mono else 17)
    frame_samples = 1152 if full_rate else 576
    padding = -(samples + LAME_DELAY_SAMPLES) % frame_samples
    if padding < LAME_DELAY_SAMPLES:  # the decoder has a delay, too
        padding += frame_samples
    frames = (samples + LAME_DELAY_SAMPLES + padding) // frame_samples
    tag = struct.pack(">4sII9s12x", b"Info", 1, frames, b"LAME3.100")
    tag += (LAME_DELAY_SAMPLES << 12 | padding).to_bytes(3, "big")
    start = frame + 4 + side_bytes
    return mp3[:start] + tag + mp3[start + len(tag) :]
