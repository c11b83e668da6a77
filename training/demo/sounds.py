"""The sounds of demo songs: tones, noises, a vocal tract, a place in the stereo field and a little room.

Axes: c channel, f bin, t frame, n sample. Everything is vectorised: no loop runs over samples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 44_100
HOP_SAMPLES = 512  # from frame to frame where something moves: pitch, formants, loudness
BIN_HZ = np.arange(HOP_SAMPLES + 1, dtype=np.float32) * (RATE_HZ / (2 * HOP_SAMPLES))

# Vowels as the frequencies of four formants in Hz.
VOWELS = np.array(
    [
        [750, 1200, 2550, 3500],  # ah
        [560, 1800, 2550, 3500],  # eh
        [300, 2250, 3000, 3700],  # ee
        [500, 900, 2500, 3400],  # oh
        [330, 800, 2300, 3300],  # oo
        [480, 1350, 1750, 3300],  # er
    ],
    dtype=np.float32,
)
BANDWIDTHS_HZ = (90.0, 110.0, 160.0, 220.0)
FORMANT_GAINS = (1.0, 0.6, 0.35, 0.25)

Sound = NDArray[np.floating[Any]]
Random = np.random.Generator


@dataclass(frozen=True)
class Timbre:
    """A steady tone: amplitudes of its harmonics, and an envelope of attack and exponential decay."""

    harmonics: Sound
    attack_s: float
    decay_s: float
    detune_cents: float = 0.0


COUNT = np.arange(1, 41, dtype=np.float32)
ORGAN = Timbre(np.array([1, 0.7, 0.5, 0.4, 0, 0.3, 0, 0.25], dtype=np.float32), attack_s=0.01, decay_s=60)
STRINGS = Timbre(1 / COUNT, attack_s=0.15, decay_s=60, detune_cents=9)
PLUCK = Timbre(1 / COUNT, attack_s=0.003, decay_s=0.35)
PIANO = Timbre(1 / COUNT**1.7, attack_s=0.005, decay_s=0.9, detune_cents=3)
REED = Timbre((COUNT % 2) / COUNT, attack_s=0.03, decay_s=60)
FLUTE = Timbre(1 / COUNT**2.5, attack_s=0.06, decay_s=60)
FINGERED_BASS = Timbre(1 / COUNT[:12] ** 1.3, attack_s=0.008, decay_s=0.6)
VOCAL_FOLDS = 1 / COUNT


def play(timbre: Timbre, midi: int, n_samples: int) -> Sound:
    """One note (n,) of an instrument, with a release of 20 ms at most."""
    t = np.arange(n_samples, dtype=np.float32) / RATE_HZ
    cents = (timbre.detune_cents, -timbre.detune_cents) if timbre.detune_cents else (0.0,)
    tone = np.zeros(n_samples, dtype=np.float32)
    for offset in cents:
        tone += oscillate(timbre.harmonics, hertz(np.full(n_samples, midi + offset / 100, dtype=np.float32)))
    tone *= np.clip(t / timbre.attack_s, 0, 1) * np.exp(-t / timbre.decay_s)
    tone *= np.clip((n_samples / RATE_HZ - t) / 0.02, 0, 1)
    return tone


def oscillate(harmonics: Sound, hz: Sound) -> Sound:
    """A tone (n,) of a frequency (n,) that may move, read from a table of one period; no harmonic above 16 kHz."""
    size = 8192
    count = min(len(harmonics), max(1, int(16_000 / hz.max())))
    spectrum = np.zeros(size // 2 + 1, dtype=np.complex64)
    spectrum[1 : count + 1] = -0.5j * size * harmonics[:count]
    table = np.fft.irfft(spectrum).astype(np.float32)
    phase = np.cumsum(hz, dtype=np.float64) * (size / RATE_HZ)
    return table[phase.astype(np.int64) % size]


def hertz(midi: Sound) -> Sound:
    return np.asarray(440 * np.exp2((midi - 69) / 12), dtype=np.float32)


def filtered(source: Sound, gains: Sound) -> Sound:
    """A signal (n,) through a filter that changes from frame to frame: gains (t, f) on half-overlapping windows."""
    window = np.sqrt(np.hanning(2 * HOP_SAMPLES + 1)[:-1]).astype(np.float32)
    padded = np.zeros((len(gains) + 1) * HOP_SAMPLES, dtype=np.float32)
    padded[HOP_SAMPLES : HOP_SAMPLES + source.size] = source
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP_SAMPLES)[::HOP_SAMPLES]
    frames = np.fft.irfft(np.fft.rfft(frames * window) * gains).astype(np.float32) * window
    out = np.zeros((len(gains) + 1, HOP_SAMPLES), dtype=np.float32)
    out[:-1] += frames[:, :HOP_SAMPLES]
    out[1:] += frames[:, HOP_SAMPLES:]
    return out.ravel()[HOP_SAMPLES : HOP_SAMPLES + source.size]


def resonances(formants: Sound) -> Sound:
    """Gains (t, f) of a vocal tract with formants (t, 4) in Hz."""
    gains = np.zeros((len(formants), BIN_HZ.size), dtype=np.float32)
    for centre_hz, bandwidth_hz, gain in zip(formants.T, BANDWIDTHS_HZ, FORMANT_GAINS, strict=True):
        gains += gain * hump(centre_hz, bandwidth_hz)
    return gains


def hump(centre_hz: Sound, bandwidth_hz: float) -> Sound:
    """Gains (t, f) of one resonance per frame."""
    return 1 / np.sqrt(1 + ((BIN_HZ - centre_hz[:, None]) * (2 / bandwidth_hz)) ** 2)


def band(noise: Sound, low_hz: float, high_hz: float) -> Sound:
    """The part (n,) of a noise between two frequencies."""
    hz = np.fft.rfftfreq(noise.size, 1 / RATE_HZ)
    return np.fft.irfft(np.fft.rfft(noise) * ((hz > low_hz) & (hz < high_hz)), noise.size).astype(np.float32)


def pan_gains(position: float) -> Sound:
    """Gains of left and right for a position from -1 to 1, of equal power."""
    angle = (position + 1) * np.pi / 4
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


def room(dry: Sound, rng: Random, wet: float) -> Sound:
    """A stem (n, 2) with a dozen early reflections in each ear."""
    out = dry.copy()
    for delay in np.sort(rng.integers(300, 9_000, 12)):
        for channel in (0, 1):
            ear = int(delay) + int(rng.integers(0, 400))
            gain = np.float32(wet * np.exp(-ear / 4_000) * rng.choice((-1, 1)))
            out[ear:, channel] += gain * dry[: len(dry) - ear, 1 - channel]
    return out


def add(out: Sound, sound: Sound, start: int) -> None:
    """Add a sound (n, 2) or (n, 1) from a sample on, up to the end of the song."""
    length = min(len(sound), len(out) - start)
    if length > 0:
        out[start : start + length] += sound[:length]
