"""Files as people have them: every kind is read to the sample, or refused by name. PyAV encodes the inputs."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.audio.audio_io import AudioInfo, open_audio, read
from serving.audio.encoding import Encoding
from serving.errors import AudioError
from tests.encoders import by_ffmpeg, by_soundfile, encode, song

pytestmark = pytest.mark.slow


def info_of(data: bytes) -> AudioInfo:
    """The song's facts, after it was read to its end."""
    with open_audio(data) as opened:
        assert sum(block.shape[-1] for block in opened.blocks()) == opened.info.samples
        return opened.info


VECTORS = Path(__file__).parents[2] / "vectors" / "songs"
SONG = song()
SONG_S = 3.0
MP3 = encode(SONG, "mp3", "mp3")

# Container, codec, what else the encoder needs, and what the song is called in its facts.
KINDS: list[tuple[str, str, dict[str, Any], tuple[str, str]]] = [
    ("mp3", "mp3", {}, ("MP3", "MP3")),
    ("mp2", "mp2", {}, ("MP2", "MP2")),
    ("wav", "mp3", {}, ("MP3", "MP3")),
    ("adts", "aac", {}, ("AAC", "AAC")),
    ("ipod", "aac", {}, ("AAC", "AAC")),
    ("mov", "aac", {}, ("AAC", "AAC")),
    ("mp4", "alac", {"sample_format": "s16p"}, ("ALAC", "PCM_16")),
    ("mp4", "alac", {"sample_format": "s32p"}, ("ALAC", "PCM_24")),
    ("caf", "alac", {"sample_format": "s32p"}, ("ALAC", "PCM_24")),
    ("caf", "pcm_s16be", {}, ("CAF", "PCM_16")),
    ("mp4", "aac", {"options": {"movflags": "frag_keyframe+empty_moov"}}, ("AAC", "AAC")),
    ("webm", "libopus", {"rate_hz": 48_000}, ("OPUS", "OPUS")),
    ("matroska", "flac", {"sample_format": "s32"}, ("FLAC", "PCM_24")),
    ("matroska", "ac3", {}, ("AC3", "AC3")),
    ("asf", "wmav2", {"bit_rate": 128_000}, ("WMAV2", "WMAV2")),
    ("tta", "tta", {"sample_format": "s16"}, ("TTA", "PCM_16")),
    ("tta", "tta", {"sample_format": "s32"}, ("TTA", "PCM_24")),
    ("wv", "wavpack", {"sample_format": "s16p"}, ("WAVPACK", "PCM_16")),
    ("wv", "wavpack", {"sample_format": "fltp"}, ("WAVPACK", "FLOAT")),
    ("ac3", "ac3", {}, ("AC3", "AC3")),
    ("eac3", "eac3", {}, ("EAC3", "EAC3")),
    ("aiff", "pcm_s24be", {}, ("AIFF", "PCM_24")),
    ("aiff", "pcm_mulaw", {}, ("AIFF", "ULAW")),
    ("w64", "pcm_s16le", {}, ("W64", "PCM_16")),
    ("au", "pcm_s16be", {}, ("AU", "PCM_16")),
    ("ogg", "libopus", {"rate_hz": 48_000}, ("OGG", "OPUS")),
    ("ogg", "flac", {}, ("FLAC", "PCM_16")),
    ("flv", "aac", {}, ("AAC", "AAC")),
    ("avi", "mp3", {}, ("MP3", "MP3")),
    ("mpegts", "aac", {}, ("AAC", "AAC")),
    ("latm", "aac", {}, ("AAC_LATM", "AAC_LATM")),
    ("nut", "aac", {}, ("AAC", "AAC")),
    ("wav", "adpcm_ms", {}, ("WAV", "MS_ADPCM")),
    ("wav", "pcm_alaw", {}, ("WAV", "ALAW")),
    ("wav", "pcm_f64le", {}, ("WAV", "DOUBLE")),
    ("f4v", "aac", {}, ("AAC", "AAC")),
]
ENDLESS = {"mpegts", "latm"}
"""Containers in which nothing tells their end."""
NAMES = [f"{codec} in {container} {more.get('sample_format', '')}" for container, codec, more, _ in KINDS]


