from pathlib import Path

import pytest
import torch

from serving.model.separator import Separator
from serving.model.spec import ModelSpec
from tests.stubs import Share
from training.data.data_set import list_dataset
from training.demo.songs import write_songs
from training.evaluation.evaluate import evaluate_song
from training.optimization.ema import Average
from training.optimization.machine import Machine
from training.run.signals import StopRequest
from training.run.validate import Validator

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.mark.parametrize("better_is", ["first", "last"])
def test_the_average_that_separates_best_is_chosen_with_its_scores(
    tiny_spec: ModelSpec, tmp_path: Path, better_is: str
) -> None:
    """Vocals are the softer stem: to take all for vocals is worse than to take all for the accompaniment."""
    write_songs(tmp_path / "songs", train=2, test=2, seconds=2, seed=0)
    songs = list_dataset(str(tmp_path / "songs"), tmp_path / "work").test
    better, worse = Average(Share(0.1, 0.9), 0.99), Average(Share(0.9, 0.1), 0.999)
    averages = [better, worse] if better_is == "first" else [worse, better]
    scored = Validator(tiny_spec, songs, 30, Machine(CPU)).best(averages, StopRequest())
    assert scored is not None and scored.average is better
    alone = [evaluate_song(Separator(tiny_spec, better.network, CPU), song, None) for song in songs]
    assert list(scored.evaluation.songs) == alone
