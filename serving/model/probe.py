"""A few seconds of made-up music, always the same, on which a network in one engine is compared with the same in another.

Noise would not do: a network finds no voice in it, so that the vocals are next to silence, and every rounding is large
beside them. In bfloat16 the starter's vocals are 2 to 3 dB farther from float32's here than in the median of eleven real
songs, those of `classic` 5 dB nearer.
"""

import numpy as np
from numpy.typing import NDArray

from serving.audio import Audio

SECONDS = 4
PEAK = 0.7
FORMANTS_HZ = ((700, 1.0, 130), (1_150, 0.5, 200), (2_600, 0.25, 400), (3_500, 0.1, 500))
"""Resonances of a sung vowel: frequency, gain, width."""


def probe(rate_hz: int) -> Audio:
    """Float32 music (2, n): a voice in the middle, a chord to the sides, a bass and drums."""
    t = np.arange(SECONDS * rate_hz) / rate_hz
    chord = [notes(t, pitch_hz) for pitch_hz in (220.0, 277.2, 329.6)]
    middle = 0.3 * voice(t) + 0.3 * np.sin(2 * np.pi * 55 * t) + drums(t)
    left, right = (0.3 * np.tensordot(gains, chord, 1) for gains in ((1, 0.7, 0.3), (0.3, 0.7, 1)))
    song = np.stack([middle + left, middle + right])
    return np.asarray(PEAK * song / np.abs(song).max(), np.float32)


def voice(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two syllables a second, gliding and trembling in pitch."""
    pitch_hz = 260 * 2 ** (0.25 * np.sin(2 * np.pi * 0.3 * t) + 0.03 * np.sin(2 * np.pi * 5.5 * t))
    phase = 2 * np.pi * np.cumsum(pitch_hz) * (t[1] - t[0])
    partials = [colour(n * pitch_hz) / np.sqrt(n) * np.sin(n * phase) for n in range(1, 16)]
    return np.asarray(np.sum(partials, axis=0) * np.clip(1.5 * np.sin(2 * np.pi * t) ** 2 - 0.2, 0, 1))


def colour(frequency_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gain of the vowel at a frequency."""
    bells = [gain / (1 + ((frequency_hz - hz) / width) ** 2) for hz, gain, width in FORMANTS_HZ]
    return np.asarray(np.sum(bells, axis=0) + 0.05)


def notes(t: NDArray[np.float64], pitch_hz: float) -> NDArray[np.float64]:
    """A string, plucked twice a second."""
    partials = [
        np.sin(2 * np.pi * n * pitch_hz * t) / n for n in range(1, 12) if n * pitch_hz * 2.2 * (t[1] - t[0]) < 1
    ]
    return np.asarray(np.sum(partials, axis=0) * np.exp(-4 * (t % 0.5)))


def drums(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """A kick on every beat, a brush of noise between."""
    noise = np.random.default_rng(0).standard_normal(len(t))
    kick = np.sin(2 * np.pi * 50 * (t % 0.5)) * np.exp(-15 * (t % 0.5))
    return np.asarray(0.6 * kick + 0.1 * noise * np.exp(-25 * ((t + 0.25) % 0.5)))
