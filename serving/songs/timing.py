"""The account of one request: its song, and the seconds of decoding, separating and encoding."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from serving.audio.audio_io import AudioInfo

Part = Literal["decode", "separate", "encode"]
Item = TypeVar("Item")
END = object()


@dataclass
class Work:
    """The account of one request. Parts are nested, as a window asks for the blocks that it decodes. Each second counts for
    the innermost part."""

    audio: AudioInfo | None = None
    seconds: dict[Part, float] = field(default_factory=lambda: {"decode": 0.0, "separate": 0.0, "encode": 0.0})
    _within: list[Part] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        self._charge()
        self._within.append(part)
        try:
            yield
        finally:
            self._charge()
            self._within.pop()

    def over(self, part: Part, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; the time spent producing each counts for the part."""
        iterator = iter(items)
        while True:
            with self.part(part):
                item = next(iterator, END)
            if item is END:
                return
            yield item  # type: ignore[misc]

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._within:
            self.seconds[self._within[-1]] += now - self._since
        self._since = now
