"""A worker of a catalogue: one model that separates songs from a store and puts the stems back, one song after the other.

It stores stems first and the fact sheet last, so a fact sheet in the store means that the song is done.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch

from serving.audio.delivery import FACT_SHEET
from serving.audio.encoding import AudioFormat
from serving.catalogue.task import Outcome, Task
from serving.errors import SpecError, StemwrightError, StorageError
from serving.model.separator import Separator
from serving.model.spec import STEMS, Quality
from serving.settings import EngineName, cache_folder
from serving.songs.fact_sheet import FactSheet, SongFile
from serving.songs.request import Request, stems_named
from serving.storage.storage import StoredFile, delete, fetch_file, find_file, is_remote, list_files, store_file


@dataclass(frozen=True)
class Form:
    """The stems wanted of every song, and their form. `stems` is a comma-separated list, empty for the model's own."""

    stems: str = ""
    audio_format: AudioFormat = "wav"
    bit_depth: str | None = None
    quality: Quality = "fast"

    def request(self, separator: Separator) -> Request:
        names = stems_named(self.stems, separator.spec)
        return Request(names, self.audio_format, zipped=True, bit_depth=self.bit_depth, quality=self.quality)


class Worker:
    """Separates songs with the model of an archive, given as bytes."""

    def __init__(self, archive: bytes, form: Form, device: str | None, engine: EngineName) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.mar")
            path.write_bytes(archive)
            self.separator = Separator.open(path, device, engine, cache_folder())
        self.request = form.request(self.separator)

    def __call__(self, task: Task) -> Outcome:
        """Separate one song unless its stems are there. No error of a song leaves this method."""
        started = time.monotonic()
        try:
            outcome = self.separate(task)
        except (StemwrightError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            outcome = Outcome(task.song, task.out, "failed", f"{type(error).__name__}: {error}")
        return replace(outcome, seconds=round(time.monotonic() - started, 3))

    def separate(self, task: Task) -> Outcome:
        song = find_file(task.song)
        if song is None:
            raise StorageError(f"there is no {task.song} any more")
        if self.is_done(song, task.out):
            return Outcome(task.song, task.out, "skipped")
        with tempfile.TemporaryDirectory() as folder:
            # The song keeps its suffix, which identifies some formats.
            path, stems = Path(folder, f"song{PurePosixPath(song.name).suffix}"), Path(folder, "stems")
            fetch_file(task.song, path)
            self.request.files(self.separator, path, stems, song=SongFile.of(path, song.name, song.etag or None))
            sheet = FactSheet.from_json((stems / FACT_SHEET).read_bytes())
            self.store(sheet, stems, task.out)
        return Outcome(task.song, task.out, "done", audio_s=sheet.song.samples / sheet.song.rate_hz)

    def is_done(self, song: StoredFile, out: str) -> bool:
        """True if the store has the fact sheet of this song, model and request."""
        if find_file(f"{out}/{FACT_SHEET}") is None:
            return False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, FACT_SHEET)
            fetch_file(f"{out}/{FACT_SHEET}", path)
            try:
                sheet = FactSheet.from_json(path.read_bytes())
            except SpecError:
                return False
        same_song = (sheet.song.size_bytes, sheet.song.etag or "") == (song.size_bytes, song.etag)
        return same_song and sheet.answers(self.request, self.separator.weights_sha256)

    def store(self, sheet: FactSheet, stems: Path, out: str) -> None:
        """Remove what an earlier request left; store the stems, then the fact sheet."""
        kept = {file.name for file in sheet.files.values()}
        ours = {f"{stem}.{audio_format}" for stem in STEMS for audio_format in ("wav", "flac", "mp3", "ogg")}
        for file in list_files(out) if is_remote(out) or Path(out).is_dir() else []:
            if file.name == FACT_SHEET or file.name in ours - kept:
                delete(file.url)
        for name in sorted(kept):
            store_file(stems / name, f"{out}/{name}")
        store_file(stems / FACT_SHEET, f"{out}/{FACT_SHEET}")
