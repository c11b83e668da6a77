"""The scores by which a run chooses its weights: every average of them on the validation songs, shared among the ranks."""

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
    """The best of the averages, and its scores."""

    average: Average
    evaluation: Evaluation


@dataclass(frozen=True)
class Validator:
    """Scores the averages of the weights of a model on `excerpt_s` from the middle of each song."""

    model: ModelSpec
    songs: Sequence[Song]
    excerpt_s: float
    machine: Machine

    def best(self, averages: Sequence[Average], stop: StopRequest) -> Scored | None:
        """The average with the highest uSDR, the same on all ranks; None if a stop is asked for meanwhile.

        Raises OutOfMemory if the device has no room for a window of a song, RankLost.
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
