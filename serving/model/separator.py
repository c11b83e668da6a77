"""A model at work: songs in, stems out; no HTTP and no files.

Axes: s stem, c channel, n sample; w windows of a batch.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serving.audio import Audio
from serving.errors import AudioError
from serving.model.archive import read_archive
from serving.model.chunks import batches, crossfade, windows
from serving.model.engines import Engine, start_engine
from serving.model.engines.eager import EagerEngine
from serving.model.licences import UNSTATED, Licences
from serving.model.spec import ModelSpec, Quality
from serving.model.spectrogram import Stft
from serving.settings import EngineName

logger = logging.getLogger(__name__)

# On a CPU a batch is no faster than its windows one by one, and needs their memory together.
CPU_BATCH_WINDOWS = 1
GPU_BATCH_WINDOWS = 8

KEYS = (0, -1, 1)
"""In which the best quality hears a song, in semitones from its own: a network errs otherwise in each."""


class Separator:
    """A network with its weights on a device.

    What comes in goes out: every stem has the song's sample rate, channels and length, and the stems sum to the song.
    Up to `batch_windows` windows of a song go through the network together; fewer from then on where the device runs out of
    memory. The engine runs the network: torch unless another is given.
    """

    def __init__(
        self,
        spec: ModelSpec,
        network: nn.Module,
        device: torch.device | str | None = None,
        weights_sha256: str = "",
        engine: Engine | None = None,
        *,
        licences: Licences = UNSTATED,
    ) -> None:
        self.spec = spec
        self.weights_sha256, self.licences = weights_sha256, licences
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.to(self.device).eval()
        self.stft = Stft(spec.stft).to(self.device)
        self.engine = engine or EagerEngine(spec.architecture, self.network, self.device)
        self.batch_windows = CPU_BATCH_WINDOWS if self.device.type == "cpu" else GPU_BATCH_WINDOWS

    @classmethod
    def open(
        cls,
        archive: Path,
        device: torch.device | str | None = None,
        engine: EngineName = "torch",
        cache: Path | None = None,
    ) -> Self:
        """The separator in a model archive (.mar file or unpacked folder).

        `cache` is the folder for what an engine converts; without it a conversion is not kept. Raises ArchiveError where the
        archive is damaged, EngineError as `start_engine` does.
        """
        opened = read_archive(archive)
        separator = cls(opened.spec, opened.network(), device, opened.weights_sha256, licences=opened.licences)
        with tempfile.TemporaryDirectory() as folder:
            separator.engine = start_engine(
                engine,
                opened.spec,
                separator.network,
                separator.device,
                weights_sha256=opened.weights_sha256,
                cache=cache or Path(folder),
            )
        logger.info("engine %s", separator.engine.description)
        return separator

    def separate(self, audio: Audio, rate_hz: int, quality: Quality = "fast") -> dict[str, Audio]:
        """Stems (c, n) by name of a whole song (c, n). Raises AudioError as `stream` does."""
        blocks = list(self.stream([audio], rate_hz, quality))
        return dict(zip(self.spec.stems, np.concatenate(blocks, axis=-1), strict=True))

    def stream(self, blocks: Iterable[Audio], rate_hz: int, quality: Quality = "fast") -> Iterator[Audio]:
        """Stems (s, c, n), block by block, of a song that comes as blocks (c, n) of float32 samples of full scale 1.

        The best quality takes five to six times as long. Memory does not grow with the song: one batch of windows is held.
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
            for stems in self.separate_windows(batch, rate_hz, KEYS if best else KEYS[:1])
        )
        silent = True
        for stems in crossfade(pieces, overlap_samples):
            silent = False
            yield stems
        if silent:
            raise AudioError("the audio has no samples: send a file with at least one")

    def separate_windows(self, batch: Sequence[Audio], rate_hz: int, keys: Sequence[int]) -> Iterator[Audio]:
        """Stems (s, c, n) of each of the windows (c, n), which are of one shape: the mean of those found in several keys.

        What is taken for audio of a higher rate is played faster, in a higher key.
        """
        rates_hz = [rate_hz * 2 ** (key / 12) for key in keys]
        found = [self.estimate_batch([self.heard(window, rate) for window in batch]) for rate in rates_hz]
        for window, *estimates in zip(batch, *found, strict=True):
            yield self.stems_of(window, estimates, rates_hz)

    def heard(self, window: Audio, rate_hz: float) -> Tensor:
        """The network's input (c, n), at the model's rate, for one window (c, n)."""
        if not np.isfinite(window).all():
            raise AudioError("the audio has samples that are not finite (NaN or infinity): export it again")
        at_model_rate = resample(window, rate_hz, self.spec.audio.sample_rate_hz)
        if at_model_rate.shape[1] == 0:  # shorter than one sample at the model's rate
            at_model_rate = fit(at_model_rate, 1)
        return torch.from_numpy(at_model_rate).to(self.device)

    def stems_of(self, window: Audio, estimates: Sequence[Tensor], rates_hz: Sequence[float]) -> Audio:
        """Stems (s, c, n) of a window (c, n), the mean of estimates (s - 1, c, n) from it at so many rates.

        The last stem is what the others leave.
        """
        stems = np.zeros((len(self.spec.stems), *window.shape), np.float32)
        for estimate, rate_hz in zip(estimates, rates_hz, strict=True):
            for stem, at_model_rate in zip(stems[:-1], estimate.cpu().numpy(), strict=True):
                at_song_rate = resample(at_model_rate, self.spec.audio.sample_rate_hz, rate_hz)
                stem += fit(at_song_rate, window.shape[1]) / np.float32(len(rates_hz))
        stems[-1] = window - stems[:-1].sum(axis=0)
        return stems

    def estimate_batch(self, windows: list[Tensor]) -> list[Tensor]:
        """Estimates (s - 1, c, n) of each of several windows (c, n) of one shape, in one pass where memory allows."""
        try:
            return list(self.estimate(torch.stack(windows)))
        except torch.OutOfMemoryError:
            if len(windows) == 1:
                raise
        # Not inside `except`: the error holds what the failed pass has allocated.
        torch.cuda.empty_cache()
        self.batch_windows = half = len(windows) // 2
        logger.warning("%s has no memory for %d windows at once: going on with %d", self.device, len(windows), half)
        return self.estimate_batch(windows[:half]) + self.estimate_batch(windows[half:])

    @torch.inference_mode()
    def estimate(self, windows: Tensor) -> Tensor:
        """All stems but the last (w, s - 1, c, n), of windows (w, c, n) at the model's rate."""
        mixture = self.stft(windows)
        spectrograms = self.engine(mixture)[:, :-1]
        return self.stft.inverse(spectrograms, windows.shape[-1])


def resample(audio: Audio, from_hz: float, to_hz: float) -> Audio:
    """Audio (c, n) at another rate, about n · to / from samples long."""
    resampled: NDArray[np.float32] = soxr.resample(audio.T, from_hz, to_hz).T
    return np.ascontiguousarray(resampled)


def fit(audio: Audio, samples: int) -> Audio:
    """Audio (c, n) cut or filled with silence to so many samples: a resampler rounds lengths."""
    return np.pad(audio[:, :samples], ((0, 0), (0, max(0, samples - audio.shape[1]))))