@pytest.mark.parametrize(("container", "codec", "more", "names"), KINDS, ids=NAMES)
def test_every_kind_is_read_as_ffmpeg_decodes_it(
    container: str, codec: str, more: dict[str, Any], names: tuple[str, str]
) -> None:
    rate_hz = more.get("rate_hz", 44_100)
    data = encode(SONG, container, codec, **more)
    with open_audio(data) as opened:
        audio = np.concatenate(list(opened.blocks()), axis=1)
    info = opened.info
    assert (info.format, info.subtype, info.rate_hz, info.channels) == (*names, rate_hz, 2)
    assert (info.note is None) == (container not in ENDLESS)
    expected = by_ffmpeg(data)
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio, expected, atol=1e-6)
    assert abs(audio.shape[1] - SONG.shape[1]) < 5_000


def test_six_channels_in_the_order_of_wav() -> None:
    audio, _ = read(encode(song(6), "ac3", "ac3", 48_000, bit_rate=448_000))
    tones = [np.abs(np.fft.rfft(channel[4_000:52_000])).argmax() for channel in audio]
    expected = [round(220 * (c + 1) * 48_000 / 44_100) for c in range(6)]
    # The low channel is cut by AC-3 above 120 Hz: no tone is left of it.
    assert [tone for c, tone in enumerate(tones) if c != 3] == pytest.approx(
        [tone for c, tone in enumerate(expected) if c != 3], abs=1
    )


