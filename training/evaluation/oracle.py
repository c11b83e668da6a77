"""The ideal ratio mask, which knows the true stems: a row to read a model's scores against.

M_j = |S_j| / Σ_k |S_k| over the stems' spectrograms S_k, each channel by itself, and the stem j is M_j times the mixture's
spectrogram, with the mixture's phase (IRM1 of SiSEC 2018, arXiv:1804.06267). Models that predict complex spectrograms may
do better.

Axes: s stem, c channel, f bin, t frame, n sample.
"""

import numpy as np
import torch
from torch import Tensor

from serving.audio import Audio
from serving.model.chunks import crossfade, windows
from serving.model.separator import fit, resample
from serving.model.spec import ModelSpec
from serving.model.spectrogram import Stft

SILENCE = 1e-12
"""Magnitudes below this are silent in all stems, so there is nothing to divide."""


def ideal_ratio_mask(references: Audio, rate_hz: int, spec: ModelSpec) -> Audio:
    """The stems (s, c, n) that ideal masks cut from the sum of the references (s, c, n).

    They are made as a model of this spec makes its stems: in its windows, masked at its sample rate in its transform, and
    resampled to the song's rate. The last stem gets what the others leave, including the band above the model's.
    """
    length_samples, overlap_samples = spec.chunk.length_s * rate_hz, spec.chunk.overlap_s * rate_hz
    stft = Stft(spec.stft)
    cut = windows([references], length_samples, overlap_samples)
    pieces = (masked(window, rate_hz, spec.audio.sample_rate_hz, stft) for window in cut)
    return np.concatenate(list(crossfade(pieces, overlap_samples)), axis=-1)


def masked(references: Audio, rate_hz: int, model_hz: int, stft: Stft) -> Audio:
    """Masked stems (s, c, n) of one window."""
    samples = references.shape[-1]
    at_model_rate = torch.from_numpy(np.stack([resample(stem, rate_hz, model_hz) for stem in references]))
    spectrograms = stft(at_model_rate)
    estimates = stft.inverse(ratio_masks(spectrograms.abs()) * spectrograms.sum(dim=0), at_model_rate.shape[-1])
    others = np.stack([fit(resample(stem, model_hz, rate_hz), samples) for stem in estimates[:-1].numpy()])
    return np.concatenate([others, (references.sum(axis=0) - others.sum(axis=0))[None]])


def ratio_masks(magnitudes: Tensor) -> Tensor:
    """Masks (s, c, f, t) in 0..1 from magnitudes (s, c, f, t). They sum to one wherever a stem sounds."""
    return magnitudes / magnitudes.sum(dim=0).clamp(min=SILENCE)
