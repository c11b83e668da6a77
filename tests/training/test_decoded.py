import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from serving.spec import AudioSpec
from tests.data_sets import STEMS, stem_audio, write_folder
from training.decoded import decode
from training.musdb18 import Song, StemFolder


def song(path: Path, **facts: int) -> Song:
    write_folder(path, **facts)
    return StemFolder(path.name, path)


def test_samples_at_the_songs_own_rate_are_the_files_samples(tmp_path: Path) -> None:
    (decoded,) = decode([song(tmp_path / "A - 0")], AudioSpec(44_100, 2), ("vocals", "bass"), tmp_path / "cache")
    assert (decoded.name, decoded.n_samples, decoded.clipped) == ("A - 0", 4_410, 0)
    assert decoded.samples.dtype == np.int16 and decoded.samples.shape == (2, 2, 4_410)
    for row, stem in zip(decoded.samples, ("vocals", "bass"), strict=True):
        expected, _ = soundfile.read(tmp_path / "A - 0" / f"{stem}.wav", dtype="int16")
        assert np.array_equal(row, expected.T)


@pytest.mark.parametrize("channels", [1, 2])
def test_songs_are_resampled_and_keep_their_channels(tmp_path: Path, channels: int) -> None:
    source = song(tmp_path / "A - 0", samples=48_000, rate=48_000, channels=channels)
    (decoded,) = decode([source], AudioSpec(22_050, 1), STEMS, tmp_path / "cache")
    assert decoded.samples.shape == (4, channels, 22_050)
    expected = soxr.resample(stem_audio("A - 0", "other", 48_000, channels), 48_000, 22_050, quality="HQ").T
    assert np.abs(decoded.samples[2] / 32768 - expected).max() < 1e-4


def test_peaks_above_full_scale_are_clipped_and_counted(tmp_path: Path) -> None:
    source = song(tmp_path / "A - 0")
    loud = np.zeros((4_410, 2), np.float32)
    loud[10:13] = [[1.5, 0.5], [-1.5, -1.0], [1.0, 0.0]]  # 1.0 is one step above the largest int16
    soundfile.write(tmp_path / "A - 0" / "drums.wav", loud, 44_100, subtype="FLOAT")
    for _ in range(2):  # the second time from the cache
        (decoded,) = decode([source], AudioSpec(44_100, 2), STEMS, tmp_path / "cache")
        assert decoded.clipped == 3
        assert decoded.samples[0, :, 10:13].tolist() == [[32767, -32768, 32767], [16384, -32768, 0]]


def test_a_song_is_decoded_once_and_again_when_anything_changed(tmp_path: Path) -> None:
    source, cache = song(tmp_path / "A - 0"), tmp_path / "cache"
    (first,) = decode([source], AudioSpec(44_100, 2), STEMS, cache)
    written = first.path.stat().st_mtime_ns
    assert decode([source], AudioSpec(44_100, 2), STEMS, cache) == [first]
    assert first.path.stat().st_mtime_ns == written and len(list(cache.iterdir())) == 1

    assert decode([source], AudioSpec(22_050, 2), STEMS, cache)[0].path != first.path
    assert decode([source], AudioSpec(44_100, 2), STEMS[::-1], cache)[0].path != first.path
    soundfile.write(tmp_path / "A - 0" / "bass.wav", np.zeros((4_410, 2)), 44_100)
    (changed,) = decode([source], AudioSpec(44_100, 2), STEMS, cache)
    assert not changed.samples[1].any()
    assert first.samples[1].any()


def test_songs_come_in_their_order_with_progress(tmp_path: Path) -> None:
    songs = [song(tmp_path / f"A - {number}", samples=100 + number) for number in range(6)]
    seen: list[tuple[str, int, int]] = []
    decoded = decode(songs, AudioSpec(44_100, 2), STEMS, tmp_path / "cache", lambda *now: seen.append(now))
    assert [one.n_samples for one in decoded] == [100, 101, 102, 103, 104, 105]
    assert [done for _, done, _ in seen] == [1, 2, 3, 4, 5, 6]


def test_a_song_can_be_sent_to_a_process(tmp_path: Path) -> None:
    (decoded,) = decode([song(tmp_path / "A - 0")], AudioSpec(44_100, 2), STEMS, tmp_path / "cache")
    sent = pickle.dumps(decoded)
    assert len(sent) < 1_000
    assert np.array_equal(pickle.loads(sent).samples, decoded.samples)
