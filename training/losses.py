"""What training minimises; pure.

Axes: b batch, s stem, c channel, f bin, t frame.
"""

import torch
from torch import Tensor

FLOOR = 1e-3
"""30 dB below the mixture: an error as small is good enough, and silence has no infinite score."""


def relative_error_db(estimates: Tensor, references: Tensor) -> Tensor:
    """The energy of each stem's error against the mixture's, in dB, the mean over stems and examples.

    Complex spectrograms (b, s, c, f, t). A logarithm for each example, as the scores have, so that loud excerpts and
    excerpts that are hard do not drown the others. It is the SDR of a stem, reversed, up to a constant of the example.
    """
    error = energy(estimates - references)
    mixture = energy(references.sum(dim=1, keepdim=True))
    return (10 * torch.log10(error / (mixture + FLOOR) + FLOOR)).mean()


def energy(spectrograms: Tensor) -> Tensor:
    """Sum of squared magnitudes (b, s) of spectrograms (b, s, c, f, t)."""
    norms: Tensor = torch.linalg.vector_norm(torch.view_as_real(spectrograms), dim=(2, 3, 4, 5))
    return norms.square()
