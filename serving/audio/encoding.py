"""A stem's file that is sent while it is encoded: WAV, FLAC, MP3 or Ogg Vorbis, in constant memory.

libsndfile encodes, and at the end would go back to the header, which has been sent by then. The length is known in advance,
so this module writes its place in the header: a WAV's whole header, the number of samples of a FLAC, the gapless (LAME) tag
of an MP3. An Ogg states its length at its end. Spooling to a file would hold an MP3 back until its last sample, and a
worker silent for so long would be restarted.

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
FULL_SCALE = 1.0
SUBTYPES = {"wav": set(SAMPLE_BYTES), "flac": {"PCM_16", "PCM_24"}, "mp3": {"MPEG_LAYER_III"}, "ogg": {"VORBIS"}}
# Vorbis at its second highest quality; MP3 at 320 kbit/s (from 32 kHz on) in frames of one size.
LOSSY: Mapping[str, Mapping[str, Any]] = {
    "mp3": {"compression_level": 0.0, "bitrate_mode": "CONSTANT"},
    "ogg": {"compression_level": 0.2},
}
# Speaker positions of a WAV of more than two channels, as bits (Microsoft's WAVEFORMATEXTENSIBLE).
SPEAKERS = {3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}
EXTENSIBLE_GUID = bytes.fromhex("000000001000800000AA00389B71")
# A WAV's INFO chunk for each tag.
INFO_CHUNKS = {
    **{"title": "INAM", "artist": "IART", "album": "IPRD", "tracknumber": "ITRK"},
    **{"date": "ICRD", "genre": "IGNR", "comment": "ICMT", "copyright": "ICOP"},
}
LAME_DELAY_SAMPLES = 576


@dataclass(frozen=True)
class Encoding:
    """The form of a stem's file. `subtype` is libsndfile's name of the sample format, `tags` are libsndfile's strings."""

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
        """The encoding that keeps the song's rate, channels, length, tags and, unless `bit_depth` is given, its bit depth.

        Songs below 16 bits and lossy ones get 16; a FLAC gets 24 if the song has more. Raises RequestError for a bit depth
        that the format lacks.
        """
        lossy = {"mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}.get(audio_format)
        if bit_depth is not None:
            subtype = BIT_DEPTHS.get(bit_depth.strip().lower(), "")
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
    def bit_depth(self) -> str | None:
        """16, 24, 32 or float; None for a lossy format."""
        return {"PCM_16": "16", "PCM_24": "24", "PCM_32": "32", "FLOAT": "float"}.get(self.subtype)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample over all channels; for a lossy format an upper bound of 32 bits."""
        return SAMPLE_BYTES.get(self.subtype, 4) * self.channels


@dataclass(frozen=True)
class Written:
    """The facts of a stem's file.

    `peak` is the largest magnitude before clipping, 1.0 at full scale. `clipped_samples` counts samples beyond full scale
    over all channels: integer formats clip them, as do most players of MP3 and Ogg. A float WAV clips none.
    """

    name: str
    size_bytes: int
    peak: float
    clipped_samples: int


class Outbox(io.RawIOBase):
    """An append-only file whose bytes are taken out to be sent."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self._held += data
        return len(data)

    def take(self) -> bytes:
        """Take the bytes written since the last call."""
        taken = bytes(self._held)
        self._held.clear()
        return taken


class EncoderOutbox(Outbox):
    """An outbox for libsndfile. It drops what libsndfile writes to the header at the end: the header has been sent."""

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
    """One stem's file. Raises RequestError if the format cannot hold such audio."""

    def __init__(self, encoding: Encoding) -> None:
        self._size_bytes = 0
        self._peak = 0.0
        self._over = 0
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
        """Encode more audio (c, n), clipped at full scale unless it is float. Returns the bytes that are ready."""
        if audio.size:
            loudest = float(np.abs(audio).max())
            self._peak = max(self._peak, loudest)
            if loudest > FULL_SCALE:
                self._over += int(np.count_nonzero(np.abs(audio) > FULL_SCALE))
        for start in range(0, audio.shape[-1], BLOCK_SAMPLES):  # libvorbis puts all of a write on the stack
            self._encoder.write(audio[self._channels, start : start + BLOCK_SAMPLES].T)
        return self._take()

    def finish(self) -> bytes:
        """End the file. Returns its last bytes."""
        self._encoder.close()
        # A chunk of odd length is followed by a zero.
        odd = self._encoding.format == "wav" and self._encoding.samples * self._encoding.sample_bytes % 2
        self._size_bytes += odd
        return self._take() + bytes(odd)

    def written(self, name: str) -> Written:
        """The facts of the file under its name. Complete after `finish`."""
        clipped = 0 if self._encoding.subtype == "FLOAT" else self._over
        return Written(name, self._size_bytes, round(self._peak, 6), clipped)

    def _take(self) -> bytes:
        data = self._with_head(self._outbox.take())
        self._size_bytes += len(data)
        return data

    def _with_head(self, data: bytes) -> bytes:
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
    """A WAV's header up to its samples; an RF64's if sizes exceed 32 bits (EBU Tech 3306)."""
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
    """The tags as a WAV's INFO chunk, b"" without any."""
    chunks = b""
    for name, letters in INFO_CHUNKS.items():
        if name in tags:
            text = tags[name].encode() + b"\0"
            chunks += struct.pack("<4sI", letters.encode(), len(text)) + text + bytes(len(text) % 2)
    return struct.pack("<4sI4s", b"LIST", 4 + len(chunks), b"INFO") + chunks if chunks else b""


def flac_with_samples(flac: bytes, samples: int) -> bytes:
    """Set the number of samples at the start of a FLAC: the last 36 bits of bytes 21..25, 0 so far (RFC 9639, 8.2)."""
    count = int.from_bytes(flac[21:26], "big") | samples
    return flac[:21] + count.to_bytes(5, "big") + flac[26:]


def mp3_with_samples(mp3: bytes, samples: int) -> bytes:
    """Fill in the LAME tag at the start of an MP3, so that decoders give exactly the song's samples.

    The tag holds the number of frames, and how many samples of the first and last frame are not the song. LAME leaves it
    empty until it knows the length.
    """
    frame = 0
    if mp3.startswith(b"ID3"):  # ID3 tags; their size is four times seven bits
        frame = 10 + sum(byte << shift for byte, shift in zip(mp3[6:10], (21, 14, 7, 0), strict=True))
    full_rate, mono = bool(mp3[frame + 1] & 8), mp3[frame + 3] >> 6 == 3
    side_bytes = (17 if mono else 32) if full_rate else (9 if mono else 17)
    frame_samples = 1152 if full_rate else 576
    padding = -(samples + LAME_DELAY_SAMPLES) % frame_samples
    if padding < LAME_DELAY_SAMPLES:  # plus the decoder's own delay
        padding += frame_samples
    frames = (samples + LAME_DELAY_SAMPLES + padding) // frame_samples
    tag = struct.pack(">4sII9s12x", b"Info", 1, frames, b"LAME3.100")
    tag += (LAME_DELAY_SAMPLES << 12 | padding).to_bytes(3, "big")
    start = frame + 4 + side_bytes
    return mp3[:start] + tag + mp3[start + len(tag) :]
