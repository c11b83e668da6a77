"""Augmentation on the device, on stems before they are mixed.

Axes: b batch, s stem, c channel, n sample. Chance comes in as numbers in 0..1, (b, s, DRAWS), drawn for the whole batch on the
CPU: an example is augmented alike on every device and however many ranks share the batch.
"""

import math

import torch
from scipy.fft import prev_fast_len
from torch import Tensor

GAIN_DB = 6.0
SEMITONES = (-2, -1, 0, 1, 2)
"""How much higher an example may be played: whole ones, as networks learn to the tuning that songs share."""
FASTEST = 2 ** (max(SEMITONES) / 12)
DRAWS = 4


def samples_to_cut(samples: int) -> int:
    """The length of an excerpt that is `samples` long when it is augmented: what is played faster is over sooner."""
    return math.ceil(samples * FASTEST)


def samples_left(samples: int) -> int:
    """The length after augmentation of an excerpt of `samples`."""
    return int(samples / FASTEST)


def chances(seed: int, step: int, batch_size: int, stems: int) -> Tensor:
    """The numbers (b, s, DRAWS) that decide the augmentation of a step."""
    generator = torch.Generator().manual_seed(hash((seed, step)) % 2**63)
    return torch.rand(batch_size, stems, DRAWS, generator=generator)


def augment(stems: Tensor, chances: Tensor, channels: int = 1) -> Tensor:
    """Stereo stems at other levels, heard from another side, in another key, with as many channels as the network hears.

    Two channels are left and right, half of the time exchanged.

    Args:
        stems: (b, s, 2, `samples_to_cut(n)`).
        chances: on the CPU, where the keys are read from them without waiting for the device.

    Returns:
        (b, s, `channels`, n).
    """
    level, place, kind, _ = chances.to(stems.device, non_blocking=True)[..., None, None].unbind(2)
    louder = gain(stems, level)
    exchanged = torch.where(kind[:, :1] < 0.5, louder, louder.flip(2))
    heard = exchanged if channels == 2 else one_channel(louder, place, kind[:, :1])
    return transpose(heard, chances[:, 0, -1])


def gain(stems: Tensor, level: Tensor) -> Tensor:
    """Each stem louder or softer by up to GAIN_DB."""
    return stems * 10 ** (GAIN_DB * (2 * level - 1) / 20)


def one_channel(stems: Tensor, place: Tensor, kind: Tensor) -> Tensor:
    """One channel (b, s, 1, n) of stereo stems, as networks hear songs.

    Half of the examples are the middle of all their stems and a quarter the sides, half the sum and half the difference of
    left and right; the rest have each stem from a place of its own between left and right. `place` is (b, s, 1, 1), `kind`
    one for each example, (b, 1, 1, 1).
    """
    left_share = torch.where(kind < 0.75, 0.5, place)
    right_share = torch.where((kind >= 0.5) & (kind < 0.75), -0.5, 1 - left_share)
    return left_share * stems[:, :, :1] + right_share * stems[:, :, 1:]


def transpose(stems: Tensor, key: Tensor) -> Tensor:
    """Each example, all of its stems alike, played faster or slower by one of SEMITONES; `key` is (b,), on the CPU.

    As many seconds of it as fill the length at that speed are brought there by a Fourier transform: a spectrum with more or
    fewer bins at its end is that of the same sound at another rate. Lengths with large factors take five times as long to
    transform; the next shorter one without is a few cents off.
    """
    samples = samples_left(stems.shape[-1])
    transposed = stems.new_empty(*stems.shape[:-1], samples)
    for example, stem, share in zip(transposed, stems, key.tolist(), strict=True):
        speed = 2 ** (SEMITONES[int(share * len(SEMITONES))] / 12)
        played = samples if speed == 1 else prev_fast_len(round(samples * speed))
        spectrum = torch.fft.rfft(stem[..., :played], norm="forward")
        example.copy_(torch.fft.irfft(spectrum, samples, norm="forward"))
    return transposed
