"""Augmentation of stems on the device, before they are mixed.

Axes: b batch, s stem, c channel, n sample. Random numbers in 0..1, (b, s, DRAWS), are drawn on the CPU for the whole batch,
so every device and any number of ranks augment an example in the same way.
"""

import math

import numpy as np
import torch
from scipy.fft import prev_fast_len
from torch import Tensor

GAIN_DB = 6.0
SEMITONES = (-2, -1, 0, 1, 2)
"""Transpositions of an example. Whole semitones keep the tuning that songs share, which networks learn."""
FASTEST = 2 ** (max(SEMITONES) / 12)
DRAWS = 4


def samples_to_cut(samples: int) -> int:
    """The samples to read for an excerpt of `samples` after augmentation: faster playing needs more of the song."""
    return math.ceil(samples * FASTEST)


def samples_left(samples: int) -> int:
    """The samples after augmentation of an excerpt of `samples`."""
    return int(samples / FASTEST)


def chances(seed: int, step: int, batch_size: int, stems: int) -> Tensor:
    """Draw the random numbers (b, s, DRAWS) that decide the augmentation of a step."""
    (word,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(word))
    return torch.rand(batch_size, stems, DRAWS, generator=generator)


def augment(stems: Tensor, chances: Tensor, channels: int = 1) -> Tensor:
    """Change level, side and key of stereo stems; return as many channels as the network takes.

    Two channels are left and right, exchanged in half of the examples.

    Args:
        stems: (b, s, 2, `samples_to_cut(n)`).
        chances: on the CPU, so that reading the keys does not wait for the device.

    Returns:
        (b, s, `channels`, n).
    """
    level, place, kind, _ = chances.to(stems.device, non_blocking=True)[..., None, None].unbind(2)
    louder = gain(stems, level)
    side = kind[:, :1]
    heard = one_channel(louder, place, side) if channels == 1 else torch.where(side < 0.5, louder, louder.flip(2))
    return transpose(heard, chances[:, 0, -1])


def gain(stems: Tensor, level: Tensor) -> Tensor:
    """Scale each stem by up to ±GAIN_DB."""
    return stems * 10 ** (GAIN_DB * (2 * level - 1) / 20)


def one_channel(stems: Tensor, place: Tensor, kind: Tensor) -> Tensor:
    """Mix stereo stems down to one channel (b, s, 1, n), as networks take one channel at a time.

    Half of the examples take the middle, (left + right) / 2, of all stems, a quarter the side, (left - right) / 2. In the
    rest each stem is panned at random. `place` is (b, s, 1, 1), `kind` (b, 1, 1, 1).
    """
    left_share = torch.where(kind < 0.75, 0.5, place)
    right_share = torch.where((kind >= 0.5) & (kind < 0.75), -0.5, 1 - left_share)
    return left_share * stems[:, :, :1] + right_share * stems[:, :, 1:]


def transpose(stems: Tensor, key: Tensor) -> Tensor:
    """Play each example faster or slower by one of SEMITONES, all of its stems alike. `key` is (b,), on the CPU.

    A Fourier transform resamples the excerpt that fills the length at that speed: cutting or padding the end of a spectrum
    changes the sample rate of the same sound. A length with large prime factors takes five times as long to transform, so
    the next shorter length without them is taken, a few cents off.
    """
    samples = samples_left(stems.shape[-1])
    transposed = stems.new_empty(*stems.shape[:-1], samples)
    for example, stem, share in zip(transposed, stems, key.tolist(), strict=True):
        speed = 2 ** (SEMITONES[int(share * len(SEMITONES))] / 12)
        played = samples if speed == 1 else prev_fast_len(round(samples * speed))
        spectrum = torch.fft.rfft(stem[..., :played], norm="forward")
        example.copy_(torch.fft.irfft(spectrum, samples, norm="forward"))
    return transposed
