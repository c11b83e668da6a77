"""One song through the seven steps of the plan, with real numbers, and its profile in 18 slices.

The tour stays at the plan's front end: the model's rate, mono. What is served returns to the song's rate and channels.

Axes: b batch, c channel, f bin, t frame, n sample.
"""

from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import torch
from torch import Tensor

from serving.audio import Audio
from serving.audio.audio_io import read, write
from serving.model.networks.classic import Classic
from serving.model.separator import Separator
from serving.model.spec import AudioSpec, StftSpec
from serving.model.spectrogram import Stft
from training.config import Budget
from training.errors import ConfigError, DataError
from training.evaluation.plots import Image, profile_figure
from training.presets import classic

PLAN = classic(data="", budget=Budget(steps=1)).model

SLICES = 18

VOCAL_BAND_HZ = (85, 4 * 255)
"""The fundamentals of a speaking voice, 85-255 Hz, and their multiples up to the fourth: 170-510, 255-765 and 340-1,020 Hz.
They overlap, so that together they are this one band."""


@dataclass(frozen=True)
class Slices:
    """A song in 18 equal slices, one value each. Percentages are shares of all magnitude in a slice."""

    start_s: list[float]
    mean_magnitude: list[float]
    vocal_band_percent: list[float]
    voice_percent: list[float] | None
    """The share that the mask gives to the voice; None without a model."""

    def table(self) -> str:
        lines = ["slice   from s   mean magnitude   in 85-1,020 Hz   to the voice"]
        voices = ["-"] * SLICES if self.voice_percent is None else [f"{voice:.1f} %" for voice in self.voice_percent]
        columns = (self.start_s, self.mean_magnitude, self.vocal_band_percent, voices)
        for number, (start_s, mean, band, voice) in enumerate(zip(*columns, strict=True), start=1):
            lines.append(f"{number:5}  {start_s:7.2f}  {mean:15.3f}  {band:13.1f} %  {voice:>13}")
        return "\n".join(lines)


def tour(song: Path, separator: Separator | None, out: Path) -> str:
    """Walk a song through the steps; write `tour.png` and, with a model, two stems as WAV files into the folder `out`.

    Returns the text to print. Raises AudioError for a song that cannot be read, DataError for one too short for 18 slices,
    ConfigError for a model that is not the plan's U-Net.
    """
    audio_spec, stft_spec, device = PLAN.audio, PLAN.stft, torch.device("cpu")
    if separator is not None:
        audio_spec, stft_spec, device = separator.spec.audio, separator.spec.stft, separator.device
    rate_hz, stft = audio_spec.sample_rate_hz, Stft(stft_spec).to(device)

    audio = torch.from_numpy(load(song, rate_hz)).to(device)
    samples = audio.numel()
    steps = [f"1 load    {samples:,} samples at {rate_hz:,} Hz mono: {samples / rate_hz:.2f} s, peak {peak(audio):.3f}"]

    spectrogram = stft(audio)
    bins, frames = spectrogram.shape
    if frames < SLICES:
        raise DataError(f"{song} has {frames} frames, too few for {SLICES} slices: take a longer song")
    round_trip = peak(stft.inverse(spectrogram, samples) - audio)
    steps.append(
        f"2 STFT    {bins:,} bins x {frames:,} frames (n_fft {stft_spec.n_fft:,}, hop {stft_spec.hop_samples}, Hann);"
        f" back to samples within {round_trip:.1e}"
    )

    magnitude, phase = spectrogram.abs(), spectrogram.angle()
    steps.append(
        f"3 parts   magnitude {magnitude.min():.3g} to {magnitude.max():.3g}, mean {magnitude.mean():.3g};"
        f" phase {phase.min():.3f} to {phase.max():.3f} rad"
    )

    tensor = magnitude[None, None]
    steps.append(
        f"4 tensor  (batch, channels, frequency, time) = {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}"
    )

    mask = None
    if separator is None:
        steps.append("5-7       mask, stems and their files need a model: give one with --model")
    else:
        window_frames = stft_spec.frames(separator.spec.chunk.length_s * rate_hz)
        mask = vocal_mask(separator, tensor, window_frames)[0, 0]
        steps.append(
            f"5 U-Net   vocal mask {bins:,} x {mask.shape[1]:,}, made in windows of {window_frames:,} frames:"
            f" {mask.min():.3f} to {mask.max():.3f}, mean {mask.mean():.3f}; accompaniment mask = 1 - vocal mask"
        )

        vocals = stft.inverse(torch.polar(mask * magnitude, phase), samples)
        accompaniment = stft.inverse(torch.polar((1 - mask) * magnitude, phase), samples)
        steps.append(
            f"6 stems   masked magnitudes with the mixture's phase, back to {samples:,} samples each:"
            f" peak of vocals {peak(vocals):.3f}, of accompaniment {peak(accompaniment):.3f}"
        )

        out.mkdir(parents=True, exist_ok=True)
        write(out / "vocals.wav", vocals[None].cpu().numpy(), rate_hz, "FLOAT")
        write(out / "accompaniment.wav", accompaniment[None].cpu().numpy(), rate_hz, "FLOAT")
        steps.append(
            f"7 files   {out / 'vocals.wav'} and {out / 'accompaniment.wav'};"
            f" together they are the song within {peak(vocals + accompaniment - audio):.1e}"
        )

    magnitudes, masks = magnitude.cpu().numpy(), None if mask is None else mask.cpu().numpy()
    slices = slices_of(magnitudes, masks, audio_spec, stft_spec)
    percents = {"vocal band, 85-1,020 Hz": slices.vocal_band_percent}
    if slices.voice_percent is not None:
        percents["given to the voice"] = slices.voice_percent
    figure = profile_figure(
        magnitudes, masks, slices.mean_magnitude, percents, rate_hz=rate_hz, hop_samples=stft_spec.hop_samples
    )
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "tour.png")
    return "\n".join([song.name, *steps, "", slices.table(), "", f"picture: {out / 'tour.png'}"])


