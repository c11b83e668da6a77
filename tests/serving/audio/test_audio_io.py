"""Songs through libsndfile, whole and damaged; bounds; writing. Other formats are in test_formats.py."""

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serving.audio import Audio, audio_io
from serving.audio.audio_io import AudioInfo, open_audio, read, write
from serving.audio.decoding import Decoding
from serving.errors import AudioError, AudioTooLong, UnsupportedAudio

pytestmark = pytest.mark.slow

SAMPLES = 70_001  # more than one block of 65,536

# Format, subtype, rate, and the error that the encoding may bring: half a step of the quantiser, more where it is lossy.
FORMATS = [
    ("WAV", "PCM_U8", 44_100, 1 / 127),
    ("WAV", "PCM_16", 44_100, 2**-15),
    ("WAV", "PCM_24", 8_000, 2**-23),
    ("WAV", "PCM_32", 96_000, 1e-7),
    ("WAV", "FLOAT", 44_100, 0),
    ("WAV", "DOUBLE", 44_100, 0),
    ("WAVEX", "PCM_24", 44_100, 2**-23),
    ("RF64", "PCM_16", 44_100, 2**-15),
    ("FLAC", "PCM_16", 44_100, 2**-15),
    ("FLAC", "PCM_24", 44_100, 2**-23),
    ("AIFF", "PCM_16", 44_100, 2**-15),
    ("OGG", "VORBIS", 44_100, 0.1),
    ("OGG", "OPUS", 48_000, 0.1),
    ("MP3", "MPEG_LAYER_III", 44_100, 0.1),
]


def song(channels: int = 2, samples: int = SAMPLES, rate_hz: int = 44_100) -> Audio:
    """Audio (c, n): another tone in each channel."""
    time_s = np.arange(samples) / rate_hz
    return np.stack([0.5 * np.sin(2 * np.pi * 220 * (c + 1) * time_s) for c in range(channels)]).astype(np.float32)


def encoded(audio: Audio, rate_hz: int = 44_100, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio.T, rate_hz, format=format, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("format", "subtype", "rate_hz", "error"), FORMATS)
def test_reads_every_format(
    format: str, subtype: str, rate_hz: int, error: float, channels: int, tmp_path: Path
) -> None:
    audio = song(channels, rate_hz=rate_hz)
    data = encoded(audio, rate_hz, format, subtype)
    path = tmp_path / "song.raw"  # the name says nothing
    path.write_bytes(data)
    for source in (data, bytearray(data), path):
        with open_audio(source) as opened:
            blocks = list(opened.blocks(4_096))
        assert opened.info == AudioInfo(rate_hz, channels, SAMPLES, format, "MP3" if format == "MP3" else subtype)
        assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
        # Lossy codecs smear the ends.
        inner = slice(2_000, -2_000) if error == 0.1 else slice(None)
        got = np.concatenate(blocks, axis=-1)
        assert got.shape == audio.shape
        np.testing.assert_allclose(got[:, inner], audio[:, inner], atol=error, rtol=0)


@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_of_any_size_hold_the_same_samples(channels: int) -> None:
    # Noise, because a decoder that loses its place in a tone may find the same tone again.
    noise = (0.1 * np.random.default_rng(0).standard_normal((channels, SAMPLES))).astype(np.float32)
    with open_audio(encoded(noise, format="MP3")) as opened:
        whole = np.concatenate(list(opened.blocks()), axis=-1)
        cut = np.concatenate(list(opened.blocks(1_000)), axis=-1)
    assert np.array_equal(whole, cut)


def test_an_mp3_without_a_length_is_read_to_its_end() -> None:
    # The bit rate of one half is no guide to the length of the other.
    loud = np.random.default_rng(0).uniform(-1, 1, (2, 3 * 44_100)).astype(np.float32)
    quiet = np.zeros_like(loud)
    for halves in ([loud, quiet], [quiet, loud]):
        file = io.BytesIO()
        whole = np.concatenate(halves, axis=-1)
        soundfile.write(file, whole.T, 44_100, format="MP3", bitrate_mode="VARIABLE")
        data = file.getvalue()
        data = data[data.index(b"\xff\xfb", 4) :]  # without the first frame, which is the encoder's tag
        with open_audio(data) as opened:
            # Whole frames of 1,152 samples, and the encoder's delay.
            assert 0 <= opened.info.samples - whole.shape[-1] <= 3 * 1_152
            assert sum(block.shape[-1] for block in opened.blocks()) == opened.info.samples


