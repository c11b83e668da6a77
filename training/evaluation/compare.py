"""Several archives on the same songs: how well each separates, and what it costs, in one table and one picture.

Stems that are scored together share the seconds that count for cSDR, so scores compare only between archives of the same
stems. One of four stems is therefore scored a second time where another gives vocals and accompaniment: as that pair, its
drums, bass and other summed up. Below the archives stand the ideal ratio mask, for each sample rate and transform of
theirs, and the mixture.

Axes: s stem, c channel, n sample.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from serving.audio import Audio
from serving.model.separator import Separator
from serving.model.source import resolve
from serving.model.spec import STEMS, ModelSpec
from training.data.song import PAIR, SOURCES, SUMS, Song
from training.errors import ConfigError
from training.evaluation.cost import Cost, cost
from training.evaluation.evaluate import (
    Evaluation,
    Excerpt,
    Score,
    SongScores,
    decimal,
    or_none,
    read_excerpt,
    require_songs,
)
from training.evaluation.oracle import ideal_ratio_mask
from training.evaluation.plots import Point, scatter_figure
from training.progress import counted

Stems = tuple[str, ...]
"""Stems that are scored together, in the order of STEMS."""


@dataclass(frozen=True)
class Row:
    """Scores of an archive, or of a bound, on stems that are scored together.

    Only the first row of an archive has a cost. A bound has no licence.
    """

    name: str
    evaluation: Evaluation
    cost: Cost | None = None
    licence: str | None = None

    @property
    def mean(self) -> Score:
        """The means over the stems."""
        return Score(
            *np.mean([dataclasses.astuple(score) for score in self.evaluation.stems.values()], axis=0).tolist()
        )

    @property
    def scores(self) -> tuple[Score, ...]:
        """The score of each stem, then their mean."""
        return (*self.evaluation.stems.values(), self.mean)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "mean": self.mean.to_json(),
            **by_stem(self.evaluation.stems),
            "cost": self.cost and self.cost.to_json(),
            "licence": self.licence,
            "songs": [{"song": song.song, **by_stem(song.stems)} for song in self.evaluation.songs],
        }


@dataclass(frozen=True)
class Comparison:
    """The rows of archives in the given order, then those of the bounds."""

    archives: tuple[Row, ...]
    bounds: tuple[Row, ...]
    device: torch.device

    def to_json(self) -> dict[str, Any]:
        """All rows as JSON; scores that are not finite are null."""
        return {
            "device": str(self.device),
            "archives": [row.to_json() for row in self.archives],
            "bounds": [row.to_json() for row in self.bounds],
        }

    def table(self) -> str:
        """A text table with a block for each set of stems, as only scores of the same stems compare.

        A star marks the best archive; "-" marks a missing value.
        """
        rows = (*self.archives, *self.bounds)
        blocks = list(dict.fromkeys(tuple(row.evaluation.stems) for row in rows))
        width = max(len(row.name) for row in rows)
        lines = [line for stems in blocks for line in (*self._block(stems, width), "")]
        songs = len(rows[0].evaluation.songs)
        return "\n".join([*lines, f"{songs} songs, scores in dB; real-time factor and peak memory on {self.device}"])

    def _block(self, stems: Stems, width: int) -> list[str]:
        archives = [row for row in self.archives if tuple(row.evaluation.stems) == stems]
        bounds = [row for row in self.bounds if tuple(row.evaluation.stems) == stems]
        best = [
            max((row.scores[column].usdr_db for row in archives), default=np.nan) for column in range(len(stems) + 1)
        ]
        licence_width = max(len(text) for text in ("of weights", *(row.licence or "" for row in archives)))
        lines = [
            f"{'':{width}}"
            + "".join(f"{name:>15}" for name in (*stems, "mean"))
            + cost_cells("params", "GMAC/s", "real-time", "memory")
            + f"  {'licence':{licence_width}}",
            f"{'':{width}}"
            + "   cSDR   uSDR " * (len(stems) + 1)
            + cost_cells("10⁶", "", "factor", "MB")
            + f"  {'of weights':{licence_width}}",
        ]
        for row in (*archives, *bounds):
            starred = [
                len(archives) > 1 and row in archives and score.usdr_db == highest
                for score, highest in zip(row.scores, best, strict=True)
            ]
            cells = "".join(map(cells_of_score, row.scores, starred))
            licence = f"  {row.licence or '-':{licence_width}}"
            lines.append(f"{row.name:{width}}" + cells + cells_of_cost(row.cost) + licence)
        return lines

    def figure(self) -> Figure:
        """Scatter plots of every song's uSDR by stem: x the first archive, y another, a panel for each other archive."""
        names = list(dict.fromkeys(row.name for row in self.archives))
        first, *others = names
        return scatter_figure(first, {other: self.points(first, other) for other in others})

    def points(self, first: str, other: str) -> list[Point]:
        """The songs by stem. Raises ConfigError if two archives share no stems that were scored together."""
        for mine in self.of(first):
            for theirs in self.of(other):
                if mine.evaluation.stems.keys() == theirs.evaluation.stems.keys():
                    return [
                        Point(song.song, stem, score.usdr_db, beside.stems[stem].usdr_db)
                        for song, beside in zip(mine.evaluation.songs, theirs.evaluation.songs, strict=True)
                        for stem, score in song.stems.items()
                    ]
        raise ConfigError(f"{first} and {other} give different stems: leave one of them out of the plot")

    def of(self, name: str) -> list[Row]:
        return [row for row in self.archives if row.name == name]


EachSong = Callable[[Excerpt, Mapping[str, Mapping[str, Audio]]], None]
"""Takes a song and, by archive, its separated stems (c, n)."""


