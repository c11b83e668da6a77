"""Tags around a song: ID3v2 and APE in front of it; ID3v1, ID3v2.4, APE and Lyrics3 behind it.

Programs put them around every container, though most containers know nothing of them.
"""

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.audio.file_section import FileSection

ID3_HEAD_BYTES = 10
ID3V1_BYTES = 128
APE = struct.Struct("<8sIIII8x")
"""Header or footer of an APE tag: magic word, version, bytes of the items and the footer, number of items, flags."""
APE_HAS_HEADER = 1 << 31
LYRICS_1_BYTES = 5_100 + len(b"LYRICSBEGIN" + b"LYRICSEND")
LYRICS_2_END_BYTES = len(b"000000LYRICS200")


@contextmanager
def song_file(source: bytes | bytearray | Path) -> Iterator[FileSection]:
    """A source without the tags around it."""
    with source.open("rb", buffering=0) if isinstance(source, Path) else io.BytesIO(source) as file:
        yield untagged(FileSection.whole(file))


def untagged(file: FileSection) -> FileSection:
    """The song between the tags; all of the file if tags leave nothing."""
    start, stop = 0, file.size
    while size := size_in_front(file, start):
        start += size
    while size := size_behind(file, stop):
        stop -= size
    return file.part(start, stop) if start < stop else file


def size_in_front(file: FileSection, at: int) -> int:
    """Bytes of the tag that begins at `at`, 0 for none."""
    head = file.read_at(at, APE.size)
    if size := id3_bytes(head, b"ID3"):
        return size
    if head.startswith(b"APETAGEX") and len(head) == APE.size:
        return APE.size + int(APE.unpack(head)[2])
    return 0


def size_behind(file: FileSection, stop: int) -> int:
    """Bytes of the tag that ends at `stop`, 0 for none."""
    if file.read_at(stop - ID3V1_BYTES, 3) == b"TAG":
        return ID3V1_BYTES
    foot = file.read_at(stop - APE.size, APE.size)
    if foot.startswith(b"APETAGEX"):
        _, _, size, _, flags = APE.unpack(foot)
        return int(size) + (APE.size if flags & APE_HAS_HEADER else 0)
    if size := id3_bytes(foot[-ID3_HEAD_BYTES:], b"3DI"):
        return size
    if lyrics := re.fullmatch(rb"(\d{6})LYRICS200", foot[-LYRICS_2_END_BYTES:]):
        return int(lyrics[1]) + LYRICS_2_END_BYTES
    if foot.endswith(b"LYRICSEND"):
        lyrics_1 = file.read_at(max(0, stop - LYRICS_1_BYTES), LYRICS_1_BYTES)
        return len(lyrics_1) - max(0, lyrics_1.rfind(b"LYRICSBEGIN"))
    return 0


def id3_bytes(head: bytes, magic: bytes) -> int:
    """Bytes of an ID3v2 tag, from its header, or from its footer `3DI`; 0 if it is none. id3.org, ID3v2.4.0, 3.1."""
    if len(head) < ID3_HEAD_BYTES or head[:3] != magic or 0xFF in head[3:5] or max(head[6:10]) > 0x7F:
        return 0
    has_footer = head[5] & 0x10
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return ID3_HEAD_BYTES + size + (ID3_HEAD_BYTES if has_footer else 0)
