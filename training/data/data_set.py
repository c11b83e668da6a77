"""Data sets: which songs there are, how they are split, and how they come to this machine.

train|test/<Artist - Title>.stem.mp4                               MUSDB18
train|test/<Artist - Title>/{drums,bass,other,vocals}.wav|flac     MUSDB18-HQ and your own songs
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Self

from serving.storage.storage import Progress, counter, no_progress
from training.data.musdb18 import SOURCES, Song, StemFile, StemFolder, validation_tracks
from training.data.source import Source, find_source
from training.errors import DataError
from training.transfer.parallel import run_parallel

SPLITS = ("train", "valid", "test")
CHECKS = 8
"""Songs whose headers are read side by side."""


@dataclass(frozen=True)
class DataSet:
    """Songs to train on, to choose weights by and to report on. An empty split raises DataError when it is asked for.

    `digest` is the SHA-256 of a line `<split folder>/<file>\\t<size in bytes>` for each file that is read, sorted. All of it
    is known before any file is here; a song can be read once `bring` was called with it.
    """

    data: str
    layout: str
    digest: str
    splits: Mapping[str, tuple[Song, ...]]
    files: Mapping[Song, tuple[str, ...]]
    source: Source
    folder: Path

    @classmethod
    def of(cls, source: Source, folder: Path, valid_share: float) -> Self:
        """The songs that the names of a source's files tell of, as they will lie in a folder."""
        songs: dict[str, dict[Song, tuple[str, ...]]] = {
            split: dict(sorted(songs_in(split, source, folder), key=lambda found: found[0].name))
            for split in ("train", "test")
        }
        files = {**songs["train"], **songs["test"]}
        layouts = {type(song) for song in files}
        if len(layouts) == 2:
            raise DataError(f"{source.data} mixes .stem.mp4 files with folders of stems: keep one of the two")
        for name in sorted({song.name for song in songs["train"]} & {song.name for song in songs["test"]}):
            raise DataError(f"{source.data}: {name} is in train/ and in test/: remove it from one of them")
        chosen = validation_names([song.name for song in songs["train"]], valid_share)
        splits = {
            "train": tuple(song for song in songs["train"] if song.name not in chosen),
            "valid": tuple(song for song in songs["train"] if song.name in chosen),
            "test": tuple(songs["test"]),
        }
        lines = sorted(f"{name}\t{source.files[name]}\n" for names in files.values() for name in names)
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        layout = "MUSDB18" if StemFile in layouts else "MUSDB18-HQ"
        return cls(source.data, layout, digest, splits, files, source, folder)

    @property
    def train(self) -> tuple[Song, ...]:
        return self.split("train")

    @property
    def valid(self) -> tuple[Song, ...]:
        return self.split("valid")

    @property
    def test(self) -> tuple[Song, ...]:
        return self.split("test")

    def split(self, name: str) -> tuple[Song, ...]:
        if not self.splits[name]:
            raise DataError(f"{self.data} has no songs for the {name} split: add some to its folder {name}/")
        return self.splits[name]

    def bring(self, songs: Sequence[Song], progress: Progress = no_progress, stopping: Event | None = None) -> None:
        """Have these songs here, whole: copied unless they are here, verified, their headers checked.

        Any thread or process may, beside others. Raises StorageError; DataError if a stem is damaged or of another length
        than its neighbours, or the disk is full; Stopped soon after `stopping` is set.
        """
        stopping = stopping or Event()
        names = [name for song in songs for name in self.files[song]]
        self.source.bring(names, self.folder, progress, stopping)
        count = counter("check songs", len(songs), progress)

        def check(song: Song) -> None:
            song.check()
            count(1)

        run_parallel(check, songs, CHECKS, stopping)


def list_dataset(data: str, work_dir: Path, valid_share: float = 0.15) -> DataSet:
    """The data set in a folder, a zip, or below an s3:// URL, with no song brought; those come to a folder in `work_dir`.

    The 14 official songs are for validation where the songs carry their names, else `valid_share` of the songs to train
    on, at least one, chosen by a hash of the name. Raises DataError or StorageError: a layout that is neither of the two,
    a stem that is missing, a song to train on that is also a test song.
    """
    source = find_source(data)
    return DataSet.of(source, source.place(work_dir), valid_share)


def open_dataset(
    data: str,
    work_dir: Path,
    valid_share: float = 0.15,
    progress: Progress = no_progress,
    splits: Sequence[str] = SPLITS,
) -> DataSet:
    """As `list_dataset`, with the songs of some splits brought. Raises what `DataSet.bring` raises, too."""
    data_set = list_dataset(data, work_dir, valid_share)
    data_set.bring([song for split in splits for song in data_set.splits[split]], progress)
    return data_set


def copy_dataset(data: str, folder: Path, splits: Sequence[str], progress: Progress = no_progress) -> DataSet:
    """Bring the files of some splits to a folder, which is a data set then; without a look into them.

    Raises StorageError or DataError, also for a folder with songs that are not in the data set.
    """
    source = find_source(data)
    if source.place(folder) == Path(data):
        raise DataError(f"{data} is a folder on this machine: use it where it is")
    data_set = DataSet.of(source, folder, valid_share=0.15)
    here = [path.relative_to(folder).as_posix() for split in ("train", "test") for path in folder.glob(f"{split}/*/*")]
    for name in sorted(set(here) - source.files.keys()):
        raise DataError(f"{folder} holds {name}, which {data} does not: name a folder of its own for each data set")
    songs = [song for split in splits for song in data_set.splits[split]]
    if not songs:
        raise DataError(f"{data} has no songs for the {' or '.join(splits)} split: ask for another one")
    source.bring([name for song in songs for name in data_set.files[song]], folder, progress, Event())
    return data_set


def songs_in(split: str, source: Source, folder: Path) -> Iterator[tuple[Song, tuple[str, ...]]]:
    """The songs below train/ or test/, each with the names of the files that are read."""
    names = [name for name in source.files if name.startswith(f"{split}/")]
    for path in {name.rsplit("/", 1)[0] for name in names} - {split}:
        song = path.removeprefix(f"{split}/")
        yield StemFolder(song, folder / path), tuple(stem_file(source, path, stem) for stem in SOURCES)
    for name in names:
        if name.count("/") == 1:
            yield StemFile(name.removeprefix(f"{split}/").removesuffix(".stem.mp4"), folder / name), (name,)


def stem_file(source: Source, path: str, stem: str) -> str:
    for name in (f"{path}/{stem}.wav", f"{path}/{stem}.flac"):
        if name in source.files:
            return name
    raise DataError(f"{source.data}/{path} lacks {stem}.wav: every song needs {', '.join(SOURCES)} as .wav or .flac")


def validation_names(names: Sequence[str], share: float) -> set[str]:
    official = validation_tracks().intersection(names)
    if official and len(official) < len(names):
        return set(official)
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(by_hash[: max(1, round(share * len(names)))])
