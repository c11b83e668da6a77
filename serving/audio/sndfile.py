"""libsndfile's decoders: WAV and its kin, FLAC, AIFF, AU, CAF, Ogg Vorbis, Opus and FLAC in Ogg.

Axes: c channel, n sample.
"""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from serving.audio import Audio, chunks, flac, ogg
from serving.audio.decoding import PIPE_BYTES, Decoding, broken_off, damaged
from serving.audio.file_section import FileSection
from serving.audio.tags import untagged
from serving.errors import AudioError

BLOCK_SAMPLES = 1 << 16
UNKNOWN_SAMPLES = 2**63 - 1  # libsndfile's count if the header gives none
COUNTED_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC"}
MAX_LINKS = 1_000
FLAC_HEAD = b"fLaC\0\0\0\x22"
"""The magic word and the head of the first block."""
READ_AHEAD_BYTES = 1 << 16
LEFT_OVER_S = 0.25
"""Junk behind the samples of a header is shorter than that."""
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
    it finds empty: a WAV whose recorder never wrote the size says 0. Not a FLAC that counts fewer samples than it holds.
    """
    try:
        with song_file(source) as song:
            head = song.read_at(0, 2)
            if (head[:1] == b"\xff" and head[1:] >= b"\xe0") or flac.counts_too_few(song):
                return False
            with sound_file(song, source) as found:
                return not found.subtype.startswith("MPEG_") and found.format != "VOC" and found.frames > 0
    except soundfile.LibsndfileError:
        return False


@contextmanager
def decoder(source: bytes | bytearray | Path, name: str) -> Iterator[Decoding]:
    """A song that libsndfile decodes, its channels in the order of WAV's speakers.

    Raises AudioError for an Ogg that ends inside a page, or whose links differ in rate or channels, and for a header that
    leaves out samples.
    """
    with song_file(source) as song:
        links = ogg.links(song, name)
        note = ogg.note(links) or note_of_header(song)
        if len(links) > 1:
            yield chain(song, links, name, note)
            return
        song = counted_part(song, source, name)
        with sound_file(song, source) as sound:
            yield decoding(sound, song, name, note)


def decoding(sound: ForwardDecoder, song: FileSection, name: str, note: str | None) -> Decoding:
    known = sound.frames < UNKNOWN_SAMPLES
    return Decoding(
        sound.samplerate,
        sound.channels,
        sound.format,
        sound.subtype,
        blocks(sound, song, name),
        counted_samples=sound.frames if known and sound.format in COUNTED_FORMATS else None,
        promised_samples=sound.frames if known else None,
        note=note,
        tags=tags_of(sound),
    )


def counted_part(song: FileSection, source: bytes | bytearray | Path, name: str) -> FileSection:
    """The song without what follows a Wave64's samples, which libsndfile would read as such.

    Raises AudioError if more samples may follow those that the header counts.
    """
    chunk = chunks.sound_chunk(song)
    if chunk is None:
        return song
    with sound_file(song, source) as sound:
        counted_s = sound.frames / sound.samplerate
    left_over_s = counted_s * chunk.left_over / (chunk.stop - chunk.start)
    if left_over_s > LEFT_OVER_S:
        raise AudioError(
            f"{name} has {counted_s:.1f} s by its header, and {left_over_s:.1f} s more behind them: save it again as WAV or FLAC"
        )
    is_w64 = song.read_at(0, 4) == b"riff"
    return song.part(0, chunk.stop) if is_w64 and chunk.stop < song.size else song


def chain(file: FileSection, links: list[ogg.Link], name: str, note: str | None) -> Decoding:
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


def note_of_header(song: FileSection) -> str | None:
    """The note on a WAV, AIFF or AU that is shorter than its header says; None for the placeholder sizes of a pipe."""
    head = song.read_at(0, 28)
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
    return "it is shorter than its header says" if song.size + 1 < size < PIPE_BYTES else None


def blocks(sound: ForwardDecoder, file: FileSection, name: str) -> Iterator[Audio]:
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
        if is_counted_flac and position(sound, file) >= file.size:
            raise broken_off(name, seconds, sound.frames / sound.samplerate) from error
        raise damaged(name, seconds) from error
    if is_counted_flac and another_follows(sound, file):
        raise AudioError(f"{name} is joined of several FLAC files: send them one by one")


def position(sound: ForwardDecoder, file: FileSection) -> int:
    """The position up to which libsndfile has read."""
    return os.lseek(sound.name, 0, os.SEEK_CUR) if isinstance(sound.name, int) else file.tell()


def another_follows(sound: ForwardDecoder, file: FileSection) -> bool:
    """True if a second FLAC begins where libsndfile has come to the end of the first."""
    start = max(1, position(sound, file) - READ_AHEAD_BYTES)  # 0 is the head of the first
    return FLAC_HEAD in file.read_at(start, 2 * READ_AHEAD_BYTES)


def tags_of(sound: ForwardDecoder) -> dict[str, str]:
    return {name: value for name, value in sound.copy_metadata().items() if name in TAGS}


def sound_file(file: FileSection, source: bytes | bytearray | Path | None) -> ForwardDecoder:
    if isinstance(source, Path) and file.is_whole:
        # By a descriptor, which is quick. Not by name: libsndfile takes a name ending in .raw for headerless samples.
        return ForwardDecoder(os.open(source, os.O_RDONLY), closefd=True)
    file.seek(0)
    return ForwardDecoder(file)


@contextmanager
def song_file(source: bytes | bytearray | Path) -> Iterator[FileSection]:
    """A source without the tags around it."""
    with source.open("rb", buffering=0) if isinstance(source, Path) else io.BytesIO(source) as file:
        yield untagged(FileSection.whole(file))
