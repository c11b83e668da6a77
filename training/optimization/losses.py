"""The training loss, as pure functions.

Axes: b batch, s stem, c channel, f bin, t frame.
"""

from typing import Any

import torch
from torch import Tensor

ERROR_FLOOR = 0.1
"""A share of the mixture's energy, 10 dB below it. Errors below the floor count less and less.

Without a floor, halving a small error counts as much as halving a large one, and memorised songs and silent stems outweigh
all others.
"""

SILENT_ENERGY = 1e-3
"""Far below the energy of any sound. Keeps the loss of silence finite."""


def relative_error_db(estimates: Tensor, references: Tensor) -> Tensor:
    """The energy of each stem's error relative to the mixture, in dB; the mean over stems and examples.

    Takes complex spectrograms (b, s, c, f, t), vocals first. The logarithm is taken per example, as in the scores, so loud
    or hard excerpts do not dominate. For large errors this is the negative SDR of a stem plus a constant of the example.

    Stems sum to the mixture, so the accompaniment has the error of the vocals. With more than two stems that error counts
    twice, as people may ask for the accompaniment.
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
    """Sum of squared magnitudes with a one-pass gradient. Torch's own takes five passes, a tenth of a step."""

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
