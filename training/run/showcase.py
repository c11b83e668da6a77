"""A run's reports to MLflow: its data, each validation, and its best weights as numbers, picture and sound.

Axes: c channel, n sample.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.model.archive import read_archive
from serving.model.separator import Separator
from training.data.data_set import DataSet
from training.data.song import Song
from training.evaluation.evaluate import decimal, middle
from training.evaluation.metrics import recovered_percent
from training.evaluation.plots import spectrogram_figure
from training.run.validate import Scored
from training.tracking.stored_run import ArchiveFacts
from training.tracking.tracking import Split, Tracker

EXCERPT_S = 10


def show_data(tracker: Tracker, data: DataSet, here: Sequence[str]) -> None:
    """Log the songs of train and valid; `here` names the training songs that have arrived."""
    show_split(tracker, data, "training", data.train, [song for song in data.train if song.name in here])
    show_split(tracker, data, "validation", data.valid, data.valid)


def show_split(tracker: Tracker, data: DataSet, split: Split, songs: Sequence[Song], here: Sequence[Song]) -> None:
    headers = [next(iter(song.headers().values())) for song in here]
    seconds = sum(header.samples / header.sample_rate_hz for header in headers)
    tracker.data(data.data, data.digest, split, songs=len(songs), measured=len(here), seconds=seconds)


def show(
    tracker: Tracker, scored: Scored, separator: Separator, song: Song, *, step: int, number: int, better: bool
) -> None:
    """Log validation `number`: its scores and a picture of `song`, the first of the scored songs.

    MLflow's slider counts pictures from 0, validations count from 1. If `better`, log excerpts beside the true stems, and a
    table by song.
    """
    evaluation, spec, stem = scored.evaluation, separator.spec, separator.spec.stems[0]
    numbers = {"usdr_db": evaluation.usdr, "ema_decay": scored.average.decay}
    for name, score in evaluation.stems.items():
        numbers |= {f"{name}_usdr_db": score.usdr_db, f"{name}_csdr_db": score.csdr_db}
    tracker.numbers({f"valid/{name}": value for name, value in numbers.items()}, step)

    (*true, mixture), rate_hz = song.read([*spec.stems, "mixture"])
    *true, mixture = middle(np.stack([*true, mixture]), EXCERPT_S * rate_hz)
    estimates = separator.separate(mixture, rate_hz)
    title = f"{song.name}, step {step:,}, {stem} {decimal(evaluation.songs[0].stems[stem].usdr_db)} dB"
    tracker.picture(
        stem, spectrogram_figure(mixture, true[0], estimates[stem], rate_hz, stem=stem, title=title), number - 1
    )

    if better:
        truth = {f"{name}_true": audio for name, audio in zip(spec.stems, true, strict=True)}
        tracker.listen({"mixture": mixture, **estimates, **truth}, rate_hz)
        columns = ["song", "usdr_db", *(f"{name}_usdr_db" for name in spec.stems)]
        rows = [
            [one.song, *(round(value, 3) for value in (one.usdr_db, *(one.stems[name].usdr_db for name in spec.stems)))]
            for one in evaluation.songs
        ]
        tracker.table("songs.json", columns, rows)


def show_best(tracker: Tracker, origin: Mapping[str, Any]) -> None:
    """Log the scores of new best weights, which replace those before, and describe the run by them.

    `origin` is stored in `best.safetensors`.
    """
    numbers = {"step": origin["step"], "ema_decay": origin["ema_decay"]}
    for stem, score in origin["validation"].items():
        numbers |= {f"{stem}_{name}": value for name, value in score.items() if value is not None}
    best = mean_usdr(origin)
    tracker.summary({"best/usdr_db": best, **{f"best/{name}": value for name, value in numbers.items()}})
    tracker.summary({f"cost/{name}": value for name, value in origin["cost"].items() if value is not None})
    tracker.note(described(origin))


def show_archive(tracker: Tracker, archive: Path) -> None:
    """Log the archive of the run with the facts by which people choose one."""
    opened = read_archive(archive)
    origin = opened.origin
    scores = {f"best/{stem}_usdr_db": score["usdr_db"] for stem, score in origin["validation"].items()}
    facts = ArchiveFacts(
        preset=origin["preset"],
        stems=tuple(opened.spec.stems),
        step=origin["step"],
        licence=opened.licences.weights,
        data=origin["data"],
        data_digest=origin["data_digest"],
        scores={"best/usdr_db": mean_usdr(origin), **scores},
    )
    tracker.archive(archive, facts)


def described(origin: Mapping[str, Any]) -> str:
    """The description of a run in Markdown: headline, table of stems, next command."""
    lines = [
        f"**{mean_usdr(origin):.2f} dB** uSDR, the mean over stems, at step {origin['step']:,}: "
        f"`{origin['preset']}` on `{origin['data']}`",
        "",
        "| stem | uSDR, dB | cSDR, dB | recovered |",
        "|---|---|---|---|",
    ]
    for stem, score in origin["validation"].items():
        csdr_db = score["csdr_db"]
        cells = ("-", "-") if csdr_db is None else (f"{csdr_db:.2f}", f"{recovered_percent(csdr_db):.0f} %")
        lines.append(f"| {stem} | {score['usdr_db']:.2f} | {cells[0]} | {cells[1]} |")
    run = origin["run_id"] or "RUN"
    command = f"stemwright compare runs:/{run}/archive OTHER.mar --data {origin['data']} --report report.html"
    return "\n".join([*lines, "", "Next, against another archive:", "", f"    {command}"])


def mean_usdr(origin: Mapping[str, Any]) -> float:
    """The mean uSDR in dB over the stems; weights are chosen by it."""
    return float(np.mean([score["usdr_db"] for score in origin["validation"].values()]))
