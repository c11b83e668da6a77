"""A scan of a song's packets without decoding: the number of samples, and whether the song is whole."""

import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import av

from serving.audio.decoding import PIPE_BYTES
from serving.audio.file_section import FileSection
from serving.audio.pyav import STREAMS, AudioStream

PROVEN_BY_FRAMES = {"aac", "ac3", "dts", "eac3", "mp3"}
"""Formats whose end is believed where it is the end of a frame."""
EQUAL_FRAMES = {"aac", "mp2", "mp3"}
"""Codecs whose packets all give the same number of samples, which FFmpeg says."""
EQUAL_BYTES = {"ac3", "eac3", "dts"}
"""Codecs whose packets are all of one size, but for two bytes."""
MAX_TAG_BYTES = 4096
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
KBITS_PER_S = {
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Samples of an MPEG audio frame, by version and layer."""


@dataclass
class Packets:
    """The packets of a file."""

    count: int = 0
    duration_s: Fraction = Fraction(0)
    cut_samples: int = 0
    """Samples that the decoder is told to leave out at the beginning and the end."""
    reached_s: float = 0.0
    """The end of the last packet."""
    others_reached_s: float = 0.0
    """The end of the last packet of any other stream, such as film."""
    is_broken: bool = False
    """The file ends inside a packet."""
    is_regular: bool = True
    """Packets follow each other without a gap, are of the size that their heads give, and none is an encoder's tag, as where
    two MP3s were joined."""
    first_position: int = 0
    last: bytes = b""
    least_bytes: int = 0
    """Size of the smallest packet but the last."""


def scan(decoder: AudioStream, file: FileSection) -> Packets:
    """Scan all packets. The stream is at its end then."""
    found, position = Packets(), None
    duration = 0
    ends: dict[int, int] = {}  # of each stream, in its own time base
    in_frames = decoder.format in STREAMS
    index = decoder.stream.index
    try:
        for packet in decoder.container.demux():
            start, size, of_stream = packet.pts, packet.size, packet.stream_index
            if size == 0:  # the flush packet after the last one
                continue
            if start is not None:
                ends[of_stream] = max(ends.get(of_stream, 0), start + (packet.duration or 0))
            if of_stream != index:
                continue
            if found.count == 0:
                found.first_position = packet.pos or 0
            else:
                found.least_bytes = min(found.least_bytes or len(found.last), len(found.last))
            found.count += 1
            duration += packet.duration or 0
            found.last = bytes(packet)
            found.is_broken = packet.is_corrupt
            if in_frames and found.is_regular:
                head = found.last[:64]
                is_frame = frame_bytes(head[:7]) == size and b"Xing" not in head and b"Info" not in head
                found.is_regular = is_frame and position in (None, packet.pos)
                position = (packet.pos or 0) + size
            if packet.has_sidedata("skip_samples"):
                found.cut_samples += sum(struct.unpack_from("<II", bytes(packet.get_sidedata("skip_samples"))))
    except av.error.FFmpegError:
        found.is_broken = True
    found.is_broken |= decoder.format == "avi" and lacks_bytes(file)
    found.is_broken &= not has_open_end(file)
    found.duration_s = duration * Fraction(decoder.stream.time_base)
    reached_s = {n: float(end * decoder.container.streams[n].time_base) for n, end in ends.items()}
    found.reached_s = reached_s.pop(index, float(found.duration_s))
    found.others_reached_s = max(reached_s.values(), default=0.0)
    return found


def sample_count(decoder: AudioStream, packets: Packets, rate_hz: int) -> int | None:
    """Samples of the whole song; None if only decoding tells."""
    if packets.is_broken or ends_in_frame(decoder, packets):
        return None
    if decoder.codec in EQUAL_FRAMES and (packets.is_regular or decoder.format not in STREAMS):
        frame_samples = decoder.stream.codec_context.frame_size
        return packets.count * frame_samples - packets.cut_samples if frame_samples else None
    if decoder.is_lossless:
        samples = packets.duration_s * rate_hz - packets.cut_samples
        return int(samples) if samples.denominator == 1 else None
    return None


def promised_s(decoder: AudioStream, packets: Packets, file: FileSection) -> float | None:
    """The length in the container; None if it gives none, or none that is reliable."""
    if decoder.format == "mp3":
        return length_of_mp3(file, packets)
    if decoder.format == "asf":
        return length_of_asf(file)
    if decoder.format in STREAMS | {"ogg", "avi"} or decoder.length_is_guessed:
        return None
    if decoder.length_s:
        return decoder.length_s
    if not decoder.container.duration or packets.others_reached_s > packets.reached_s:
        return None
    return float(decoder.container.duration / av.time_base)


def is_unproven(decoder: AudioStream, packets: Packets, file: FileSection, promised: float | None) -> bool:
    """True if a song may be cut off and nothing tells."""
    if decoder.format == "avi":
        return file.size < riff_bytes(file)
    if decoder.format in PROVEN_BY_FRAMES:
        return packets.is_broken or ends_in_frame(decoder, packets)
    return promised is None and decoder.format != "ogg"


def length_of_mp3(file: FileSection, packets: Packets) -> float | None:
    """Seconds in the tag of an MP3's encoder (Xing's layout: name, flags, frames, bytes).

    None if the file has as many frames, or if the number of bytes shows that the tag is wrong and the file whole.
    """
    start = max(0, packets.first_position - MAX_TAG_BYTES)
    head = file.read_at(start, packets.first_position - start)
    at = max(head.rfind(b"Xing"), head.rfind(b"Info"))
    if at < 0 or len(head) < at + 16 or packets.count == 0:
        return None
    flags, frames, n_bytes = struct.unpack_from(">III", head, at + 4)
    has_frames, has_bytes = flags & 1, flags & 2
    if not has_frames or frames <= packets.count:
        return None
    if has_bytes and start + at + n_bytes <= file.size + 64:  # counted from up to 36 bytes before the tag
        return None
    return float(frames * packets.duration_s / packets.count)


def length_of_asf(file: FileSection) -> float | None:
    """Seconds in the header of a WMA, which FFmpeg omits if the file is cut. [MS-ASF], file properties object."""
    head = file.read_at(0, 1 << 16)
    at = head.find(ASF_PROPERTIES)
    if at < 0 or len(head) < at + 92:
        return None
    play_time, _, preroll_ms, flags = struct.unpack_from("<QQQI", head, at + 64)
    is_broadcast = flags & 1
    return None if is_broadcast else float(play_time / 1e7 - preroll_ms / 1e3)


def lacks_bytes(file: FileSection) -> bool:
    """True if a RIFF file is shorter than its first chunk says, unless it was written into a pipe."""
    return file.size < riff_bytes(file) < PIPE_BYTES


def riff_bytes(file: FileSection) -> int:
    return 8 + int.from_bytes(file.read_at(4, 4), "little")


def has_open_end(file: FileSection) -> bool:
    """True for a CAF or WAV whose samples go on to the end of the file: its writer did not come back to give their size."""
    head = file.read_at(0, 1 << 16)
    unknown = {b"caff": b"\xff" * 8, b"RIFF": bytes(4)}.get(head[:4])
    return unknown is not None and b"data" + unknown in head


def ends_in_frame(decoder: AudioStream, packets: Packets) -> bool:
    """True if a stream of frames ends inside one."""
    if not packets.last:
        return False
    if decoder.codec in EQUAL_BYTES:
        return len(packets.last) + 2 < packets.least_bytes
    return len(packets.last) < frame_bytes(packets.last[:7])


@lru_cache(maxsize=1024)  # a song has few different headers
def frame_bytes(head: bytes) -> int:
    """The size of a frame from its first seven bytes; 0 if they are no frame header.

    ISO/IEC 11172-3, 2.4.1.3 and 13818-3 for MPEG audio, 13818-7, 6.2 for AAC in ADTS.
    """
    bits = int.from_bytes(head[:4], "big")
    if len(head) < 7 or bits >> 21 != 0x7FF:
        return 0
    version_bits, layer, kbits, rate = bits >> 19 & 3, 4 - (bits >> 17 & 3), bits >> 12 & 15, bits >> 10 & 3
    if layer == 4:  # ADTS
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    version = 1 if version_bits == 3 else 2
    table = KBITS_PER_S.get((version, layer))
    if table is None or version_bits == 1 or kbits in (0, 15) or rate == 3:
        return 0
    rate_hz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version_bits]
    frame_samples = 576 if (version, layer) == (2, 3) else 1152
    return frame_samples // 8 * 1000 * table[kbits - 1] // rate_hz + (bits >> 9 & 1)


def is_mpeg_audio(head: bytes) -> bool:
    """True if these seven bytes begin a frame of MPEG audio of any layer, not of AAC."""
    is_aac = head[1:2] and head[1] & 6 == 0
    return not is_aac and frame_bytes(head) > 0
