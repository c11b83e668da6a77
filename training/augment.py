"""Augmentation on the device, on stems before they are mixed.

Axes: b batch, s stem, c channel, n sample. Every function draws from the generator it is given and from nothing else.
"""

import torch
from torch import Generator, Tensor

GAIN_DB = 6.0


def augment(stems: Tensor, channels: int, generator: Generator) -> Tensor:
    """Stereo stems (b, s, 2, n) as stems (b, s, c, n) for a model of one channel or two: other levels, other sides."""
    louder = gain(stems, generator)
    return pan(louder, generator) if channels == 1 else swap_channels(louder, generator)


def gain(stems: Tensor, generator: Generator) -> Tensor:
    """Each stem louder or softer by up to GAIN_DB."""
    decibels = GAIN_DB * (2 * uniform(stems, generator) - 1)
    return stems * 10 ** (decibels / 20)


def pan(stems: Tensor, generator: Generator) -> Tensor:
    """One channel (b, s, 1, n) of each stem: half of them left or right, the others mixed at random from both."""
    where, one_side = uniform(stems, generator), uniform(stems, generator) < 0.5
    left = torch.where(one_side, where.round(), where)
    return left * stems[:, :, :1] + (1 - left) * stems[:, :, 1:]


def swap_channels(stems: Tensor, generator: Generator) -> Tensor:
    """Left and right exchanged in half of the stems."""
    return torch.where(uniform(stems, generator) < 0.5, stems.flip(2), stems)


def uniform(stems: Tensor, generator: Generator) -> Tensor:
    """A number in 0..1 for each stem, (b, s, 1, 1)."""
    return torch.rand(*stems.shape[:2], 1, 1, device=stems.device, generator=generator)
