"""Augmentation on the device, on stems before they are mixed.

Axes: b batch, s stem, c channel, n sample. Chance comes in as numbers in 0..1, (b, s, DRAWS), drawn for the whole batch on the
CPU: an example is augmented alike on every device and however many ranks share the batch.
"""

import math

import torch
from scipy.fft import prev_fast_len
from torch import Tensor

GAIN_DB = 6.0
ALONE_SHARE = 0.5
"""How many of a stereo network's examples have one channel: mono songs are heard so, and one side of a song by itself."""
SEMITONES = (-2, -1, 0, 1, 2)
"""How much higher an example may be played: whole ones, as networks learn to the tuning that songs share."""
FASTEST = 2 ** (max(SEMITONES) / 12)
DRAWS = 5


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


def augment(stems: Tensor, channels: int, chances: Tensor) -> Tensor:
    """Stereo stems as stems for a model of one channel or two: other levels, other sides, another key.

    A network of two channels hears half of the examples as one channel, the same from both sides.

    Args:
        stems: (b, s, 2, `samples_to_cut(n)`).
        channels: 1 or 2.
        chances: on the CPU, where the keys are read from them without waiting for the device.

    Returns:
        (b, s, channels, n).
    """
    level, place, kind, alone, _ = chances.to(stems.device, non_blocking=True)[..., None, None].unbind(2)
    louder = gain(stems, level)
    heard = one_channel(louder, place, kind[:, :1])
    if channels == 2:
        heard = torch.where(alone[:, :1] < ALONE_SHARE, heard, flip_signs(swap_channels(louder, place), kind))
    return transpose(heard, chances[:, 0, -1])


def gain(stems: Tensor, level: Tensor) -> Tensor:
    """Each stem louder or softer by up to GAIN_DB."""
    return stems * 10 ** (GAIN_DB * (2 * level - 1) / 20)


def one_channel(stems: Tensor, place: Tensor, kind: Tensor) -> Tensor:
    """One channel (b, s, 1, n) of stereo stems, as songs are heard of which a network has one channel at a time.

    Half of the examples are the middle of all their stems and a quarter the sides, half the sum and half the difference of
    left and right; the rest have each stem from a place of its own between left and right. `place` is (b, s, 1, 1), `kind`
    one for each example, (b, 1, 1, 1).
    """
    left_share = torch.where(kind < 0.75, 0.5, place)
    right_share = torch.where((kind >= 0.5) & (kind < 0.75), -0.5, 1 - left_share)
    return left_share * stems[:, :, :1] + right_share * stems[:, :, 1:]


def swap_channels(stems: Tensor, place: Tensor) -> Tensor:
    """Left and right exchanged in half of the stems."""
    return torch.where(place < 0.5, stems.flip(2), stems)


def flip_signs(stems: Tensor, kind: Tensor) -> Tensor:
    """Half of the stems upside down: what they add to each other and take from each other is another mixture."""
    return torch.where(kind < 0.5, -stems, stems)


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
