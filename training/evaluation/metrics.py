"""Scores of a separation: cSDR, uSDR and the recovered share; NumPy alone.

Axes: s stem, c channel, n sample, k frame of one second.
"""

import numpy as np
from numpy.typing import NDArray

from serving.audio import Audio

Scores = NDArray[np.float64]

USDR_FLOOR = 1e-7


def csdr(references: Audio, estimates: Audio, rate_hz: int) -> Scores:
    """cSDR (s,) in dB: the median over one-second frames; NaN if no frame counts."""
    return np.array([median(frames) for frames in frame_sdr(references, estimates, rate_hz)])


def usdr(references: Audio, estimates: Audio) -> Scores:
    """uSDR (s,) in dB of the song as one piece, after the MDX challenges (arXiv:2308.06979, eq. 1)."""
    signal, error = energy(references), energy(references - estimates)
    return np.asarray(10 * np.log10((signal + USDR_FLOOR) / (error + USDR_FLOOR)))


def si_sar(references: Audio, estimates: Audio) -> Scores:
    """SI-SAR (s,) in dB of a song: the energy of an estimate that true stems explain, against its artifacts.

    An estimate is projected onto the space of all true stems; the rest is artifact (Le Roux and others, arXiv:1811.02508,
    eq. 6). Gains of stems do not matter. Infinite where all of an estimate is explained.
    """
    true = references.reshape(len(references), -1).astype(np.float64)
    found = estimates.reshape(len(estimates), -1).astype(np.float64)
    gains, *_ = np.linalg.lstsq(true @ true.T, true @ found.T, rcond=None)
    explained = gains.T @ true
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10 * np.log10((explained**2).sum(axis=1) / ((found - explained) ** 2).sum(axis=1)))


def recovered_percent(sdr_db: float) -> float:
    """The share of a stem's energy that is recovered at this SDR: 100 at best, negative below 0 dB."""
    return float(100 * (1 - 10 ** (-sdr_db / 10)))


def frame_sdr(references: Audio, estimates: Audio, rate_hz: int) -> Scores:
    """SDR (s, k) in dB of each second of stems (s, c, n); a remainder at the end is dropped.

    BSSEval v4's SDR as museval computes it, without filters, which do not change this score. As there, a frame is NaN for
    every stem if any reference or estimate is silent in it (its channels sum to zero throughout), so stems scored together
    affect each other. It is infinite where the estimate is exact.
    """
    true, found = in_seconds(references, rate_hz), in_seconds(estimates, rate_hz)
    with np.errstate(divide="ignore", invalid="ignore"):
        sdr = 10 * np.log10(energy(true) / energy(true - found))
    sdr[:, silent(true) | silent(found)] = np.nan
    return np.asarray(sdr)


def in_seconds(audio: Audio, rate_hz: int) -> Audio:
    """Cut audio (s, c, n) into whole seconds (s, k, c, n)."""
    stems, channels, samples = audio.shape
    seconds = samples // rate_hz
    return audio[..., : seconds * rate_hz].reshape(stems, channels, seconds, rate_hz).swapaxes(1, 2)


def energy(audio: Audio) -> Scores:
    """Sum of squares (…) over channels and samples of audio (…, c, n), in double precision."""
    total: Scores = np.einsum("...cn,...cn->...", audio, audio, dtype=np.float64)
    return total


def silent(frames: Audio) -> NDArray[np.bool_]:
    """True (k,) for frames (s, k, c, n) in which any stem is silent."""
    sounding: NDArray[np.bool_] = (frames.sum(axis=2) != 0).any(axis=-1).all(axis=0)
    return ~sounding


def median(values: Scores) -> float:
    """The median of values that are not NaN; NaN if there are none."""
    counted = values[~np.isnan(values)]
    return float(np.median(counted)) if counted.size else float("nan")
