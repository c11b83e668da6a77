"""How many samples an MP3 holds, counted from the heads of its frames: thirty times as fast as decoding it.

The layout of a frame is that of ISO/IEC 11172-3, 2.4.1.3, with the lower rates of ISO/IEC 13818-3 and MPEG 2.5.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, Self

KBITS_PER_S = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""By index from 1 on, of MPEG 1 and of the versions with lower rates."""
RATES_HZ = {0b11: (44_100, 48_000, 32_000), 0b10: (22_050, 24_000, 16_000), 0b00: (11_025, 12_000, 8_000)}
"""By version, then by index."""
LAYER_3 = 0b01
DECODER_DELAY_SAMPLES = 529
"""What a decoder leaves out at the beginning beside the encoder's delay; padding makes up for it."""
HEAD_BYTES = 4
ID3V1_BYTES = 128


@dataclass(frozen=True)
class Frame:
    """What the head of a frame says. `kind`, version, rate and whether it is mono, is the same in all frames of a song."""

    kind: tuple[int, int, bool]
    n_bytes: int

    @classmethod
    @lru_cache(maxsize=256)  # the heads of a song are a few, again and again
    def of(cls, head: bytes) -> Self | None:
        """None for four bytes that are no head; for that of a frame with a checksum or without a size, which are rare, too."""
        bits = int.from_bytes(head, "big")
        version, layer, kbits, rate = bits >> 19 & 3, bits >> 17 & 3, bits >> 12 & 15, bits >> 10 & 3
        has_checksum = not bits >> 16 & 1
        if bits >> 21 != 0x7FF or version not in RATES_HZ or layer != LAYER_3 or has_checksum:
            return None
        if kbits in (0, 15) or rate == 3:
            return None
        rate_hz = RATES_HZ[version][rate]
        kind = version, rate_hz, bits >> 6 & 3 == 3
        bits_per_s = 1000 * KBITS_PER_S[version == 0b11][kbits - 1]
        return cls(kind, samples_of(kind) // 8 * bits_per_s // rate_hz + (bits >> 9 & 1))


def samples_of(kind: tuple[int, int, bool]) -> int:
    """Samples of one frame."""
    return 1152 if kind[0] == 0b11 else 576


def count_samples(file: BinaryIO) -> int | None:
    """Samples that a decoder gives of an MP3. None where its frames do not follow each other from one end of the file to the
    other, ID3 tags aside, or where the tag of its encoder counts others: then only decoding it tells."""
    end = file.seek(0, os.SEEK_END)
    start = after_id3v2(file)
    file.seek(max(start, end - ID3V1_BYTES))
    if file.read(3) == b"TAG":
        end -= ID3V1_BYTES
    file.seek(start)
    first = Frame.of(file.read(HEAD_BYTES))
    if first is None or start + first.n_bytes > end:
        return None
    file.seek(start)
    tag = EncoderTag.of(file.read(first.n_bytes), first)
    position, frames = (start + first.n_bytes, 0) if tag else (start, 0)
    file.seek(position)
    while position < end:
        frame = Frame.of(file.read(HEAD_BYTES))
        if frame is None or frame.kind != first.kind:
            return None
        position = file.seek(frame.n_bytes - HEAD_BYTES, os.SEEK_CUR)
        frames += 1
    if position > end or (tag is not None and tag.frames != frames):
        return None
    return frames * samples_of(first.kind) - (tag.surplus_samples if tag else 0)


def after_id3v2(file: BinaryIO) -> int:
    """Where the frames begin."""
    file.seek(0)
    head = file.read(10)
    if not head.startswith(b"ID3") or len(head) < 10:
        return 0
    return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])  # a size is four times seven bits


@dataclass(frozen=True)
class EncoderTag:
    """What an encoder says in a first frame without sound: how many frames follow, and how many of their samples are its own
    delay and padding."""

    frames: int
    surplus_samples: int

    @classmethod
    def of(cls, frame: bytes, head: Frame) -> Self | None:
        """None for a frame that is none. The tag's layout is Xing's and LAME's: name, flags, then what the flags say."""
        full_rate, mono = samples_of(head.kind) == 1152, head.kind[2]
        side_bytes = (17 if mono else 32) if full_rate else (9 if mono else 17)
        silence, tag = frame[HEAD_BYTES : HEAD_BYTES + side_bytes], frame[HEAD_BYTES + side_bytes :]
        if any(silence) or not tag.startswith((b"Xing", b"Info")):
            return None
        has_frames, has_bytes, has_places, has_quality = (bool(tag[7] & flag) for flag in (1, 2, 4, 8))
        encoder = 8 + 4 * has_frames + 4 * has_bytes + 100 * has_places + 4 * has_quality
        delay_padding = int.from_bytes(tag[encoder + 21 : encoder + 24], "big")
        frames = int.from_bytes(tag[8:12], "big") if has_frames else -1
        return cls(frames, (delay_padding >> 12) + max(delay_padding & 0xFFF, DECODER_DELAY_SAMPLES))
