"""FFmpeg's code in a process of its own: what it may not do, and what becomes of a song that brings it down."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from serving.audio import ffmpeg
from serving.audio.audio_io import open_audio, read
from serving.audio.decoder_process import MEMORY_BYTES
from serving.errors import AudioError, StemwrightError, UnsupportedAudio
from tests.encoders import encode, song

pytestmark = pytest.mark.slow

M4A = encode(song(seconds=1), "ipod", "aac")


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    """A decoder process of the test's own."""
    ffmpeg.process.cache_clear()
    yield psutil.Process(ffmpeg.process().child.pid)
    ffmpeg.process.cache_clear()


def run(code: str, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=check)


CONFINED = """
import socket, sys
import serving.audio.decoder_process as decoder
kept = open(sys.argv[1], "rb")
decoder.confine()
def allowed(work):
    try:
        work()
    except (OSError, MemoryError):
        return False
    return True
print(
    allowed(kept.read),
    allowed(lambda: open(sys.argv[1], "rb")),
    allowed(lambda: open(sys.argv[1] + ".new", "wb")),
    allowed(lambda: socket.create_connection(("127.0.0.1", 1))),
    allowed(socket.socketpair),
    allowed(lambda: bytearray(decoder.MEMORY_BYTES)),
    allowed(lambda: bytearray(decoder.MEMORY_BYTES // 4)),
)
"""


def test_it_reads_its_input_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "song").write_bytes(b"song")
    done = run(CONFINED, tmp_path / "song")
    assert done.stdout.split() == ["True", "False", "False", "False", "False", "False", "True"]


def test_a_playlist_reads_no_file_of_the_server(tmp_path: Path) -> None:
    secret = tmp_path / "secret.aac"
    secret.write_bytes(encode(song(seconds=1), "adts", "aac"))
    hostile = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\na=control:file://{secret}\n",
        f'<?xml version="1.0"?><MPD><Period><AdaptationSet><BaseURL>file://{secret}</BaseURL></AdaptationSet></Period></MPD>',
    ]
    for text in hostile:
        with pytest.raises(UnsupportedAudio):
            read(text.encode())


def test_it_knows_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    ffmpeg.process.cache_clear()
    read(M4A)
    environment = psutil.Process(ffmpeg.process().child.pid).environ()
    assert "PYTHONPATH" in environment
    assert "hush" not in environment.values()


def test_a_crash_is_one_answer_and_the_next_song_is_read(process: psutil.Process, tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    path.write_bytes(encode(song(seconds=15), "ipod", "aac"))
    with open_audio(path) as opened:
        blocks = opened.blocks()
        next(blocks)
        (fork,) = process.children()
        fork.send_signal(signal.SIGSEGV)
        with pytest.raises(
            AudioError, match=r"^song.m4a brings FFmpeg's code down, or takes it too long: send"
        ) as caught:
            list(blocks)
    assert caught.value.status == 422
    assert process.is_running()
    assert read(M4A)[1] == 44_100


def test_a_process_that_was_killed_is_started_again(process: psutil.Process) -> None:
    process.kill()
    ffmpeg.process().child.wait()
    assert read(M4A)[1] == 44_100
    assert ffmpeg.process().child.pid != process.pid


HANGS = """
import socket, sys, time
import serving.audio.decoder_process as decoder
decoder.SILENCE_S = 1
ours, theirs = socket.socketpair()
answer = decoder.Outgoing(theirs)
if sys.argv[1] == "reader is slow":
    import threading
    def drain():
        time.sleep(1.5)
        while ours.recv(1 << 20):
            pass
    threading.Thread(target=drain, daemon=True).start()
    answer.send(bytes(50_000_000))
    print("sent")
    sys.exit()
while True:
    pass
"""


def test_a_hang_is_ended_and_a_slow_reader_is_not() -> None:
    assert run(HANGS, "hangs", check=False).returncode == -signal.SIGALRM
    assert run(HANGS, "reader is slow").stdout == "sent\n"


def test_a_song_that_is_not_read_to_its_end_ends_its_fork(process: psutil.Process) -> None:
    with open_audio(encode(song(seconds=15), "ipod", "aac")) as opened:
        blocks = opened.blocks()
        next(blocks)
        assert process.children()
        blocks.close()  # type: ignore[attr-defined]
        for _ in range(100):
            if not process.children():
                break
            time.sleep(0.05)
        assert not process.children()


DECODES = """
import sys, time
from pathlib import Path
from serving.audio import ffmpeg
from serving.audio.audio_io import read
read(Path(sys.argv[1]))
print(ffmpeg.process().child.pid, flush=True)
if len(sys.argv) > 2:
    time.sleep(60)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_it_ends_with_the_process_that_started_it(killed: bool, tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    path.write_bytes(M4A)
    command = [sys.executable, "-c", DECODES, str(path), *(["stay"] if killed else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        if killed:
            started.kill()
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the decoder process stayed")


def test_without_pyav_what_libsndfile_reads_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for suffix in ("wav", "flac", "ogg"):
        soundfile.write(tmp_path / f"song.{suffix}", song().T, 44_100)
        assert read(tmp_path / f"song.{suffix}")[0].shape == song().shape
    with pytest.raises(
        UnsupportedAudio, match="the package av, which reads the rest, is not installed: pip install av"
    ):
        read(M4A)


def test_pyav_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "__init__.py").write_text("raise ImportError('no libavcodec')")
    monkeypatch.syspath_prepend(tmp_path)
    ffmpeg.process.cache_clear()
    with pytest.raises(StemwrightError, match="FFmpeg's libraries do not work here: install the package av again"):
        read(M4A)
    ffmpeg.process.cache_clear()


def test_random_damage_harms_nobody_else(process: psutil.Process) -> None:
    rng = np.random.default_rng(0)
    sound = song(seconds=1)
    kinds = [("mp3", "mp3"), ("ipod", "aac"), ("webm", "vorbis"), ("wv", "wavpack"), ("tta", "tta"), ("asf", "wmav2")]
    for container, codec in kinds:
        whole = encode(sound, container, codec, bit_rate=128_000 if container == "asf" else None)
        for _ in range(6):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 20):
                data[at] = rng.integers(0, 256)
            try:
                audio, _ = read(data)
            except AudioError as error:
                assert error.status in (413, 415, 422)
            else:
                assert audio.shape[0] <= 8
    assert process.is_running()
    assert read(M4A)[1] == 44_100


def test_the_process_stays_small(process: psutil.Process) -> None:
    read(M4A)
    assert process.memory_info().rss < 150e6 < MEMORY_BYTES