class TestMp3:
    """As FFmpeg decodes it, to the sample."""

    ART = b"APIC" + struct.pack(">I", 300_000) + b"\0\0" + b"\0image/jpeg\0\x03\0" + b"\xff\xd8" + bytes(299_984)

    def id3(self, frames: bytes, version: int = 3) -> bytes:
        size = len(frames)
        if version == 4 and frames:
            frames = frames[:4] + self.synchsafe(int.from_bytes(frames[4:8], "big")) + frames[8:]
        return b"ID3" + bytes([version, 0, 0]) + self.synchsafe(size) + frames

    def with_footer(self, tag: bytes) -> bytes:
        return tag[:5] + b"\x10" + tag[6:] + b"3DI" + tag[3:5] + b"\x10" + tag[6:10]

    def unsynchronised(self, frames: bytes) -> bytes:
        body = frames.replace(b"\xff", b"\xff\0")
        return b"ID3\x03\0\x80" + self.synchsafe(len(body)) + body

    def ape(self) -> bytes:
        items = (
            struct.pack("<II", 4, 0)
            + b"Title\0Song"
            + struct.pack("<II", 90_000, 2)
            + b"Cover Art (Front)\0"
            + bytes(90_000)
        )
        head, foot = (
            struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(items) + 32, 2, flags) for flags in (0xA << 28, 0x8 << 28)
        )
        return head + items + foot

    def synchsafe(self, size: int) -> bytes:
        return bytes(size >> shift & 127 for shift in (21, 14, 7, 0))

    def cases(self) -> dict[str, bytes]:
        bare = encode(SONG, "mp3", "mp3", options={"write_xing": "0", "id3v2_version": "0"})
        short = encode(song(seconds=1, seed=1), "mp3", "mp3", options={"id3v2_version": "0"})
        junk = np.random.default_rng(0).integers(0, 128, 4_000).astype(np.uint8).tobytes()
        tag = MP3.index(b"Xing" if b"Xing" in MP3 else b"Info") + 8
        frames = int.from_bytes(MP3[tag : tag + 4], "big")

        def with_frames(count: int) -> bytes:
            return MP3[:tag] + count.to_bytes(4, "big") + MP3[tag + 4 :]

        return {
            "cover art, ID3v2.3": self.id3(self.ART) + bare,
            "cover art, ID3v2.4": self.id3(self.ART, 4) + MP3,
            "two ID3 tags": self.id3(self.ART) + self.id3(self.ART) + bare,
            "junk before": junk + bare,
            "zeros before": bytes(5_000) + MP3,
            "junk between": bare[: len(bare) // 2] + junk + bare[len(bare) // 2 :],
            "joined": MP3 + short,
            "joined, no tags": bare + short,
            "no Xing tag": bare,
            "Xing tag counts more": with_frames(2 * frames),
            "Xing tag counts fewer": with_frames(frames // 2),
            "Xing tag counts none": with_frames(0),
            "ID3v1": MP3 + b"TAG" + bytes(125),
            "ID3v2.4 with a footer": self.with_footer(self.id3(self.ART, 4)) + bare,
            "ID3v2.3, unsynchronised": self.unsynchronised(self.ART) + MP3,
            "APEv2 behind": MP3 + self.ape(),
            "APEv2 before": self.ape() + bare,
            "zeros after": bare + bytes(3_000),
            "variable bit rate": encode(SONG, "mp3", "mp3", options={"write_xing": "1"}, bit_rate=64_000),
        }

    def test_as_ffmpeg_decodes_it(self) -> None:
        for name, data in self.cases().items():
            audio, _ = read(data)
            expected = by_ffmpeg(data)
            assert audio.shape == expected.shape, name
            np.testing.assert_array_equal(audio, expected, err_msg=name)
            assert audio.shape[1] > 0.9 * SONG.shape[1], name

    def test_tags(self) -> None:
        data = encode(SONG, "mp3", "mp3", tags={"title": "Träume", "artist": "A", "track": "3", "genre": "Pop"})
        assert info_of(data).tags == {"title": "Träume", "artist": "A", "tracknumber": "3", "genre": "Pop"}


class TestChainedOgg:
    """All links, where rate and channels agree."""

    def vorbis(self, seed: int, **facts: int) -> tuple[np.ndarray, bytes]:
        rate_hz = facts.get("rate_hz", 44_100)
        audio = song(facts.get("channels", 2), 1.3, rate_hz, seed)
        return audio, by_soundfile(audio, "OGG", "VORBIS", rate_hz)

    @pytest.mark.parametrize(("subtype", "rate_hz"), [("VORBIS", 44_100), ("OPUS", 48_000)])
    def test_all_links(self, subtype: str, rate_hz: int) -> None:
        links = [by_soundfile(song(2, 1.3, rate_hz, seed), "OGG", subtype, rate_hz) for seed in range(3)]
        alone = np.concatenate([read(link)[0] for link in links], axis=1)
        for source in (b"".join(links), bytearray(b"".join(links))):
            np.testing.assert_array_equal(read(source)[0], alone)
        assert info_of(b"".join(links)).note is None

    @pytest.mark.parametrize("other", [{"rate_hz": 48_000}, {"channels": 1}])
    def test_links_that_differ(self, other: dict[str, int]) -> None:
        data = self.vorbis(0)[1] + self.vorbis(1, **other)[1]
        with pytest.raises(
            AudioError, match="chained of songs that differ in sample rate or channels: send them one by"
        ):
            read(data)

    def test_a_chain_that_is_cut(self) -> None:
        data = self.vorbis(0)[1] + self.vorbis(1)[1][:-3_000]
        with pytest.raises(AudioError, match=r"breaks off after 2\.\d s: send the whole file again"):
            read(data)


class TestHeadsOfPipes:
    """Sizes that a program never came back to write, or that are not the song's alone."""

    def test_a_wav_whose_recorder_never_wrote_the_size(self) -> None:
        whole = by_soundfile(SONG, "WAV", "PCM_16")
        for riff_size in (whole[4:8], bytes(4)):
            data = whole[:4] + riff_size + whole[8:40] + bytes(4) + whole[44:]
            np.testing.assert_array_equal(read(data)[0], read(whole)[0])
            assert "may be cut off" in str(info_of(data).note)

    def test_a_caf_in_a_pipe(self) -> None:
        whole = by_soundfile(SONG, "CAF", "PCM_24")
        at = whole.index(b"data") + 4
        np.testing.assert_array_equal(read(whole[:at] + b"\xff" * 8 + whole[at + 8 :])[0], read(whole)[0])

    def test_an_avi_in_a_pipe(self) -> None:
        whole = encode(SONG, "avi", "mp3")
        np.testing.assert_array_equal(read(whole[:4] + b"\xff" * 4 + whole[8:])[0], read(whole)[0])

    def test_a_flac_without_a_count(self) -> None:
        whole = by_soundfile(SONG, "FLAC")
        counted = int.from_bytes(whole[21:26], "big")
        data = whole[:21] + (counted >> 36 << 36).to_bytes(5, "big") + whole[26:]
        np.testing.assert_array_equal(read(data)[0], read(whole)[0])
        with pytest.raises(AudioError, match="is damaged after"):
            read(data[: len(data) // 2])


class TestFlac:
    """A FLAC ends with its last frame: a tag behind it is no part of the song, another FLAC is one song too many."""

    @pytest.mark.parametrize("behind", [b"TAG" + bytes(125), bytes(100_000)], ids=["ID3v1", "zeros"])
    @pytest.mark.parametrize("seconds", [0.01, 3.0])
    def test_tags_and_zeros(self, behind: bytes, seconds: float, tmp_path: Path) -> None:
        whole = by_soundfile(song(seconds=seconds), "FLAC")
        path = tmp_path / "song.flac"
        path.write_bytes(whole + behind)
        for source in (whole + behind, path):
            np.testing.assert_array_equal(read(source)[0], read(whole)[0])

    @pytest.mark.parametrize("seconds", [0.01, 3.0])
    def test_another_song_is_not_passed_over(self, seconds: float, tmp_path: Path) -> None:
        path = tmp_path / "songs.flac"
        path.write_bytes(2 * by_soundfile(song(seconds=seconds), "FLAC"))
        for source in (path.read_bytes(), path):
            with pytest.raises(AudioError, match="joined of several FLAC files: send them one by one"):
                read(source)


def test_real_audio_and_voc() -> None:
    for container, codec, audio, rate_hz in (
        ("rm", "real_144", song(1, rate_hz=8_000), 8_000),
        ("voc", "pcm_s16le", SONG, 44_100),
    ):
        data = encode(audio, container, codec, rate_hz)
        np.testing.assert_allclose(read(data)[0], by_ffmpeg(data), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "samples", "subtype"),
    [
        ("tone.thd", 36_000, "PCM_24"),
        ("tone.mlp", 36_000, "PCM_16"),
        ("tone.dts", 5_120, "DTS"),
        ("tone.spx", 8_000, "SPEEX"),
    ],
)
def test_what_pyav_only_reads(name: str, samples: int, subtype: str) -> None:
    data = (VECTORS / name).read_bytes()
    audio, rate_hz = read(data)
    np.testing.assert_array_equal(audio, by_ffmpeg(data))
    assert audio.shape[1] == samples
    assert np.abs(np.fft.rfft(audio[0])).argmax() * rate_hz / samples == pytest.approx(440, abs=rate_hz / samples)
    assert info_of(data).subtype == subtype


def test_gsm_ends_with_the_song() -> None:
    data = by_soundfile(song(1, 0.5, 8_000), "WAV", "GSM610", 8_000)
    audio, _ = read(data)
    np.testing.assert_array_equal(audio, by_ffmpeg(data))
    assert np.abs(audio).max() < 0.8


@pytest.mark.parametrize("codec", ["dts", "ac3"])
def test_surround_sound_that_passes_for_samples(codec: str) -> None:
    """DTS on a CD, AC-3 on S/PDIF: read as samples they are noise at full scale."""
    data = (
        (VECTORS / "tone.dts").read_bytes() if codec == "dts" else encode(song(rate_hz=48_000), "spdif", "ac3", 48_000)
    )
    wav = by_soundfile(np.frombuffer(data, "<i2").reshape(-1, 2).T, "WAV", "PCM_16", 48_000)
    assert info_of(wav).subtype == codec.upper()
    assert np.abs(read(wav)[0]).max() < 0.7


def front_index(tmp_path: Path) -> bytes:
    return encode(SONG, "mp4", "aac", options={"movflags": "faststart"}, path=tmp_path / "song.m4a")


class TestCutOff:
    """Never half a song."""

    CONTAINERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("mp3", "mp3", {}),
        ("asf", "wmav2", {"bit_rate": 128_000}),
        ("webm", "libopus", {"rate_hz": 48_000}),
        ("webm", "vorbis", {}),
        ("matroska", "aac", {}),
        ("matroska", "flac", {}),
        ("flac", "flac", {}),
        ("tta", "tta", {"sample_format": "s32"}),
        ("wv", "wavpack", {"sample_format": "s16p"}),
        ("mp4", "aac", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("wav", "mp3", {}),
        ("flv", "aac", {}),
    )

    @pytest.mark.parametrize(("container", "codec", "more"), CONTAINERS, ids=[f"{c} {k}" for c, k, _ in CONTAINERS])
    def test_a_container_that_says_how_long_it_is(self, container: str, codec: str, more: dict[str, Any]) -> None:
        data = encode(SONG, container, codec, **more)
        for share in (0.4, 0.7, 0.85):
            with pytest.raises(AudioError, match=r"^the audio breaks off after \d\.\d of [23]\.\d s: send") as caught:
                read(data[: int(share * len(data))])
            assert caught.value.status == 422

    def test_an_mp4_with_the_index_in_front(self, tmp_path: Path) -> None:
        data = front_index(tmp_path)
        for share in (0.4, 0.6, 0.85, 0.99):
            with pytest.raises(AudioError, match=r"breaks off after \d\.\d of 3\.0 s"):
                read(data[: int(share * len(data))])

    @pytest.mark.parametrize("container", ["ipod", "mov", "caf"])
    def test_an_index_at_the_end(self, container: str) -> None:
        data = encode(SONG, container, "alac", sample_format="s16p")
        with pytest.raises(AudioError, match="breaks off before its index") as caught:
            read(data[: len(data) // 2])
        assert caught.value.status == 422

    @pytest.mark.parametrize(("subtype", "rate_hz"), [("VORBIS", 44_100), ("OPUS", 48_000)])
    def test_an_ogg_that_ends_inside_a_page(self, subtype: str, rate_hz: int) -> None:
        data = by_soundfile(song(rate_hz=rate_hz), "OGG", subtype, rate_hz)
        for cut in (data[:-1], data[: data.rindex(b"OggS") + 10], data[: len(data) // 2]):
            with pytest.raises(AudioError, match=r"breaks off after \d\.\d s: send") as caught:
                read(cut)
            assert caught.value.status == 422

    def test_a_whole_file_is_whole_whatever_its_codec(self, tmp_path: Path) -> None:
        for container, codec, more in self.CONTAINERS:
            assert info_of(encode(SONG, container, codec, **more)).note is None
        assert info_of(front_index(tmp_path)).note is None


class TestEndsThatProveNothing:
    """Read, and noted."""

    @pytest.mark.parametrize(
        ("container", "codec", "options"),
        [("mp3", "mp3", {"write_xing": "0"}), ("adts", "aac", {}), ("ac3", "ac3", {}), ("mp2", "mp2", {})],
    )
    def test_a_stream_that_ends_inside_a_frame(self, container: str, codec: str, options: dict[str, str]) -> None:
        data = encode(SONG, container, codec, options=options)
        assert info_of(data).note is None
        assert "may be cut off" in str(info_of(data[:-100]).note)

    def test_an_ogg_without_the_flag_of_an_end(self) -> None:
        data = by_soundfile(SONG, "OGG", "VORBIS")
        cut = data[: data.rindex(b"OggS")]
        assert info_of(data).note is None
        info = info_of(cut)
        assert "its last page does not say that the song ends there" in str(info.note)
        assert 0.5 * SONG.shape[1] < info.samples < SONG.shape[1]

    def test_a_recording_of_a_browser(self) -> None:
        data = encode(song(rate_hz=48_000), "webm", "libopus", 48_000, options={"live": "1"})
        assert "may be cut off" in str(info_of(data).note)

    @pytest.mark.parametrize("audio_format", ["WAV", "AIFF", "W64", "RF64", "AU"])
    def test_a_header_that_promises_more(self, audio_format: str) -> None:
        data = by_soundfile(SONG, audio_format, "PCM_16")
        assert info_of(data).note is None
        info = info_of(data[: len(data) // 2])
        assert info.note == "it is shorter than its header says"
        assert info.samples == pytest.approx(SONG.shape[1] / 2, abs=50)

    def test_the_header_of_a_pipe_promises_nothing(self) -> None:
        data = bytearray(by_soundfile(SONG, "WAV", "PCM_16"))
        data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
        flac = by_soundfile(SONG, "FLAC")
        uncounted = flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]
        for source in (bytes(data), uncounted, by_soundfile(SONG, "IRCAM", "PCM_16")):
            assert "may be cut off" in str(info_of(source).note)

    @pytest.mark.parametrize(
        ("container", "codec", "rate_hz"),
        [("mpegts", "aac", 44_100), ("mpegts", "libopus", 48_000), ("latm", "aac", 44_100), ("mpeg", "mp2", 44_100)],
    )
    def test_a_broadcast_is_cut_anywhere(self, container: str, codec: str, rate_hz: int) -> None:
        data = encode(song(rate_hz=rate_hz), container, codec, rate_hz)
        for stop in (len(data) // 376 * 188, len(data) // 2, int(0.9 * len(data)), len(data) - 1, len(data)):
            info = info_of(data[:stop])
            assert "may be cut off" in str(info.note)
            assert info.samples / rate_hz == pytest.approx(3.0 * stop / len(data), abs=0.3)

    def test_an_avi_of_a_pipe(self) -> None:
        data = encode(SONG, "avi", "mp3")
        assert "may be cut off" in str(info_of(data[:4] + b"\xff" * 4 + data[8:]).note)


class TestBitDepth:
    """Stems of the song's own."""

    @pytest.mark.parametrize(
        ("container", "codec", "sample_format", "subtype"),
        [
            ("mp4", "alac", "s32p", "PCM_24"),
            ("tta", "tta", "s32", "PCM_24"),
            ("wv", "wavpack", "s32p", "PCM_24"),
            ("wv", "wavpack", "fltp", "FLOAT"),
            ("mp4", "alac", "s16p", "PCM_16"),
            ("ipod", "aac", "fltp", "PCM_16"),
        ],
    )
    def test_stems(self, container: str, codec: str, sample_format: str, subtype: str) -> None:
        info = info_of(encode(SONG, container, codec, sample_format=sample_format))
        assert Encoding.like(info, "wav").subtype == subtype

    def test_24_bits_are_read_to_the_last(self) -> None:
        quiet = (SONG * 2**-10).astype(np.float32)
        for container, codec, sample_format in (("mp4", "alac", "s32p"), ("tta", "tta", "s32")):
            audio, _ = read(encode(quiet, container, codec, sample_format=sample_format))
            np.testing.assert_allclose(audio, quiet, atol=2**-23)

    def test_floats_over_full_scale(self) -> None:
        audio, _ = read(encode(5 * SONG, "wv", "wavpack", sample_format="fltp"))
        np.testing.assert_array_equal(audio, 5 * SONG)
