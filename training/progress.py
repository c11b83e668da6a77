"""Progress of long work on the terminal."""

import sys
from typing import Any

from tqdm import tqdm


def run_bar(name: str) -> "tqdm[Any]":
    """A bar over the budget of a run, 0..1; where no one watches, as in the log of a container, a line every ten seconds."""
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}"
    return tqdm(total=1.0, desc=name, bar_format=form, mininterval=0.5 if sys.stderr.isatty() else 10)


class ProgressBar:
    """A `serving.storage.Progress` that shows a bar for each kind of work."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm[Any]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.bars:
            self.bars[what] = tqdm(total=total, desc=what, unit_scale=True)
        bar = self.bars[what]
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
            del self.bars[what]
