from pathlib import Path

import numpy as np
import pytest

from tests.data_sets import STEMS, needs_ffmpeg, write_stem_file
from training.data.musdb18 import StemMp4, validation_tracks

pytestmark = pytest.mark.slow


def test_the_official_songs_for_validation() -> None:
    assert len(validation_tracks()) == 14
    assert "Leaf - Summerghost" in validation_tracks()


@needs_ffmpeg
def test_parity_with_musdb(tmp_path: Path) -> None:
    import musdb

    path = write_stem_file(tmp_path / "train" / "A - 0.stem.mp4", seconds=3.3)
    database = musdb.DB(root=str(tmp_path), subsets=["train"])
    assert set(database.setup["validation_tracks"]) == validation_tracks()
    audio, rate_hz = StemMp4("A - 0", path).read(STEMS)
    track = database.tracks[0]
    assert track.rate == rate_hz
    for ours, stem in zip(audio, STEMS, strict=True):
        half_a_step = 0.5 / 32768  # musdb rounds to 16 bits
        np.testing.assert_allclose(ours, track.targets[stem].audio.T, rtol=0, atol=half_a_step + 1e-6)
