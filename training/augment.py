"""Augmentation on the device, on stems before they are mixed.

Axes: b batch, s stem, c channel (2), n sample. Every function draws from the generator it is given and from nothing else.
"""

import torch
from torch import Generator, Tensor


def augment(stems: Tensor, channels: int, generator: Generator) -> Tensor:
    """Stems (b, s, 2, n) as the stems (b, s, c, n) of new songs, for a model of one channel or two."""
    stems = gain(remix(stems, generator), generator)
    stems = pan(stems, generator) if channels == 1 else swap_channels(stems, generator)
    return flip_signs(stems, generator)


def remix(stems: Tensor, generator: Generator) -> Tensor:
    """Each stem from a random example of the batch: vocals and accompaniment of different songs."""
    batch, count = stems.shape[:2]
    order = torch.rand(batch, count, device=stems.device, generator=generator).argsort(dim=0)
    return stems.gather(0, order[:, :, None, None].expand_as(stems))


def gain(stems: Tensor, generator: Generator) -> Tensor:
    """Each stem louder or softer by a factor uniform in 0.25..1.25."""
    factor = torch.rand(*stems.shape[:2], 1, 1, device=stems.device, generator=generator) + 0.25
    return stems * factor


def pan(stems: Tensor, generator: Generator) -> Tensor:
    """One channel (b, s, 1, n) of each stem: half of them left or right, the others mixed at random from both."""
    where = torch.rand(*stems.shape[:2], 1, 1, device=stems.device, generator=generator)
    side = torch.rand(where.shape, device=stems.device, generator=generator) < 0.5
    left = torch.where(side, where.round(), where)
    return left * stems[:, :, :1] + (1 - left) * stems[:, :, 1:]


def swap_channels(stems: Tensor, generator: Generator) -> Tensor:
    """Left and right exchanged in half of the stems."""
    swap = torch.rand(*stems.shape[:2], 1, 1, device=stems.device, generator=generator) < 0.5
    return torch.where(swap, stems.flip(2), stems)


def flip_signs(stems: Tensor, generator: Generator) -> Tensor:
    """The sign of half of the stems reversed."""
    flip = torch.rand(*stems.shape[:2], 1, 1, device=stems.device, generator=generator) < 0.5
    return torch.where(flip, -stems, stems)
