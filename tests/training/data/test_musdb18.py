from pathlib import Path

import numpy as np
import pytest

from tests.data_sets import STEMS, needs_ffmpeg, stem_audio, write_data_set, write_folder, write_stem_file
from training.data.data_set import DataSet, open_dataset
from training.data.musdb18 import BLOCK_SAMPLES, Header, StemFile, StemFolder, validation_tracks


def open_folder(folder: Path, valid_share: float = 0.15) -> DataSet:
    return open_dataset(str(folder), folder / "unused", valid_share)


def test_accompaniment_and_mixture_are_sums_of_stems(tmp_path: Path) -> None:
    audio, _ = open_folder(write_data_set(tmp_path / "hq")).test[0].read([*STEMS, "accompaniment", "mixture"])
    assert np.allclose(audio[4], audio[:3].sum(axis=0), atol=1e-7)
    assert np.allclose(audio[5], audio[:4].sum(axis=0), atol=1e-7)


def test_own_songs_keep_their_rate_channels_and_format(tmp_path: Path) -> None:
    for number in range(3):
        write_folder(tmp_path / "train" / f"Me - {number}", samples=800, channels=1, rate=8_000, suffix=".flac")
    song = open_folder(tmp_path).train[0]
    audio, rate_hz = song.read(["vocals"])
    assert (audio.shape, rate_hz) == ((1, 1, 800), 8_000)
    assert np.abs(audio[0].T - stem_audio(song.name, "vocals", 800, 1)).max() <= 1 / 32768


@pytest.mark.parametrize("samples", [4_410, BLOCK_SAMPLES, BLOCK_SAMPLES + 1])
def test_a_stream_is_the_song_in_blocks(tmp_path: Path, samples: int) -> None:
    song = StemFolder("A - 0", write_folder(tmp_path / "A - 0", samples=samples, channels=1))
    header, streams = song.stream(["vocals", "bass"])
    assert header == Header(44_100, 1, samples)
    streamed = [list(blocks) for blocks in streams]
    assert max(block.shape[-1] for blocks in streamed for block in blocks) <= BLOCK_SAMPLES
    audio, _ = song.read(["vocals", "bass"])
    assert np.array_equal(np.stack([np.concatenate(blocks, axis=1) for blocks in streamed]), audio)


def test_the_official_songs_for_validation() -> None:
    assert len(validation_tracks()) == 14
    assert "Leaf - Summerghost" in validation_tracks()


@needs_ffmpeg
def test_parity_with_musdb(tmp_path: Path) -> None:
    import musdb

    path = write_stem_file(tmp_path / "train" / "A - 0.stem.mp4", seconds=3.3)
    database = musdb.DB(root=str(tmp_path), subsets=["train"])
    assert set(database.setup["validation_tracks"]) == validation_tracks()
    audio, rate_hz = StemFile("A - 0", path).read(STEMS)
    track = database.tracks[0]
    assert track.rate == rate_hz
    for ours, stem in zip(audio, STEMS, strict=True):
        np.testing.assert_allclose(ours, track.targets[stem].audio.T, atol=1e-6)
