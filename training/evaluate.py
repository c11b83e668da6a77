"""How well a model separates songs with known stems.

The songs go through `serving.separator`, so the scores are those of what is served. Beside them stand the scores of the
mixture itself, taken for each stem: where a model has to start from.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from serving.chunks import Audio
from serving.separator import Separator
from training.errors import DataError
from training.metrics import csdr, median, recovered_percent, usdr
from training.musdb18 import Song


@dataclass(frozen=True)
class Score:
    """How well one stem was found, in dB, and how well the mixture would do in its place.

    A cSDR is NaN where no second of the song counts, because some stem is silent in each.
    """

    csdr_db: float
    usdr_db: float
    mixture_csdr_db: float
    mixture_usdr_db: float

    @property
    def recovered_percent(self) -> float:
        return recovered_percent(self.csdr_db)

    def to_json(self) -> dict[str, float | None]:
        facts = {**dataclasses.asdict(self), "recovered_percent": self.recovered_percent}
        return {name: value if math.isfinite(value) else None for name, value in facts.items()}


@dataclass(frozen=True)
class SongScores:
    """The scores of one song by stem."""

    song: str
    stems: Mapping[str, Score]


@dataclass(frozen=True)
class Evaluation:
    """The scores of songs."""

    songs: tuple[SongScores, ...]

    @property
    def stems(self) -> dict[str, Score]:
        """The scores over all songs by stem: cSDR as a median, uSDR as a mean, as the field reports them."""
        return {stem: over_songs([song.stems[stem] for song in self.songs]) for stem in self.songs[0].stems}

    @property
    def usdr(self) -> float:
        """One number to choose weights by: uSDR in dB, the mean over songs and stems."""
        return float(np.mean([score.usdr_db for score in self.stems.values()]))

    def to_json(self) -> dict[str, Any]:
        """Everything in the shape of JSON; a score that is not finite is null."""
        return {
            "stems": {stem: score.to_json() for stem, score in self.stems.items()},
            "songs": [
                {"song": song.song, "stems": {stem: score.to_json() for stem, score in song.stems.items()}}
                for song in self.songs
            ],
        }

    def table(self) -> str:
        """A text table: all songs, then each song."""
        blocks = [SongScores(f"all {len(self.songs)} songs", self.stems), *self.songs]
        width = max(len(block.song) for block in blocks)
        lines = [
            f"{'':{width}} {'':13} {'':>9} {'':>9} {'':>12} {'mixture':>9} {'mixture':>9}",
            f"{'':{width}} {'':13} {'cSDR':>9} {'uSDR':>9} {'recovered %':>12} {'cSDR':>9} {'uSDR':>9}",
        ]
        for block in blocks:
            for row, (stem, score) in enumerate(block.stems.items()):
                lines.append(
                    f"{'' if row else block.song:{width}} {stem:13} {decimal(score.csdr_db):>9} {decimal(score.usdr_db):>9}"
                    f" {decimal(score.recovered_percent):>12}"
                    f" {decimal(score.mixture_csdr_db):>9} {decimal(score.mixture_usdr_db):>9}"
                )
            lines.append("")
        return "\n".join(lines)


def evaluate(separator: Separator, songs: Sequence[Song], progress: bool, excerpt_s: float | None = None) -> Evaluation:
    """Separate each song at its own rate and channels and score all its stems together.

    `excerpt_s` takes only so many seconds from the middle of each song; `progress` shows a bar. Raises DataError where
    there are no songs or one is shorter than the second that cSDR needs.
    """
    if not songs:
        raise DataError("there are no songs to evaluate: name a split that has some")
    bar = tqdm(songs, desc="evaluate", unit="song", disable=not progress)
    return Evaluation(tuple(evaluate_song(separator, song, excerpt_s) for song in bar))


def evaluate_song(separator: Separator, song: Song, excerpt_s: float | None) -> SongScores:
    stems = separator.spec.stems
    audio, rate_hz = song.read([*stems, "mixture"])
    if excerpt_s is not None:
        audio = middle(audio, round(excerpt_s * rate_hz))
    if audio.shape[-1] < rate_hz:
        raise DataError(f"{song.name} is shorter than the second that cSDR needs: leave it out")
    references, mixture = audio[:-1], audio[-1]
    separated = separator.separate(mixture, rate_hz)
    estimates = np.stack([separated[stem] for stem in stems])
    mixtures = np.broadcast_to(mixture, references.shape)
    columns = (
        csdr(references, estimates, rate_hz),
        usdr(references, estimates),
        csdr(references, mixtures, rate_hz),
        usdr(references, mixtures),
    )
    scores = (Score(*(float(value) for value in values)) for values in zip(*columns, strict=True))
    return SongScores(song.name, dict(zip(stems, scores, strict=True)))


def over_songs(scores: Sequence[Score]) -> Score:
    return Score(
        csdr_db=median(np.array([score.csdr_db for score in scores])),
        usdr_db=float(np.mean([score.usdr_db for score in scores])),
        mixture_csdr_db=median(np.array([score.mixture_csdr_db for score in scores])),
        mixture_usdr_db=float(np.mean([score.mixture_usdr_db for score in scores])),
    )


def middle(audio: Audio, samples: int) -> Audio:
    """The middle of audio (…, n), so many samples of it at most."""
    start = max(0, audio.shape[-1] - samples) // 2
    return audio[..., start : start + samples]


def decimal(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
