"""The report of a comparison: one HTML file with verdicts, tables, spectrograms and sound, which needs no network.

Axes: s stem, c channel, n sample, f bin, t frame, k slice.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from serving.audio import Audio
from serving.model.spec import StftSpec
from serving.model.spectrogram import Stft
from training.evaluation.compare import Comparison, Row
from training.evaluation.difference import difference
from training.evaluation.evaluate import Excerpt, decimal
from training.evaluation.metrics import si_sar, usdr

SONGS_TO_HEAR = 6
EXCERPT_S = 8
OPUS_HZ = 48_000
SLICES = 18
STFT = StftSpec(n_fft=4096, hop_samples=1024)
LOWEST_DB = -70
PICTURE = (480, 96)
ARTIFACTS_OF = ("drums", "bass")
COLD_DB, WARM_DB = -5.0, 15.0

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""(step, mean uSDR in dB) of each validation of a run, by the name of its archive."""


@dataclass(frozen=True)
class Track:
    """A sound of a song: the mixture, a true stem or a model's; Opus in an Ogg file, and its spectrogram as WebP."""

    who: str
    stem: str
    sound: bytes
    picture: bytes


@dataclass
class Collector:
    """Takes songs as `compare` separates them, and keeps what the report shows of each."""

    slices: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    """SDR in dB (k,) of each slice of a song, by archive and stem, then by song."""
    artifacts: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """SI-SAR in dB of each song, by archive and stem."""
    tracks: dict[str, list[Track]] = field(default_factory=dict)
    """The sounds of the first songs, by song."""

    def __call__(self, excerpt: Excerpt, found: Mapping[str, Mapping[str, Audio]]) -> None:
        for name, separated in found.items():
            stems = list(separated)
            references, estimates = excerpt.references(stems), np.stack([separated[stem] for stem in stems])
            for stem, by_slice, artifact_db in zip(
                stems, slice_sdr(references, estimates), si_sar(references, estimates), strict=True
            ):
                self.slices.setdefault((name, stem), {})[excerpt.song] = by_slice
                self.artifacts.setdefault((name, stem), []).append(float(artifact_db))
        if len(self.tracks) < SONGS_TO_HEAR:
            self.tracks[excerpt.song] = tracks(excerpt, found)


def tracks(excerpt: Excerpt, found: Mapping[str, Mapping[str, Audio]]) -> list[Track]:
    """The seconds of a song with the loudest vocals: the mixture, each true stem, and each model's."""
    stems = list(dict.fromkeys(stem for separated in found.values() for stem in separated))
    start = loudest(excerpt.audio[stems[0]], EXCERPT_S * excerpt.rate_hz)
    part = slice(start, start + EXCERPT_S * excerpt.rate_hz)
    peak = float(spectrum(excerpt.mixture[:, part]).max())

    def track(who: str, stem: str, audio: Audio) -> Track:
        return Track(who, stem, opus(audio[:, part], excerpt.rate_hz), picture(audio[:, part], peak))

    kept = [track("mixture", "mixture", excerpt.mixture)]
    for stem in stems:
        kept.append(track("true", stem, excerpt.audio[stem]))
        kept += [track(name, stem, separated[stem]) for name, separated in found.items() if stem in separated]
    return kept


def report(comparison: Comparison, collected: Collector, title: str, curves: Curves, trained: Mapping[str, Any]) -> str:
    """The page as HTML. `trained` holds, by archive, the seconds and audio seconds of its training where they are known."""
    sections = [
        section("Verdict", verdicts(comparison)),
        section("Scores", scores_table(comparison, collected)),
        section("Listen", '<div id="listen"></div>'),
        section("Songs", songs_table(comparison)),
        section("Slices", slices_tables(collected)),
        section("Cost", cost_table(comparison, trained)),
    ]
    if curves:
        sections.append(
            section("Learning", f'<img alt="learning curves" src="{data_uri(curve_picture(curves), "png")}">')
        )
    songs = [
        {
            "name": song,
            "tracks": [
                {
                    "who": track.who,
                    "stem": track.stem,
                    "sound": base64.b64encode(track.sound).decode(),
                    "picture": data_uri(track.picture, "webp"),
                }
                for track in of_song
            ],
        }
        for song, of_song in collected.tracks.items()
    ]
    page = files("training.experiments").joinpath("report.html").read_text()
    fill = {"TITLE": html.escape(title), "SECTIONS": "\n".join(sections)}
    fill["SONGS"] = json.dumps(songs).replace("</", "<\\/")
    for name, text in fill.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def section(title: str, content: str) -> str:
    return f'<section><h2>{title}</h2>\n<div class="wide">{content}</div></section>'


