"""A song being decoded, by any library."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from serving.audio import Audio
from serving.errors import AudioError

PIPE_BYTES = 0x7FFF_0000
"""Sizes from here on are placeholders, written by programs that did not know the size yet."""
UNPROVEN = "nothing in it says how long it is, so that it may be cut off"
"""A note."""


@dataclass(frozen=True)
class Decoding:
    """An open decoder. `format` and `subtype` are libsndfile's names; FFmpeg's name of the codec if FFmpeg decodes.

    `counted_samples` is a reliable length known before decoding, None if there is none. `promised_samples` is the header's
    length, right or wrong. `note` is `AudioInfo.note`. `blocks` are float32 samples (c, n) of any length from the start;
    they raise AudioError if the song is damaged.
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
    """The error for a song that ends after `seconds` of its `promised_s`."""
    of = "" if promised_s is None else f" of {promised_s:.1f}"
    return AudioError(f"{name} breaks off after {seconds:.1f}{of} s: send the whole file again")


def damaged(name: str, seconds: float) -> AudioError:
    return AudioError(f"{name} is damaged after {seconds:.1f} s: send the whole file again")
