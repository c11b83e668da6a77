"""A file decoded by FFmpeg's libraries through PyAV.

Only the decoder process imports this, as the bytes come from strangers. Within a block, channels follow each other.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import av

from serving.audio.file_section import FileSection

BLOCK_SAMPLES = 1 << 14
# Containers that refer to no other file. A playlist would let FFmpeg read the server's disk.
DEMUXERS = (
    "aac,ac3,aea,aiff,amr,ape,asf,au,avi,bonk,caf,dsf,dts,dtshd,dv,eac3,flac,flv,gxf,iff,loas,matroska,mlp,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,osq,qcp,qoa,rka,rm,shn,sox,tak,truehd,tta,voc,vqf,w64,wav,wavarc,wtv,wv,xwma"
)
STREAMS = {"aac", "ac3", "amr", "dts", "eac3", "loas", "mlp", "mp3", "mpeg", "mpegts", "truehd"}
"""Formats of frames without a head, cut out of something longer as often as not: FFmpeg passes over what it cannot decode."""
LOSSLESS = {"alac", "als", "ape", "flac", "mlp", "shorten", "tak", "truehd", "tta", "wavpack", "wmalossless"}
SUBTYPES = {"u8": "PCM_U8", "s16": "PCM_16", "s32": "PCM_24", "flt": "FLOAT", "dbl": "DOUBLE"}
"""libsndfile's names of what lossless codecs decode to; of 32 bits, 24 are what a float32 holds."""
ENCRYPTED = {"aavd", "drms", "enca"}
"""MP4's names of encrypted samples."""
ROUNDING_S = 0.002
TAGS = {"track": "tracknumber"}
"""libsndfile's names of tags that FFmpeg names otherwise."""


class Refused(Exception):
    """A song that cannot be decoded. The reason is a key of `ffmpeg.refusal`."""


class AudioStream:
    """The audio stream of a file. Raises Refused if there is none that can be decoded."""

    container: Any  # PyAV's types do not distinguish reading from writing
    stream: Any

    def __init__(self, file: FileSection) -> None:
        file.seek(0)
        with av.logging.Capture() as log:
            try:
                self.container = av.open(
                    file,
                    container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "none"},
                    metadata_errors="replace",
                )
            except (av.error.FFmpegError, ValueError) as error:
                raise Refused("no index" if keeps_index(file) else "no audio") from error
        self.length_is_guessed = any("from bitrate" in message for _, _, message in log)
        self.format = self.container.format.name.split(",")[0]
        if not self.container.streams.audio:
            raise Refused(f"no sound: {other_content(self.container.streams)}")
        self.stream = self.container.streams.best("audio") or self.container.streams.audio[0]
        if self.stream.codec_context is None or is_encrypted(self.stream):
            raise Refused("no codec")
        self.stream.codec_context.thread_count = 1
        self.codec: str = self.stream.codec_context.codec.canonical_name

    @property
    def is_lossless(self) -> bool:
        return self.codec in LOSSLESS or self.codec.startswith("pcm_")

    @property
    def length_s(self) -> float | None:
        """The length of the stream by its container."""
        return float(self.stream.duration * self.stream.time_base) if self.stream.duration else None

    def is_all(self, seconds: float) -> bool:
        """True if a WavPack of this length is all that its first block counts: what follows is not the song's."""
        return self.format == "wv" and self.length_s is not None and seconds >= self.length_s - ROUNDING_S

    def frames(self) -> Iterator[Any]:
        """Yield decoded frames of one rate and channel count. Raises Refused if they are damaged or change."""
        kind, seconds = None, 0.0
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                if self.format in STREAMS or self.is_all(seconds):
                    return
                raise Refused("damaged") from error
            if packet is None:
                return
            if packet.has_sidedata("encryption_info"):
                raise Refused("no codec")
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                if self.format in STREAMS:
                    continue
                raise Refused("damaged") from error
            for frame in frames:
                kind = kind or (frame.sample_rate, frame.layout.nb_channels)
                if kind != (frame.sample_rate, frame.layout.nb_channels):
                    raise Refused("changes")
                seconds += frame.samples / frame.sample_rate
                if frame.samples:
                    yield frame

    def subtype(self, sample_format: str) -> str:
        """libsndfile's name of a lossless codec's samples, else the codec's name."""
        return SUBTYPES.get(sample_format.removesuffix("p"), "PCM_24") if self.is_lossless else self.codec.upper()

    def tags(self) -> dict[str, str]:
        found = {**self.stream.metadata, **self.container.metadata}
        return {TAGS.get(name.lower(), name.lower()): value for name, value in found.items()}


def is_encrypted(stream: Any) -> bool:
    try:
        return stream.codec_context.codec_tag in ENCRYPTED
    except UnicodeDecodeError:  # a number instead of letters
        return False


def other_content(streams: Any) -> str:
    """The contents of a file without sound."""
    if not streams.video:
        return "subtitles" if streams.subtitles else "data"
    return "image" if all(stream.frames == 1 for stream in streams.video) else "video"


def keeps_index(file: FileSection) -> bool:
    """True for MP4 and CAF, which may keep their index at the end."""
    head = file.read_at(0, 8)
    return head[:4] == b"caff" or head[4:] == b"ftyp"


def blocks(first: Any, others: Iterator[Any]) -> Iterator[bytes]:
    """Yield float32 samples of several frames at a time, one channel after the other."""
    to_float = None if first.format.name == "fltp" else av.AudioResampler(format="fltp")
    held: list[list[bytes]] = [[] for _ in range(first.layout.nb_channels)]
    samples = 0
    for frame in itertools.chain([first], others):
        for part in to_float.resample(frame) if to_float else (frame,):
            for channel, plane in zip(held, part.planes, strict=True):
                channel.append(bytes(plane)[: 4 * part.samples])
            samples += part.samples
        if samples >= BLOCK_SAMPLES:
            yield b"".join(itertools.chain.from_iterable(held))
            held, samples = [[] for _ in held], 0
    if samples:
        yield b"".join(itertools.chain.from_iterable(held))
