from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from matplotlib.image import imread
from torch import nn

from serving.errors import AudioError
from serving.model.separator import Separator
from serving.model.spec import AudioSpec, ModelSpec, StftSpec
from tests.stubs import Share
from training.errors import ConfigError, DataError
from training.evaluation.tour import SLICES, load, percent, slices_of, tour

pytestmark = pytest.mark.slow


def write_song(path: Path, seconds: float, rate_hz: int = 44_100) -> Path:
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    left = 0.4 * np.sin(2 * np.pi * 200 * time_s) + 0.2 * np.sin(2 * np.pi * 5_000 * time_s)
    soundfile.write(path, np.stack([left, 0.5 * left], axis=1), rate_hz, subtype="FLOAT")
    return path


def step(text: str, number: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(number))


def test_loading_is_librosa_s(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song.wav", 1.3)
    np.testing.assert_array_equal(load(song, 22_050), librosa.load(song, sr=22_050, mono=True)[0])


def test_the_plan_s_song_without_a_model(tmp_path: Path) -> None:
    text = tour(write_song(tmp_path / "song.wav", 30), None, tmp_path / "out")
    assert "661,500 samples at 22,050 Hz mono: 30.00 s, peak 0.4" in step(text, "1 load")
    assert "1,025 bins x 1,292 frames" in step(text, "2 STFT")  # the plan's 646 frames are 15 s
    assert float(step(text, "2 STFT").split()[-1]) < 1e-6
    assert "(1, 1, 1025, 1292), torch.float32, on cpu" in step(text, "4 tensor")
    assert "--model" in step(text, "5-7")
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit() and line.startswith(" ")]
    assert [int(row[0]) for row in rows] == list(range(1, SLICES + 1))
    assert {row[-1] for row in rows} == {"-"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tour.png"]
    assert imread(tmp_path / "out" / "tour.png").std() > 0.1


def test_with_a_model_it_writes_stems_that_sum_to_the_song(
    tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path
) -> None:
    song = write_song(tmp_path / "song.wav", 16)
    text = tour(song, Separator(tiny_spec, tiny_network, "cpu"), tmp_path / "out")
    vocals, rate_hz = soundfile.read(tmp_path / "out" / "vocals.wav", dtype="float32")
    accompaniment, _ = soundfile.read(tmp_path / "out" / "accompaniment.wav", dtype="float32")
    expected = load(song, 22_050)
    assert rate_hz == 22_050
    assert vocals.shape == accompaniment.shape == expected.shape
    assert np.abs(vocals + accompaniment - expected).max() < 1e-6
    assert "1,025 x 690, made in windows of 646 frames" in step(text, "5 U-Net")
    assert float(step(text, "7 files").split()[-1]) < 1e-6
    shares = [float(line.split()[-2]) for line in text.splitlines() if line.startswith(" ") and line.endswith("%")]
    assert len(shares) == SLICES
    assert all(0 < share < 100 for share in shares)


def test_profile_measures_the_band_and_the_mask() -> None:
    audio, stft = AudioSpec(sample_rate_hz=22_050), StftSpec(n_fft=2048, hop_samples=512)
    magnitude = np.zeros((1025, 2 * SLICES), np.float32)
    magnitude[19] = 3  # 205 Hz: a fundamental
    magnitude[94] = 1  # 1,012 Hz: the fourth harmonic of 253 Hz
    magnitude[7] = 2  # 75 Hz: below the band
    magnitude[96] = 2  # 1,034 Hz: above it
    mask = np.zeros_like(magnitude)
    mask[19] = 0.5
    magnitude[:, -2:] = 0  # the last slice is silent
    found = slices_of(magnitude, mask, audio, stft)
    assert found.vocal_band_percent == [pytest.approx(50)] * 17 + [0]
    assert found.voice_percent == [pytest.approx(100 * 1.5 / 8)] * 17 + [0]
    assert found.mean_magnitude == [pytest.approx(8 / 1025)] * 17 + [0]
    assert found.start_s == pytest.approx([2 * k * 512 / 22_050 for k in range(SLICES)])


def test_slices_cover_every_frame_once() -> None:
    audio, stft = AudioSpec(sample_rate_hz=22_050), StftSpec(n_fft=2048, hop_samples=512)
    magnitude = np.ones((1025, 5 * SLICES + 7), np.float32)
    starts = np.array(slices_of(magnitude, None, audio, stft).start_s) * 22_050 / 512
    np.testing.assert_allclose(np.diff([*starts, magnitude.shape[1]]), [6] * 7 + [5] * 11, atol=1e-9)


def test_percent_of_silence_is_nothing() -> None:
    assert percent(np.zeros(3, np.float32), np.zeros(3, np.float32)) == 0.0


def test_what_it_refuses(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="17 frames, too few for 18"):
        tour(write_song(tmp_path / "short.wav", 0.38), None, tmp_path / "out")
    with pytest.raises(AudioError, match=r"missing\.wav"):
        tour(tmp_path / "missing.wav", None, tmp_path / "out")
    other = Separator(replace(tiny_spec, architecture="banded"), Share(0.5, 0.5), "cpu")
    with pytest.raises(ConfigError, match="banded has none"):
        tour(write_song(tmp_path / "song.wav", 1), other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
