"""The process in which FFmpeg's code decodes strangers' bytes: python -m serving.audio.decoder_process, with a socket as stdin.

It imports PyAV once and forks for every song, so that a song costs milliseconds, and a crash or a hang ends that song alone.
A request is one byte, SCAN or DECODE, with two descriptors: the file, and a socket for the answer.

The fork opens no file, no socket and no other process, holds `MEMORY_BYTES` at the most, and is ended after `CPU_S` of work or
`SILENCE_S` without a word. Its answer is messages, each after its length as four bytes: facts as JSON; blocks of float32
samples, one channel after the other; an empty message; an end as JSON. The one message on a song that cannot be decoded is
`{"refused": reason}`.
"""

import io
import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import av
import av.subtitles.codeccontext  # PyAV imports these two with the first file, when the fork can open none
import av.subtitles.stream

from serving.audio.file_section import FileSection
from serving.audio.packets import Packets, is_mpeg_audio, is_unproven, promised_s, sample_count, scan
from serving.audio.pyav import STREAMS, AudioStream, Refused, blocks
from serving.audio.tags import untagged

SCAN, DECODE = b"s", b"d"
"""Decode a song, after a look at all of its packets or without."""
MEMORY_BYTES = 1 << 30
CPU_S = 900
SILENCE_S = 60
PROMISE_S = 0.25
"""By how much a container may be wrong about the length of a song."""


@dataclass
class Facts:
    """The first message about a song.

    `samples` is None if only decoding tells. `reached_s` is set if the file is cut off, with `promised_s` if it states its
    length. `is_unproven` means that it may be cut off and nothing tells.
    """

    rate_hz: int
    channels: int
    codec: str
    subtype: str
    tags: dict[str, str] = field(default_factory=dict)
    samples: int | None = None
    reached_s: float | None = None
    promised_s: float | None = None
    is_unproven: bool = False


class Outgoing:
    """The socket for messages. Silence ends the process; time that the reader takes does not count."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        signal.alarm(SILENCE_S)

    def send(self, message: bytes) -> None:
        signal.alarm(0)
        self._connection.sendall(struct.pack("<I", len(message)) + message)
        signal.alarm(SILENCE_S)

    def send_json(self, facts: dict[str, Any]) -> None:
        self.send(json.dumps(facts).encode())


def answer(file: BinaryIO, request: bytes, to: Outgoing) -> None:
    whole = FileSection.whole(file)
    try:
        song = without_tags(whole)
        packets = scan(AudioStream(song), song) if request == SCAN else None
        decoder = AudioStream(song)
        frames = decoder.frames()
        first = next(frames, None)
        if first is None:
            raise Refused("no samples")
    except Refused as refused:
        to.send_json({"refused": str(refused)})
        return
    facts = Facts(first.sample_rate, first.layout.nb_channels, decoder.codec, decoder.subtype(first.format.name))
    facts.tags = decoder.tags() if song is whole else decoder.tags() | tags_around(whole)
    if packets is not None:
        judge(facts, decoder, packets, song)
    to.send_json(asdict(facts))
    reason = None
    try:
        for block in blocks(first, frames):
            to.send(block)
    except Refused as refused:
        reason = str(refused)
    to.send(b"")
    to.send_json({"refused": reason})


def without_tags(whole: FileSection) -> FileSection:
    """A song without the tags around it; with them where it is MPEG audio, which FFmpeg expects between tags."""
    song = untagged(whole)
    if song.size == whole.size or is_mpeg_audio(song.read_at(0, 7)) or AudioStream(song).format == "mp3":
        return whole
    return song


def tags_around(whole: FileSection) -> dict[str, str]:
    """The contents of the tags around a song, where FFmpeg reads them."""
    try:
        return AudioStream(whole).tags()
    except Refused:
        return {}


def judge(facts: Facts, decoder: AudioStream, packets: Packets, file: FileSection) -> None:
    """Add what the packets tell."""
    facts.samples = sample_count(decoder, packets, facts.rate_hz)
    promised = promised_s(decoder, packets, file)
    is_short = promised is not None and packets.reached_s < promised - PROMISE_S
    is_cut = packets.is_broken and decoder.format not in STREAMS and not decoder.is_all(packets.reached_s)
    if is_short or is_cut:
        facts.reached_s, facts.promised_s = packets.reached_s, promised
    facts.is_unproven = is_unproven(decoder, packets, file, promised)


def confine() -> None:
    """Give up every right that a decoder does not need."""
    for what, limit in (
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    if sys.platform == "linux":  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def warm_up() -> None:
    """Decode a short WAV, which loads everything that Python and PyAV load on first use."""
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 548, b"WAVE", b"fmt ", 16, 1, 1, 8_000, 16_000, 2, 16, b"data", 512
    )
    frames = AudioStream(FileSection.whole(io.BytesIO(head + bytes(512)))).frames()
    list(blocks(next(frames), frames))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent; this process ends with it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    logging.disable()  # PyAV logs FFmpeg's messages, which hold names and tags
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    warm_up()
    door = socket.socket(fileno=0)
    while True:
        request, descriptors, _, _ = socket.recv_fds(door, 1, 2)
        if not request:
            return
        if os.fork() == 0:
            door.close()
            confine()
            try:
                with os.fdopen(descriptors[0], "rb") as file, socket.socket(fileno=descriptors[1]) as connection:
                    answer(file, request, Outgoing(connection))
            except (BrokenPipeError, ConnectionResetError):  # the reader has hung up
                pass
            except MemoryError:
                os._exit(1)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()
