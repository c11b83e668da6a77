"""Headers that count fewer samples than a file holds: read whole, or refused by name, never half a song."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.audio.audio_io import open_audio, read
from serving.audio.chunks import W64_GUID_END, sound_chunk
from serving.audio.file_section import FileSection
from serving.audio.flac import counts_too_few
from serving.errors import AudioError
from tests.encoders import by_ffmpeg, by_soundfile, encode, song

pytestmark = pytest.mark.slow

SONG = song()
SAMPLES = SONG.shape[1]


def flac_counting(samples: int, data: bytes) -> bytes:
    facts = int.from_bytes(data[18:26], "big")
    return data[:18] + (facts >> 36 << 36 | samples).to_bytes(8, "big") + data[26:]


def with_number(data: bytes, at: int, number: int, form: str) -> bytes:
    return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]


@pytest.mark.parametrize("counted", [1, SAMPLES // 2, SAMPLES - 4_096, SAMPLES - 1])
def test_a_flac_is_read_to_its_last_frame(counted: int, tmp_path: Path) -> None:
    whole = by_soundfile(SONG, "FLAC")
    path = tmp_path / "song.flac"
    path.write_bytes(flac_counting(counted, whole))
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(read(source)[0], read(whole)[0])


@pytest.mark.parametrize("more", [b"TAG" + bytes(125), bytes(50_000)], ids=["ID3v1", "zeros"])
def test_a_flac_with_something_behind(more: bytes) -> None:
    whole = by_soundfile(SONG, "FLAC")
    try:
        samples = read(flac_counting(SAMPLES // 2, whole) + more)[0].shape[1]
    except AudioError as error:
        assert "is damaged" in str(error)
    else:
        assert samples == SAMPLES


@pytest.mark.parametrize(
    ("rate_hz", "channels", "subtype"),
    [(44_100, 2, "PCM_16"), (96_000, 1, "PCM_24"), (12_345, 2, "PCM_16"), (8_000, 6, "PCM_16")],
)
@pytest.mark.parametrize("samples", [1, 100, 4_096, 50_000])
def test_the_count_of_a_whole_flac_is_believed(
    rate_hz: int, channels: int, subtype: str, samples: int, tmp_path: Path
) -> None:
    path = tmp_path / "song.flac"
    path.write_bytes(by_soundfile(song(channels, samples / rate_hz + 1e-9, rate_hz), "FLAC", subtype, rate_hz))
    with path.open("rb") as file:
        assert not counts_too_few(FileSection.whole(file))
    path.write_bytes(flac_counting(max(1, samples - 1), path.read_bytes()))
    with path.open("rb") as file:
        assert counts_too_few(FileSection.whole(file)) == (samples > 1)


def half(audio_format: str) -> bytes:
    """A song whose header counts half of its samples, though all are there."""
    data = by_soundfile(SONG, audio_format)
    match audio_format:
        case "WAV":
            return with_number(data, data.index(b"data") + 4, 2 * SAMPLES, "<I")
        case "RF64":
            return with_number(data, data.index(b"ds64") + 16, 2 * SAMPLES, "<Q")
        case "W64":
            return with_number(data, data.index(b"data") + 16, 2 * SAMPLES + 24, "<Q")
        case "AIFF":
            return with_number(data, data.index(b"SSND") + 4, 2 * SAMPLES + 8, ">I")
        case "CAF":
            return with_number(data, data.index(b"data") + 4, 2 * SAMPLES + 4, ">Q")
    return with_number(data, 8, 2 * SAMPLES, ">I")  # AU


@pytest.mark.parametrize("audio_format", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU"])
def test_samples_that_the_header_does_not_count_are_refused_by_name(audio_format: str, tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    path.write_bytes(half(audio_format))
    message = r"^song.wav has 1\.5 s by its header, and 1\.5 s more behind them: save it again as FLAC"
    with pytest.raises(AudioError, match=message) as caught:
        read(path)
    assert caught.value.status == 422


def chunk(name: bytes, body: bytes, order: str = "<") -> bytes:
    return name + struct.pack(f"{order}I", len(body)) + body + bytes(len(body) % 2)


@pytest.mark.parametrize("audio_format", ["WAV", "AIFF", "W64"])
def test_chunks_behind_the_samples_are_no_samples(audio_format: str) -> None:
    whole = by_soundfile(SONG, audio_format)
    noise = np.random.default_rng(0).bytes(700_001)
    behind = {
        "WAV": chunk(b"LIST", noise) + chunk(b"id3 ", noise[:99]),
        "AIFF": chunk(b"ANNO", noise, ">") + chunk(b"ID3 ", noise[:99], ">"),
        "W64": b"mark" + W64_GUID_END + struct.pack("<Q", 24 + 400_000) + noise[:400_000],
    }[audio_format]
    np.testing.assert_array_equal(read(whole + behind)[0], read(whole)[0])


def test_chunks_without_alignment() -> None:
    audio = song(1, 1.0)
    whole = by_soundfile(audio[:, :-1], "WAV", "PCM_U8")[:-1]  # without the byte that aligns
    np.testing.assert_array_equal(
        read(whole + b"LIST" + struct.pack("<I", 40_000) + b"\x7f" * 40_000)[0], read(whole)[0]
    )


def test_a_second_chunk_of_samples_is_not_passed_over() -> None:
    whole = by_soundfile(SONG, "WAV")
    with pytest.raises(AudioError, match=r"has 3\.0 s by its header, and 3\.0 s more"):
        read(whole + whole[36:])


@pytest.mark.parametrize("audio_format", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU"])
def test_a_second_song_is_not_passed_over(audio_format: str) -> None:
    with pytest.raises(AudioError, match=r"has 3\.0 s by its header, and 3\.0 s more"):
        read(2 * by_soundfile(SONG, audio_format))


@pytest.mark.parametrize(
    ("container", "codec", "more"),
    [
        ("ipod", "aac", {}),
        ("asf", "wmav2", {"bit_rate": 128_000}),
        ("flv", "aac", {}),
        ("tta", "tta", {"sample_format": "s16"}),
        ("wv", "wavpack", {"sample_format": "s16p"}),
    ],
)
def test_a_second_song_in_other_containers(container: str, codec: str, more: dict[str, Any]) -> None:
    data = encode(SONG, container, codec, **more)
    with pytest.raises(AudioError, match=r"^the audio is joined of several files: send them one by one") as caught:
        read(data + encode(song(seconds=1, seed=1), container, codec, **more))
    assert caught.value.status == 422
    assert read(data)[0].shape[1] > 0.9 * SAMPLES


def test_a_little_junk_is_passed_over() -> None:
    whole = by_soundfile(SONG, "WAV")
    np.testing.assert_array_equal(read(whole + b"\xff" * 20_000)[0], read(whole)[0])


def test_the_chunk_of_samples(tmp_path: Path) -> None:
    path = tmp_path / "song"
    for audio_format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU"):
        path.write_bytes(by_soundfile(SONG, audio_format))
        with path.open("rb") as file:
            found = sound_chunk(FileSection.whole(file))
        size = 0 if found is None else found.stop - found.start
        assert size - 4 * SAMPLES in (0, 4, 8), audio_format
        assert found is not None
        assert found.left_over == 0


def test_containers_that_ffmpeg_reads_to_their_end() -> None:
    mp3 = encode(SONG, "mp3", "mp3")
    xing = mp3.index(b"Xing" if b"Xing" in mp3 else b"Info") + 8
    m4a = encode(SONG, "ipod", "aac")
    wv = encode(SONG, "wv", "wavpack", sample_format="s16p")
    cases = {
        "MP3, Xing": with_number(mp3, xing, int.from_bytes(mp3[xing : xing + 4], "big") // 2, ">I"),
        "M4A, mvhd": with_number(m4a, m4a.index(b"mvhd") + 20, 1_500, ">I"),
        "M4A, mdhd": with_number(m4a, m4a.index(b"mdhd") + 20, SAMPLES // 2, ">I"),
        "M4A, tkhd": with_number(m4a, m4a.index(b"tkhd") + 24, 1_500, ">I"),
        "WavPack": with_number(wv, 12, SAMPLES // 2, "<I"),
    }
    for name, data in cases.items():
        audio, _ = read(data)
        np.testing.assert_array_equal(audio, by_ffmpeg(data), err_msg=name)
        assert audio.shape[1] >= SAMPLES, name


def test_an_edit_list_cuts_as_its_author_meant() -> None:
    data = encode(SONG, "ipod", "aac")
    with open_audio(with_number(data, data.index(b"elst") + 12, 1_500, ">I")) as opened:
        assert opened.info.samples == pytest.approx(SAMPLES / 2, abs=1_100)
