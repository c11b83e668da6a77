"""Counting the samples of an MP3: as many as its decoder gives, or no count."""

import io
import random

import numpy as np
import pytest
import soundfile

from serving.audio.audio_io import BLOCK_SAMPLES, decoded, decoder
from serving.audio.mp3 import count_samples

SAMPLES = 3 * 44_100 + 77
TAG_BYTES = 417
"""The encoder's tag is a frame of 128 kbit/s."""


def mp3(rate_hz: int = 44_100, channels: int = 2, mode: str = "CONSTANT") -> bytes:
    noise = 0.1 * np.random.default_rng(0).standard_normal((SAMPLES, channels))
    file = io.BytesIO()
    soundfile.write(file, noise, rate_hz, format="MP3", bitrate_mode=mode)
    return file.getvalue()


def count(data: bytes) -> int | None:
    return count_samples(io.BytesIO(data))


def decoded_samples(data: bytes) -> int:
    with decoder(data) as file:
        return sum(block.shape[-1] for block in decoded(file, BLOCK_SAMPLES))


def with_delay_and_padding(data: bytes, delay: int, padding: int) -> bytes:
    at = data.index(b"LAME3.100") + 21
    return data[:at] + (delay << 12 | padding).to_bytes(3, "big") + data[at + 3 :]


def with_frames(data: bytes, more: int) -> bytes:
    """The encoder's tag counts more frames than it did."""
    at = data.index(b"Xing") + 8
    return data[:at] + (int.from_bytes(data[at : at + 4], "big") + more).to_bytes(4, "big") + data[at + 4 :]


def silent_frame(head: int) -> bytes:
    """A frame of 128 kbit/s at 44.1 kHz."""
    return head.to_bytes(4, "big") + bytes(413 + (head >> 9 & 1))


STEREO, LONGER, MONO, CHECKED = (silent_frame(head) for head in (0xFFFB9000, 0xFFFB9200, 0xFFFB90C0, 0xFFFA9000))


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize(("rate_hz", "channels"), [(44_100, 2), (48_000, 1), (22_050, 2), (16_000, 1), (8_000, 2)])
def test_counts_what_a_decoder_gives(rate_hz: int, channels: int, mode: str) -> None:
    data = mp3(rate_hz, channels, mode)
    assert count(data) == decoded_samples(data) == SAMPLES


def test_frames_without_the_tag_of_an_encoder() -> None:
    data = mp3()[TAG_BYTES:]
    assert count(data) == decoded_samples(data) > SAMPLES


def test_frames_that_are_a_byte_longer() -> None:
    data = 10 * (STEREO + LONGER)
    assert count(data) == decoded_samples(data) == 20 * 1152


@pytest.mark.parametrize(("delay", "padding"), [(0, 0), (576, 300), (576, 529), (1105, 1000), (0, 2000)])
def test_what_the_encoder_calls_delay_and_padding_is_left_out(delay: int, padding: int) -> None:
    data = with_delay_and_padding(mp3(), delay, padding)
    assert count(data) == decoded_samples(data)


def test_tags_at_both_ends_are_no_frames() -> None:
    data = b"ID3\x04\0\0" + bytes([0, 0, 1, 2]) + bytes(130) + mp3() + b"TAG" + bytes(125)
    assert count(data) == decoded_samples(data) == SAMPLES


def test_wrong_bytes_within_frames_change_no_count() -> None:
    data, rng = bytearray(mp3()), random.Random(0)
    for _ in range(30):
        at = rng.randrange(TAG_BYTES, len(data))
        if data[at] != 0xFF and 0xFF not in data[at - 3 : at]:  # which may be a head
            data[at] = rng.randrange(0xFF)
    assert count(bytes(data)) == decoded_samples(bytes(data)) == SAMPLES


@pytest.mark.parametrize(
    "data",
    [
        mp3()[:-1],
        mp3() + bytes(3),
        bytes(100) + mp3(),
        mp3()[:10_000] + b"garbage" + mp3()[10_000:],
        mp3() + mp3(mode="VARIABLE"),
        with_frames(mp3(), 1),
        with_frames(mp3(), -1),
        20 * STEREO + MONO,
        20 * CHECKED,
        b"",
        b"ID3",
        mp3()[:40],
    ],
    ids=[
        *("cut", "longer", "late", "gap", "two songs", "fewer than its tag says", "more than its tag says"),
        *("stereo and mono", "checksums", "nothing", "half an ID3 tag", "half an encoder's tag"),
    ],
)
def test_no_count_where_frames_do_not_follow_each_other(data: bytes) -> None:
    assert count(data) is None
