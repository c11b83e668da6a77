"""The U-Net of the plan: magnitudes of one channel in, its vocal mask out, the mixture's phase kept.

Encoder with max-pooling, bottleneck, decoder with transposed convolutions, concatenated skips; and three things that make
it better for what it costs:

- Folding: `fold` neighbouring bins become channels, so that the first level, the dearest, has so many times fewer rows.
  A reshape, undone at the output.
- Frequency mixing: a convolution sees a few bins, a voice is a comb across all of them, so that each level has a small
  perceptron over its whole frequency axis (`FrequencyMixer`).
- Memory: at the bottom an LSTM reads the spectrum of each moment, forwards and backwards in time.

Axes: b batch, s stem, c channel, f bin or row of folded bins, t frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.networks.level import level
from serving.spec import ModelSpec, require

FLOOR = 1e-3
"""60 dB below the level of the excerpt: quieter bins look alike."""


class Classic(nn.Module):
    """Trained on one channel, run on any number of them.

    `channels` are those of the levels from the top to the bottleneck. The bottleneck's LSTM has `memory_units` in each
    direction and reads `memory_inputs` numbers a frame.
    """

    def __init__(
        self, spec: ModelSpec, channels: tuple[int, ...], fold: int, memory_inputs: int, memory_units: int
    ) -> None:
        super().__init__()
        require(spec.stems == ("vocals", "accompaniment"), f"classic gives vocals and accompaniment, not {spec.stems}")
        require(spec.audio.channels == 1, f"classic is trained on one channel, not on {spec.audio.channels}")
        depth = len(channels) - 1
        self.bins = spec.stft.bins - 1  # the topmost bin takes the mask of its neighbour
        require(
            self.bins % (fold * 2**depth) == 0,
            f"{self.bins} bins cannot be folded by {fold} and halved {depth} times: choose another fold, n_fft or depth",
        )
        rows = [self.bins // fold // 2**level for level in range(depth + 1)]
        self.fold = fold
        self.frame_multiple = 2**depth
        self.normalize = nn.BatchNorm1d(self.bins)
        self.encoder = nn.ModuleList(
            level(before, after, row) for before, after, row in zip((fold, *channels[:-1]), channels, rows, strict=True)
        )
        self.memory = Memory(channels[-1], rows[-1], memory_inputs, memory_units)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, above, kernel_size=2, stride=2)
            for below, above in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.decoder = nn.ModuleList(
            level(2 * above, above, row) for above, row in zip(channels[-2::-1], rows[-2::-1], strict=True)
        )
        self.mask = nn.Conv2d(channels[0], fold, kernel_size=1)

    def forward(self, mixture: Tensor) -> Tensor:
        """Stem spectrograms (b, 2, c, f, t), vocals and accompaniment, of a mixture spectrogram (b, c, f, t).

        Of a stereo song, what both channels share and what they differ by get a mask each: a voice is in the middle, most
        instruments are not. The channels of any other song get one mask, that of their root mean square.
        """
        if mixture.shape[1] == 2:
            left, right = mixture.unbind(1)
            rows = torch.stack([left + right, left - right], dim=1) / 2
            middle, sides = (self.vocal_mask(rows.abs().flatten(0, 1)[:, None]).view(rows.shape) * rows).unbind(1)
            vocals = torch.stack([middle + sides, middle - sides], dim=1)
        else:
            vocals = self.vocal_mask(mixture.abs().square().mean(dim=1, keepdim=True).sqrt()) * mixture
        return torch.stack([vocals, mixture - vocals], dim=1)

    def vocal_mask(self, magnitude: Tensor) -> Tensor:
        """Mask (b, 1, f, t) in 0..1 of magnitudes (b, 1, f, t). It does not depend on the level of the excerpt."""
        frames = magnitude.shape[-1]
        x = magnitude[:, 0, : self.bins]
        x = x / (x.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-5)
        x = self.normalize(torch.log(x + FLOOR))
        x = functional.pad(x, (0, -frames % self.frame_multiple))
        x = x.unflatten(1, (-1, self.fold)).transpose(1, 2).contiguous(memory_format=torch.channels_last)

        skips: list[Tensor] = []
        for encode in self.encoder:
            x = encode(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        x = self.memory(skips.pop())
        for up, decode in zip(self.up, self.decoder, strict=True):
            x = decode(torch.cat([up(x), skips.pop()], dim=1))

        mask = torch.sigmoid(self.mask(x).float()).transpose(1, 2).flatten(1, 2)[:, None, :, :frames]
        return functional.pad(mask, (0, 0, 0, 1), mode="replicate")


class Memory(nn.Module):
    """Adds what an LSTM in both directions of time makes of the whole of each frame."""

    def __init__(self, channels: int, rows: int, inputs: int, units: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels * rows, inputs)
        self.lstm = nn.LSTM(inputs, units, batch_first=True, bidirectional=True)
        self.expand = nn.Linear(2 * units, channels * rows)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, rows, frames = x.shape
        by_frame = self.squeeze(x.permute(0, 3, 2, 1).reshape(batch, frames, rows * channels))
        remembered, _ = self.lstm(by_frame)
        added = self.expand(remembered).view(batch, frames, rows, channels).permute(0, 3, 2, 1)
        return x + functional.relu(self.norm(added))
