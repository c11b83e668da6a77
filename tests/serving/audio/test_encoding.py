"""Files that are sent while they are encoded, as soundfile reads them again: nothing lost, nothing added, all said."""

import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serving.audio import Audio
from serving.audio.audio_io import AudioInfo, open_audio, read
from serving.audio.encoding import AudioFormat, Encoding, StemFile, format_chunk, wav_header
from serving.errors import RequestError

pytestmark = pytest.mark.slow

TAGS = {"title": "Jóga", "artist": "Björk", "album": "Homogenic", "date": "1997", "genre": "Pop", "comment": "odd"}
LOSSLESS: list[tuple[AudioFormat, str, float]] = [
    ("wav", "PCM_16", 2**-15),
    ("wav", "PCM_24", 2**-22),
    ("wav", "PCM_32", 2**-22),
    ("wav", "FLOAT", 0),
    ("flac", "PCM_16", 2**-15),
    ("flac", "PCM_24", 2**-22),
]


def tones(channels: int, samples: int, rate_hz: int = 44_100) -> Audio:
    """Audio (c, n): another tone in each channel."""
    time_s = np.arange(samples) / rate_hz
    return np.stack([0.4 * np.sin(2 * np.pi * 300 * (c + 1) * time_s) for c in range(channels)]).astype(np.float32)


def encoded(audio: Audio, encoding: Encoding, block_samples: int = 10_007) -> bytes:
    with StemFile(encoding) as file:
        blocks = (audio[:, start : start + block_samples] for start in range(0, audio.shape[1], block_samples))
        return b"".join([*(file.write(block) for block in blocks), file.finish()])


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize(("audio_format", "subtype", "error"), LOSSLESS)
def test_lossless_formats_keep_every_channel(
    audio_format: AudioFormat, subtype: str, error: float, channels: int
) -> None:
    audio = tones(channels, 20_001)
    data = encoded(audio, Encoding(audio_format, subtype, 44_100, channels, 20_001))
    back, rate_hz = read(data)
    assert rate_hz == 44_100
    np.testing.assert_allclose(back, audio, rtol=0, atol=error)


@pytest.mark.parametrize("samples", [1, 575, 577, 1_151, 1_153, 50_001])
@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_keeps_its_length(channels: int, rate_hz: int, samples: int) -> None:
    audio = tones(channels, samples, rate_hz)
    encoding = Encoding("mp3", "MPEG_LAYER_III", rate_hz, channels, samples, TAGS)
    # By libsndfile: FFmpeg reads 530 samples where there is one at a low rate.
    frames, back_rate_hz = soundfile.read(io.BytesIO(encoded(audio, encoding)), dtype="float32", always_2d=True)
    back = frames.T
    assert (back.shape, back_rate_hz) == (audio.shape, rate_hz)
    inner = slice(500, -500)  # the codec smears what begins and ends at once, and turns low rates down by 5 %
    np.testing.assert_allclose(back[:, inner], audio[:, inner], rtol=0, atol=0.03)


@pytest.mark.parametrize("samples", [1, 1_000, 50_001])
@pytest.mark.parametrize("channels", range(1, 9))
def test_an_ogg_keeps_its_length_and_the_order_of_its_channels(channels: int, samples: int) -> None:
    audio = tones(channels, samples)
    back, rate_hz = read(encoded(audio, Encoding("ogg", "VORBIS", 44_100, channels, samples)))
    assert (back.shape, rate_hz) == (audio.shape, 44_100)
    if samples > 4_000:
        correlation = np.diag(np.corrcoef(back[:, 2_000:-2_000], audio[:, 2_000:-2_000])[:channels, channels:])
        low_effects = [3] if channels >= 6 else []  # which lose their treble
        assert np.delete(correlation, low_effects).min() > 0.99


def test_an_ogg_has_vorbis_order_inside() -> None:
    # Left, centre, right, the two behind, low effects: Vorbis I, 4.3.9.
    audio = tones(6, 44_100)
    data = encoded(audio, Encoding("ogg", "VORBIS", 44_100, 6, 44_100))
    inside, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    loudest_hz = np.abs(np.fft.rfft(inside[:, :5], axis=0)).argmax(axis=0)
    assert list(loudest_hz) == [300, 900, 600, 1_500, 1_800]


def test_a_large_block_is_as_good_as_small_ones() -> None:
    audio, encoding = tones(8, 1_500_000), Encoding("ogg", "VORBIS", 44_100, 8, 1_500_000)
    assert read(encoded(audio, encoding, 1_500_000))[0].shape == audio.shape


