"""A song while it is decoded, whatever library does it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from serving.audio import Audio
from serving.errors import AudioError

PIPE_BYTES = 0x7FFF_0000
"""Sizes from here on stand in headers that were written before the size was known."""


@dataclass(frozen=True)
class Decoding:
    """An open decoder. `format` and `subtype` are libsndfile's names; FFmpeg's name of the codec where that decodes.

    `counted_samples` is a length that can be believed before all is decoded, None where there is none. `promised_samples` is
    what the header gives, right or wrong. `note` is `AudioInfo.note`. `blocks` are float32 samples (c, n) of any length, from
    the beginning, and raise AudioError where the song is damaged.
    """

    rate_hz: int
    channels: int
    format: str
    subtype: str
    blocks: Iterator[Audio]
    counted_samples: int | None = None
    promised_samples: int | None = None
    note: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def broken_off(name: str, seconds: float, promised_s: float | None = None) -> AudioError:
    """The error for a song that is cut off after so many seconds of those that it says it has."""
    of = "" if promised_s is None else f" of {promised_s:.1f}"
    return AudioError(f"{name} breaks off after {seconds:.1f}{of} s: send the whole file again")


def damaged(name: str, seconds: float) -> AudioError:
    return AudioError(f"{name} is damaged after {seconds:.1f} s: send the whole file again")
