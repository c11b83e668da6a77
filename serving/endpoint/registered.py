"""The number of a registered version travels to its workers in a file beside the weights, and to callers in a header."""

from pathlib import Path

HEADER = "X-Model-Version"
NAME = "registered-version"


def write_number(unpacked: Path, number: str) -> None:
    """Note the number in the folder of an unpacked archive."""
    (unpacked / NAME).write_text(number)


def read_number(unpacked: Path) -> str | None:
    """Return the number, or None for an archive that was not taken by an alias of a registry."""
    note = unpacked / NAME
    return note.read_text() if note.exists() else None
