"""A model at work: songs in, stems out; no HTTP and no files.

Axes: s stem, r row (what the network takes for one excerpt), c channel, n sample.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serving.archive import read_archive
from serving.chunks import Audio, batches, crossfade, windows
from serving.errors import AudioError
from serving.networks import BEARS_BFLOAT16
from serving.processor import multiplies_bfloat16
from serving.spec import ModelSpec, Quality
from serving.spectrogram import Stft

logger = logging.getLogger(__name__)

# On a CPU a batch is no faster than its windows one by one, and needs their memory together.
CPU_BATCH_WINDOWS = 1
GPU_BATCH_WINDOWS = 8


class Separator:
    """A network with its weights on a device.

    What comes in goes out: every stem has the song's sample rate, channels and length, and the stems sum to the song.
    Up to `batch_windows` windows of a song go through the network together; fewer from then on where the device runs out of
    memory. Where a CPU has matrix units for it and the architecture bears it, products are made in bfloat16: stems stay 50 dB
    and more from those of float32. torch.compile is not used: it needs a C++ compiler and a minute or more at every start.
    """

    def __init__(self, spec: ModelSpec, network: nn.Module, device: torch.device | str | None = None) -> None:
        self.spec = spec
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.to(self.device).eval()
        self.stft = Stft(spec.stft).to(self.device)
        bears_bfloat16 = spec.architecture in BEARS_BFLOAT16
        self.bfloat16 = self.device.type == "cpu" and bears_bfloat16 and multiplies_bfloat16()
        self.batch_windows = CPU_BATCH_WINDOWS if self.device.type == "cpu" else GPU_BATCH_WINDOWS

    @classmethod
    def open(cls, archive: Path, device: torch.device | str | None = None) -> Self:
        """The separator in a model archive (.mar file or unpacked folder). Raises ArchiveError where it is damaged."""
        opened = read_archive(archive)
        return cls(opened.spec, opened.network(), device)

    def separate(self, audio: Audio, rate_hz: int, quality: Quality = "fast") -> dict[str, Audio]:
        """Stems (c, n) by name of a whole song (c, n). Raises AudioError as `stream` does."""
        blocks = list(self.stream([audio], rate_hz, quality))
        return dict(zip(self.spec.stems, np.concatenate(blocks, axis=-1), strict=True))

    def stream(self, blocks: Iterable[Audio], rate_hz: int, quality: Quality = "fast") -> Iterator[Audio]:
        """Stems (s, c, n), block by block, of a song that comes as blocks (c, n) of float32 samples of full scale 1.

        The best quality takes two to six times as long. Memory does not grow with the song: one batch of windows is held.
        Raises AudioError for a song without samples or with samples that are not finite, torch.OutOfMemoryError where the
        device has no room for a single window.
        """
        chunk, best = self.spec.chunk, quality == "best"
        overlap_s = chunk.length_s // 2 if best else chunk.overlap_s
        length_samples, overlap_samples = chunk.length_s * rate_hz, overlap_s * rate_hz
        cut = windows(blocks, length_samples, overlap_samples)
        pieces = (
            stems
            for batch in batches(cut, lambda: self.batch_windows)
            for stems in self.separate_windows(batch, rate_hz, apart=best)
        )
        silent = True
        for stems in crossfade(pieces, overlap_samples):
            silent = False
            yield stems
        if silent:
            raise AudioError("the audio has no samples: send a file with at least one")

    def separate_windows(self, batch: Sequence[Audio], rate_hz: int, apart: bool) -> Iterator[Audio]:
        """Stems (s, c, n) of each of the windows (c, n), which are of one shape.

        With `apart` they are the mean of two estimates where the network hears two channels: of both together, and of middle
        and sides each by itself.
        """
        rows = [torch.from_numpy(self.rows_of(window, rate_hz)).to(self.device) for window in batch]
        found = self.estimate_batch(rows)
        if apart and self.spec.audio.channels == 2:
            found = [(one + other) / 2 for one, other in zip(found, self.estimate_apart(rows), strict=True)]
        for window, estimates in zip(batch, found, strict=True):
            yield self.stems_of(window, estimates.cpu().numpy(), rate_hz)

    def estimate_apart(self, rows: list[Tensor]) -> list[Tensor]:
        """Estimates (s - 1, r, 2, n) of each of several rows (r, 2, n), of middle and sides as of two songs of one channel."""

        def alone(half: Tensor) -> Tensor:
            return half[:, None].expand(-1, 2, -1)

        middle = self.estimate_batch([alone(row[:, 0] + row[:, 1]) / 2 for row in rows])
        sides = self.estimate_batch([alone(row[:, 0] - row[:, 1]) / 2 for row in rows])
        halves = [(m.mean(dim=2), s.mean(dim=2)) for m, s in zip(middle, sides, strict=True)]
        return [torch.stack([m + s, m - s], dim=2) for m, s in halves]

    def rows_of(self, window: Audio, rate_hz: int) -> Audio:
        """What the network takes (r, c, n) for one window (c, n)."""
        if not np.isfinite(window).all():
            raise AudioError("the audio has samples that are not finite (NaN or infinity): export it again")
        at_model_rate = resample(window, rate_hz, self.spec.audio.sample_rate_hz)
        if at_model_rate.shape[1] == 0:  # shorter than one sample at the model's rate
            at_model_rate = fit(at_model_rate, 1)
        return to_rows(at_model_rate, self.spec.audio.channels)

    def stems_of(self, window: Audio, estimates: Audio, rate_hz: int) -> Audio:
        """Stems (s, c, n) of a window (c, n) and its estimates (s - 1, r, c, n). The last stem is what the others leave."""
        channels, samples = window.shape
        stems = np.empty((len(self.spec.stems), channels, samples), np.float32)
        for stem, estimate in zip(stems[:-1], estimates, strict=True):
            of_channels = from_rows(estimate, channels)
            stem[:] = fit(resample(of_channels, self.spec.audio.sample_rate_hz, rate_hz), samples)
        stems[-1] = window - stems[:-1].sum(axis=0)
        return stems

    def estimate_batch(self, rows: list[Tensor]) -> list[Tensor]:
        """Estimates (s - 1, r, c, n) of each of several rows (r, c, n) of one shape, in one pass where memory allows."""
        try:
            return list(self.estimate(torch.cat(rows)).split(len(rows[0]), dim=1))
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        # Not inside `except`: the error holds what the failed pass has allocated.
        torch.cuda.empty_cache()
        self.batch_windows = half = len(rows) // 2
        logger.warning("%s has no memory for %d windows at once: going on with %d", self.device, len(rows), half)
        return self.estimate_batch(rows[:half]) + self.estimate_batch(rows[half:])

    @torch.inference_mode()
    def estimate(self, rows: Tensor) -> Tensor:
        """All stems but the last (s - 1, r, c, n), of rows (r, c, n) at the model's rate and channels."""
        mixture = self.stft(rows)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            spectrograms = self.network(mixture)[:, :-1]
        return self.stft.inverse(spectrograms, rows.shape[-1]).transpose(0, 1)


def resample(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """Audio (c, n) at another rate, about n · to / from samples long."""
    resampled: NDArray[np.float32] = soxr.resample(audio.T, from_hz, to_hz).T
    return np.ascontiguousarray(resampled)


def fit(audio: Audio, samples: int) -> Audio:
    """Audio (c, n) cut or filled with silence to so many samples: a resampler rounds lengths."""
    return np.pad(audio[:, :samples], ((0, 0), (0, max(0, samples - audio.shape[1]))))


def to_rows(audio: Audio, model_channels: int) -> Audio:
    """Rows (r, c, n) of a song's channels (c, n), as `AudioSpec` says: all of them in one, or each as a pair of its own."""
    together = model_channels in (1, audio.shape[0])
    return audio[None] if together else np.repeat(audio[:, None], model_channels, axis=1)


def from_rows(rows: Audio, channels: int) -> Audio:
    """The song's channels (c, n) of estimated rows (r, c, n), the inverse of `to_rows`."""
    together = rows.shape[:2] == (1, channels)
    audio: Audio = rows[0] if together else rows.mean(axis=1)
    return audio
