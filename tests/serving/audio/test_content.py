"""Files without sound are told what they are."""

import io
import tarfile
import zipfile
from fractions import Fraction

import av
import numpy as np
import pytest

from serving.audio.audio_io import read
from serving.errors import UnsupportedAudio
from tests.encoders import encode, song

pytestmark = pytest.mark.slow


def film(container: str, codec: str = "mpeg4", frames: int = 20) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=10, width=64, height=48, pix_fmt="yuv420p")
        stream.time_base = Fraction(1, 10)
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, np.uint8), format="rgb24")
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return file.getvalue()


def picture(codec: str) -> bytes:
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.time_base = 64, 48, Fraction(1)
    context.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "rgb24")
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24").reformat(format=context.pix_fmt)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("song.mp3", b"song")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        out.addfile(tarfile.TarInfo("song.mp3"))
    return file.getvalue()


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "mpegts", "asf", "flv"])
def test_a_film_without_sound(container: str) -> None:
    with pytest.raises(
        UnsupportedAudio, match=r"^the audio holds video but no sound: send a file with a sound track"
    ) as caught:
        read(film(container, "flv" if container == "flv" else "mpeg4"))
    assert caught.value.status == 415


def test_a_picture_in_a_container_of_films() -> None:
    with pytest.raises(UnsupportedAudio, match="holds an image but no sound: send the song itself"):
        read(film("mp4", frames=1))


ASS_HEADER = b"[Script Info]\nScriptType: v4.00+\n"
SUBTITLES = "1\n00:00:01,000 --> 00:00:02,000\nla la la\n"
CUE = 'PERFORMER "X"\nTITLE "Y"\nFILE "song.wav" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n'
OTHERS = [
    (b"", "is no audio, it is empty: send the whole file"),
    (b"#EXTM3U\n#EXTINF:3,x\nsong.mp3\n", "a playlist: send the songs that it names"),
    (b"[playlist]\nFile1=song.mp3\n", "a playlist"),
    (b'<?xml version="1.0"?><playlist xmlns="http://xspf.org/ns/0/"/>', "a playlist"),
    (CUE.encode(), "a cue sheet: send the song that it names"),
    (CUE.replace("\n", "\r\n").encode(), "a cue sheet"),
    (SUBTITLES.encode(), "a file of subtitles: send the song itself"),
    (b"\xef\xbb\xbf" + SUBTITLES.encode(), "a file of subtitles"),
    (b"WEBVTT\n\n00:01.000 --> 00:02.000\nla\n", "a file of subtitles"),
    (b"\n<!DOCTYPE html><html>not found</html>", "a web page: download the song itself"),
    (b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0", "MIDI, which has notes but no sound"),
    (b"%PDF-1.7\n" + bytes(99), "a document: send the song itself"),
    (b"\x1f\x8b\x08" + bytes(99), "a compressed file: unpack it and send the song in it"),
    (zipped(), "an archive of files: unpack it and send the songs in it"),
    (tarred(), "an archive of files"),
    (picture("mjpeg"), "an image: send the song itself"),
    (picture("png"), "an image"),
    (picture("gif"), "an image"),
    (b"the words of a song\n" * 50, "a text: send the song itself"),
    (b"abc", "it ends after 3 bytes: send the whole file"),
    (bytes(5_000), "is no audio: send WAV, FLAC, Ogg, MP3"),
]


@pytest.mark.parametrize(("data", "message"), OTHERS, ids=[message[:24] for _, message in OTHERS])
def test_what_else_people_send(data: bytes, message: str) -> None:
    with pytest.raises(UnsupportedAudio, match=f"^the audio is no audio.*{message}|^the audio {message}") as caught:
        read(data)
    assert caught.value.status == 415


def with_subtitles(sound: bytes, container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        texts = out.add_stream(codec)
        texts.codec_context.subtitle_header = ASS_HEADER
        if sound:
            with av.open(io.BytesIO(sound)) as source:
                stream = out.add_stream_from_template(source.streams.audio[0])
                for packet in source.demux(source.streams.audio[0]):
                    if packet.dts is not None:
                        packet.stream = stream
                        out.mux(packet)
        line = av.Packet(b"la la la" if codec == "subrip" else b"\0\x08la la la")
        line.stream, line.pts, line.dts, line.duration, line.time_base = texts, 0, 0, 500, Fraction(1, 1000)
        out.mux(line)
    return file.getvalue()


@pytest.mark.parametrize(("container", "codec"), [("matroska", "subrip"), ("mp4", "mov_text")])
def test_subtitles(container: str, codec: str) -> None:
    sound = encode(song(seconds=1), container, "aac")
    np.testing.assert_array_equal(read(with_subtitles(sound, container, codec))[0], read(sound)[0])
    with pytest.raises(UnsupportedAudio, match="holds subtitles but no sound: send a file with a sound track"):
        read(with_subtitles(b"", container, codec))
