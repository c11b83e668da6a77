"""libsndfile's decoders: WAV and its kin, FLAC, AIFF, AU, CAF, Ogg Vorbis, Opus and FLAC in Ogg.

Axes: c channel, n sample.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from serving.audio import Audio, chunks, flac, ogg
from serving.audio.decoding import PIPE_BYTES, UNPROVEN, Decoding, broken_off, damaged
from serving.audio.file_section import FileSection
from serving.audio.tags import song_file
from serving.errors import AudioError

BLOCK_SAMPLES = 1 << 16
UNKNOWN_SAMPLES = 2**63 - 1  # libsndfile's count if the header gives none
COUNTED_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC"}
UNCOUNTED_FORMATS = {"IRCAM", "PAF", "PVF"}
"""Formats whose samples go on to the end of the file."""
MAX_LINKS = 1_000
FLAC_HEAD = b"fLaC\0\0\0\x22"
"""The magic word and the head of the first block."""
SURROUND = re.compile(
    rb"\x72\xf8\x1f\x4e[\x01\x0b-\x0d]|\x7f\xfe\x80\x01\xfc|\xfe\x7f\x01\x80[\0-\xff]\xfc|\xff\x1f\0\xe8[\xf0-\xff]\x07"
)
"""The beginnings of a burst of IEC 61937, and of a frame of DTS in words of 16 and 14 bits."""
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

    Not MPEG audio: it fails on large tags, junk and joined files. Not GSM, which it ends with noise. Not VOC: it takes the
    heads of blocks for samples. Not what it finds empty: a WAV whose recorder never wrote the size says 0. Not a FLAC that
    counts fewer samples than it holds. Not DTS or AC-3 that passes for samples: it would be noise.
    """
    try:
        with song_file(source) as song:
            head = song.read_at(0, 2)
            if (head[:1] == b"\xff" and head[1:] >= b"\xe0") or flac.counts_too_few(song) or is_surround_disc(song):
                return False
            with sound_file(song, source) as found:
                is_misread = found.subtype.startswith(("MPEG_", "GSM")) or found.format == "VOC"
                return not is_misread and found.frames > 0
    except soundfile.LibsndfileError:
        return False


def is_surround_disc(song: FileSection) -> bool:
    """True for a WAV in whose samples DTS or AC-3 is written, as on discs and S/PDIF."""
    chunk = chunks.sound_chunk(song)
    return chunk is not None and SURROUND.search(song.read_at(chunk.start, READ_AHEAD_BYTES)) is not None


@contextmanager
def decoder(source: bytes | bytearray | Path, name: str) -> Iterator[Decoding]:
    """A song that libsndfile decodes, its channels in the order of WAV's speakers.

    Raises AudioError for an Ogg that ends inside a page, or whose links differ in rate or channels.
    """
    with song_file(source) as song:
        links = ogg.links(song, name)
        note = ogg.note(links) or note_of_header(song)
        if len(links) > 1:
            yield chain(song, links, name, note)
            return
        song = counted_part(song)
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
        note=note or (None if known and sound.format not in UNCOUNTED_FORMATS else UNPROVEN),
        tags=tags_of(sound),
    )


def counted_part(song: FileSection) -> FileSection:
    """The song without what follows the samples of a Wave64, which libsndfile would read as such."""
    chunk = chunks.sound_chunk(song) if song.read_at(0, 4) == b"riff" else None
    return song if chunk is None or chunk.stop >= song.size else song.part(0, chunk.stop)


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
    """The note on a WAV, AIFF, Wave64 or AU that is shorter than its header says. What writes into a pipe leaves huge sizes."""
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
    if song.size + 1 >= size:
        return None
    return "it is shorter than its header says" if size < PIPE_BYTES else UNPROVEN


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