@pytest.mark.parametrize(
    ("audio_format", "subtype"),
    [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_24"), ("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")],
)
def test_tags_go_along(audio_format: AudioFormat, subtype: str) -> None:
    audio = tones(2, 30_001)
    plain = Encoding(audio_format, subtype, 44_100, 2, 30_001)
    with open_audio(encoded(audio, replace(plain, tags=TAGS))) as song:
        assert song.info.samples == 30_001
        assert song.info.tags == TAGS
    with open_audio(encoded(audio, plain)) as song:
        assert song.info.tags == {}


def test_a_wav_of_many_channels_names_their_speakers() -> None:
    form = format_chunk(Encoding("wav", "PCM_24", 48_000, 6, 1))
    assert struct.unpack_from("<HHIIHHHHI", form, 8) == (0xFFFE, 6, 48_000, 864_000, 18, 24, 22, 24, 0x3F)
    data = encoded(tones(6, 10), Encoding("wav", "PCM_24", 48_000, 6, 10))
    assert soundfile.info(io.BytesIO(data)).format == "WAVEX"


def test_a_wav_beyond_4_gib_is_an_rf64(tmp_path: Path) -> None:
    encoding = Encoding("wav", "PCM_16", 44_100, 2, 2**30 + 5)
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        header = wav_header(encoding)
        file.write(header)
        file.truncate(len(header) + encoding.samples * 4)  # sparse: takes no space
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.frames) == ("RF64", "PCM_16", encoding.samples)
    just_small_enough = replace(encoding, samples=(2**32 - 1 - 36) // 4)
    assert wav_header(just_small_enough)[:4] == b"RIFF"
    assert wav_header(replace(encoding, samples=just_small_enough.samples + 1))[:4] == b"RF64"


@pytest.mark.parametrize(
    ("of_the_song", "wav", "flac"),
    [
        ("PCM_U8", "PCM_16", "PCM_16"),
        ("PCM_16", "PCM_16", "PCM_16"),
        ("PCM_24", "PCM_24", "PCM_24"),
        ("PCM_32", "PCM_32", "PCM_24"),
        ("FLOAT", "FLOAT", "PCM_24"),
        ("DOUBLE", "FLOAT", "PCM_24"),
        ("VORBIS", "PCM_16", "PCM_16"),
        ("MPEG_LAYER_III", "PCM_16", "PCM_16"),
        ("FFMPEG", "PCM_16", "PCM_16"),
    ],
)
def test_stems_keep_the_bit_depth_of_the_song(of_the_song: str, wav: str, flac: str) -> None:
    info = AudioInfo(48_000, 1, 123, "any", of_the_song, TAGS)
    assert Encoding.like(info, "wav") == Encoding("wav", wav, 48_000, 1, 123, TAGS)
    assert Encoding.like(info, "flac") == Encoding("flac", flac, 48_000, 1, 123, TAGS)
    assert Encoding.like(info, "mp3") == Encoding("mp3", "MPEG_LAYER_III", 48_000, 1, 123, TAGS)
    assert Encoding.like(info, "ogg") == Encoding("ogg", "VORBIS", 48_000, 1, 123, TAGS)


@pytest.mark.parametrize(
    ("audio_format", "bit_depth", "subtype"),
    [("wav", "16", "PCM_16"), ("wav", "24", "PCM_24"), ("wav", "float", "FLOAT"), ("flac", "24", "PCM_24")],
)
def test_another_bit_depth_can_be_asked_for(audio_format: AudioFormat, bit_depth: str, subtype: str) -> None:
    info = AudioInfo(48_000, 1, 123, "WAV", "PCM_32")
    assert Encoding.like(info, audio_format, bit_depth).subtype == subtype


@pytest.mark.parametrize(("audio_format", "bit_depth"), [("flac", "float"), ("mp3", "16"), ("ogg", "24"), ("wav", "7")])
def test_a_bit_depth_that_there_is_not(audio_format: AudioFormat, bit_depth: str) -> None:
    with pytest.raises(RequestError, match=f"{audio_format} has no bit depth {bit_depth}"):
        Encoding.like(AudioInfo(48_000, 1, 123, "WAV", "PCM_16"), audio_format, bit_depth)


@pytest.mark.parametrize(
    ("audio_format", "subtype"), [("mp3", "PCM_16"), ("flac", "FLOAT"), ("wav", "PCM_U8"), ("midi", "PCM_16")]
)
def test_a_form_that_there_is_not(audio_format: AudioFormat, subtype: str) -> None:
    with pytest.raises(RequestError, match=f"there is no {audio_format} of {subtype}"):
        Encoding(audio_format, subtype, 44_100, 2, 10)


@pytest.mark.parametrize(("rate_hz", "channels"), [(96_000, 2), (44_100, 6)])
def test_what_an_mp3_cannot_hold(rate_hz: int, channels: int) -> None:
    with pytest.raises(RequestError, match=f"mp3 cannot hold {channels} channels at {rate_hz} Hz: ask for wav or flac"):
        StemFile(Encoding("mp3", "MPEG_LAYER_III", rate_hz, channels, 10))
