"""Left and right as middle and sides; networks take one of them at a time."""

import torch
from torch import Tensor

CHANNEL = -3


def sum_and_difference(pair: Tensor) -> Tensor:
    """Sum and difference of the two channels of spectrograms (…, 2, f, t) or (…, 2, t, f): twice the middle and the sides."""
    one, other = pair.unbind(CHANNEL)
    return torch.stack([one + other, one - other], dim=CHANNEL)
