"""The U-Net of the plan: mixture magnitudes in, one vocal mask out, the mixture's phase kept.

Axes: b batch, s stem, c channel, f bin, t frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.spec import ModelSpec, require


class Classic(nn.Module):
    """Encoder with max-pooling, bottleneck, decoder with transposed convolutions, concatenated skips, sigmoid mask."""

    def __init__(self, spec: ModelSpec, channels: tuple[int, ...]) -> None:
        super().__init__()
        require(spec.stems == ("vocals", "accompaniment"), f"classic gives vocals and accompaniment, not {spec.stems}")
        require(spec.audio.channels == 1, "classic works on single channels")
        self.depth = len(channels) - 1
        self.encoder = nn.ModuleList(
            block(before, after) for before, after in zip((1, *channels[:-2]), channels[:-1], strict=True)
        )
        self.bottleneck = block(channels[-2], channels[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, above, kernel_size=2, stride=2)
            for below, above in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.decoder = nn.ModuleList(block(2 * above, above) for above in channels[-2::-1])
        self.mask = nn.Conv2d(channels[0], 1, kernel_size=1)

    def forward(self, mixture: Tensor) -> Tensor:
        """Stem spectrograms (b, 2, c, f, t), vocals and accompaniment, of a mixture spectrogram (b, c, f, t)."""
        vocals = self.vocal_mask(mixture.abs()) * mixture
        return torch.stack([vocals, mixture - vocals], dim=1)

    def vocal_mask(self, magnitude: Tensor) -> Tensor:
        """Mask (b, 1, f, t) in 0..1 of magnitudes (b, 1, f, t)."""
        bins, frames = magnitude.shape[-2:]
        step = 2**self.depth
        x = functional.pad(torch.log1p(magnitude), (0, -frames % step, 0, -bins % step))
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for up, level in zip(self.up, self.decoder, strict=True):
            x = level(torch.cat([up(x), skips.pop()], dim=1))
        return torch.sigmoid(self.mask(x))[..., :bins, :frames]


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )
