"""Augmentation on the device, on stems before they are mixed.

Axes: b batch, s stem, c channel, n sample. Chance comes in as numbers in 0..1, (b, s, DRAWS), drawn for the whole batch on the
CPU: an example is augmented alike on every device and however many ranks share the batch.
"""

import torch
from torch import Tensor

GAIN_DB = 6.0
ALONE_SHARE = 0.5
"""How many of a stereo network's examples have one channel: mono songs are heard so, and one side of a song by itself."""
DRAWS = 4


def chances(seed: int, step: int, batch_size: int, stems: int) -> Tensor:
    """The numbers (b, s, DRAWS) that decide the augmentation of a step."""
    generator = torch.Generator().manual_seed(hash((seed, step)) % 2**63)
    return torch.rand(batch_size, stems, DRAWS, generator=generator)


def augment(stems: Tensor, channels: int, chances: Tensor) -> Tensor:
    """Stereo stems (b, s, 2, n) as stems (b, s, c, n) for a model of one channel or two: other levels, other sides.

    A network of two channels hears half of the examples as one channel, the same from both sides.
    """
    level, place, kind, alone = chances[..., None, None].unbind(2)
    louder = gain(stems, level)
    one = one_channel(louder, place, kind[:, :1])
    if channels == 1:
        return one
    return torch.where(alone[:, :1] < ALONE_SHARE, one, flip_signs(swap_channels(louder, place), kind))


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
