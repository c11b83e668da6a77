"""The scores by which a run chooses its weights: every average of them on the validation songs, shared among the ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import torch

from serving.model.separator import Separator
from training.config import TrainConfig
from training.data.song import Song
from training.evaluation.evaluate import Evaluation, evaluate_song
from training.run.ema import Average
from training.run.ranks import Ranks
from training.run.signals import StopRequest


@dataclass(frozen=True)
class Scored:
    """The best of the averages, and how it scores."""

    average: Average
    evaluation: Evaluation


def validate(
    config: TrainConfig,
    averages: Sequence[Average],
    songs: Sequence[Song],
    device: torch.device,
    ranks: Ranks,
    stop: StopRequest,
) -> Scored | None:
    """Score every average; the one with the highest uSDR. All ranks come to the same. None where a stop is asked for."""
    scored = []
    for average in averages:
        separator = Separator(config.model, average.network, device)
        mine = []
        for song in songs[ranks.share]:
            if stop.signal is None:  # a signal has to be answered within seconds, songs take longer
                mine.append(evaluate_song(separator, song, config.validation.valid_excerpt_s))
        (signal,) = ranks.largest(stop.signal or 0)
        if signal:
            stop.signal = int(signal)
            return None
        in_order = chain.from_iterable(zip_longest(*ranks.gathered(mine)))
        scored.append(Scored(average, Evaluation(tuple(song for song in in_order if song is not None))))
    return max(scored, key=lambda one: one.evaluation.usdr)
