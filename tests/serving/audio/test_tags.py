"""Tags around songs: a song of any container is the same song with them, or refused as it would be without them."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.audio.audio_io import open_audio, read
from serving.audio.file_section import FileSection
from serving.audio.tags import untagged
from serving.errors import AudioError, UnsupportedAudio
from tests.encoders import by_soundfile, encode, song

pytestmark = pytest.mark.slow

SONG = song(seconds=1)


def id3(art_bytes: int, title: bytes = b"Song") -> bytes:
    frames = b"TIT2" + struct.pack(">I", len(title) + 1) + b"\0\0\0" + title
    frames += b"APIC" + struct.pack(">I", art_bytes + 14) + b"\0\0" + b"\0image/jpeg\0\x03\0" + bytes(art_bytes)
    size = len(frames)
    return b"ID3\x03\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + frames


def id3_behind(art_bytes: int) -> bytes:
    """ID3v2.4 with a footer."""
    tag = id3(art_bytes)
    head = b"\x04\0\x10" + tag[6:10]
    return b"ID3" + head + tag[10:] + b"3DI" + head


def ape() -> bytes:
    items = struct.pack("<II", 4, 0) + b"Title\0Song" + struct.pack("<II", 90_000, 2) + b"Cover Art (Front)\0"
    items += bytes(90_000)
    head, foot = (
        struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(items) + 32, 2, flags) for flags in (0xA << 28, 0x8 << 28)
    )
    return head + items + foot


def lyrics() -> bytes:
    text = b"LYRICSBEGININD0000200LYR00020la la la la la la la"
    return text + b"%06d" % len(text) + b"LYRICS200"


ID3V1 = b"TAG" + b"Song".ljust(125, b"\0")
LYRICS_1 = b"LYRICSBEGINla la la" + b"LYRICSEND"
AROUND = {
    "ID3": (id3(0), ID3V1),
    "large ID3": (id3(2_000_000), ape() + ID3V1),
    "two ID3": (id3(60_000) + id3(70_000), id3_behind(60_000)),
    "APE and ID3": (ape() + id3(60_000), lyrics() + ID3V1),
    "APE": (ape(), LYRICS_1 + ID3V1),
    "nothing": (b"", ape()),
}
"""In front and behind."""
CONTAINERS: dict[str, Any] = {
    "WAV": lambda: by_soundfile(SONG, "WAV"),
    "RF64": lambda: by_soundfile(SONG, "RF64"),
    "W64": lambda: by_soundfile(SONG, "W64"),
    "AIFF": lambda: by_soundfile(SONG, "AIFF"),
    "CAF": lambda: by_soundfile(SONG, "CAF"),
    "AU": lambda: by_soundfile(SONG, "AU"),
    "FLAC": lambda: by_soundfile(SONG, "FLAC"),
    "Ogg": lambda: by_soundfile(SONG, "OGG", "VORBIS"),
    "Opus": lambda: by_soundfile(song(seconds=1, rate_hz=48_000), "OGG", "OPUS", 48_000),
    "FLAC in Ogg": lambda: encode(SONG, "ogg", "flac"),
    "M4A": lambda: encode(SONG, "ipod", "aac"),
    "MKV": lambda: encode(SONG, "matroska", "aac"),
    "WMA": lambda: encode(SONG, "asf", "wmav2", bit_rate=128_000),
    "AVI": lambda: encode(SONG, "avi", "mp3"),
    "FLV": lambda: encode(SONG, "flv", "aac"),
    "TTA": lambda: encode(SONG, "tta", "tta", sample_format="s16"),
    "WavPack": lambda: encode(SONG, "wv", "wavpack", sample_format="s16p"),
    "AC-3": lambda: encode(SONG, "ac3", "ac3"),
    "ADTS": lambda: encode(SONG, "adts", "aac"),
    "MPEG-TS": lambda: encode(SONG, "mpegts", "aac"),
    "LOAS": lambda: encode(SONG, "latm", "aac"),
    "VOC": lambda: encode(SONG, "voc", "pcm_s16le"),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_song_between_tags_is_the_same_song(container: str) -> None:
    bare = CONTAINERS[container]()
    with open_audio(bare) as opened:
        alone, info = np.concatenate(list(opened.blocks()), axis=1), opened.info
    for name, (front, behind) in AROUND.items():
        with open_audio(front + bare + behind) as opened:
            audio = np.concatenate(list(opened.blocks()), axis=1)
        assert (opened.info.format, opened.info.subtype, opened.info.note) == (info.format, info.subtype, info.note), (
            name
        )
        np.testing.assert_array_equal(audio, alone, err_msg=name)


def test_from_a_path(tmp_path: Path) -> None:
    path, bare = tmp_path / "song.wav", CONTAINERS["WAV"]()
    path.write_bytes(id3(60_000) + bare + ID3V1)
    np.testing.assert_array_equal(read(path)[0], read(bare)[0])


@pytest.mark.parametrize("container", ["FLAC", "Ogg", "M4A", "MKV", "WavPack"])
def test_a_song_that_is_cut_off_behind_a_tag(container: str) -> None:
    bare = CONTAINERS[container]()
    for tag in (id3(60_000), id3(2_000_000)):
        with pytest.raises(AudioError, match="breaks off") as caught:
            read(tag + bare[: len(bare) // 2])
        assert caught.value.status == 422


def test_a_title_in_a_tag_behind_a_wavpack() -> None:
    with open_audio(CONTAINERS["WavPack"]() + ape()) as opened:
        assert opened.info.tags == {"title": "Song"}


@pytest.mark.parametrize(
    "behind", [id3(60_000), bytes(3_000), bytes(100_000)], ids=["ID3 without a footer", "3 kB", "100 kB"]
)
@pytest.mark.parametrize("container", ["WAV", "AIFF", "CAF", "AU", "WavPack"])
def test_what_else_stands_behind(container: str, behind: bytes) -> None:
    bare = CONTAINERS[container]()
    np.testing.assert_array_equal(read(bare + behind)[0], read(bare)[0])


@pytest.mark.parametrize("data", [id3(60_000), id3(0) + b"no song" * 99, id3(60_000)[:-100], ape() + ID3V1, b"ID3"])
def test_tags_without_a_song(data: bytes) -> None:
    with pytest.raises(UnsupportedAudio, match="is no audio"):
        read(data)


def test_a_size_beyond_the_end_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tag"
    path.write_bytes(id3(60_000)[:-100])
    with path.open("rb") as file:
        whole = FileSection.whole(file)
        assert untagged(whole) is whole
