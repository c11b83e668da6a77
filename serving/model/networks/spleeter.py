"""Spleeter's two U-Nets: magnitudes of a stereo song in, a vocal mask for each of its channels out.

One U-Net estimates the vocals' magnitudes and one the accompaniment's. A mask is the square of one over the sum of both
squares.
The shapes are those of Jansson et al., "Singing voice separation with deep U-Net convolutional networks", ISMIR 2017, and of
Hennequin et al., "Spleeter: a fast and efficient music source separation tool with pre-trained models", JOSS 2020.

Axes: b batch, c channel, f bin, t frame; k channel of a convolution.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.model.networks.network import Core, Network
from serving.model.spec import ModelSpec, require

SLOPE = 0.2
NORM_EPS = 1e-3
SILENCE = 1e-5
"""A magnitude far below that of any sound: where both are silent the mask is a half."""

STEREO = 2


class Spleeter(Network):
    """Hears left and right together. A song of one channel counts as two alike; one of more gets the mask of their
    root mean square.

    The mask covers the lowest `bins`; the bins above take its mean. Frames go through in pieces of `piece_frames`, the last
    filled with silence, because the published weights saw no other length. `channels` are those of the six levels.
    """

    trained_channels = STEREO

    def __init__(self, spec: ModelSpec, bins: int, piece_frames: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        require(spec.stems == ("vocals", "accompaniment"), f"spleeter gives vocals and accompaniment, not {spec.stems}")
        require(len(channels) > 1, f"spleeter needs two levels or more, not channels {channels}")
        self.multiple = 2 ** len(channels)
        require(
            0 < bins < spec.stft.bins and bins % self.multiple == 0,
            f"{bins} bins cannot be halved {len(channels)} times within {spec.stft.bins}: choose a multiple of {self.multiple}",
        )
        require(
            piece_frames > 0 and piece_frames % self.multiple == 0,
            f"pieces of {piece_frames} frames cannot be halved {len(channels)} times: choose a multiple of {self.multiple}",
        )
        self.bins_heard = spec.stft.bins
        self.bins, self.piece_frames = bins, piece_frames
        self.vocals, self.accompaniment = MagnitudeUNet(channels), MagnitudeUNet(channels)
        nets = ("vocals", "accompaniment")
        first = [f"{name}.{n}" for name in ("down", "down_norms") for n in range(3)]
        self.kept_float32 = tuple(f"{net}.{name}" for net in nets for name in (*first, f"up.{len(channels) - 1}"))

    def stems(self, mixture: Tensor, core: Core) -> Tensor:
        magnitude = mixture[:, :, : self.bins].abs()
        if mixture.shape[1] == STEREO:
            mask = self.mask(magnitude, core)
        else:
            level = magnitude.square().mean(dim=1, keepdim=True).sqrt()
            mask = self.mask(level.expand(-1, STEREO, -1, -1), core).mean(dim=1, keepdim=True)
        above = mask.mean(dim=2, keepdim=True).expand(-1, -1, mixture.shape[2] - self.bins, -1)
        vocals = torch.cat([mask, above], dim=2) * mixture
        return torch.stack([vocals, mixture - vocals], dim=1)

    def mask(self, magnitude: Tensor, core: Core) -> Tensor:
        """Vocal mask (b, 2, f, t) in 0..1 of magnitudes (b, 2, f, t), cut into pieces for the core.

        Training takes excerpts shorter than a piece: they are filled up to a multiple that the U-Net can halve, not to a piece.
        """
        frames = magnitude.shape[-1]
        length = min(self.piece_frames, frames + -frames % self.multiple) if self.training else self.piece_frames
        padded = functional.pad(magnitude, (0, -frames % length))
        pieces = padded.unflatten(-1, (-1, length)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        masks = core(pieces).unflatten(0, (len(magnitude), -1))
        joined: Tensor = masks.permute(0, 2, 3, 1, 4).flatten(3)[..., :frames]
        return joined

    def core(self, x: Tensor) -> Tensor:
        """Vocal mask (b, 2, f, t) of magnitudes (b, 2, f, t), where t is a multiple of 2 ** levels."""
        x = x.transpose(2, 3).contiguous(memory_format=torch.channels_last)  # the published kernels have frames first
        vocals, accompaniment = ((net(x) / SILENCE).square() for net in (self.vocals, self.accompaniment))
        mask: Tensor = (vocals + 0.5) / (vocals + accompaniment + 1)
        return mask.transpose(2, 3)

    @property
    def around_the_core(self) -> Mapping[str, float]:
        return {"bins": self.bins, "piece_frames": self.piece_frames}

    def core_example(self, frames: int) -> Tensor:
        return torch.rand(1, STEREO, self.bins, self.piece_frames * -(-frames // self.piece_frames))


class MagnitudeUNet(nn.Module):
    """One source's magnitudes (b, 2, t, f) of the mixture's (b, 2, t, f): a mask in 0..1 on the input.

    Convolutions of stride 2 halve both axes from level to level, transposed ones double them again. The way up reads the output
    of each convolution on the way down, before its norm.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv2d(k_in, k_out, kernel_size=5, stride=2) for k_in, k_out in pairwise((STEREO, *channels))
        )
        self.down_norms = nn.ModuleList(FixedNorm(k, eps=NORM_EPS) for k in channels[:-1])
        above = (*reversed(channels[:-1]), 1)
        below = (channels[-1], *(2 * k for k in above[:-1]))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(k_in, k_out, kernel_size=5, stride=2) for k_in, k_out in zip(below, above, strict=True)
        )
        self.up_norms = nn.ModuleList(FixedNorm(k, eps=NORM_EPS) for k in above)
        self.mask = nn.Conv2d(1, STEREO, kernel_size=4, dilation=2, padding=3)

    def forward(self, magnitude: Tensor) -> Tensor:
        x = magnitude
        skips: list[Tensor] = []
        for level, convolve in enumerate(self.down):
            x = functional.leaky_relu(self.down_norms[level - 1](x), SLOPE) if skips else x
            x = convolve(functional.pad(x, (1, 2, 1, 2)))
            skips.append(x)
        x = skips.pop()
        for up, norm in zip(self.up, self.up_norms, strict=True):
            x = norm(functional.relu(up(x)[:, :, 1:-2, 1:-2]))
            x = torch.cat([skips.pop(), x], dim=1) if skips else x
        # The gradient of these few weights sums over all bins: at the scale that training starts with, float16 overflows.
        # The meta device, on which operations are counted, knows no autocast.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return torch.sigmoid(self.mask(x.float())) * magnitude


class FixedNorm(nn.BatchNorm2d):
    """A batch norm that keeps the statistics it was given: those of many songs say more than those of two excerpts."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
