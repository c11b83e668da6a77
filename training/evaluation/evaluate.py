"""Scores of a model on songs with known stems.

Songs go through `serving.model.separator`, so the scores are those of what is served. All stems of a song are scored
together, in the seconds in which none is silent, as the field does (`training.evaluation.metrics`). Two references stand
beside the model: the ideal ratio mask, which knows the stems, and the mixture in place of each stem.

Axes: s stem, c channel, n sample.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from serving.audio import Audio
from serving.model.separator import Separator
from serving.model.spec import Quality
from training.data.song import Song
from training.errors import DataError
from training.evaluation.metrics import csdr, median, recovered_percent, usdr
from training.evaluation.oracle import ideal_ratio_mask
from training.progress import counted


@dataclass(frozen=True)
class Score:
    """The score of one stem in dB. cSDR is NaN if no second of the song counts."""

    csdr_db: float
    usdr_db: float

    @property
    def recovered_percent(self) -> float:
        return recovered_percent(self.csdr_db)

    def to_json(self, prefix: str = "") -> dict[str, float | None]:
        return {prefix + name: or_none(value) for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class SongScores:
    """The scores of one song, by stem."""

    song: str
    stems: Mapping[str, Score]
    real_time_factor: float = field(default=math.nan, compare=False)
    """Seconds of work for a second of audio; NaN where nothing was separated."""

    @property
    def usdr_db(self) -> float:
        """The mean over the stems."""
        return float(np.mean([score.usdr_db for score in self.stems.values()]))


@dataclass(frozen=True)
class Evaluation:
    """The scores of one or more songs with the same stems."""

    songs: tuple[SongScores, ...]

    @property
    def stems(self) -> dict[str, Score]:
        """Scores over all songs, by stem: the median of cSDR and the mean of uSDR, as the field reports them."""
        return {stem: over_songs([song.stems[stem] for song in self.songs]) for stem in self.songs[0].stems}

    @property
    def usdr(self) -> float:
        """The mean uSDR in dB over songs and stems; weights are chosen by it."""
        return float(np.mean([score.usdr_db for score in self.stems.values()]))

    @property
    def real_time_factor(self) -> float:
        """Seconds to separate a second of audio, the median over songs."""
        return median(np.array([song.real_time_factor for song in self.songs]))

    @property
    def blocks(self) -> Iterator[SongScores]:
        """The rows of a table: all songs together, then each song."""
        yield SongScores(f"all {len(self.songs)} songs", self.stems)
        yield from self.songs


@dataclass(frozen=True)
class Report:
    """Scores of a model, of the ideal ratio mask at its sample rate and transform, and of the mixture."""

    model: Evaluation
    oracle: Evaluation
    mixture: Evaluation

    def to_json(self) -> dict[str, Any]:
        """The report as JSON; scores that are not finite are null."""
        everything, *songs = zip(self.model.blocks, self.oracle.blocks, self.mixture.blocks, strict=True)
        return {
            "stems": stems_to_json(*everything),
            "songs": [
                {"song": of_model.song, "stems": stems_to_json(of_model, *bounds)} for of_model, *bounds in songs
            ],
        }

    def table(self) -> str:
        """A text table: all songs together, then each song."""
        width = max(len(block.song) for block in self.model.blocks)
        bounds = 2 * f" {'cSDR':>9} {'uSDR':>9}"
        lines = [
            f"{'':{width}} {'':13} {'model':>9} {'':>9} {'':>12} {'ideal':>9} {'mask':9} {'mixture':>9} {'':9}",
            f"{'':{width}} {'':13} {'cSDR':>9} {'uSDR':>9} {'recovered %':>12}{bounds}",
        ]
        for model, oracle, mixture in zip(self.model.blocks, self.oracle.blocks, self.mixture.blocks, strict=True):
            for row, (stem, score) in enumerate(model.stems.items()):
                of_bounds = (value for bound in (oracle, mixture) for value in dataclasses.astuple(bound.stems[stem]))
                lines.append(
                    f"{'' if row else model.song:{width}} {stem:13} {decimal(score.csdr_db):>9}"
                    f" {decimal(score.usdr_db):>9} {decimal(score.recovered_percent):>12}"
                    + "".join(f" {decimal(value):>9}" for value in of_bounds)
                )
            lines.append("")
        return "\n".join(lines)


@dataclass(frozen=True)
class Excerpt:
    """A song or its middle: audio (c, n) by stem, "mixture" among them."""

    song: str
    audio: Mapping[str, Audio]
    rate_hz: int

    @property
    def mixture(self) -> Audio:
        return self.audio["mixture"]

    def references(self, stems: Sequence[str]) -> Audio:
        """The true stems (s, c, n)."""
        return np.stack([self.audio[stem] for stem in stems])

    def scores(self, stems: Sequence[str], estimates: Audio) -> SongScores:
        """Score estimated stems (s, c, n) together."""
        references = self.references(stems)
        columns = csdr(references, estimates, self.rate_hz), usdr(references, estimates)
        scores = (Score(float(csdr_db), float(usdr_db)) for csdr_db, usdr_db in zip(*columns, strict=True))
        return SongScores(self.song, dict(zip(stems, scores, strict=True)))

    def mixture_scores(self, stems: Sequence[str]) -> SongScores:
        """The scores of the mixture in place of each stem."""
        return self.scores(stems, np.broadcast_to(self.mixture, (len(stems), *self.mixture.shape)))


def evaluate(separator: Separator, songs: Sequence[Song], progress: bool, quality: Quality = "fast") -> Report:
    """Separate songs at their own rate and channels; score the stems beside ideal mask and mixture.

    `progress` shows a bar. Raises DataError if there are no songs, or one is shorter than the second that cSDR needs.
    """
    require_songs(songs)
    spec, stems = separator.spec, separator.spec.stems
    scored = []
    for song in counted(songs, "evaluate songs", progress):
        excerpt = read_excerpt(song, stems)
        by_mask = ideal_ratio_mask(excerpt.references(stems), excerpt.rate_hz, spec)
        of_model = model_scores(separator, excerpt, quality)
        scored.append((of_model, excerpt.scores(stems, by_mask), excerpt.mixture_scores(stems)))
    return Report(*(Evaluation(of_songs) for of_songs in zip(*scored, strict=True)))


def evaluate_song(separator: Separator, song: Song, excerpt_s: float | None) -> SongScores:
    """The model's scores alone, on `seconds` from the middle of a song or on the whole."""
    return model_scores(separator, read_excerpt(song, separator.spec.stems, excerpt_s), "fast")