def verdicts(comparison: Comparison) -> str:
    """A sentence for each stem of the first archive against each other one of the same stems."""
    first, *others = list(dict.fromkeys(row.name for row in comparison.archives))
    lines = []
    for other in others:
        for mine, theirs in pairs(comparison, other, first):
            for stem in mine.evaluation.stems:
                scores = [[song.stems[stem].usdr_db for song in row.evaluation.songs] for row in (mine, theirs)]
                lines.append(difference(*scores).verdict(other, first, stem))
    if not lines:
        lines.append("the archives give different stems: no verdict")
    note = "uSDR, mean over songs, with the 95 % interval of a paired bootstrap over songs"
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + f"</ul><p>{note}</p>"


def pairs(comparison: Comparison, one: str, other: str) -> list[tuple[Row, Row]]:
    """Rows of two archives that were scored on the same stems."""
    return [
        (mine, theirs)
        for mine in comparison.of(one)
        for theirs in comparison.of(other)
        if mine.evaluation.stems.keys() == theirs.evaluation.stems.keys()
    ]


def scores_table(comparison: Comparison, collected: Collector) -> str:
    """A table for each set of stems; SI-SAR beside SDR for drums and bass."""
    tables = []
    rows = (*comparison.archives, *comparison.bounds)
    for stems in dict.fromkeys(tuple(row.evaluation.stems) for row in rows):
        with_artifacts = [stem for stem in stems if stem in ARTIFACTS_OF]
        head = ["", *(f"{stem} uSDR" for stem in stems), "mean uSDR", *(f"{stem} cSDR" for stem in stems)]
        head += [f"{stem} SI-SAR" for stem in with_artifacts]
        of_stems = [row for row in rows if tuple(row.evaluation.stems) == stems]
        body = []
        for row in of_stems:
            artifacts = [collected.artifacts.get((row.name, stem)) for stem in with_artifacts]
            values = [score.usdr_db for score in row.scores]
            values += [row.evaluation.stems[stem].csdr_db for stem in stems]
            cells = [decimal(value) for value in values]
            cells += ["-" if found is None else decimal(float(np.median(found))) for found in artifacts]
            body.append([row.name, *cells])
        tables.append(html_table(head, body))
    return "\n".join(tables)


def songs_table(comparison: Comparison) -> str:
    """uSDR by song, a column for each archive and stem."""
    columns = [(row, stem) for row in comparison.archives for stem in row.evaluation.stems]
    names = [song.song for song in comparison.archives[0].evaluation.songs]
    body = [
        [name, *(decimal(row.evaluation.songs[number].stems[stem].usdr_db) for row, stem in columns)]
        for number, name in enumerate(names)
    ]
    return html_table(["song", *(f"{row.name} {stem}" for row, stem in columns)], body)


def slices_tables(collected: Collector) -> str:
    """SDR in dB of each of 18 equal slices of each song as a heat map, for each archive and stem."""
    maps = []
    for (name, stem), by_song in collected.slices.items():
        lines = []
        for song, values in by_song.items():
            cells = "".join(
                f'<td style="background:{heat(value)}" title="{decimal(value)} dB"></td>' for value in values
            )
            lines.append(f"<tr><th>{html.escape(song)}</th>{cells}</tr>")
        maps.append(
            f'<table class="slices"><caption>{html.escape(f"{name}, {stem}")}</caption>{"".join(lines)}</table>'
        )
    return f"<p>dark: {COLD_DB:g} dB and below; bright: {WARM_DB:g} dB and above; grey: silence</p>" + "\n".join(maps)


