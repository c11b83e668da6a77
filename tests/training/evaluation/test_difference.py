import numpy as np
import pytest

from training.evaluation.difference import difference


def test_the_interval_is_that_of_the_normal_law_for_many_songs() -> None:
    rng = np.random.default_rng(1)
    songs = rng.normal(8.0, 3.0, 400)
    found = difference((songs + rng.normal(0.2, 1.0, 400)).tolist(), songs.tolist())
    assert found.mean_db == pytest.approx(0.2, abs=0.12)
    assert found.high_db - found.low_db == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert found.low_db < found.mean_db < found.high_db


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        found = difference(rng.normal(0.5, 1.0, 50).tolist(), [0.0] * 50)
        covered += found.low_db <= 0.5 <= found.high_db
    assert 88 <= covered <= 100


@pytest.mark.parametrize(
    ("mine", "verdict"),
    [
        ([1.0, 1.2, 1.1, 0.9], "B is better on vocals by 1.05 dB [0.95, 1.15], on 4 of 4 songs"),
        ([-1.0, -1.2, -1.1, -0.9], "A is better on vocals by 1.05 dB [0.95, 1.15], on 4 of 4 songs"),
        ([1.0, -1.2, 1.1, -0.9], "no difference on vocals: +0.00 dB [-1.05, 1.05]"),
    ],
)
def test_the_verdict_is_plain(mine: list[float], verdict: str) -> None:
    assert difference(mine, [0.0] * 4).verdict("B", "A", "vocals") == verdict
