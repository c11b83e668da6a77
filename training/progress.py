"""Progress of long work on stderr: a bar for each stage on a terminal; a line every 30 s elsewhere, such as in a log."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

from tqdm import tqdm

LINE_INTERVAL_S = 30.0

Unit = Literal["things", "bytes", "share"]
"""How a stage is counted: songs and the like, bytes, or a share 0..1 of a budget."""

BYTES = ("fetch", "unpack", "hash", "push")

FORMS = {
    "things": "{desc} {percentage:3.0f}% |{bar:30}| {n_fmt} of {total_fmt}, {elapsed} < {remaining}{postfix}",
    "bytes": "{desc} {percentage:3.0f}% |{bar:30}| {n_fmt}B of {total_fmt}B, {rate_fmt}, {elapsed} < {remaining}{postfix}",
    "share": "{desc} {percentage:3.0f}% |{bar:30}| {elapsed} < {remaining}{postfix}",
}

Item = TypeVar("Item")


class Stage:
    """One stage of the work, `total` long. An earlier process did `begun` of it."""

    def __init__(self, name: str, total: float, unit: Unit = "things", shown: bool = True, begun: float = 0) -> None:
        self._name, self._total, self._unit, self._shown = name, total, unit, shown
        self._begun = self._done = begun
        self._started_s = self._said_s = time.monotonic()
        self._news, self._said = "", ""
        self._bar: tqdm[Any] | None = None
        if shown and sys.stderr.isatty():
            form, scaled = FORMS[unit], unit == "bytes"
            self._bar = tqdm(desc=name, total=total, initial=begun, bar_format=form, unit="B", unit_scale=scaled)

    def at(self, done: float, news: str = "") -> None:
        """Show how much is done, with the news beside it."""
        first_news = bool(news) and not self._news
        self._done, self._news = done, news or self._news
        if self._bar is not None:
            self._bar.set_postfix_str(self._news, refresh=False)
            self._bar.update(done - self._bar.n)
        elif first_news or time.monotonic() - self._said_s >= LINE_INTERVAL_S:
            self._say()

    def close(self) -> None:
        """Show once how far the stage came."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        elif f"{self._name}: {self._amount()}" not in self._said:
            self._say()

    def _say(self) -> None:
        now_s = time.monotonic()
        self._said_s = now_s
        spent_s, share = now_s - self._started_s, (self._done - self._begun) / max(self._total - self._begun, 1e-9)
        left = f", {clock(spent_s / share - spent_s)} to go" if 0 < share < 1 else ""
        self._said = f"{self._name}: {self._amount()}, {clock(spent_s)}{left}{self._news and f'; {self._news}'}"
        if self._shown:
            say(self._said)

    def _amount(self) -> str:
        if self._unit == "share":
            return f"{100 * self._done / self._total:.0f} %"
        if self._unit == "things":
            return f"{self._done:.0f} of {self._total:.0f}"
        divisor, name = next((d, n) for d, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if self._total >= d or d == 1e3)
        return f"{self._done / divisor:.1f} of {self._total / divisor:.1f} {name}"


def run_bar(name: str, shown: bool, begun: float = 0) -> Stage:
    """The stage of a run: the spent share of its budget, 0..1, from `begun` on."""
    return Stage(name, 1.0, "share", shown, begun)


def counted(items: Sequence[Item], name: str, shown: bool) -> Iterator[Item]:
    """Yield the items, and count them in a stage."""
    stage = Stage(name, len(items), shown=shown)
    for number, item in enumerate(items, start=1):
        yield item
        stage.at(number)
    stage.close()


class ProgressBar:
    """A `serving.storage.progress.Progress` with a stage for each kind of work."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._stages:
            self._stages[what] = Stage(what, total, "bytes" if what in BYTES else "things")
        self._stages[what].at(done)
        if done >= total:
            self._stages.pop(what).close()


def say(line: str) -> None:
    """Print a line on stderr, above a bar where one is being drawn."""
    tqdm.write(f"{line}\n", file=sys.stderr, end="")  # at once: threads speak, too


def clock(seconds: float) -> str:
    """A time such as 0:07, 12:30 or 3:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
