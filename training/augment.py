"""Augmentation on the device, on stems before they are mixed.

Axes: b batch, s stem, c channel, n sample. Chance comes in as numbers in 0..1, (b, s, DRAWS), drawn for the whole batch on the
CPU: an example is augmented alike on every device and however many ranks share the batch.
"""

import torch
from torch import Tensor

GAIN_DB = 6.0
DRAWS = 3


def chances(seed: int, step: int, batch_size: int, stems: int) -> Tensor:
    """The numbers (b, s, DRAWS) that decide the augmentation of a step."""
    generator = torch.Generator().manual_seed(hash((seed, step)) % 2**63)
    return torch.rand(batch_size, stems, DRAWS, generator=generator)


def augment(stems: Tensor, channels: int, chances: Tensor) -> Tensor:
    """Stereo stems (b, s, 2, n) as stems (b, s, c, n) for a model of one channel or two: other levels, other sides."""
    level, where, side = chances[..., None, None].unbind(2)
    louder = gain(stems, level)
    return pan(louder, where, side) if channels == 1 else swap_channels(louder, side)


def gain(stems: Tensor, level: Tensor) -> Tensor:
    """Each stem louder or softer by up to GAIN_DB."""
    return stems * 10 ** (GAIN_DB * (2 * level - 1) / 20)


def pan(stems: Tensor, where: Tensor, side: Tensor) -> Tensor:
    """One channel (b, s, 1, n) of each stem: half of them left or right, the others mixed from both."""
    left = torch.where(side < 0.5, where.round(), where)
    return left * stems[:, :, :1] + (1 - left) * stems[:, :, 1:]


def swap_channels(stems: Tensor, side: Tensor) -> Tensor:
    """Left and right exchanged in half of the stems."""
    return torch.where(side < 0.5, stems.flip(2), stems)