def cost_table(comparison: Comparison, trained: Mapping[str, Any]) -> str:
    head = [
        "",
        "10⁶ parameters",
        "GMAC per second",
        "real-time factor",
        "memory, MB",
        "trained, min",
        "audio, h",
        "licence of weights",
    ]
    body = []
    for row in comparison.archives:
        if row.cost is not None:
            cost, origin = row.cost, trained.get(row.name, {})
            times = [(origin.get("trained_s"), 60), (origin.get("trained_audio_s"), 3600)]
            cells = [f"{cost.parameters / 1e6:.2f}", f"{cost.gmac_per_s:.2f}", f"{cost.real_time_factor:.3f}"]
            cells += [f"{cost.peak_bytes / 1e6:.0f}"]
            cells += ["-" if value is None else f"{value / unit:.1f}" for value, unit in times]
            cells.append(row.licence or "-")
            body.append([row.name, *cells])
    return html_table(head, body) + f"<p>real-time factor and memory on {html.escape(str(comparison.device))}</p>"


def html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Cells as text; the first of a row is its heading."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        f"<tr><th>{html.escape(first)}</th>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for first, *cells in body
    )
    return f"<table><tr>{top}</tr>{rows}</table>"


def curve_picture(curves: Curves) -> bytes:
    figure = Figure(figsize=(9, 3.5), dpi=100, layout="constrained")
    axis = figure.subplots()
    for name, points in curves.items():
        axis.plot([step for step, _ in points], [value for _, value in points], marker="o", label=name)
    axis.set(xlabel="step", ylabel="mean uSDR in validation, dB")
    axis.grid(color="0.92")
    axis.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def slice_sdr(references: Audio, estimates: Audio) -> NDArray[np.float64]:
    """SDR in dB (s, k) of 18 equal slices of a song; NaN where the stem is silent."""
    cuts = zip(np.array_split(references, SLICES, axis=-1), np.array_split(estimates, SLICES, axis=-1), strict=True)
    values = np.stack([np.where((true**2).sum((1, 2)) > 1e-6, usdr(true, found), np.nan) for true, found in cuts])
    return np.asarray(values.T)


def heat(value_db: float) -> str:
    if not np.isfinite(value_db):
        return "#ccc"
    red, green, blue, _ = colormaps["viridis"](
        float(np.clip((value_db - COLD_DB) / (WARM_DB - COLD_DB), 0, 1)), bytes=True
    )
    return f"#{red:02x}{green:02x}{blue:02x}"


def loudest(audio: Audio, samples: int) -> int:
    """The start of the loudest stretch of so many samples, to a tenth of it; 0 for shorter audio (c, n)."""
    energy = np.concatenate([[0.0], np.cumsum((audio.astype(np.float64) ** 2).sum(axis=0))])
    starts = np.arange(0, max(1, audio.shape[-1] - samples), max(1, samples // 10))
    ends = np.minimum(starts + samples, audio.shape[-1])
    return int(starts[np.argmax(energy[ends] - energy[starts])])


def opus(audio: Audio, rate_hz: int) -> bytes:
    """Audio (c, n) as Opus in an Ogg file; what exceeds full scale is clipped."""
    out = io.BytesIO()
    at_48 = soxr.resample(np.clip(audio.T, -1, 1), rate_hz, OPUS_HZ)
    soundfile.write(out, at_48, OPUS_HZ, format="OGG", subtype="OPUS", compression_level=0.9)
    return out.getvalue()


def spectrum(audio: Audio) -> NDArray[np.float32]:
    """Magnitudes (f, t) of the channels' mean."""
    magnitudes: NDArray[np.float32] = Stft(STFT)(torch.from_numpy(audio.mean(axis=0).copy())).abs().numpy()
    return magnitudes


def picture(audio: Audio, peak: float) -> bytes:
    """The spectrogram of audio (c, n) in dB below `peak`, low bins at the bottom and stretched as a logarithm does."""
    magnitudes = spectrum(audio)
    bins = np.unique(np.geomspace(2, len(magnitudes) - 1, PICTURE[1]).astype(int))
    levels = 20 * np.log10(np.maximum(magnitudes[bins] / max(peak, 1e-8), 1e-8))
    shades = np.clip(1 - levels / LOWEST_DB, 0, 1)[::-1]
    image = Image.fromarray(colormaps["magma"](shades, bytes=True)[..., :3].copy()).resize(PICTURE)
    out = io.BytesIO()
    image.save(out, "webp", quality=60)
    return out.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
