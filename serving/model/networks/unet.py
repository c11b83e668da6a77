"""The U-Net in the middle of every architecture here (Ronneberger et al., "U-Net", MICCAI 2015).

Max-pooling halves rows and frames from level to level, transposed convolutions double them again, and each level of the way up
reads what the way down had made there, too. A level is two convolutions with the whole frequency axis mixed in between.

Axes: b batch, c channel, r row of one or several bins, t frame.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class UNet(nn.Module):
    """`channels` are those of the levels from the top to the bottom, where there are `rows` / 2 ** (levels - 1) rows and what
    `bottom` makes of them is taken."""

    def __init__(self, channels_in: int, channels: tuple[int, ...], rows: int, bottom: nn.Module) -> None:
        super().__init__()
        self.frame_multiple = 2 ** (len(channels) - 1)
        down = [level(a, b, rows // 2**nth) for nth, (a, b) in enumerate(pairwise((channels_in, *channels)))]
        up = [level(2 * c, c, rows // 2**nth) for nth, c in enumerate(channels[:-1])]
        self.encoder, self.decoder = nn.ModuleList(down), nn.ModuleList(reversed(up))
        self.bottom = bottom
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, above, kernel_size=2, stride=2) for below, above in pairwise(reversed(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels[0], r, t) of (b, channels_in, r, t), any number of frames."""
        frames = x.shape[-1]
        x = functional.pad(x, (0, -frames % self.frame_multiple))
        skips: list[Tensor] = []
        for encode in self.encoder:
            x = encode(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        x = self.bottom(skips.pop())
        for up, decode in zip(self.up, self.decoder, strict=True):
            x = decode(torch.cat([up(x), skips.pop()], dim=1))
        return x[..., :frames]


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
    """`linear` along the rows of (b, c, r, t): one matrix product and no copy in channels-last order."""
    batch, channels, rows, frames = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(batch, rows, frames * channels)
    return torch.matmul(linear.weight, flat).view(batch, -1, frames, channels).permute(0, 3, 1, 2)
