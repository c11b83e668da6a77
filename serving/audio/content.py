"""Names of files that hold no sound, by their first bytes: images, archives, playlists and what else people send."""

import re

HEAD_BYTES, LEAST_BYTES = 4_096, 44
"""The bytes to look at, and those of the shortest head of a song."""
ANYTHING_READ = "send WAV, FLAC, Ogg, MP3, AIFF, M4A or what else FFmpeg reads"
SONG_ITSELF = "send the song itself"
SONGS_INSIDE = "unpack it and send the songs in it"

KINDS = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE | re.MULTILINE), kind, remedy)
    for pattern, kind, remedy in (
        (
            rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|8BPS|BM.{4}\0{4}|RIFF.{4}WEBP|\0\0\0\x0cJXL |\xff\x0a",
            "an image",
            SONG_ITSELF,
        ),
        (rb"%PDF|\{\\rtf|\xd0\xcf\x11\xe0", "a document", SONG_ITSELF),
        (rb"PK\x03\x04|PK\x05\x06|Rar!\x1a|7z\xbc\xaf|.{257}ustar", "an archive of files", SONGS_INSIDE),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file", "unpack it and send the song in it"),
        (rb"MThd", "MIDI, which has notes but no sound", "send a recording of it"),
        (
            rb"#EXTM3U|\[playlist\]|#EXTINF|<\?wpl|.{0,200}<(playlist|asx|smil)\b",
            "a playlist",
            "send the songs that it names",
        ),
        (
            rb'.{0,2000}^\s*FILE\s+"?[^\n]*\s(WAVE|MP3|AIFF|BINARY)\s.*TRACK\s+\d+',
            "a cue sheet",
            "send the song that it names",
        ),
        (
            rb"WEBVTT|\[Script Info\]|\d+\s+\d\d:\d\d:\d\d[,.]\d+ -->|\[\d\d:\d\d[.:]\d\d\]",
            "a file of subtitles",
            SONG_ITSELF,
        ),
        (rb"<!doctype html|<html|.{0,500}<html", "a web page", "download the song itself"),
        (rb"\0\0\0?\x01[\x09\x27\x40\x46\x67\xb3]", "video without sound", "send a file with a sound track"),
        (rb"\x7fELF|MZ.{58}|\xca\xfe\xba\xbe|\xcf\xfa\xed\xfe", "a program", SONG_ITSELF),
    )
)


def refusal(name: str, head: bytes) -> str:
    """One sentence on a file that no decoder knows, from its first bytes."""
    if not head:
        return f"{name} is no audio, it is empty: send the whole file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n\t ")
    for pattern, kind, remedy in KINDS:
        if pattern.match(head) or pattern.match(text):
            return f"{name} is no audio but {kind}: {remedy}"
    if len(head) < LEAST_BYTES:
        return f"{name} is no audio, it ends after {len(head)} bytes: send the whole file"
    is_text = all(byte >= ord(" ") or byte in b"\t\n\f\r" for byte in head)
    return f"{name} is no audio but a text: {SONG_ITSELF}" if is_text else f"{name} is no audio: {ANYTHING_READ}"
