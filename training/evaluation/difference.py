"""The difference of two models on the same songs: its mean, and how far the choice of songs could move it.

The interval is a paired bootstrap's: the mean over songs drawn with replacement, many times (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, section 13.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """One model's scores minus another's in dB: the mean over songs and its 95 % interval."""

    mean_db: float
    low_db: float
    high_db: float
    wins: int
    """Songs on which the first model is better."""
    songs: int

    @property
    def better(self) -> bool:
        """True if the interval lies above zero."""
        return self.low_db > 0

    @property
    def worse(self) -> bool:
        """True if the interval lies below zero."""
        return self.high_db < 0

    def verdict(self, mine: str, other: str, stem: str) -> str:
        """A sentence such as `B is better on vocals by 0.21 dB [0.05, 0.38], on 9 of 10 songs`."""
        if not (self.better or self.worse):
            return f"no difference on {stem}: {self.mean_db:+.2f} dB [{self.low_db:.2f}, {self.high_db:.2f}]"
        winner, sign = (mine, 1) if self.better else (other, -1)
        low_db, high_db = sorted((sign * self.low_db, sign * self.high_db))
        wins = self.wins if self.better else self.songs - self.wins
        on = f"on {wins} of {self.songs} songs"
        return f"{winner} is better on {stem} by {sign * self.mean_db:.2f} dB [{low_db:.2f}, {high_db:.2f}], {on}"


def difference(mine_db: Sequence[float], others_db: Sequence[float]) -> Difference:
    """The difference of two models' scores, given song by song in the same order. Deterministic."""
    by_song = np.asarray(mine_db, dtype=np.float64) - np.asarray(others_db, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(by_song), size=(RESAMPLES, len(by_song)))
    tail = (1 - CONFIDENCE) / 2
    low_db, high_db = np.quantile(by_song[drawn].mean(axis=1), (tail, 1 - tail))
    return Difference(float(by_song.mean()), float(low_db), float(high_db), int((by_song > 0).sum()), len(by_song))
