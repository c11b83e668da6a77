import librosa
import numpy as np
import pytest
import torch

from serving.model.spec import StftSpec
from serving.model.spectrogram import Stft

LENGTHS = [1, 2, 511, 512, 513, 2047, 2048, 2049, 22_050, 30_001]
SPECS = [StftSpec(2048, 512), StftSpec(4096, 1024), StftSpec(1024, 256), StftSpec(64, 10)]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_fft=.* is too large")  # librosa's, for the shortest of these lengths
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("samples", LENGTHS)
def test_it_is_librosa_s(spec: StftSpec, samples: int) -> None:
    # librosa's is also computed in float32: 1e-5 of the largest value is what two float32 FFTs of n_fft points differ by.
    audio = noise(samples)
    theirs = librosa.stft(audio.numpy(), n_fft=spec.n_fft, hop_length=spec.hop_samples)
    ours = Stft(spec)(audio).numpy()
    assert ours.shape == theirs.shape == (spec.bins, spec.frames(samples))
    assert ours.dtype == theirs.dtype == np.complex64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("samples", LENGTHS)
def test_the_inverse_gives_the_audio_back(spec: StftSpec, samples: int) -> None:
    audio = noise(samples).clamp(-1, 1)
    stft = Stft(spec)
    back = stft.inverse(stft(audio), samples)
    assert back.shape == audio.shape
    assert (back - audio).abs().max() < 1e-6  # a few float32 rounding steps at full scale


def test_leading_axes_are_free() -> None:
    audio = noise(2, 3, 4, 5_000)
    stft = Stft(StftSpec(512, 128))
    spectrogram = stft(audio)
    assert spectrogram.shape == (2, 3, 4, 257, 40)
    torch.testing.assert_close(spectrogram[1, 2, 3], stft(audio[1, 2, 3]), rtol=0, atol=0)
    back = stft.inverse(spectrogram, 5_000)
    assert back.shape == audio.shape
    assert (back - audio).abs().max() < 2e-6


def test_a_tone_is_where_it_belongs() -> None:
    spec = StftSpec(2048, 512)
    audio = torch.cos(2 * torch.pi * 100 * torch.arange(20_480) / spec.n_fft)  # exactly in bin 100
    magnitude = Stft(spec)(audio).abs()[:, 10]
    assert magnitude.argmax() == 100
    assert magnitude[100].item() == pytest.approx(spec.n_fft / 4, rel=1e-4)  # half the amplitude times the window's sum


def test_the_window_moves_with_the_module_and_is_no_weight() -> None:
    stft = Stft(StftSpec(64, 16))
    assert stft.state_dict() == {}
    assert stft.to(torch.float64).window.dtype == torch.float64
