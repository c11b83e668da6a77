"""Validation: each average of the weights is scored on the validation songs, which the ranks share."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import torch

from serving.model.separator import Separator
from serving.model.spec import ModelSpec
from training.data.song import Song
from training.errors import OutOfMemory
from training.evaluation.evaluate import Evaluation, SongScores, evaluate_song
from training.optimization.ema import Average
from training.optimization.machine import Machine
from training.run.signals import StopRequest


@dataclass(frozen=True)
class Scored:
    """The average that scored best, and its scores."""

    average: Average
    evaluation: Evaluation


@dataclass(frozen=True)
class Validator:
    """Scores averages of the weights on `excerpt_s` seconds from the middle of each song."""

    model: ModelSpec
    songs: Sequence[Song]
    excerpt_s: float
    machine: Machine

    def best(self, averages: Sequence[Average], stop: StopRequest) -> Scored | None:
        """The average with the highest uSDR, the same on all ranks; None if a stop is requested meanwhile.

        Raises OutOfMemory if a window of a song does not fit the device, RankLost.
        """
        ranks = self.machine.ranks
        scored = []
        for average in averages:
            separator = self.separator(average)
            mine = []
            for song in self.songs[ranks.share]:
                if stop.signal is None:
                    mine.append(self.scores(separator, song))
            stop.note(*ranks.largest(stop.signal or 0))
            if stop.signal is not None:
                return None
            in_order = chain.from_iterable(zip_longest(*ranks.gathered(mine)))
            scored.append(Scored(average, Evaluation(tuple(song for song in in_order if song is not None))))
        return max(scored, key=lambda one: one.evaluation.usdr)

    def scores(self, separator: Separator, song: Song) -> SongScores:
        try:
            return evaluate_song(separator, song, self.excerpt_s)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the memory of {self.machine.device} ran out in validation ({str(error).splitlines()[0]}): take a smaller "
                "--batch-size, or end what else uses it"
            ) from error

    def separator(self, average: Average) -> Separator:
        return Separator(self.model, average.network, self.machine.device)
