"""Chunks of WAV, RF64, Wave64, AIFF and CAF: they tell whether a header counts all samples of its file.

A chunk is a name, a size and a body. EBU Tech 3285 and 3306 for RIFF and RF64; AIFF-C, 1991; Apple Core Audio Format 1.0.
An AU has no chunks: its head gives the start and the size of the samples, and nothing may follow them.
"""

from dataclasses import dataclass
from typing import Literal

from serving.audio.file_section import FileSection
from serving.audio.tags import size_in_front

PIECE_BYTES = 1 << 16
UNKNOWN_SIZES = {0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}
RF64_SIZE = 0xFFFF_FFFF
"""RF64's size of samples; the true one stands in the chunk ds64."""
W64_GUID_END = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""The end of the names of Wave64's chunks, which begin with those of RIFF."""


@dataclass(frozen=True)
class Layout:
    """A chunk's layout: bytes of the file's head, of a name and of a size; the name of the chunk of samples."""

    head_bytes: int
    name_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    sound: bytes
    alignment: int = 1
    size_has_head: bool = False


LAYOUTS = {
    b"RIFF": Layout(12, 4, 4, "little", b"data", alignment=2),
    b"RIFX": Layout(12, 4, 4, "big", b"data", alignment=2),
    b"RF64": Layout(12, 4, 4, "little", b"data", alignment=2),
    b"FORM": Layout(12, 4, 4, "big", b"SSND", alignment=2),
    b"riff": Layout(40, 16, 8, "little", b"data" + W64_GUID_END, alignment=8, size_has_head=True),
    b"caff": Layout(8, 4, 8, "big", b"data"),
}


@dataclass(frozen=True)
class SoundChunk:
    """Bytes [start, stop) of a file hold its samples, by its header. `left_over` counts the bytes behind them that are no
    chunks, tags or zeros: often samples that the header does not count."""

    start: int
    stop: int
    left_over: int


def sound_chunk(file: FileSection) -> SoundChunk | None:
    """The chunk of samples; None in another format, or where the header gives no size."""
    magic = file.read_at(0, 4)
    found = (
        sound_of_au(file) if magic == b".snd" else sound_of_chunks(file, LAYOUTS[magic]) if magic in LAYOUTS else None
    )
    if found is None:
        return None
    start, stop, end = found
    while size := size_in_front(file, end):
        end += size
    return None if stop - start in UNKNOWN_SIZES else SoundChunk(start, stop, unlike_zero(file, end))


def sound_of_au(file: FileSection) -> tuple[int, int, int]:
    """Start and stop of the samples, and the end of all that the header counts."""
    start, size = (int.from_bytes(file.read_at(at, 4), "big") for at in (4, 8))
    return start, start + size, start + size


def sound_of_chunks(file: FileSection, layout: Layout) -> tuple[int, int, int] | None:
    """Start and stop of the samples, and the end of the last chunk. Only samples may go on behind the end of the file."""
    at, found = layout.head_bytes, None
    while chunk := chunk_at(file, layout, at):
        name, body, stop = chunk
        if name == layout.sound:
            if found:
                break  # decoders read the first chunk of samples only
            if stop - body == RF64_SIZE and file.read_at(12, 4) == b"ds64":
                stop = body + int.from_bytes(file.read_at(28, 8), "little")
            found = body, stop
        elif stop > file.size:
            break
        at = stop + -stop % layout.alignment
        if not ends_inside(file, layout, at) and ends_inside(file, layout, stop):
            at = stop  # not every program aligns
    return (*found, at) if found else None


def chunk_at(file: FileSection, layout: Layout, at: int) -> tuple[bytes, int, int] | None:
    """Name, start and stop of the body of the chunk at `at`; None if there is none."""
    head = file.read_at(at, layout.name_bytes + layout.size_bytes)
    if len(head) < layout.name_bytes + layout.size_bytes or not all(0x20 <= byte < 0x7F for byte in head[:4]):
        return None
    name, body = head[: layout.name_bytes], at + len(head)
    size = int.from_bytes(head[layout.name_bytes :], layout.order) - (len(head) if layout.size_has_head else 0)
    return (name, body, body + size) if size >= 0 else None


def ends_inside(file: FileSection, layout: Layout, at: int) -> bool:
    """True if a chunk begins at `at`, and ends inside the file."""
    chunk = chunk_at(file, layout, at)
    return chunk is not None and chunk[2] <= file.size


def unlike_zero(file: FileSection, start: int) -> int:
    """Bytes from `start` to the end of the file; 0 if all are zeros."""
    pieces = (file.read_at(at, PIECE_BYTES) for at in range(start, file.size, PIECE_BYTES))
    return max(0, file.size - start) if any(any(piece) for piece in pieces) else 0