def compare(
    archives: Mapping[str, Path],
    songs: Sequence[Song],
    device: torch.device,
    progress: bool,
    each_song: EachSong | None = None,
) -> Comparison:
    """Separate every song with every archive and measure each archive's cost. Keys of `archives` name the rows.

    `progress` shows bars; `each_song` is called with the stems of every song. Raises ArchiveError for a damaged archive
    before any work, DataError as `evaluate` does.
    """
    require_songs(songs)
    separators = {name: Separator.open(path, device) for name, path in archives.items()}
    given = {name: in_order(separator.spec.stems) for name, separator in separators.items()}
    scored = {name: sets(stems, among=given.values()) for name, stems in given.items()}
    masks = {
        (front_end(separator.spec), stems): separator.spec
        for name, separator in separators.items()
        for stems in scored[name]
    }
    every_set = list(dict.fromkeys(stems for several in scored.values() for stems in several))

    costs = {name: cost(path, device) for name, path in counted(list(archives.items()), "measure costs", progress)}

    of_archives: defaultdict[tuple[str, Stems], list[SongScores]] = defaultdict(list)
    of_bounds: defaultdict[tuple[str, Stems], list[SongScores]] = defaultdict(list)
    for song in counted(songs, "compare songs", progress):
        excerpt = read_excerpt(song, [stem for stem in STEMS if any(stem in stems for stems in every_set)])
        found = {name: one.separate(excerpt.mixture, excerpt.rate_hz) for name, one in separators.items()}
        for name, separated in found.items():
            for stems in scored[name]:
                of_archives[name, stems].append(excerpt.scores(stems, summed_up(separated, stems)))
        if each_song is not None:
            each_song(excerpt, found)
        for (name, stems), spec in masks.items():
            by_mask = ideal_ratio_mask(excerpt.references(stems), excerpt.rate_hz, spec)
            of_bounds[name, stems].append(excerpt.scores(stems, by_mask))
        for stems in every_set:
            of_bounds["mixture", stems].append(excerpt.mixture_scores(stems))

    return Comparison(
        archives=tuple(
            Row(
                name,
                Evaluation(tuple(scores)),
                costs[name] if stems == given[name] else None,
                separators[name].licences.weights,
            )
            for (name, stems), scores in of_archives.items()
        ),
        bounds=tuple(Row(name, Evaluation(tuple(scores))) for (name, _), scores in of_bounds.items()),
        device=device,
    )


def resolved(archives: Sequence[str], folder: Path) -> dict[str, Path]:
    """Archives as files by the names they get in a table, copied below `folder` where they are elsewhere.

    Raises ConfigError unless there are two or more, all different, and what `serving.model.source.resolve` raises.
    """
    if len(archives) < 2:
        raise ConfigError("compare needs two archives or more: `stemwright evaluate` scores one")
    found = {}
    for number, (name, archive) in enumerate(zip(names(archives), archives, strict=True)):
        of_its_own = folder / str(number)  # copies may have the same name
        of_its_own.mkdir()
        found[name] = resolve(archive, of_its_own)
    return found


def names(archives: Sequence[str]) -> list[str]:
    """As many last parts of each address as tell them apart: `first/classic` and `second/classic`, or `a` and `b`.

    Raises ConfigError where one is given twice.
    """
    parts = [PurePosixPath(archive.removesuffix(".mar")).parts for archive in archives]
    for archive, its_parts in zip(archives, parts, strict=True):
        if parts.count(its_parts) > 1:
            raise ConfigError(f"{archive} is named twice: name each archive once")
    # The last part of models:/name/3 alone tells nothing.
    fewest = 2 if any(archive.startswith("models:/") and "@" not in archive for archive in archives) else 1
    for count in range(fewest, max(map(len, parts)) + 1):
        shortened = ["/".join(its_parts[-count:]) for its_parts in parts]
        if len(set(shortened)) == len(shortened):
            break
    return shortened


def sets(stems: Stems, among: Collection[Stems]) -> list[Stems]:
    """The stems that an archive is scored on: its own, and the pair if it can be made of them and another gives it."""
    as_pair = PAIR in among and set(SOURCES) <= set(stems)
    return [stems, PAIR] if as_pair else [stems]


def in_order(stems: Sequence[str]) -> Stems:
    return tuple(stem for stem in STEMS if stem in stems)


def summed_up(separated: Mapping[str, Audio], stems: Stems) -> Audio:
    """Stems (s, c, n), those that are not there as the sum of their parts."""
    parts = [(stem,) if stem in separated else SUMS[stem] for stem in stems]
    return np.stack([np.sum([separated[part] for part in of_stem], axis=0) for of_stem in parts])


def front_end(spec: ModelSpec) -> str:
    return f"mask {spec.stft.n_fft}/{spec.stft.hop_samples}, {spec.audio.sample_rate_hz / 1000:g} kHz"


def by_stem(stems: Mapping[str, Score]) -> dict[str, Any]:
    return {
        "stems": {
            stem: {**score.to_json(), "recovered_percent": or_none(score.recovered_percent)}
            for stem, score in stems.items()
        }
    }


def cells_of_score(score: Score, starred: bool) -> str:
    return f" {decimal(score.csdr_db):>6} {decimal(score.usdr_db):>6}{'*' if starred else ' '}"


def cells_of_cost(cost: Cost | None) -> str:
    if cost is None:
        return cost_cells("-", "-", "-", "-")
    millions, megabytes = cost.parameters / 1e6, cost.peak_bytes / 1e6
    return cost_cells(f"{millions:.2f}", f"{cost.gmac_per_s:.2f}", f"{cost.real_time_factor:.3f}", f"{megabytes:.0f}")


def cost_cells(parameters: str, arithmetic: str, speed: str, memory: str) -> str:
    return f"{parameters:>9}{arithmetic:>8}{speed:>11}{memory:>9}"