def model_scores(separator: Separator, excerpt: Excerpt, quality: Quality) -> SongScores:
    stems = separator.spec.stems
    began = time.perf_counter()
    separated = separator.separate(excerpt.mixture, excerpt.rate_hz, quality)
    took_s = time.perf_counter() - began
    scores = excerpt.scores(stems, np.stack([separated[stem] for stem in stems]))
    return replace(scores, real_time_factor=took_s * excerpt.rate_hz / excerpt.mixture.shape[-1])


def read_excerpt(song: Song, stems: Sequence[str], excerpt_s: float | None = None) -> Excerpt:
    """Read some stems and the mixture of a song. Raises DataError if it is shorter than a second."""
    names = [*stems, "mixture"]
    audio, rate_hz = song.read(names)
    if excerpt_s is not None:
        audio = middle(audio, round(excerpt_s * rate_hz))
    if audio.shape[-1] < rate_hz:
        raise DataError(f"{song.name} is shorter than the second that cSDR needs: leave it out")
    return Excerpt(song.name, dict(zip(names, audio, strict=True)), rate_hz)


def require_songs(songs: Sequence[Song]) -> None:
    if not songs:
        raise DataError("there are no songs to evaluate: name a split that has some")


def stems_to_json(model: SongScores, oracle: SongScores, mixture: SongScores) -> dict[str, dict[str, float | None]]:
    return {
        stem: {
            **score.to_json(),
            "recovered_percent": or_none(score.recovered_percent),
            **oracle.stems[stem].to_json("oracle_"),
            **mixture.stems[stem].to_json("mixture_"),
        }
        for stem, score in model.stems.items()
    }


def over_songs(scores: Sequence[Score]) -> Score:
    return Score(
        csdr_db=median(np.array([score.csdr_db for score in scores])),
        usdr_db=float(np.mean([score.usdr_db for score in scores])),
    )


def middle(audio: Audio, samples: int) -> Audio:
    """At most `samples` from the middle of audio (…, n)."""
    start = max(0, audio.shape[-1] - samples) // 2
    return audio[..., start : start + samples]


def or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def decimal(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:z.2f}"
