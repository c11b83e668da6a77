"""What training minimises; pure.

Axes: b batch, s stem, c channel, f bin, t frame.
"""

from typing import Any

import torch
from torch import Tensor

FLOOR = 0.1
"""10 dB below the mixture; smaller errors count less and less. A logarithm alone makes as much of halving a small error as of
halving a large one, so that songs known by heart and silent stems outweigh what is still to be learnt."""

SILENCE = 1e-3
"""An energy far below that of any sound: silence has no infinite score."""


def relative_error_db(estimates: Tensor, references: Tensor) -> Tensor:
    """The energy of each stem's error against the mixture's, in dB, the mean over stems and examples.

    Complex spectrograms (b, s, c, f, t), vocals first. A logarithm for each example, as the scores have, so that loud excerpts
    and excerpts that are hard do not drown the others. Of large errors it is the SDR of a stem, reversed, up to a constant of
    the example.

    The stems sum to the mixture, so that all but the vocals together have the error of the vocals. Where they are no stem of
    their own, the accompaniment that is asked for by name, this counts for them, too.
    """
    error = energy(estimates - references)
    if error.shape[1] > 2:
        error = torch.cat([error, error[:, :1]], dim=1)
    mixture = energy(references.sum(dim=1, keepdim=True))
    return (10 * torch.log10(error / (mixture + SILENCE) + FLOOR)).mean()


def energy(spectrograms: Tensor) -> Tensor:
    """Sum of squared magnitudes (b, s) of spectrograms (b, s, c, f, t)."""
    found: Tensor = Energy.apply(spectrograms)  # type: ignore[no-untyped-call]
    return found


class Energy(torch.autograd.Function):
    """What torch derives for a norm goes over all spectrograms five times, and takes a tenth of a step; this, once."""

    @staticmethod
    def forward(context: Any, spectrograms: Tensor) -> Tensor:
        context.save_for_backward(spectrograms)
        norms: Tensor = torch.linalg.vector_norm(torch.view_as_real(spectrograms), dim=(2, 3, 4, 5))
        return norms.square()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (spectrograms,) = context.saved_tensors
        found: Tensor = spectrograms * (2 * gradient[..., None, None, None])
        return found
