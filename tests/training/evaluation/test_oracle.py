"""The ideal ratio mask, where its result is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from serving.model.spec import ChunkSpec, ModelSpec
from training.evaluation.metrics import usdr
from training.evaluation.oracle import ideal_ratio_mask, ratio_masks

RATE_HZ = 22_050


@pytest.fixture
def spec(tiny_spec: ModelSpec) -> ModelSpec:
    """Windows of two seconds, so that a few seconds are cut and put together again."""
    return replace(tiny_spec, chunk=ChunkSpec(length_s=2, overlap_s=1))


def noise(stems: int, seconds: float = 3.3, channels: int = 2, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Independent stems (s, c, n)."""
    shape = (stems, channels, round(seconds * rate_hz))
    return 0.1 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def bands(audio: np.ndarray, rate_hz: int) -> np.ndarray:
    """Stem k (c, n) between 1,000 k + 100 and 1,000 k + 900 Hz."""
    hz = np.fft.rfftfreq(audio.shape[-1], 1 / rate_hz)
    kept = [(hz > 1_000 * k + 100) & (hz < 1_000 * k + 900) for k in range(len(audio))]
    filtered = [np.fft.irfft(np.fft.rfft(stem) * band, audio.shape[-1]) for stem, band in zip(audio, kept, strict=True)]
    return np.stack(filtered).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 44_100])
def test_stems_in_bands_of_their_own_come_back(spec: ModelSpec, rate_hz: int) -> None:
    references = bands(noise(4, rate_hz=rate_hz), rate_hz)
    estimates = ideal_ratio_mask(references, rate_hz, spec)
    assert estimates.shape == references.shape and estimates.dtype == np.float32
    assert usdr(references, estimates).min() > 35


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 44_100, 8_000])
def test_stems_sum_to_the_mixture(spec: ModelSpec, rate_hz: int) -> None:
    references = noise(3, rate_hz=rate_hz)
    np.testing.assert_allclose(
        ideal_ratio_mask(references, rate_hz, spec).sum(axis=0), references.sum(axis=0), atol=1e-6
    )


@pytest.mark.parametrize("sounding", [0, 2])
def test_a_stem_alone_comes_back_as_it_is(spec: ModelSpec, sounding: int) -> None:
    references = noise(3)
    references[np.arange(3) != sounding] = 0
    np.testing.assert_allclose(ideal_ratio_mask(references, RATE_HZ, spec), references, atol=1e-6)


def test_every_channel_has_masks_of_its_own(spec: ModelSpec) -> None:
    references = noise(2)
    references[0, 1] = references[1, 0] = 0  # one stem on the left, the other on the right
    np.testing.assert_allclose(ideal_ratio_mask(references, RATE_HZ, spec), references, atol=1e-6)


def test_stems_alike_share_the_mixture_by_their_levels(spec: ModelSpec) -> None:
    references = noise(1) * np.array([1.0, 3.0], np.float32)[:, None, None]
    np.testing.assert_allclose(ideal_ratio_mask(references, RATE_HZ, spec), references, atol=1e-6)
    opposed = (
        references * np.array([1, -1], np.float32)[:, None, None]
    )  # magnitudes are shared, phases are the mixture's
    np.testing.assert_allclose(ideal_ratio_mask(opposed, RATE_HZ, spec)[0], 0.25 * opposed.sum(axis=0), atol=1e-6)


def test_what_the_models_rate_does_not_hold_falls_to_the_last_stem(spec: ModelSpec) -> None:
    time_s = np.arange(3 * 44_100) / 44_100
    high = np.sin(2 * np.pi * 15_000 * time_s).astype(np.float32)[None]
    estimates = ideal_ratio_mask(np.stack([high, 0 * high]), 44_100, spec)
    assert abs(estimates[0][:, 4_410:-4_410]).max() < 1e-3
    np.testing.assert_allclose(estimates[1], high - estimates[0], atol=1e-6)


def test_masks_sum_to_one_and_silence_has_none() -> None:
    magnitudes = torch.rand(4, 2, 5, 3)
    magnitudes[..., 0] = 0
    masks = ratio_masks(magnitudes)
    torch.testing.assert_close(masks.sum(dim=0)[..., 1:], torch.ones(2, 5, 2))
    assert masks[..., 0].abs().max() == 0
    assert masks.min() >= 0 and masks.max() <= 1
