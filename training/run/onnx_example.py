"""Separate songs with model.onnx, without Stemwright and without torch:

    pip install numpy onnxruntime soundfile soxr
    python example.py song.flac stems/
    python example.py vectors.npz          compares this program with the numbers that Stemwright found

The model computes gains from a spectrogram; everything around it is here, in NumPy, to be read and written anew elsewhere. Its
metadata hold every number that is needed.

Axes: s stem, c channel, f bin, t frame, n sample.
"""

import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import soundfile
import soxr

Array: TypeAlias = np.ndarray[Any, Any]

SESSION = onnxruntime.InferenceSession(Path(__file__).parent / "model.onnx", providers=["CPUExecutionProvider"])
FACTS = SESSION.get_modelmeta().custom_metadata_map
STEMS = FACTS["stems"].split(",")
RATE_HZ, LENGTH_S, OVERLAP_S = (int(FACTS[name]) for name in ("sample_rate_hz", "chunk_length_s", "chunk_overlap_s"))
N_FFT, HOP = int(FACTS["n_fft"]), int(FACTS["hop_samples"])
WINDOW = np.hanning(N_FFT + 1)[:-1]  # the periodic one


def core(x: Array) -> Array:
    gains: Array = SESSION.run(None, {"x": np.ascontiguousarray(x, np.float32)})[0]
    return gains