def test_one_sample() -> None:
    audio, rate_hz = read(encoded(song(samples=1)))
    assert audio.shape == (2, 1)
    assert rate_hz == 44_100


@pytest.mark.parametrize(
    "data",
    [b"", b"these are no samples\n" * 500, b"PK\x03\x04" + bytes(500), bytes(5_000), b"RIFF\x24\0\0\0WAVE"],
    ids=["nothing", "text", "zip", "zeros", "wav without anything"],
)
def test_bytes_that_are_no_audio(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    path.write_bytes(data)
    with pytest.raises(UnsupportedAudio, match=r"^song.wav is no audio"), open_audio(path):
        pass
    with pytest.raises(UnsupportedAudio, match=r"^the audio is no audio"), open_audio(data):
        pass


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="is not a file"), open_audio(tmp_path / "song.wav"):
        pass


@pytest.mark.parametrize(
    ("audio", "rate_hz", "message"),
    [
        (song(samples=0), 44_100, "has no samples"),
        (song(channels=9), 44_100, "has 9 channels"),
        (song(), 999, "has 999 Hz"),
        (song(), 384_001, "has 384001 Hz"),
        (np.where(np.arange(SAMPLES) == SAMPLES - 1, np.nan, song()), 44_100, "not finite"),
        (np.where(np.arange(SAMPLES) == 0, np.inf, song()), 44_100, "not finite"),
    ],
)
def test_audio_that_cannot_be_separated(audio: Audio, rate_hz: int, message: str) -> None:
    with pytest.raises(AudioError, match=message) as caught, open_audio(encoded(audio, rate_hz, subtype="FLOAT")):
        pass
    assert caught.value.status == 422


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_a_hole_in_the_middle(format: str, subtype: str) -> None:
    noise = (0.1 * np.random.default_rng(0).standard_normal((2, 480_000))).astype(np.float32)
    data = encoded(noise, 48_000, format, subtype)
    hole = data[: len(data) // 2] + bytes(2_000) + data[len(data) // 2 + 2_000 :]
    with pytest.raises(AudioError, match=r"is damaged|breaks off") as caught, open_audio(hole):
        pass
    assert caught.value.status == 422


def test_a_flac_that_breaks_off() -> None:
    data = encoded(song(), format="FLAC")
    with pytest.raises(AudioError, match=r"breaks off after 0\.\d of 1\.6 s: send"), open_audio(data[: len(data) // 2]):
        pass


def test_a_wav_with_no_true_length_is_what_is_there() -> None:
    data = bytearray(encoded(song(channels=1)))
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    with open_audio(data, max_duration_s=2) as opened:
        assert opened.info.samples == SAMPLES


def test_a_flac_with_no_length_is_read_to_its_end() -> None:
    data = bytearray(encoded(song(), format="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with open_audio(data) as opened:
        assert opened.info.samples == SAMPLES


def test_the_limit_counts_samples_and_not_the_header() -> None:
    data = encoded(song(samples=44_100))
    with open_audio(data, max_duration_s=1) as opened:
        assert opened.info.samples == 44_100
    data = encoded(song(samples=44_101))
    with pytest.raises(AudioTooLong, match="longer than 1 s") as caught, open_audio(data, max_duration_s=1):
        pass
    assert caught.value.status == 413


@pytest.mark.parametrize("format", ["FLAC", "MP3"])
def test_the_bound_is_of_samples_times_channels(format: str) -> None:
    data = encoded(song(channels=2, samples=44_100), format=format)
    with open_audio(data, max_samples=88_200) as opened:
        assert opened.info.samples == 44_100
    message = r"has more than 88,199 samples in 2 channels: send it in parts"
    with pytest.raises(AudioTooLong, match=message) as caught, open_audio(data, max_samples=88_199):
        pass
    assert caught.value.status == 413


def test_decoding_stops_at_the_limit() -> None:
    # Ten minutes of silence are a few kilobytes; the damage at the end is never reached.
    bomb = bytearray(encoded(np.zeros((1, 600 * 8_000), np.float32), 8_000, "FLAC"))
    bomb[-3_000:] = bytes(3_000)
    with pytest.raises(AudioTooLong), open_audio(bomb, max_duration_s=60):
        pass
    with pytest.raises(AudioError, match=r"is damaged|breaks off"), open_audio(bomb):
        pass


LONG_RATE_HZ = 8_000
LONG_S = 60


@pytest.fixture
def long_from_2_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Songs of more than two seconds count as long."""
    monkeypatch.setattr(audio_io, "LONG_S", 2)
    monkeypatch.setattr(audio_io, "BEGINNING_S", 1)


def long_song(format: str, subtype: str | None = None) -> bytes:
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, LONG_S * LONG_RATE_HZ)).astype(np.float32)
    return encoded(noise, LONG_RATE_HZ, format, subtype)


@pytest.mark.usefixtures("long_from_2_s")
@pytest.mark.parametrize("format", ["WAV", "RF64", "AIFF", "FLAC", "MP3"])
def test_of_a_long_song_whose_samples_can_be_counted_the_beginning_is_decoded_before(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read_samples, sound = long_song(format), [], audio_io.sound

    def watched(decoding: Decoding, name: str) -> Iterator[Audio]:
        for block in sound(decoding, name):
            read_samples.append(block.shape[-1])
            yield block

    monkeypatch.setattr(audio_io, "sound", watched)
    with open_audio(data) as opened:
        assert opened.info.samples == LONG_S * LONG_RATE_HZ
        assert sum(read_samples) < 10 * LONG_RATE_HZ
        assert sum(block.shape[-1] for block in opened.blocks()) == LONG_S * LONG_RATE_HZ


@pytest.mark.usefixtures("long_from_2_s")
@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("MP3", None)])
def test_a_long_song_whose_samples_cannot_is_decoded_to_its_end_before(format: str, subtype: str | None) -> None:
    data = long_song(format, subtype) + bytes(100)  # which is no frame of an MP3
    with open_audio(data) as opened:
        assert opened.info.samples == sum(block.shape[-1] for block in opened.blocks())
    with suppress(AudioError), open_audio(data[: len(data) // 2]) as opened:
        assert opened.info.samples < 0.6 * LONG_S * LONG_RATE_HZ


@pytest.mark.usefixtures("long_from_2_s")
def test_what_is_wrong_with_the_rest_of_a_long_song_is_found_when_it_is_read() -> None:
    data = long_song("FLAC")
    half = len(data) // 2
    for wrong in (data[:half], data[:half] + bytes(20_000) + data[half + 20_000 :]):
        with open_audio(wrong) as opened:
            assert opened.info.samples == LONG_S * LONG_RATE_HZ
            with pytest.raises(AudioError, match=r"is damaged|breaks off"):
                list(opened.blocks())


@pytest.mark.usefixtures("long_from_2_s")
def test_samples_late_in_a_long_song_that_are_not_finite() -> None:
    audio = song(channels=1, samples=LONG_S * LONG_RATE_HZ, rate_hz=LONG_RATE_HZ)
    audio[0, -10] = np.nan
    with open_audio(encoded(audio, LONG_RATE_HZ, "WAV", "FLOAT")) as opened, pytest.raises(AudioError, match="finite"):
        list(opened.blocks())


@pytest.mark.usefixtures("long_from_2_s")
def test_a_long_wav_that_breaks_off_is_what_is_there() -> None:
    data = long_song("WAV", "PCM_16")
    with open_audio(data[: len(data) // 2]) as opened:
        assert opened.info.samples == LONG_S * LONG_RATE_HZ // 2 - 11  # a quarter of the head's 44 bytes
        assert sum(block.shape[-1] for block in opened.blocks()) == opened.info.samples


@pytest.mark.usefixtures("long_from_2_s")
def test_a_long_song_is_held_to_the_limit_by_its_own_count() -> None:
    with pytest.raises(AudioTooLong), open_audio(long_song("FLAC"), max_duration_s=LONG_S - 1):
        pass


@pytest.mark.parametrize(
    ("name", "subtype", "error"), [("a.wav", None, 2**-15), ("a.flac", "PCM_24", 2**-23), ("a.wav", "FLOAT", 0)]
)
def test_write_and_read_again(name: str, subtype: str | None, error: float, tmp_path: Path) -> None:
    write(tmp_path / name, song(), 44_100, subtype)
    audio, rate_hz = read(tmp_path / name)
    np.testing.assert_allclose(audio, song(), atol=error, rtol=0)
    assert rate_hz == 44_100
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_write_clips_instead_of_wrapping_around(tmp_path: Path) -> None:
    write(tmp_path / "loud.wav", 4 * song(), 44_100)
    audio, _ = read(tmp_path / "loud.wav")
    np.testing.assert_allclose(audio, np.clip(4 * song(), -1, 1), atol=2**-14)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "song.flac"
    write(path, song(), 44_100)
    before = path.read_bytes()
    with pytest.raises(soundfile.LibsndfileError):
        write(path, song(channels=9), 44_100)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
