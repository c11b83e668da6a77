"""Separate a whole catalogue: list its songs, skip those that are done, record the outcome of each."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from serving.catalogue.task import Outcome, tasks
from serving.catalogue.worker import Form
from serving.errors import RequestError
from serving.model.archive import read_archive
from serving.model.source import resolve
from serving.settings import Settings
from serving.songs.request import stems_named
from serving.storage.storage import store_file


@dataclass
class Summary:
    """Totals over a catalogue's outcomes."""

    started_s: float = field(default_factory=time.monotonic)
    states: Counter[str] = field(default_factory=Counter)
    audio_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.states[outcome.state] += 1
        self.audio_s += outcome.audio_s

    def to_json(self, price_per_hour: float | None) -> dict[str, Any]:
        """Counts, rates and, given the hourly price of all machines, the cost of 1,000 such songs."""
        hours, done = (time.monotonic() - self.started_s) / 3600, self.states["done"]
        facts: dict[str, Any] = {state: self.states[state] for state in ("done", "skipped", "failed")}
        facts |= {"hours": round(hours, 4), "audio_hours": round(self.audio_s / 3600, 4)}
        if done:
            facts |= {
                "songs_per_hour": round(done / hours, 1),
                "real_time_factor": round(3600 * hours / self.audio_s, 5) if self.audio_s else None,
            }
            if price_per_hour is not None:
                facts["price_of_1000_songs"] = round(1000 * price_per_hour * hours / done, 4)
        return facts


def catalogue(
    songs: str, to: str, model: str, form: Form, *, gpus_per_worker: float = 0, price_per_hour: float | None = None
) -> Summary:
    """Separate the songs below one URL into folders below another.

    At the end, or when interrupted, `catalogue-<time>.jsonl` is stored beside the stems: a line for each song, then the
    summary. Raises StemwrightError for a model, store or request that cannot be used. A song that fails is a line.
    """
    from serving.catalogue.ray_cluster import connected

    with tempfile.TemporaryDirectory() as folder:
        archive = resolve(model, Path(folder))
        stems_named(form.stems, read_archive(archive).spec)
        weights = archive.read_bytes()
    with (
        connected(gpus_per_worker, Settings.from_env().engine) as cluster,
        journal(to, price_per_hour) as (summary, write),
    ):
        references, count = cluster.put(tasks(songs, to))
        if not count:
            raise RequestError(f"there are no songs below {songs}: name a bucket's folder with audio files")
        with tqdm(total=count, unit="song", desc="catalogue", disable=None, mininterval=1) as bar:
            for outcome in cluster.outcomes(references, weights, form):
                write(outcome)
                bar.set_postfix(failed=summary.states["failed"], skipped=summary.states["skipped"], refresh=False)
                bar.update()
            if summary.states.total() < count:
                for task in cluster.without_outcome(references, write.songs()):
                    write(
                        Outcome(task.song, task.out, "failed", "its workers were lost: try it alone, with more memory")
                    )
                    bar.update()
    return summary


class Journal:
    """Writes a line for each outcome and adds it up."""

    def __init__(self, file: IO[str], summary: Summary) -> None:
        self.file, self.summary = file, summary

    def __call__(self, outcome: Outcome) -> None:
        self.summary.add(outcome)
        self.file.write(json.dumps(outcome.to_json()) + "\n")

    def songs(self) -> Iterator[str]:
        """Yield the songs written so far."""
        self.file.flush()
        with Path(self.file.name).open() as lines:
            yield from (json.loads(line)["song"] for line in lines)


@contextmanager
def journal(to: str, price_per_hour: float | None) -> Iterator[tuple[Summary, Journal]]:
    """A journal that is stored below `to` when the block ends, even by an error."""
    summary = Summary()
    name = f"catalogue-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        with path.open("w") as file:
            try:
                yield summary, Journal(file, summary)
            finally:
                file.write(json.dumps({"summary": summary.to_json(price_per_hour)}) + "\n")
                file.flush()
                if summary.states:
                    store_file(path, f"{to.rstrip('/')}/{name}")
