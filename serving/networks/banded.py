"""The band-split U-Net of the `studio` presets: complex gains for the middle and the sides of every stem.

Band split: neighbouring bins become one row, few of them where stems need detail, many where they do not (the sparse
compression of Tong et al., "SCNet: sparse compression network for music source separation", ICASSP 2024, in one step). A U-Net
works on the rows; its bottleneck reads them along both axes in turn (the dual path of Luo et al., ICASSP 2020). What comes out
of a row goes back to its bins.

Gains are complex, so that a stem is not bound to the mixture's phase: a mask from 0 to 1, and beside it, at a right angle, any
number. Without that bound training takes longer to come as far. The last stem is what the others leave of the mixture.

Axes: b batch, s stem, c channel, f bin, r row of bins, t frame.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.networks.level import level
from serving.spec import ModelSpec, require

FLOOR = 1e-6
"""60 dB below the power of the excerpt: quieter bins look alike."""

COMPRESSION = 0.3
"""Magnitudes to this power: loud and soft bins in reach of the same weights."""

FEATURES = 8
"""For each bin: log magnitudes of middle, sides, left and right; middle and sides as compressed complex numbers."""


class Banded(nn.Module):
    """Stereo in and out.

    `band_bins` bins from the lowest on make up the bands, in rows of `band_widths` bins each. `channels` are those of the
    levels from the top to the bottleneck, which has `paths` pairs of LSTMs with `units` in each direction.
    """

    def __init__(
        self,
        spec: ModelSpec,
        band_bins: tuple[int, ...],
        band_widths: tuple[int, ...],
        channels: tuple[int, ...],
        paths: int,
        units: int,
    ) -> None:
        super().__init__()
        require(spec.audio.channels == 2, f"banded is trained on two channels, not on {spec.audio.channels}")
        require(
            sum(band_bins) == spec.stft.bins - 1,  # the topmost bin takes the gains of its neighbour
            f"the bands have {sum(band_bins)} bins, the spectrogram has {spec.stft.bins - 1}",
        )
        depth = len(channels) - 1
        self.bands = Bands(band_bins, band_widths)
        self.frame_multiple = 2**depth
        require(self.bands.rows % self.frame_multiple == 0, f"{self.bands.rows} rows cannot be halved {depth} times")
        rows = [self.bands.rows // 2**nth for nth in range(depth + 1)]
        self.found_stems = len(spec.stems) - 1
        self.normalize = nn.BatchNorm1d(FEATURES * sum(band_bins))
        self.enter = nn.ModuleList(nn.Linear(FEATURES * width, channels[0]) for width in band_widths)
        self.encoder = nn.ModuleList(level(c, c, row) for c, row in zip(channels, rows, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(a, b, kernel_size=2, stride=2) for a, b in pairwise(channels))
        self.paths = nn.ModuleList(DualPath(channels[-1], units) for _ in range(paths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, kernel_size=2, stride=2) for a, b in pairwise(channels))
        self.decoder = nn.ModuleList(level(c, c, row) for c, row in zip(channels[:-1], rows[:-1], strict=True))
        self.leave = nn.ModuleList(nn.Linear(channels[0], self.found_stems * 2 * width * 2) for width in band_widths)

    def forward(self, mixture: Tensor) -> Tensor:
        """Stem spectrograms (b, s, 2, f, t) of a mixture (b, 2, f, t); they sum to it."""
        mixture = mixture.transpose(2, 3)  # as the transform has them in memory
        left, right = mixture.unbind(1)
        middle_sides = torch.stack([left + right, left - right], dim=1) / 2
        middle, sides = (self.gains(middle_sides) * middle_sides[:, None]).unbind(2)
        found = torch.stack([middle + sides, middle - sides], dim=2)
        stems = torch.cat([found, mixture[:, None] - found.sum(dim=1, keepdim=True)], dim=1)
        return stems.transpose(3, 4)

    def gains(self, middle_sides: Tensor) -> Tensor:
        """Complex gains (b, s, 2, t, f) of all stems but the last, for middle and sides (b, 2, t, f)."""
        frames = middle_sides.shape[2]
        x = features(middle_sides[..., :-1])
        x = self.normalize(x.flatten(2).flatten(0, 1)).view(x.shape)
        entered = [enter(band) for enter, band in zip(self.enter, self.bands.rows_of(x), strict=True)]
        x = torch.cat(entered, dim=1).permute(0, 3, 1, 2)  # rows and frames, channels last
        x = functional.pad(x, (0, -frames % self.frame_multiple))

        skips: list[Tensor] = []
        for encode, down in zip(self.encoder, self.down, strict=False):
            skips.append(encode(x))
            x = down(skips[-1])
        x = self.encoder[-1](x)
        for path in self.paths:
            x = path(x)
        for up, decode in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = decode(up(x) + skips.pop())

        parts = self.bands.parts_of(x.permute(0, 2, 3, 1)[:, :, :frames])
        left = [leave(part).float() for leave, part in zip(self.leave, parts, strict=True)]
        mask, across = self.bands.bins_of(left).unbind(dim=-1)
        return torch.complex(mask.sigmoid(), across)


def features(middle_sides: Tensor) -> Tensor:
    """What the network is told of middle and sides (b, 2, t, f): (b, t, FEATURES, f), whatever their level."""
    real, imaginary = middle_sides.real, middle_sides.imag
    power = real.square() + imaginary.square()
    level = power.mean(dim=(1, 2, 3), keepdim=True) + 1e-10
    power, across = power / level, (real.prod(dim=1) + imaginary.prod(dim=1)) * (2 / level[:, 0])
    (middle, sides), both = power.unbind(1), power.sum(dim=1)
    logs = torch.log(torch.stack([middle, sides, both + across, both - across], dim=1).clamp(min=0) + FLOOR)
    compression = torch.exp(logs[:, :2] * ((COMPRESSION - 1) / 2)) * level.rsqrt()
    return torch.stack([*logs.unbind(1), *(real * compression).unbind(1), *(imaginary * compression).unbind(1)], dim=2)


class Bands:
    """Bins into rows and back: a band of so many bins becomes rows of `width` bins each."""

    def __init__(self, bins: tuple[int, ...], widths: tuple[int, ...]) -> None:
        require(len(bins) == len(widths) > 0, f"{len(bins)} bands have {len(widths)} widths")
        uneven = [f"{b} by {w}" for b, w in zip(bins, widths, strict=True) if b % w]
        require(not uneven, f"bands cannot be cut into rows: {', '.join(uneven)}")
        self.bins, self.widths = bins, widths
        self.row_counts = [b // w for b, w in zip(bins, widths, strict=True)]
        self.rows = sum(self.row_counts)

    def rows_of(self, x: Tensor) -> list[Tensor]:
        """Each band's rows (b, r, t, c · width) of bins (b, t, c, f)."""
        bands = zip(x.split(self.bins, dim=-1), self.widths, strict=True)
        return [band.unflatten(-1, (-1, width)).permute(0, 3, 1, 2, 4).flatten(3) for band, width in bands]

    def parts_of(self, x: Tensor) -> list[Tensor]:
        """Each band's part (b, r, t, c) of all rows."""
        return list(x.split(self.row_counts, dim=1))

    def bins_of(self, bands: list[Tensor]) -> Tensor:
        """Pairs of numbers (b, s, 2, t, f, 2) of each band's rows (b, r, t, s · 2 · width · 2).

        One bin is added, like the last.
        """
        bins = [
            band.unflatten(-1, (-1, 2, width, 2)).permute(0, 3, 4, 2, 1, 5, 6).flatten(4, 5)
            for band, width in zip(bands, self.widths, strict=True)
        ]
        return torch.cat([*bins, bins[-1][..., -1:, :]], dim=4)


class DualPath(nn.Module):
    """Adds what LSTMs in both directions make of the rows of each frame, then of the frames of each row."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.over_rows, self.over_frames = Path(channels, units), Path(channels, units)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, r, t), as it came."""
        x = self.over_rows(x.permute(0, 3, 2, 1))
        x = self.over_frames(x.transpose(1, 2))
        return x.permute(0, 3, 1, 2)


class Path(nn.Module):
    """Adds what an LSTM in both directions makes of sequences."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.lstm = nn.LSTM(channels, units, batch_first=True, bidirectional=True)
        self.expand = nn.Linear(2 * units, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, m, n, c), m sequences of n steps, as they came."""
        read, _ = self.lstm(self.norm(x).flatten(0, 1))
        added: Tensor = self.expand(read).view(x.shape)
        return x + added
