"""What training minimises; pure.

Axes: b batch, s stem, c channel, f bin, t frame.
"""

from torch import Tensor


def spectral_l1(estimates: Tensor, references: Tensor) -> Tensor:
    """Mean absolute error of complex spectrograms (b, s, c, f, t), of the values and of their magnitudes, summed."""
    return (estimates - references).abs().mean() + (estimates.abs() - references.abs()).abs().mean()
