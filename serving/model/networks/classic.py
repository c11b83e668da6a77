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

from serving.model.networks.network import Core, Network
from serving.model.networks.recurrent import Memory
from serving.model.networks.stereo import sum_and_difference
from serving.model.networks.unet import UNet
from serving.model.spec import ModelSpec, require

FLOOR = 1e-3
"""60 dB below the level of the excerpt: quieter bins look alike."""


class Classic(Network):
    """Trained on one channel, run on any number of them.

    `channels` are those of the levels from the top to the bottleneck. The bottleneck's LSTM has `memory_units` in each
    direction and reads `memory_inputs` numbers a frame.
    """

    def __init__(
        self, spec: ModelSpec, channels: tuple[int, ...], fold: int, memory_inputs: int, memory_units: int
    ) -> None:
        super().__init__()
        require(spec.stems == ("vocals", "accompaniment"), f"classic gives vocals and accompaniment, not {spec.stems}")
        depth = len(channels) - 1
        self.bins = spec.stft.bins - 1  # the topmost bin takes the mask of its neighbour
        require(
            self.bins % (fold * 2**depth) == 0,
            f"{self.bins} bins cannot be folded by {fold} and halved {depth} times: choose another fold, n_fft or depth",
        )
        rows, bottom = self.bins // fold, channels[-1]
        self.bins_heard = spec.stft.bins
        self.fold = fold
        self.normalize = nn.BatchNorm1d(self.bins)
        self.unet = UNet(fold, channels, rows, Memory(bottom, rows // 2**depth, memory_inputs, memory_units))
        self.mask = nn.Conv2d(channels[0], fold, kernel_size=1)

    def stems(self, mixture: Tensor, core: Core) -> Tensor:
        """Stem spectrograms (b, 2, c, f, t), vocals and accompaniment, of a mixture spectrogram (b, c, f, t).

        Of a stereo song, what both channels share and what they differ by get a mask each: a voice is in the middle, most
        instruments are not. The channels of any other song get one mask, that of their root mean square.
        """
        if mixture.shape[1] == 2:
            heard = sum_and_difference(mixture) / 2
            masks = core(heard.abs().flatten(0, 1)[:, None]).view(heard.shape)
            vocals = sum_and_difference(masks * heard)
        else:
            vocals = core(mixture.abs().square().mean(dim=1, keepdim=True).sqrt()) * mixture
        return torch.stack([vocals, mixture - vocals], dim=1)

    def core(self, magnitude: Tensor) -> Tensor:
        """Mask (b, 1, f, t) in 0..1 of magnitudes (b, 1, f, t). It does not depend on the level of the excerpt."""
        x = magnitude[:, 0, : self.bins]
        x = x / (x.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-5)
        x = self.normalize(torch.log(x + FLOOR))
        x = x.unflatten(1, (-1, self.fold)).transpose(1, 2).contiguous(memory_format=torch.channels_last)
        mask = torch.sigmoid(self.mask(self.unet(x)).float()).transpose(1, 2).flatten(1, 2)[:, None]
        return functional.pad(mask, (0, 0, 0, 1), mode="replicate")

    def core_example(self, frames: int) -> Tensor:
        return torch.rand(2, 1, self.bins + 1, frames)
