"""Progress of long work on the terminal."""

from typing import Any

from tqdm import tqdm


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
