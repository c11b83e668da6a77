"""Progress of long work: a bar on a terminal; elsewhere, as in the log of a container, a line every ten seconds."""

import sys
from typing import Any

from tqdm import tqdm

LINE_LETTERS = 100
"""How long a bar makes its line. What is longer is cut, and with it the line's end, without which a container's log waits."""
LONGEST_LINE_LETTERS = 1_000


def bar(form: str, **options: Any) -> "tqdm[Any]":
    """A bar of a form, in tqdm's words."""
    if not in_a_log():
        return tqdm(bar_format=form, **options)
    return tqdm(bar_format=f"{form}\n", mininterval=10, ascii=" =", **{"ncols": LINE_LETTERS, **options})


def run_bar(name: str, shown: bool) -> "tqdm[Any]":
    """A bar over the budget of a run, 0..1."""
    form = "{desc} {percentage:3.0f}% |{bar:20}| {elapsed} < {remaining}{postfix}"
    return bar(form, total=1.0, desc=name, disable=not shown, ncols=LONGEST_LINE_LETTERS if in_a_log() else None)


def in_a_log() -> bool:
    return not sys.stderr.isatty()


# What is counted in bytes.
BYTES = ("fetch", "unpack", "hash", "push")


class ProgressBar:
    """A `serving.storage.storage.Progress` that shows a bar for each kind of work."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm[Any]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.bars:
            unit = "B" if what in BYTES else "it"
            self.bars[what] = bar("{l_bar}{bar}{r_bar}", total=total, desc=what, unit=unit, unit_scale=True)
        current = self.bars[what]
        current.update(done - current.n)
        if done >= total:
            current.close()
            del self.bars[what]


def say(line: str) -> None:
    """Print a line on stderr, above a bar where one is being drawn."""
    tqdm.write(line, file=sys.stderr)
