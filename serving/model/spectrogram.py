"""The short-time Fourier transform and its inverse. Nothing else calls them.

Axes: b batch, c channel, f bin, t frame, n sample; leading axes are free.
"""

import torch
from torch import Tensor, nn

from serving.model.spec import StftSpec


class Stft(nn.Module):
    """A transform and its inverse; the window is on the module's device.

    Settings are librosa's defaults (periodic Hann window, centred frames, zeros beyond the ends), so `Stft(spec)(x)` equals
    `librosa.stft(x, n_fft=…, hop_length=…)`.
    """

    window: Tensor

    def __init__(self, spec: StftSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("window", torch.hann_window(spec.n_fft, periodic=True), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Complex spectrogram (…, f, t) of float32 audio (…, n), with `n // hop + 1` frames."""
        spectrogram = torch.stft(
            audio.reshape(-1, audio.shape[-1]),
            self.spec.n_fft,
            self.spec.hop_samples,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrogram.reshape(*audio.shape[:-1], *spectrogram.shape[-2:])

    def inverse(self, spectrogram: Tensor, samples: int) -> Tensor:
        """Float32 audio (…, samples) of a complex spectrogram (…, f, t)."""
        audio = torch.istft(
            spectrogram.reshape(-1, *spectrogram.shape[-2:]),
            self.spec.n_fft,
            self.spec.hop_samples,
            window=self.window,
            center=True,
            length=samples,
        )
        return audio.reshape(*spectrogram.shape[:-2], samples)
