"""libsndfile's decoders: WAV and its kin, FLAC, AIFF, AU, CAF, Ogg Vorbis, Opus and FLAC in Ogg.

Axes: c channel, n sample.
"""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from serving.audio import Audio, ogg
from serving.audio.decoding import PIPE_BYTES, Decoding, broken_off, damaged
from serving.errors import AudioError

BLOCK_SAMPLES = 1 << 16
UNKNOWN_SAMPLES = 2**63 - 1  # libsndfile's count if the header gives none
COUNTED_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC"}
MAX_LINKS = 1_000
FLAC_HEAD = b"fLaC\0\0\0\x22"
"""The magic word and the head of the first block."""
READ_AHEAD_BYTES = 1 << 16
TAGS = ("title", "artist", "album", "tracknumber", "date", "genre", "comment", "copyright")
# Speakers by number of channels as Vorbis and Opus order them: where in their order each of WAV's and FLAC's order stands.
VORBIS_ORDER = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}


class ForwardDecoder(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that only reads forward, without the seek that SoundFile does after every read."""

    def seekable(self) -> bool:
        return False


def reads(source: bytes | bytearray | Path) -> bool:
    """True if libsndfile is to decode a song.

    Not MPEG audio: it fails on large tags, junk and joined files. Not VOC: it takes the heads of blocks for samples. Not what
    it finds empty: a WAV whose recorder never wrote the size says 0.
    """
    try:
        with as_file(source) as file:
            head = file.read(3)
        if head == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
            return False
        with as_file(source) as file, sound_file(file, source) as found:
            return not found.subtype.startswith("MPEG_") and found.format != "VOC" and found.frames > 0
    except soundfile.LibsndfileError:
        return False


@contextmanager
def decoder(source: bytes | bytearray | Path, name: str) -> Iterator[Decoding]:
    """A song that libsndfile decodes, its channels in the order of WAV's speakers.

    Raises AudioError for an Ogg that ends inside a page, or whose links differ in rate or channels.
    """
    with as_file(source) as file:
        links = ogg.links(file, name)
        note = ogg.note(links) or note_of_header(file)
        if len(links) > 1:
            yield chain(file, links, name, note)
            return
    with as_file(source) as file, sound_file(file, source) as sound:
        known = sound.frames < UNKNOWN_SAMPLES
        yield Decoding(
            sound.samplerate,
            sound.channels,
            sound.format,
            sound.subtype,
            blocks(sound, file, name),
            counted_samples=sound.frames if known and sound.format in COUNTED_FORMATS else None,
            promised_samples=sound.frames if known else None,
            note=note,
            tags=tags_of(sound),
        )


def chain(file: BinaryIO, links: list[ogg.Link], name: str, note: str | None) -> Decoding:
    """The links of an Ogg as one song."""
    if len(links) > MAX_LINKS:
        raise AudioError(f"{name} is chained of {len(links):,} songs: send {MAX_LINKS:,} or fewer in one")
    kinds: set[tuple[int, int, str, str]] = set()
    promised, tags = 0, dict[str, str]()
    for part in ogg.link_files(file, links):
        with sound_file(part, None) as sound:
            kinds.add((sound.samplerate, sound.channels, sound.format, sound.subtype))
            promised += sound.frames
            tags = tags or tags_of(sound)
    (rate_hz, channels, file_format, subtype), *others = sorted(kinds)
    if any(other[:2] != (rate_hz, channels) for other in others):
        raise AudioError(f"{name} is chained of songs that differ in sample rate or channels: send them one by one")

    def all_blocks() -> Iterator[Audio]:
        for part in ogg.link_files(file, links):
            with sound_file(part, None) as sound:
                yield from blocks(sound, part, name)

    return Decoding(
        rate_hz, channels, file_format, subtype, all_blocks(), promised_samples=promised, note=note, tags=tags
    )


def note_of_header(file: BinaryIO) -> str | None:
    """The note on a WAV, AIFF or AU that is shorter than its header says; None for the placeholder sizes of a pipe."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(28)
    match head[:4]:
        case b"RIFF":
            size = 8 + int.from_bytes(head[4:8], "little")
        case b"RF64":  # its size stands in the chunk ds64
            size = 8 + int.from_bytes(head[20:28], "little")
        case b"FORM":
            size = 8 + int.from_bytes(head[4:8], "big")
        case b"riff":  # Wave64
            size = int.from_bytes(head[16:24], "little")
        case b".snd":
            size = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
        case _:
            return None
    return "it is shorter than its header says" if end + 1 < size < PIPE_BYTES else None


def blocks(sound: ForwardDecoder, file: BinaryIO | ogg.FileSection, name: str) -> Iterator[Audio]:
    # Not SoundFile.blocks(): it repeats old samples where a file ends before its header says.
    order = VORBIS_ORDER.get(sound.channels) if sound.format == "OGG" else None
    channels = slice(None) if order is None else list(order)
    samples = 0
    # Of a FLAC not more than it counts: libsndfile fails on what stands behind the last frame, be it a tag.
    is_counted_flac = sound.format == "FLAC" and sound.frames < UNKNOWN_SAMPLES
    left = sound.frames if is_counted_flac else math.inf
    try:
        while left and len(block := sound.read(int(min(BLOCK_SAMPLES, left)), dtype="float32", always_2d=True)):
            samples, left = samples + len(block), left - len(block)
            yield np.ascontiguousarray(block.T[channels])
    except soundfile.LibsndfileError as error:
        seconds = max(samples, sound.tell()) / sound.samplerate
        if is_counted_flac and at_end(file):
            raise broken_off(name, seconds, sound.frames / sound.samplerate) from error
        raise damaged(name, seconds) from error
    if is_counted_flac and another_follows(file):
        raise AudioError(f"{name} is joined of several FLAC files: send them one by one")


def position(file: BinaryIO | ogg.FileSection) -> int:
    """The position up to which libsndfile has read."""
    try:
        return os.lseek(file.fileno(), 0, os.SEEK_CUR)
    except io.UnsupportedOperation:
        return file.tell()


def at_end(file: BinaryIO | ogg.FileSection) -> bool:
    """True if libsndfile has read the whole file."""
    return position(file) >= file.seek(0, os.SEEK_END)


def another_follows(file: BinaryIO | ogg.FileSection) -> bool:
    """True if a second FLAC begins where libsndfile has come to the end of the first."""
    file.seek(max(1, position(file) - READ_AHEAD_BYTES))  # 0 is the head of the first
    return FLAC_HEAD in file.read(2 * READ_AHEAD_BYTES)


def tags_of(sound: ForwardDecoder) -> dict[str, str]:
    return {name: value for name, value in sound.copy_metadata().items() if name in TAGS}


def sound_file(file: BinaryIO | ogg.FileSection, source: bytes | bytearray | Path | None) -> ForwardDecoder:
    # By descriptor: libsndfile takes a name ending in .raw for headerless samples.
    return ForwardDecoder(file.fileno() if isinstance(source, Path) else file, closefd=False)


def as_file(source: bytes | bytearray | Path) -> BinaryIO:
    """A source as an open file."""
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