def stft(audio: Array) -> Array:
    """Complex spectrogram (c, f, t) of audio (c, n): centred frames, zeros beyond the ends."""
    padded = np.pad(audio, ((0, 0), (N_FFT // 2, N_FFT // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT, axis=-1)[:, ::HOP]
    return np.fft.rfft(frames * WINDOW, axis=-1).transpose(0, 2, 1)


def istft(spectrogram: Array, samples: int) -> Array:
    """Audio (c, n) of a spectrogram (c, f, t): overlapping frames, divided by the sum of the squared windows."""
    frames = np.fft.irfft(spectrogram.transpose(0, 2, 1), N_FFT, axis=-1) * WINDOW
    count = frames.shape[1]
    audio = np.zeros((len(frames), N_FFT + HOP * (count - 1)))
    weight = np.zeros(audio.shape[1])
    for frame in range(count):
        audio[:, HOP * frame :][:, :N_FFT] += frames[:, frame]
        weight[HOP * frame :][:N_FFT] += WINDOW**2
    kept = slice(N_FFT // 2, N_FFT // 2 + samples)
    audio, weight = audio[:, kept], weight[kept]
    audio = np.divide(audio, weight, out=audio, where=weight > 1e-11)
    return np.pad(audio, ((0, 0), (0, samples - audio.shape[1])))


def middle_and_sides(pair: Array) -> Array:
    """Sum and difference of left and right (…, 2, f, t): twice the middle and the sides."""
    left, right = pair[..., 0, :, :], pair[..., 1, :, :]
    return np.stack([left + right, left - right], axis=-3)


def classic(mixture: Array) -> Array:
    """A mask for the vocals, from magnitudes: one for the middle and one for the sides of stereo, else one for all channels."""
    if len(mixture) == 2:
        heard = middle_and_sides(mixture) / 2
        return middle_and_sides(core(np.abs(heard)[:, None])[:, 0] * heard)[None]
    level = np.sqrt(np.mean(np.abs(mixture) ** 2, axis=0))
    vocals: Array = core(level[None, None])[0] * mixture
    return vocals[None]


def banded(mixture: Array) -> Array:
    """Complex gains for every stem but the last, from three features of each bin. Time is before frequency in the core."""
    floor, compression, phase_weight = (float(FACTS[name]) for name in ("floor", "compression", "phase_weight"))
    stereo, others = len(mixture) == 2, len(STEMS) - 1
    heard = (middle_and_sides(mixture) / 2 if stereo else mixture).transpose(0, 2, 1)
    bins = heard[..., :-1]  # the topmost takes the gains of its neighbour
    power = np.abs(bins) ** 2
    level = power.mean(axis=(1, 2), keepdims=True) + 1e-10
    logs = np.log(power / level + floor)
    compressed = bins * np.exp(logs * (compression - 1) / 2) / np.sqrt(level)
    found = core(np.stack([logs, compressed.real, compressed.imag], axis=2))
    gains = found[:, :others] + 1j * phase_weight * found[:, len(STEMS) :]
    stems = (gains * heard[:, None]).transpose(1, 0, 3, 2)
    return middle_and_sides(stems) if stereo else np.asarray(stems)


def spleeter(mixture: Array) -> Array:
    """A mask for the vocals of both channels, from the magnitudes of the lower bins, in pieces of so many frames."""
    bins, length = int(FACTS["bins"]), int(FACTS["piece_frames"])
    magnitude = np.abs(mixture[:, :bins])
    if len(mixture) != 2:
        level = np.sqrt(np.mean(magnitude**2, axis=0))
        magnitude = np.stack([level, level])
    frames = magnitude.shape[-1]
    padded = np.pad(magnitude, ((0, 0), (0, 0), (0, -frames % length)))
    pieces = np.split(padded, padded.shape[-1] // length, axis=-1)
    mask = np.concatenate([core(piece[None])[0] for piece in pieces], axis=-1)[..., :frames]
    if len(mixture) != 2:
        mask = mask.mean(axis=0, keepdims=True)
    above = np.repeat(mask.mean(axis=1, keepdims=True), mixture.shape[1] - bins, axis=1)
    return (np.concatenate([mask, above], axis=1) * mixture)[None]


STEMS_OF = {"classic": classic, "banded": banded, "spleeter": spleeter}[FACTS["architecture"]]


def fit(audio: Array, samples: int) -> Array:
    return np.pad(audio[:, :samples], ((0, 0), (0, max(0, samples - audio.shape[1]))))


def separate_window(window: Array, rate_hz: int) -> Array:
    """Stems (s, c, n) of a window (c, n). The last stem is what the others leave."""
    at_model_rate = soxr.resample(window.T, rate_hz, RATE_HZ).T
    at_model_rate = fit(at_model_rate, max(1, at_model_rate.shape[1]))
    stems = np.zeros((len(STEMS), *window.shape), np.float32)
    for row, spectrogram in enumerate(STEMS_OF(stft(at_model_rate))):
        stem = istft(spectrogram, at_model_rate.shape[1]).astype(np.float32)
        stems[row] = fit(soxr.resample(stem.T, RATE_HZ, rate_hz).T, window.shape[1])
    stems[-1] = window - stems[:-1].sum(axis=0)
    return stems


def separate(song: Array, rate_hz: int) -> Array:
    """Stems (s, c, n) of a song (c, n): windows that overlap, one fading out while the next fades in."""
    length, overlap = LENGTH_S * rate_hz, OVERLAP_S * rate_hz
    ramp = ((np.arange(overlap) + 0.5) / overlap - 0.1) / 0.8
    fade_in = np.clip(ramp, 0, 1).astype(np.float32)
    stems = np.zeros((len(STEMS), *song.shape), np.float32)
    start = 0
    while True:
        last = song.shape[1] - start <= length
        found = separate_window(song[:, start : start + length], rate_hz)
        if start:
            found[..., :overlap] *= fade_in
        if not last:
            found[..., -overlap:] *= 1 - fade_in
        stems[..., start : start + length] += found
        if last:
            return stems
        start += length - overlap


def distance_db(found: Array, wanted: Array) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(found - wanted).sum(), 1e-20)))


def check(path: str) -> None:
    """Compare the core, then the whole, with the vectors that came with the model."""
    vectors = np.load(path)
    print(f"core: {distance_db(core(vectors['core_in']), vectors['core_out']):.1f} dB")
    stems = separate(vectors["mixture"], int(vectors["rate_hz"]))
    for name, found, wanted in zip(STEMS, stems, vectors["stems"], strict=True):
        print(f"{name}: {distance_db(found, wanted):.1f} dB")


def main() -> None:
    if len(sys.argv) == 2:
        check(sys.argv[1])
        return
    song, folder = Path(sys.argv[1]), Path(sys.argv[2])
    audio, rate_hz = soundfile.read(song, dtype="float32", always_2d=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, stem in zip(STEMS, separate(audio.T, rate_hz), strict=True):
        soundfile.write(folder / f"{name}.wav", stem.T, rate_hz, subtype="FLOAT")


if __name__ == "__main__":
    main()
