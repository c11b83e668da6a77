"""The loss of training; pure.

Axes: b batch, s stem, c channel, f bin, t frame.
"""

from typing import Any

import torch
from torch import Tensor

ERROR_FLOOR = 0.1
"""A share of the mixture's energy, 10 dB below it. Errors below this floor count less and less. Without it, halving a small
error counts as much as halving a large one: songs known by heart and silent stems then outweigh all others."""

SILENT_ENERGY = 1e-3
"""An energy far below that of any sound: silence has no infinite score."""


def relative_error_db(estimates: Tensor, references: Tensor) -> Tensor:
    """The energy of each stem's error against the mixture's, in dB, the mean over stems and examples.

    Takes complex spectrograms (b, s, c, f, t), vocals first. Each example has its own logarithm, as in the scores, so that
    loud and hard excerpts do not drown the others. For large errors this is the negative SDR of a stem, up to a constant of
    the example.

    The stems sum to the mixture, so the accompaniment has the error of the vocals. In a network of more than two stems that
    error counts once more, for the accompaniment that people may ask for.
    """
    error = spectral_energy(estimates - references)
    if error.shape[1] > 2:
        error = torch.cat([error, error[:, :1]], dim=1)
    mixture = spectral_energy(references.sum(dim=1, keepdim=True))
    return (10 * torch.log10(error / (mixture + SILENT_ENERGY) + ERROR_FLOOR)).mean()


def spectral_energy(spectrograms: Tensor) -> Tensor:
    """Sum of squared magnitudes (b, s) of spectrograms (b, s, c, f, t)."""
    found: Tensor = Energy.apply(spectrograms)  # type: ignore[no-untyped-call]
    return found


class Energy(torch.autograd.Function):
    """Sum of squared magnitudes with a gradient in one pass. The one that torch derives takes five, a tenth of a step."""

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
