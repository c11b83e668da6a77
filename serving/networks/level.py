"""What the U-Nets here are built of: two convolutions with the whole frequency axis mixed in between.

Axes: b batch, c channel, f row of one or several bins, t frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def level(channels_in: int, channels_out: int, rows: int) -> nn.Sequential:
    """Convolution, frequency mixing, convolution."""
    return nn.Sequential(
        *convolution(channels_in, channels_out),
        FrequencyMixer(channels_out, rows),
        *convolution(channels_out, channels_out),
    )


def convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class FrequencyMixer(nn.Module):
    """Adds a perceptron over all rows, the same for every channel and frame; it passes through a quarter of them.

    The TDF of Choi et al., "Investigating U-Nets with various intermediate blocks for spectrogram-based singing voice
    separation", ISMIR 2020.
    """

    def __init__(self, channels: int, rows: int) -> None:
        super().__init__()
        hidden = max(16, rows // 4)
        self.squeeze = nn.Linear(rows, hidden, bias=False)
        self.norm_hidden = nn.BatchNorm2d(channels)
        self.expand = nn.Linear(hidden, rows, bias=False)
        self.norm_rows = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.norm_hidden(over_rows(self.squeeze, x)))
        added: Tensor = functional.relu(self.norm_rows(over_rows(self.expand, hidden)))
        return x + added


def over_rows(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear` along the rows of (b, c, f, t): one matrix product and no copy in channels-last order."""
    batch, channels, rows, frames = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(batch, rows, frames * channels)
    return torch.matmul(linear.weight, flat).view(batch, -1, frames, channels).permute(0, 3, 1, 2)
