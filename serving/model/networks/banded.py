"""The band-split U-Net of the `studio` presets: complex gains of one channel for every stem.

Band split: neighbouring bins become one row, few of them where stems need detail, many where they do not (the sparse
compression of Tong et al., "SCNet: sparse compression network for music source separation", ICASSP 2024, in one step), and
two frames become one. A U-Net works on the rows; its bottom reads them along both axes in turn, then whole frames. What comes
out of a row goes back to its bins.

Gains are complex, so that a stem is not bound to the mixture's phase: masks that sum to one, and beside each, at a right angle,
any number. Without that bound training takes longer to come as far. The last stem is what the others leave of the mixture.

Axes: b batch, s stem, c channel, f bin, r row of bins, t frame, k number for each bin.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.model.networks.network import Core, Network
from serving.model.networks.recurrent import DualPath, Memory
from serving.model.networks.stereo import sum_and_difference
from serving.model.networks.unet import UNet
from serving.model.spec import ModelSpec, require

FLOOR = 1e-6
"""60 dB below the power of the excerpt: quieter bins look alike."""

COMPRESSION = 0.3
"""Magnitudes to this power: loud and soft bins in reach of the same weights."""

FEATURES = 3
"""For each bin: the log magnitude, and the compressed complex number's two parts."""

PHASE_WEIGHT = 0.1
"""Weight of the complex parts, and of the gains at a right angle, at the start, beside magnitudes and masks: learnt first is
told by magnitudes, and phases are noise until then."""

FRAMES = 2
"""So many frames become one of the U-Net's: half the work for the same song."""


class Banded(Network):
    """Hears one channel at a time, so that any number of them will do; of a stereo song middle and sides.

    `band_bins` bins from the lowest on make up the bands, in rows of `band_widths` bins each. `channels` are those of the
    levels from the top to the bottom. There are `paths` pairs of LSTMs with `units` in each direction, and one over whole
    frames with `memory_units` that reads `memory_inputs` numbers.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        band_bins: tuple[int, ...],
        band_widths: tuple[int, ...],
        channels: tuple[int, ...],
        paths: int,
        units: int,
        memory_inputs: int,
        memory_units: int,
    ) -> None:
        super().__init__()
        require(
            sum(band_bins) == spec.stft.bins - 1,  # the topmost bin takes the gains of its neighbour
            f"the bands have {sum(band_bins)} bins, the spectrogram has {spec.stft.bins - 1}",
        )
        self.bins_heard = spec.stft.bins
        self.bands = Bands(band_bins, band_widths)
        depth, rows, top, bottom = len(channels) - 1, self.bands.rows, channels[0], channels[-1]
        require(rows % 2**depth == 0, f"{rows} rows cannot be halved {depth} times")
        self.normalize = nn.BatchNorm1d(FEATURES * sum(band_bins))
        nn.init.constant_(self.normalize.weight[sum(band_bins) :], PHASE_WEIGHT)
        self.enter = nn.ModuleList(nn.Linear(FRAMES * FEATURES * width, top) for width in band_widths)
        self.unet = UNet(
            top,
            channels,
            rows,
            bottom=nn.Sequential(
                *(DualPath(bottom, units) for _ in range(paths)),
                Memory(bottom, rows // 2**depth, memory_inputs, memory_units),
            ),
        )
        self.parts = (len(spec.stems), len(spec.stems) - 1)  # masks of all, right angles of all but the last
        self.leave = nn.ModuleList(nn.Linear(top, FRAMES * sum(self.parts) * width) for width in band_widths)

    def stems(self, mixture: Tensor, core: Core) -> Tensor:
        mixture = mixture.transpose(2, 3)  # as the transform has them in memory
        stereo = mixture.shape[1] == 2
        heard = sum_and_difference(mixture) / 2 if stereo else mixture
        gains = self.gains(heard.flatten(0, 1), core).unflatten(0, heard.shape[:2])
        found = gains.transpose(1, 2) * heard[:, None]
        found = sum_and_difference(found) if stereo else found
        stems = torch.cat([found, mixture[:, None] - found.sum(dim=1, keepdim=True)], dim=1)
        return stems.transpose(3, 4)

    def gains(self, channel: Tensor, core: Core | None = None) -> Tensor:
        """Complex gains (b, s, t, f) of all stems but the last, for spectrograms of one channel (b, t, f)."""
        mask, across = (core or self.core)(features(channel[..., :-1])).split(self.parts, dim=1)
        return torch.complex(mask[:, :-1], PHASE_WEIGHT * across)

    def core(self, x: Tensor) -> Tensor:
        """Masks of all stems, which sum to one, then right angles of all but the last: (b, 2 s - 1, t, f), f one bin more.

        Its input (b, t, FEATURES, f) is made by `features`.
        """
        frames = x.shape[1]
        x = self.normalize(x.flatten(2).flatten(0, 1)).view(x.shape)
        x = functional.pad(x, (0, 0, 0, 0, 0, -frames % FRAMES)).unflatten(1, (-1, FRAMES)).flatten(2, 3)
        entered = [enter(band) for enter, band in zip(self.enter, self.bands.rows_of(x), strict=True)]
        x = self.unet(torch.cat(entered, dim=1).permute(0, 3, 1, 2))  # rows and frames, channels last
        parts = self.bands.parts_of(x.permute(0, 2, 3, 1))
        bins = self.bands.bins_of([leave(part).float() for leave, part in zip(self.leave, parts, strict=True)])
        bins = bins.unflatten(1, (-1, FRAMES)).transpose(2, 3).flatten(2, 3)[:, :, :frames]
        mask, across = bins.split(self.parts, dim=1)
        return torch.cat([mask.softmax(dim=1), across], dim=1)

    @property
    def around_the_core(self) -> Mapping[str, float]:
        return {"floor": FLOOR, "compression": COMPRESSION, "phase_weight": PHASE_WEIGHT}

    def core_example(self, frames: int) -> Tensor:
        return torch.randn(2, frames, FEATURES, sum(self.bands.bins))


def features(channel: Tensor) -> Tensor:
    """Features (b, t, FEATURES, f) of one channel (b, t, f); its level does not change them."""
    real, imaginary = channel.real, channel.imag
    power = real.square() + imaginary.square()
    level = power.mean(dim=(1, 2), keepdim=True) + 1e-10
    logs = torch.log(power / level + FLOOR)
    compression = torch.exp(logs * ((COMPRESSION - 1) / 2)) * level.rsqrt()
    return torch.stack([logs, real * compression, imaginary * compression], dim=2)


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
        """Each band's rows (b, r, t, k · width) of bins (b, t, k, f)."""
        bands = zip(x.split(self.bins, dim=-1), self.widths, strict=True)
        return [band.unflatten(-1, (-1, width)).permute(0, 3, 1, 2, 4).flatten(3) for band, width in bands]

    def parts_of(self, x: Tensor) -> list[Tensor]:
        """Each band's part (b, r, t, c) of all rows."""
        return list(x.split(self.row_counts, dim=1))

    def bins_of(self, bands: list[Tensor]) -> Tensor:
        """Numbers (b, k, t, f) of each band's rows (b, r, t, k · width). One bin is added, like the last."""
        bins = [
            band.unflatten(-1, (-1, width)).permute(0, 3, 2, 1, 4).flatten(3)
            for band, width in zip(bands, self.widths, strict=True)
        ]
        return torch.cat([*bins, bins[-1][..., -1:]], dim=3)