def load(song: Path, rate_hz: int) -> Audio:
    """Samples (n,) as `librosa.load` gives them, averaged over channels and resampled by soxr, from any format served."""
    audio, song_rate_hz = read(song)
    samples: Audio = librosa.resample(librosa.to_mono(audio), orig_sr=song_rate_hz, target_sr=rate_hz)
    return samples


@torch.inference_mode()
def vocal_mask(separator: Separator, magnitude: Tensor, window_frames: int) -> Tensor:
    """The U-Net's mask (1, 1, f, t) of magnitudes (1, 1, f, t), window by window to fit long songs into memory."""
    if not isinstance(separator.network, Classic):
        raise ConfigError(f"the tour follows the mask of a classic model: {separator.spec.architecture} has none")
    windows = torch.split(magnitude, window_frames, dim=-1)
    return torch.cat([separator.network.core(window) for window in windows], dim=-1)


def slices_of(magnitude: Image, mask: Image | None, audio: AudioSpec, stft: StftSpec) -> Slices:
    """The slices of magnitudes (f, t). If frames do not divide by 18, the first slices have one more."""
    bins_hz = librosa.fft_frequencies(sr=audio.sample_rate_hz, n_fft=stft.n_fft)
    vocal_band = (bins_hz >= VOCAL_BAND_HZ[0]) & (bins_hz <= VOCAL_BAND_HZ[1])
    slices = np.array_split(magnitude, SLICES, axis=1)
    frames = np.cumsum([0] + [part.shape[1] for part in slices[:-1]])
    voices = None
    if mask is not None:
        of_voice = np.array_split(mask * magnitude, SLICES, axis=1)
        voices = [percent(voice, part) for voice, part in zip(of_voice, slices, strict=True)]
    return Slices(
        start_s=[float(frame) * stft.hop_samples / audio.sample_rate_hz for frame in frames],
        mean_magnitude=[float(part.mean()) for part in slices],
        vocal_band_percent=[percent(part[vocal_band], part) for part in slices],
        voice_percent=voices,
    )


def percent(part: Image, whole: Image) -> float:
    """The part's sum as a percentage of the whole's; 0 for silence."""
    return float(100 * part.sum() / whole.sum()) if whole.any() else 0.0


def peak(audio: Tensor) -> float:
    return float(audio.abs().max())
