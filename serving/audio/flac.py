"""FLAC's own count of its samples, and the count of its frames. RFC 9639.

An encoder that is stopped, or a program that cuts, may leave a count in STREAMINFO that is too small. libsndfile reads no more.
"""

from serving.audio.file_section import FileSection

MAX_HEADER_BYTES = 16
LAST_BYTES = 1 << 20
BLOCK_SAMPLES = {
    1: 192,
    **{code: 576 << code - 2 for code in range(2, 6)},
    **{code: 256 << code - 8 for code in range(8, 16)},
}
"""Samples of a block by the code in a frame's header; codes 6 and 7 give them behind the number."""


def counts_too_few(file: FileSection) -> bool:
    """True if the last frame goes on behind the samples that STREAMINFO counts."""
    if file.read_at(0, 4) != b"fLaC":
        return False
    info = file.read_at(8, 34)
    counted = int.from_bytes(info[13:18], "big") & (1 << 36) - 1
    fixed_samples = int.from_bytes(info[2:4], "big")
    first = file.read_at(start_of_frames(file), 4)
    return len(first) == 4 and 0 < counted < end_of_last_frame(file, first, fixed_samples)


def start_of_frames(file: FileSection) -> int:
    at, is_last = 4, False
    while not is_last and len(head := file.read_at(at, 4)) == 4:
        is_last = bool(head[0] & 0x80)
        at += 4 + int.from_bytes(head[1:], "big")
    return at


def end_of_last_frame(file: FileSection, first: bytes, fixed_samples: int) -> int:
    """Samples up to the end of the last frame in the file's last bytes; 0 if there is none. `first` begins the first frame."""
    data = file.read_at(max(0, file.size - LAST_BYTES), LAST_BYTES)
    at = len(data)
    while (at := data.rfind(first[:2], 0, at)) >= 0:
        if is_like(data[at : at + 4], first) and (end := end_of_frame(data[at : at + MAX_HEADER_BYTES], fixed_samples)):
            return end
        at += 1  # the two bytes may overlap with the next
    return 0


def is_like(head: bytes, first: bytes) -> bool:
    """True if a frame's head has the rate and the sample size of the first one."""
    return len(head) == 4 and head[2] & 0x0F == first[2] & 0x0F and head[3] & 0x0F == first[3] & 0x0F


def end_of_frame(head: bytes, fixed_samples: int) -> int:
    """Samples of the song up to the end of a frame; 0 if the head is none: its checksum is wrong."""
    number, at = coded_number(head[4:])
    at += 4
    code = head[2] >> 4
    if code in (6, 7):
        samples = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    else:
        samples = BLOCK_SAMPLES.get(code, 0)
    at += {12: 1, 13: 2, 14: 2}.get(head[2] & 0x0F, 0)  # the rate, where no code stands for it
    if at >= len(head) or crc8(head[:at]) != head[at]:
        return 0
    has_equal_blocks = not head[1] & 1
    return (number * fixed_samples if has_equal_blocks else number) + samples


def coded_number(data: bytes) -> tuple[int, int]:
    """A number in the code of UTF-8, of up to 36 bits, and its bytes. RFC 9639, 9.1.5."""
    ones = 8 - (~data[0] & 0xFF).bit_length() if data else 0
    if ones == 0:
        return (data[0] if data else 0), 1
    number = data[0] & (0x7F >> ones)
    for byte in data[1:ones]:
        number = number << 6 | byte & 0x3F
    return number, ones


def crc8(data: bytes) -> int:
    """The checksum of a frame's header: x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc
