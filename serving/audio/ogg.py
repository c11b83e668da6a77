"""Pages of an Ogg file: they tell whether it is whole, and its chained links. RFC 3533.

A link is a song with its own start and end; recordings of streams have several. libsndfile reads only the first.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from serving.audio.decoding import broken_off, damaged
from serving.audio.file_section import FileSection

HEAD = struct.Struct("<4sBBqIIIB")
"""Capture pattern, version, flags, granule position, serial number, sequence number, checksum, number of segments."""
FIRST, LAST = 2, 4
OPUS_HZ = 48_000


@dataclass
class Link:
    """Bytes [start, stop) of the file. `ends` is true if the last page has the end-of-stream flag."""

    start: int
    stop: int
    rate_hz: int
    """The rate that granule positions count in, 0 if it is not known here."""
    granule: int = 0
    ends: bool = False
    has_sound: bool = False

    @property
    def seconds(self) -> float:
        return self.granule / self.rate_hz if self.rate_hz else 0.0


def links(file: FileSection, name: str) -> list[Link]:
    """The links of a file; [] if it is no Ogg. Raises AudioError if a page is cut, or bytes between pages are wrong."""
    found: list[Link] = []
    end, at = file.size, file.seek(0)
    while at < end:
        head = file.read(HEAD.size)
        if not head.startswith(b"OggS"[: len(head)]):
            if found and not found[-1].ends:
                raise damaged(name, played_s(found))
            return found  # not an Ogg, or a tag after its end
        if len(head) < HEAD.size:
            raise broken_off(name, played_s(found))
        _, _, flags, granule, _, _, _, segments = HEAD.unpack(head)
        sizes = file.read(segments)
        body = sum(sizes)
        after = at + HEAD.size + segments + body
        if len(sizes) < segments or after > end:
            raise broken_off(name, played_s(found))
        if flags & FIRST and (not found or found[-1].has_sound):
            found.append(Link(at, after, 0))
        elif not found:
            return found
        link = found[-1]
        if flags & FIRST:
            link.rate_hz = link.rate_hz or rate_of(file.read(min(body, 64)))
        else:
            link.has_sound = True
            link.granule = max(link.granule, granule)
        link.ends = bool(flags & LAST)
        link.stop = at = file.seek(after)
    return found


def note(found: list[Link]) -> str | None:
    """The note on an Ogg that ends between pages but before its last one."""
    return "its last page does not say that the song ends there" if found and not found[-1].ends else None


def played_s(found: list[Link]) -> float:
    return sum(link.seconds for link in found)


def rate_of(packet: bytes) -> int:
    """The rate in which a stream counts granule positions, from its first packet; 0 for an unknown codec."""
    if packet.startswith(b"\x01vorbis") and len(packet) >= 16:
        return int.from_bytes(packet[12:16], "little")
    if packet.startswith(b"OpusHead"):
        return OPUS_HZ
    if packet.startswith(b"Speex   ") and len(packet) >= 40:
        return int.from_bytes(packet[36:40], "little")
    if packet.startswith(b"\x7fFLAC") and len(packet) >= 30:
        return int.from_bytes(packet[27:30], "big") >> 4
    return 0


def link_files(file: FileSection, found: list[Link]) -> Iterator[FileSection]:
    """Yield each link as a file."""
    for link in found:
        yield file.part(link.start, link.stop)
