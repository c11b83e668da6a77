"""Figures for MLflow and reports: matplotlib's object-oriented interface, no global state.

Axes: c channel, n sample, f bin, t frame, m mel band.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import librosa
import librosa.display
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import NDArray

from serving.audio import Audio
from serving.model.spec import STEMS, StftSpec
from serving.model.spectrogram import Stft

Image = NDArray[np.float32]

# The window is long enough to separate harmonics; the bands are so few that each holds a bin even at 96 kHz.
STFT = StftSpec(n_fft=4096, hop_samples=512)
MEL_BANDS = 128

LOUDNESS = {"cmap": "magma", "vmin": -70, "vmax": 0}
SHARE = {"cmap": "cividis", "vmin": 0, "vmax": 1}
SILENT_SHARE = 1e-4
"""Magnitude relative to the peak (-80 dB) that counts as silent, where a mask has no meaning."""

STEM_COLOURS = dict(zip(STEMS, ("#d1495b", "#00798c", "#6a4c93", "#edae49", "#3d5a80"), strict=True))
LOWEST_DB = -10
"""Worse scores, as of a silent stem, are drawn at the edge: they would squeeze all others into a corner."""
LABELLED = 4


@dataclass(frozen=True)
class Point:
    """The uSDR in dB of one stem of a song: x of one archive, y of another."""

    song: str
    stem: str
    x_db: float
    y_db: float


def spectrogram_figure(
    mixture: Audio, target: Audio, estimate: Audio, rate_hz: int, *, stem: str = "vocals", title: str | None = None
) -> Figure:
    """Four panels of one excerpt (c, n): mixture, true stem, estimate, and the mask from mixture to estimate.

    Mel spectrograms of the channels' mean, in dB below the mixture's peak. The mask is |estimate| / |mixture| in each mel
    band, clipped to 0..1, whatever the model predicts inside.
    """
    spectrograms = [
        mel(Stft(STFT)(torch.from_numpy(audio.mean(axis=0))).abs().numpy(), rate_hz)
        for audio in (mixture, target, estimate)
    ]
    peak = spectrograms[0].max()
    mask = np.clip(ratio(spectrograms[2], spectrograms[0]), 0, 1)

    figure = Figure(figsize=(12, 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    titles = ("Mixture", f"Target {stem}", f"Estimated {stem}")
    for axis, title, spectrogram in zip(axes.flat[:3], titles, spectrograms, strict=True):
        levels = draw(axis, title, decibels(spectrogram, peak), LOUDNESS, rate_hz=rate_hz, hop_samples=STFT.hop_samples)
    shares = draw(axes[1, 1], f"Mask of {stem}", mask, SHARE, rate_hz=rate_hz, hop_samples=STFT.hop_samples)
    for axis in axes.flat:
        axis.label_outer()
    figure.colorbar(levels, ax=axes[0], label="dB below the mixture's peak", pad=0.01)
    figure.colorbar(shares, ax=axes[1], label=f"share given to {stem}", pad=0.01)
    if title is not None:
        figure.suptitle(title)
    return figure


def profile_figure(
    magnitude: Image,
    mask: Image | None,
    means: Sequence[float],
    percents: Mapping[str, Sequence[float]],
    *,
    rate_hz: int,
    hop_samples: int,
) -> Figure:
    """A song's magnitudes (f, t), its vocal mask (f, t) if given, and bars for equal slices of the song.

    The bars show mean magnitudes, and percentages by label.
    """
    rows = 3 if mask is None else 4
    figure = Figure(figsize=(12, 2.6 * rows), dpi=110, layout="constrained")
    *above, axis_of_means, axis_of_percents = figure.subplots(rows, 1, sharex=True)

    bands = mel(magnitude, rate_hz)
    levels = draw(above[0], "Song", decibels(bands, bands.max()), LOUDNESS, rate_hz=rate_hz, hop_samples=hop_samples)
    figure.colorbar(levels, ax=above[0], label="dB below the peak", pad=0.01)
    if mask is not None:
        share = ratio(mel(mask * magnitude, rate_hz), bands)
        shares = draw(above[1], "Vocal mask", share, SHARE, rate_hz=rate_hz, hop_samples=hop_samples)
        figure.colorbar(shares, ax=above[1], label="share given to the vocals", pad=0.01)

    edges_s = np.linspace(0, magnitude.shape[1] * hop_samples / rate_hz, len(means) + 1)
    width_s = edges_s[1]
    axis_of_means.bar(edges_s[:-1], means, 0.9 * width_s, align="edge", color="#5b6b8c")
    axis_of_means.set(title=f"{len(means)} equal slices", ylabel="mean magnitude")
    for nth, (label, values) in enumerate(percents.items()):
        share_s = 0.9 * width_s / len(percents)
        axis_of_percents.bar(edges_s[:-1] + nth * share_s, values, share_s, align="edge", label=label, color=f"C{nth}")
    axis_of_percents.set(xlabel="Time (seconds)", ylabel="% of the slice's magnitude", ylim=(0, 100))
    axis_of_percents.legend(loc="upper right", ncols=len(percents))
    for axis in above:
        axis.label_outer()
    return figure


def scatter_figure(first: str, others: Mapping[str, Sequence[Point]]) -> Figure:
    """Every song under two archives, coloured by stem. Above the diagonal the other archive is better than `first`.

    One panel for each other archive, by name. Labels mark the songs that differ most. Scores below LOWEST_DB lie on the
    edge.
    """
    values = [
        max(LOWEST_DB, value) for points in others.values() for point in points for value in (point.x_db, point.y_db)
    ]
    limits = min(values) - 1, max(values) + 1
    columns = min(3, len(others))
    rows = -(-len(others) // columns)
    figure = Figure(figsize=(0.6 + 5.6 * columns, 5.6 * rows), dpi=110, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (other, points) in zip(axes, others.items(), strict=False):
        draw_points(axis, points, limits)
        axis.set(xlabel=f"{first}: uSDR of a song, dB", ylabel=f"{other}: uSDR, dB", title=winner(first, other, points))
    for axis in axes[len(others) :]:
        axis.remove()
    legend = {label: dots for axis in axes for dots, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=len(legend), frameon=False)
    return figure


def winner(first: str, other: str, points: Sequence[Point]) -> str:
    """The better archive in words, such as `b is better: +0.21 dB on average, on 9 of 12`."""
    gains = np.array([point.y_db - point.x_db for point in points])
    better, sign = (other, 1) if gains.mean() >= 0 else (first, -1)
    return (
        f"{better} is better: {abs(gains.mean()):.2f} dB on average, on {int((sign * gains > 0).sum())} of {len(gains)}"
    )


def draw_points(axis: Axes, points: Sequence[Point], limits: tuple[float, float]) -> None:
    low, high = limits
    axis.plot(limits, limits, color="0.6", linewidth=1, zorder=1)
    for stem in STEMS:
        places = [place(point) for point in points if point.stem == stem]
        if places:
            x, y = [x for x, _ in places], [y for _, y in places]
            axis.scatter(x, y, sizes=[24], alpha=0.8, color=STEM_COLOURS[stem], linewidths=0, label=stem)
    for point in most_different(points, apart_db=0.04 * (high - low)):
        at = place(point)
        across = (at[0] - low) / (high - low)
        # The label goes to the side away from the diagonal, where points are few, unless the panel ends there.
        to_left = across > 0.35 if point.y_db > point.x_db else across > 0.65
        form: dict[str, Any] = {"fontsize": 7, "color": "0.25", "va": "center", "ha": "right" if to_left else "left"}
        axis.annotate(point.song, at, (-6 if to_left else 6, 0), textcoords="offset points", **form)
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    axis.grid(color="0.92")
    axis.set_axisbelow(True)


def most_different(points: Sequence[Point], apart_db: float) -> list[Point]:
    """The points farthest from the diagonal, without those whose label would overlap that of a farther point."""
    chosen: list[Point] = []
    for point in sorted(points, key=lambda point: -abs(point.y_db - point.x_db)):
        if all(abs(place(point)[1] - place(other)[1]) >= apart_db for other in chosen):
            chosen.append(point)
    return chosen[:LABELLED]


def place(point: Point) -> tuple[float, float]:
    return max(LOWEST_DB, point.x_db), max(LOWEST_DB, point.y_db)


def mel(magnitude: Image, rate_hz: int) -> Image:
    """Mel bands (m, t) of magnitudes (f, t)."""
    # Not librosa.feature: it compiles with numba on first use, 20 s on two cores in every fresh container.
    filters: Image = librosa.filters.mel(sr=rate_hz, n_fft=2 * (len(magnitude) - 1), n_mels=MEL_BANDS)
    return filters @ magnitude


def decibels(magnitude: Image, peak: float) -> Image:
    """Levels in dB below a peak magnitude."""
    levels: Image = 20 * np.log10(np.maximum(magnitude, 1e-8) / max(peak, 1e-8))
    return levels


def ratio(part: Image, whole: Image) -> Image:
    """The part divided by the whole, 0 where the whole is silent."""
    shares: Image = part / (whole + max(SILENT_SHARE * whole.max(), 1e-8))
    return shares


def draw(
    axis: Axes, title: str, image: Image, colours: Mapping[str, Any], *, rate_hz: int, hop_samples: int
) -> QuadMesh:
    """Draw mel bands (m, t) over time and frequency."""
    mesh: QuadMesh = librosa.display.specshow(
        image, x_axis="s", y_axis="mel", sr=rate_hz, hop_length=hop_samples, ax=axis, rasterized=True, **colours
    )
    axis.set_title(title)
    return mesh
