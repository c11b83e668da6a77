"""FFmpeg's decoders, run in a process of their own, for MP3 and for what libsndfile does not read.

Axes: c channel, n sample.
"""

import importlib.util
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from socket import SocketIO
from typing import BinaryIO

import numpy as np

from serving.audio import Audio, content, ogg
from serving.audio.decoding import UNPROVEN, Decoding, broken_off, damaged
from serving.audio.tags import song_file
from serving.errors import AudioError, StemwrightError, UnsupportedAudio

PROCESS = "serving.audio.decoder_process"
SCAN, DECODE = b"s", b"d"  # same constant as there, which needs PyAV to import


@contextmanager
def decoder(source: bytes | bytearray | Path, name: str, scan: bool = False) -> Iterator[Decoding]:
    """Open a song with FFmpeg. With `scan` all packets are checked first, which tells whether the song is whole.

    Raises UnsupportedAudio for an unknown format or if PyAV is not installed; AudioError for a song that is cut off, has no
    samples, or crashes FFmpeg.
    """
    links = []
    if scan:
        with song_file(source) as song:
            links = ogg.links(song, name)
    with asked(source, name, SCAN if scan else DECODE) as messages:
        facts = json.loads(messages.next())
        if "refused" in facts:
            with song_file(source) as song:
                head = song.read_at(0, content.HEAD_BYTES)
            raise refusal(name, facts["refused"], 0.0, head)
        if facts["reached_s"] is not None:
            raise broken_off(name, facts["reached_s"], facts["promised_s"])
        rate_hz, codec = facts["rate_hz"], facts["codec"]
        yield Decoding(
            rate_hz,
            facts["channels"],
            codec.upper(),
            facts["subtype"],
            blocks(messages, name, rate_hz, facts["channels"]),
            counted_samples=facts["samples"],
            note=UNPROVEN if facts["is_unproven"] else ogg.note(links),
            tags=facts["tags"],
        )


def blocks(messages: "Messages", name: str, rate_hz: int, channels: int) -> Iterator[Audio]:
    samples = 0
    while block := messages.next():
        audio = np.frombuffer(block, np.float32).reshape(channels, -1)
        samples += audio.shape[-1]
        yield audio
    reason = json.loads(messages.next())["refused"]
    if reason:
        raise refusal(name, reason, samples / rate_hz)


def refusal(name: str, reason: str, seconds: float, head: bytes = b"") -> AudioError:
    """The error for a reason of the decoder process. `head` is the beginning of the file."""
    match reason:
        case "no audio":
            return UnsupportedAudio(content.refusal(name, head))
        case "no sound: video":
            return UnsupportedAudio(f"{name} holds video but no sound: send a file with a sound track")
        case "no sound: image":
            return UnsupportedAudio(f"{name} holds an image but no sound: send the song itself")
        case "no sound: subtitles":
            return UnsupportedAudio(f"{name} holds subtitles but no sound: send a file with a sound track")
        case "no sound: data":
            return UnsupportedAudio(f"{name} holds no sound: send a file with a sound track")
        case "no codec":
            return UnsupportedAudio(f"{name} is encrypted or in a codec that FFmpeg does not know: send WAV or FLAC")
        case "no index":
            return AudioError(
                f"{name} breaks off before its index, without which it has no samples: send the whole file again"
            )
        case "joined":
            return AudioError(f"{name} is joined of several files: send them one by one")
        case "no samples":
            return AudioError(f"{name} has no samples that can be decoded: send a whole file")
        case "changes":
            return AudioError(
                f"{name} changes its sample rate or channels after {seconds:.1f} s: send its parts one by one"
            )
    return damaged(name, seconds)


class Messages:
    """The messages of the decoder process about one song."""

    def __init__(self, file: "io.BufferedReader[SocketIO]", name: str) -> None:
        self._file = file
        self._name = name

    def next(self) -> bytes:
        """The next message. Raises AudioError if the process ended too early."""
        try:
            head = self._file.read(4)
            size = struct.unpack("<I", head)[0] if len(head) == 4 else None
            message = b"" if size is None else self._file.read(size)
        except ConnectionError:
            size, message = None, b""
        if size is None or len(message) < size:
            if process().has_ended():
                raise StemwrightError("FFmpeg's libraries do not work here: install the package av again")
            raise AudioError(f"{self._name} brings FFmpeg's code down, or takes it too long: send WAV or FLAC")
        return message


@contextmanager
def asked(source: bytes | bytearray | Path, name: str, request: bytes) -> Iterator[Messages]:
    """Send a request for a song to the process; gives its answer, and stops the decoding at the end of the block."""
    if importlib.util.find_spec("av") is None:
        raise UnsupportedAudio(
            f"{name} is no WAV, FLAC, Ogg or AIFF, and the package av, which reads the rest, is not installed: pip install av"
        )
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, as_file(source) as file:
            if process().has_ended():
                process.cache_clear()
            socket.send_fds(process().door, [request], [file.fileno(), theirs.fileno()])
        with io.BufferedReader(ours.makefile("rb", buffering=0), 1 << 18) as answer:
            yield Messages(answer, name)


class Process:
    """The decoder process, and the socket that takes requests. It ends when the socket is closed."""

    def __init__(self) -> None:
        self.door, theirs = socket.socketpair()
        folders = [str(Path(folder).absolute()) for folder in sys.path]
        with theirs:
            # Of this environment, which may hold credentials, only the location of packages is passed on.
            self.child = subprocess.Popen(
                [sys.executable, "-P", "-m", PROCESS],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": os.pathsep.join(folders), "OPENBLAS_NUM_THREADS": "1"},
            )

    def has_ended(self) -> bool:
        """True if the other end of the socket is closed."""
        try:
            return not self.door.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


@cache
def process() -> Process:
    """The one decoder process. It starts with the first song and stays, because a start costs more than most songs."""
    return Process()


def as_file(source: bytes | bytearray | Path) -> BinaryIO:
    """A source as a file with its own descriptor."""
    if isinstance(source, Path):
        return source.open("rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(source)
    file.flush()
    return file
